"""LlamaGen's VQ autoencoder, whose latents have unit norm. Letters are those of models/autoencoder.py.

Module names are the keys of the published files.
"""

from collections.abc import Iterable
from itertools import chain, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.autoencoder import Autoencoder, GroupNorm, nearest_codes
from models.config import NORM_GROUPS, LlamaGenVQConfig


class ResidualBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(channels_in, groups)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = GroupNorm(channels_out, groups)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        same = channels_in == channels_out
        self.nin_shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)  # in place and one name: at 256 px a copy is 34 MB an image
        h = self.conv1(F.silu(h, inplace=True))
        h = self.norm2(h)
        h = self.conv2(F.silu(h, inplace=True))
        return h.add_(self.nin_shortcut(x))


class AttentionBlock(nn.Module):
    """Self-attention over locations with one head, scale c ** -0.5, added to its input."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))  # (B, H*W, c)
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(attended.transpose(1, 2).reshape(x.shape))


class Resample(nn.Module):
    """Half the resolution by a convolution of stride 2, or twice it by repeated pixels and a convolution."""

    def __init__(self, channels: int, halve: bool) -> None:
        super().__init__()
        self.halve = halve
        self.conv = nn.Conv2d(channels, channels, 3, stride=2) if halve else nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.halve else F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """One resolution: residual blocks, each followed by attention at the lowest one, then a change of resolution."""

    def __init__(
        self, channels: list[int], groups: int, attend: bool, downsample: bool = False, upsample: bool = False
    ) -> None:
        super().__init__()
        self.res = nn.ModuleList(ResidualBlock(*pair, groups) for pair in pairwise(channels))
        self.attn = nn.ModuleList(AttentionBlock(c, groups) for c in channels[1:] if attend)
        self.downsample = Resample(channels[-1], halve=True) if downsample else nn.Identity()
        self.upsample = Resample(channels[-1], halve=False) if upsample else nn.Identity()


def _in_order(levels: Iterable[Level]) -> list[nn.Module]:
    """Every module of the levels, for one loop: a loop in each level would hold the level's input until its end."""
    modules = []
    for level in levels:
        modules += chain.from_iterable(zip(level.res, level.attn, strict=True)) if level.attn else level.res
        modules += [level.downsample, level.upsample]
    return modules


def _middle(c: int, groups: int) -> nn.ModuleList:
    return nn.ModuleList([ResidualBlock(c, c, groups), AttentionBlock(c, groups), ResidualBlock(c, c, groups)])


class Encoder(nn.Module):
    def __init__(self, config: LlamaGenVQConfig) -> None:
        super().__init__()
        widths = [config.ch * mult for mult in config.ch_mult]
        lowest, groups = len(widths) - 1, config.norm_groups
        self.conv_in = nn.Conv2d(3, config.ch, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        for i, (width_in, width) in enumerate(pairwise([config.ch, *widths])):
            channels = [width_in] + [width] * config.num_res_blocks
            self.conv_blocks.append(Level(channels, groups, attend=i == lowest, downsample=i != lowest))
        self.mid = _middle(widths[-1], groups)
        self.norm_out = GroupNorm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for module in (*_in_order(self.conv_blocks), *self.mid):
            x = module(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    def __init__(self, config: LlamaGenVQConfig) -> None:
        super().__init__()
        widths = [config.ch * mult for mult in reversed(config.ch_mult)]  # lowest resolution first
        groups = config.norm_groups
        self.conv_in = nn.Conv2d(config.z_channels, widths[0], 3, padding=1)
        self.mid = _middle(widths[0], groups)
        self.conv_blocks = nn.ModuleList()
        for i, (width_in, width) in enumerate(pairwise([widths[0], *widths])):
            channels = [width_in] + [width] * (config.num_res_blocks + 1)
            self.conv_blocks.append(Level(channels, groups, attend=i == 0, upsample=i != len(widths) - 1))
        self.norm_out = GroupNorm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        z = self.conv_in(z)
        for module in (*self.mid, *_in_order(self.conv_blocks)):
            z = module(z)
        z = self.norm_out(z)
        return self.conv_out(F.silu(z, inplace=True))


class Quantizer(nn.Module):
    """A codebook of unit-norm vectors, stored before normalization; the nearest one by Euclidean distance."""

    def __init__(self, num_codes: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(F.normalize(torch.randn(num_codes, dim), dim=-1))  # (V, C)
        self.register_buffer("initialized", torch.tensor(True))

    def codebook(self) -> Tensor:
        """(V, C) unit-norm latents of the codes, float32."""
        return F.normalize(self.embedding.float(), dim=-1)

    def nearest(self, latents_NC: Tensor) -> Tensor:
        """(N,) code of each latent."""
        return nearest_codes(latents_NC, self.codebook())


class LlamaGenVQ(Autoencoder):
    """Images to codes of unit-norm latents, and back."""

    kind, unit_norm = "llamagen", True
    decides_codes = ("encoder.", "quant_conv.", "quantize.embedding", "norm_groups")
    decodes = ("post_quant_conv", "decoder")

    def __init__(self, config: LlamaGenVQConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)
        self.quantize = Quantizer(config.n_embed, config.embed_dim)
        self.register_buffer("cluster_usage_train", torch.zeros(config.n_embed))  # usage frequencies, (V,)
        if config.norm_groups != NORM_GROUPS:  # no weight's shape tells it; published files lack it
            self.register_buffer("norm_groups", torch.ones(config.norm_groups))

    def encode(self, images: Tensor) -> Tensor:
        return F.normalize(self.quant_conv(self.encoder(images)), dim=1)

    def codebook(self) -> Tensor:
        return self.quantize.codebook()

    def _decode(self, latents: Tensor) -> Tensor:
        # Zeros, which stand for codes that are not drawn yet, stay zeros: in float16 torch's own eps is 0.
        return self.decoder(self.post_quant_conv(F.normalize(latents, dim=1, eps=1e-4)))
