"""Files of LlamaGen and of Next Patch Prediction: where weights are, and what model they are of (formats.md G2)."""

import argparse
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from models.class_names import NUM_IMAGENET
from models.config import AutoencoderPaths
from models.family import Generator
from models.llamagen.config import STRIDE, LlamaGenConfig
from models.loading.hub import autoencoder_section
from models.loading.state import CLASS_NAMES, PublishedLayout, our_names
from runtime.errors import UserError
from runtime.files import PROJECT


class Size(NamedTuple):
    """A published size."""

    name: str
    heads: int


INSTRUCTION = "pos_instruct_embeddings"  # of RandAR's weights, which are else named as these
TABLE, HEAD = "cls_embedding.embedding_table.weight", "output.weight"
FIRST = "layers.0.feed_forward.w1.weight"
SIZES = {  # by layers and width; heads cannot be read off the weights
    (12, 768): Size("B", 12),
    (24, 1024): Size("L", 16),
    (36, 1280): Size("XL", 20),
    (48, 1536): Size("XXL", 24),
    (24, 3200): Size("3B", 32),
}
STATES = ("model", "module", "state_dict")  # of DDP, DeepSpeed and others; without one of them, all is weights
NO_WEIGHTS = re.compile(r"(.*\.)?(freqs_cis|causal_mask|kv_cache\.[kv]_cache)")
IN_NAME = re.compile(r"_(256|384|512)(?!\d)")
# The autoencoder of every released model, where download.sh puts it: of a file that has no config.yaml beside it.
AUTOENCODER = PROJECT / "pretrained_models/llamagen/vq_ds16_c2i.pt"
AUTOENCODER_NAME = "FoundationVision/LlamaGen/vq_ds16_c2i.pt"  # on the hub


def states_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """``model``, and ``model_ema`` if there are averaged weights, of the contents of a file."""
    state = next((content[key] for key in STATES if isinstance(content.get(key), Mapping)), content)
    found = {"model": state, "model_ema": content.get("ema", content.get("model_ema"))}
    return {
        key: {name: w for name, w in each.items() if not NO_WEIGHTS.fullmatch(str(name))}
        if isinstance(each, Mapping)
        else each
        for key, each in found.items()
    }


def complete_section(section: dict[str, Any] | None, content: Mapping[str, Any], path: Path) -> dict[str, Any] | None:
    """The ``model:`` section with what it leaves open read off the file, if its weights are LlamaGen's."""
    state = states_of(content)["model"]
    ours = all(any(str(key).endswith(name) for key in state) for name in (TABLE, HEAD))
    if not ours or any(str(key).endswith(INSTRUCTION) for key in state):
        return section
    state = our_names(state)
    alone, section, args = section is None, dict(section or {}), content.get("args")
    args = vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, Mapping) else {}
    given = section.get("llama_config", {})
    if not isinstance(given, Mapping) or any(state[key].ndim != 2 for key in (TABLE, HEAD, FIRST) if key in state):
        return None if alone else section  # what is wrong with it is said where it is used
    size = size_of(state)
    published = SIZES.get((size["num_hidden_layers"], size["hidden_size"]))
    heads = given.get("num_attention_heads") or (published and published.heads)
    if heads is None:
        raise UserError(
            f"{path} has {size['num_hidden_layers']} layers of width {size['hidden_size']}, no published size; put a "
            "config.yaml beside it whose model.llama_config names num_attention_heads"
        )
    usual = alone and len(state[HEAD]) == LlamaGenConfig.vocab_size
    autoencoder = autoencoder_section(AUTOENCODER, AUTOENCODER_NAME, path) if usual else {}
    found = {
        "architecture": "llamagen",
        "num_classes": args.get("num_classes") or _num_classes(len(state[TABLE])),
        "vocab_size": len(state[HEAD]),
        **autoencoder,
        **section,
        "llama_config": {**size, "num_attention_heads": heads, **given},
    }
    return found if "img_size" in section else found | {"img_size": _image_size(args, path)}


def _num_classes(rows: int) -> int:
    """Of a table with a row for no class, or of ImageNet's classes without one."""
    return rows if rows == NUM_IMAGENET else rows - 1


def size_of(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Sizes that the shapes of the weights tell."""
    layers = [int(key.split(".")[1]) for key in state if re.match(r"layers\.\d+\.", key)]
    first = state.get(FIRST)
    return {
        "hidden_size": state[HEAD].shape[1],
        "intermediate_size": 1 if first is None else len(first),
        "num_hidden_layers": 1 + max(layers, default=0),
    }


def _image_size(args: Mapping[str, Any], path: Path) -> int:
    """Side of the images in pixels, as LlamaGen's autoencoder of 16 pixels a code makes them."""
    pixels, stride = args.get("image_size"), args.get("downsample_size", STRIDE)
    if isinstance(pixels, int) and isinstance(stride, int) and stride > 0:
        return pixels // stride * STRIDE
    named = IN_NAME.search(path.name)
    if named is None:
        raise UserError(
            f"{path} does not say the size of its grid of codes; put a config.yaml beside it with model.img_size, or "
            "keep _256, _384 or _512 in the file's name"
        )
    return int(named[1])


def published_config(model: Generator, autoenc: AutoencoderPaths, path: Path) -> dict[str, Any]:
    """The configuration beside exported weights: what the file itself cannot say, and the sizes."""
    config: LlamaGenConfig = model.config
    section = asdict(replace(config, autoenc=autoenc))
    names = ("architecture", "img_size", *(() if config.class_cond else ("class_cond",)), "num_classes", "vocab_size")
    return {"model": {key: section[key] for key in (*names, "llama_config", "autoenc")}, "args": {}}


def published_file(models: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Weights as LlamaGen's training writes them, without the optimizer's state."""
    config: LlamaGenConfig = models["model"].config
    size = (config.llama_config.num_hidden_layers, config.llama_config.hidden_size)
    side = models["model"].scale_sizes[0]
    args = {"image_size": STRIDE * side, "downsample_size": STRIDE, "num_classes": config.num_classes}
    content = {"model": models["model"].state_dict(), "steps": checkpoint.get("step", checkpoint.get("steps", 0))}
    if models["model_ema"] is not None:
        content["ema"] = models["model_ema"].state_dict()
    content["args"] = argparse.Namespace(**args, vocab_size=config.vocab_size)
    if checkpoint.get(CLASS_NAMES) is not None:
        content[CLASS_NAMES] = checkpoint[CLASS_NAMES]
    return f"c2i_{SIZES.get(size, Size('custom', 0)).name}_{STRIDE * side}.pt", content


LAYOUT = PublishedLayout((), published_config, published_file, states_of, complete_section, llamagens_tokenizer=True)
