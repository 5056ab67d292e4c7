"""Files of RandAR: released weights, folders of its training, its YAML; the CIFAR-10 baseline's (formats.md R3)."""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.autoencoder import Autoencoder
from models.config import AutoencoderPaths
from models.family import Generator
from models.llamagen.config import STRIDE
from models.llamagen_vq import LlamaGenVQ
from models.loading.autoencoder import first_file, infer_autoencoder_config, places_of, read_autoencoder_state
from models.loading.hub import autoencoder_section
from models.loading.llamagen import (
    AUTOENCODER,
    AUTOENCODER_NAME,
    HEAD,
    INSTRUCTION,
    TABLE,
    size_of,
    states_of,
)
from models.loading.state import PublishedLayout, our_names
from models.maskgit_vq import MaskGITVQ
from models.randar.config import RandARConfig
from models.vqvae import VQVAE
from runtime import distributed
from runtime.errors import UserError
from runtime.files import PROJECT

USUAL_MULTIPLE = 256
USUAL_HEAD_DIM, USUAL_LOCATIONS = 64, 256  # of every released file; neither can be read off the weights
MASKGIT = PROJECT / "pretrained_models/maskgit/maskgit-vqgan-imagenet-f16-256.bin"
AUTOENCODERS = {  # of released files, by V: where download.sh puts each, and its name on the hub
    16384: (AUTOENCODER, AUTOENCODER_NAME),
    1024: (MASKGIT, f"fun-research/TiTok/{MASKGIT.name}"),
}
TARGETS = {  # of tokenizers, by the kind of autoencoder that each is
    LlamaGenVQ.kind: "RandAR.model.tokenizer.VQModel",
    MaskGITVQ.kind: "RandAR.model.tokenizer.MaskGITTokenizer",
    VQVAE.kind: "tokenizer_vq.model.Model",
}
NEEDED = ("n_layer", "n_head", "dim", "vocab_size", "block_size")


def translate_config(content: Mapping[str, Any], path: Path) -> dict[str, Any] | None:
    """Our ``model:`` section of RandAR's YAML at ``path``; None if it is another."""
    params = (content.get("ar_model") or {}).get("params") if isinstance(content.get("ar_model"), Mapping) else None
    if not isinstance(params, Mapping):
        return None
    sizes = {key: params.get(key) for key in NEEDED} | {"multiple_of": params.get("multiple_of", USUAL_MULTIPLE)}
    for key, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{path} has ar_model.params.{key} {value}; it must be a whole number above 0")
    side, order = math.isqrt(params["block_size"]), params.get("position_order", "random")
    if side * side != params["block_size"]:
        raise UserError(f"{path} has block_size {params['block_size']}, which is no square grid of codes")
    if order not in ("random", "raster"):
        raise UserError(f"{path} has position_order {order}; known are random and raster")
    weights = _tokenizer_file(content.get("vq_ckpt"), path)
    # The YAML need not name the tokenizer's levels, and may name others than the file has.
    stride = STRIDE if weights is None else infer_autoencoder_config(read_autoencoder_state(weights), weights).stride
    return {
        "architecture": "randar",
        "img_size": side * stride,
        "num_classes": params.get("num_classes", RandARConfig.num_classes),
        "vocab_size": params["vocab_size"],
        "scan_order": order,
        "dropout": params.get("token_dropout_p", RandARConfig.dropout),
        "drop_path_rate": params.get("drop_path_rate", 0.0),
        "label_drop": params.get("class_dropout_prob", RandARConfig.label_drop),
        "llama_config": {
            "hidden_size": params["dim"],
            "intermediate_size": ffn_width(params["dim"], sizes["multiple_of"]),
            "num_attention_heads": params["n_head"],
            "num_hidden_layers": params["n_layer"],
        },
        "autoenc": {} if weights is None else {"checkpoint_path": str(weights)},
    }


