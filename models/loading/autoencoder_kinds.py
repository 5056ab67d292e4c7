"""The kinds of autoencoders: what tells their files apart, and which sizes the weights are of."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from models.autoencoder import Autoencoder
from models.config import NORM_GROUPS, AutoencoderConfig, LlamaGenVQConfig, MaskGITVQConfig, VQVAEConfig
from models.llamagen_vq import LlamaGenVQ
from models.maskgit_vq import MaskGITVQ
from models.vqvae import VQVAE


class Kind(NamedTuple):
    """One kind of autoencoder."""

    module: Callable[[Any], Autoencoder]
    config: type[AutoencoderConfig]
    whose: str  # for messages
    sign: str  # how some key of every such file begins, and none of another kind
    infer: Callable[[Mapping[str, Tensor]], AutoencoderConfig]  # KeyError, IndexError, ValueError: not of this kind
    renamed: Mapping[str, str] = {}  # other names of weights -> ours
    optional: tuple[str, ...] = ()  # bookkeeping that files may hold or lack without being another model
    ignored: tuple[str, ...] = ()
    entry: str | None = None  # of the published file that holds the weights; without one, it is nothing but them


def _levels(state: Mapping[str, Tensor], pattern: str) -> tuple[int, int]:
    """Levels, and blocks in each, of keys that ``pattern`` gives the two numbers of."""
    matches = (re.match(pattern, key) for key in state)
    blocks = [(int(match[1]), int(match[2])) for match in matches if match] or [(0, 0)]
    num_levels, num_blocks = (1 + max(indices) for indices in zip(*blocks, strict=True))
    return num_levels, num_blocks


def _infer_llamagen(state: Mapping[str, Tensor]) -> LlamaGenVQConfig:
    num_levels, num_res_blocks = _levels(state, r"encoder\.conv_blocks\.(\d+)\.res\.(\d+)\.")
    ch = state["encoder.conv_in.weight"].shape[0]
    widths = [state[f"encoder.conv_blocks.{level}.res.0.conv2.weight"].shape[0] for level in range(num_levels)]
    embed_dim, z_channels = state["quant_conv.weight"].shape[:2]
    return LlamaGenVQConfig(
        embed_dim=embed_dim,
        n_embed=state["quantize.embedding"].shape[0],
        ch=ch,
        ch_mult=tuple(width // ch for width in widths),
        num_res_blocks=num_res_blocks,
        z_channels=z_channels,
        norm_groups=len(state["norm_groups"]) if "norm_groups" in state else NORM_GROUPS,
    )


def _infer_maskgit(state: Mapping[str, Tensor]) -> MaskGITVQConfig:
    num_levels, num_res_blocks = _levels(state, r"encoder\.down\.(\d+)\.block\.(\d+)\.")
    ch = state["encoder.conv_in.weight"].shape[0]
    widths = [state[f"encoder.down.{level}.block.0.conv2.weight"].shape[0] for level in range(num_levels)]
    n_embed, embed_dim = state["quantize.embedding.weight"].shape
    return MaskGITVQConfig(embed_dim, n_embed, ch, tuple(width // ch for width in widths), num_res_blocks)


def _infer_vqvae(state: Mapping[str, Tensor]) -> VQVAEConfig:
    layer = "_encoder._residual_stack._layers.{}._block.1.weight"
    num_layers = 0
    while layer.format(num_layers) in state:
        num_layers += 1
    n_embed, embed_dim = state["_vq_vae._embedding.weight"].shape
    residual_channels = state[layer.format(0)].shape[0] if num_layers else VQVAEConfig.residual_channels
    return VQVAEConfig(embed_dim, n_embed, state["_encoder._conv_2.weight"].shape[0], residual_channels, num_layers)


KINDS = {
    LlamaGenVQ.kind: Kind(
        LlamaGenVQ,
        LlamaGenVQConfig,
        "LlamaGen's",
        "encoder.conv_blocks.",
        _infer_llamagen,
        renamed={"quantize.embedding.weight": "quantize.embedding"},
        optional=("quantize.initialized", "cluster_usage_train"),
        ignored=("quantize.codebook_used",),
        entry="state_dict",
    ),
    MaskGITVQ.kind: Kind(MaskGITVQ, MaskGITVQConfig, "MaskGIT's", "encoder.down.", _infer_maskgit),
    VQVAE.kind: Kind(VQVAE, VQVAEConfig, "the CIFAR-10 baseline's", "_vq_vae.", _infer_vqvae),
}


def kind_of(state: Mapping[str, Tensor]) -> Kind | None:
    """The kind that weights are of, by their names; None of no kind that is known."""
    return next((kind for kind in KINDS.values() if any(key.startswith(kind.sign) for key in state)), None)


def new_autoencoder(config: AutoencoderConfig) -> Autoencoder:
    """An autoencoder of these sizes, of random weights."""
    return next(kind.module(config) for kind in KINDS.values() if type(config) is kind.config)