def ffn_width(width: int, multiple_of: int) -> int:
    """Width inside the feed-forward layers: 8/3 of D, rounded up to a multiple."""
    return -(-(8 * width // 3) // multiple_of) * multiple_of


def _tokenizer_file(weights: Any, path: Path) -> Path | None:
    """Where the tokenizer that the YAML at ``path`` names lies; without it a model scores and draws codes alone."""
    if weights is None:
        return None
    if not isinstance(weights, str):
        raise UserError(f"{path} has vq_ckpt {weights}; it must be the tokenizer's file")
    try:
        found = first_file(places_of(weights, path.parent))
    except UserError as error:  # outside the folders that may be read
        warnings.warn(f"{error}; until then codes can be drawn, but no images", stacklevel=2)
        return None
    if found is None:
        message = f"no tokenizer at {weights}, which {path} names as vq_ckpt: codes can be drawn, but no images"
        warnings.warn(message, stacklevel=2)
    return found


def complete_section(section: dict[str, Any] | None, content: Mapping[str, Any], path: Path) -> dict[str, Any] | None:
    """The ``model:`` section with what it leaves open read off the file, if its weights are RandAR's."""
    state = states_of(content)["model"]
    if not any(str(key).endswith(INSTRUCTION) for key in state):
        return section
    state = our_names(state)
    if any(key not in state or state[key].ndim != 2 for key in (TABLE, HEAD)):
        return section  # what is wrong with it is said where it is used
    alone = section is None
    config = content.get("config")  # of the CIFAR-10 baseline
    section = (translate_config(config, path) if alone and isinstance(config, Mapping) else section) or {}
    given, size = section.get("llama_config", {}), size_of(state)
    if not isinstance(given, Mapping):
        return section
    found = {
        "architecture": "randar",
        "img_size": math.isqrt(USUAL_LOCATIONS) * STRIDE,
        "num_classes": len(state[TABLE]) - 1,
        "vocab_size": len(state[HEAD]),
    }
    if "num_attention_heads" not in given:
        heads, rest = divmod(size["hidden_size"], USUAL_HEAD_DIM)
        if rest:
            raise UserError(
                f"{path} has width {size['hidden_size']}, from which its heads cannot be told; put RandAR's YAML "
                "beside it as config.yaml"
            )
        size["num_attention_heads"] = heads
    usual = AUTOENCODERS.get(found["vocab_size"])
    if alone and "autoenc" not in section and usual is not None:
        found |= autoencoder_section(*usual, path)
    return found | section | {"llama_config": size | given}


def published_config(model: Generator, autoenc: AutoencoderPaths, path: Path) -> dict[str, Any]:
    """RandAR's YAML of a model; a UserError if it cannot say what the model is."""
    config: RandARConfig = model.config
    size = config.llama_config
    fits = [
        number for number in (USUAL_MULTIPLE, 64, size.ffn_size) if ffn_width(size.hidden_size, number) == size.ffn_size
    ]
    if not fits or not config.class_cond:
        what = f"intermediate_size {size.intermediate_size}" if config.class_cond else "a model without classes"
        raise UserError(f"{path} has {what}, which RandAR's layout cannot say")
    params = {
        "n_layer": size.num_hidden_layers,
        "n_head": size.num_attention_heads,
        "dim": size.hidden_size,
        "multiple_of": fits[0],
        "model_type": "c2i",
        "vocab_size": config.vocab_size,
        "block_size": model.num_locations,
        "num_classes": config.num_classes,
        "cls_token_num": 1,
        "class_dropout_prob": config.label_drop,
        "token_dropout_p": config.dropout,
        "resid_dropout_p": config.dropout,
        "ffn_dropout_p": config.dropout,
        "drop_path_rate": config.drop_path_rate,
        "position_order": config.scan_order,
    }
    whole = {"ar_model": {"target": "RandAR.model.randar_gpt.RandARTransformer", "params": params}}
    if model.autoencoder is None:
        return whole
    return whole | {"tokenizer": _tokenizer_section(model.autoencoder), "vq_ckpt": autoenc.checkpoint_path}


def _tokenizer_section(autoencoder: Autoencoder) -> dict[str, Any]:
    """What RandAR's YAML says of a tokenizer."""
    section, config = {"target": TARGETS[autoencoder.kind]}, autoencoder.config
    if autoencoder.kind != LlamaGenVQ.kind:
        return section
    levels = list(config.ch_mult)
    params = {"codebook_size": config.n_embed, "codebook_embed_dim": config.embed_dim, "codebook_l2_norm": True}
    params |= {"encoder_ch_mult": levels, "decoder_ch_mult": levels, "z_channels": config.z_channels}
    return section | {"params": params}


def published_file(models: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Bare weights, as RandAR releases them; averaged ones, which it does not know, are left behind."""
    if models["model_ema"] is not None:
        distributed.say(
            "averaged weights are left out: RandAR's files have none; --format safetensors --use_ema has them"
        )
    return "randar.safetensors", models["model"].state_dict()


LAYOUT = PublishedLayout(
    (), published_config, published_file, states_of, complete_section, translate_config, llamagens_tokenizer=True
)
