"""MaskGIT's tokenizer (formats.md R3). Letters are those of models/autoencoder.py.

No attention, and codes of any norm. It computes with images in [0, 1]. Module names are the keys of the published file.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from models.autoencoder import Autoencoder, GroupNorm
from models.config import MaskGITVQConfig


class ResidualBlock(nn.Module):
    """As published: where the width changes, the shortcut starts from the block's own output, not from its input."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.norm2 = GroupNorm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        same = channels_in == channels_out
        self.nin_shortcut = None if same else nn.Conv2d(channels_out, channels_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        h = self.conv1(F.silu(h, inplace=True))
        h = self.norm2(h)
        h = self.conv2(F.silu(h, inplace=True))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(h))


class Level(nn.Module):
    """Residual blocks of one resolution; the decoder's, but the last, double it."""

    def __init__(self, width_in: int, width: int, num_blocks: int, upsample: bool = False) -> None:
        super().__init__()
        self.block = _blocks([width_in] + [width] * num_blocks)
        self.upsample_conv = nn.Conv2d(width, width, 3, padding=1) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if self.upsample_conv is None:
            return x
        return self.upsample_conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _blocks(widths: list[int]) -> nn.ModuleList:
    return nn.ModuleList(ResidualBlock(*pair) for pair in pairwise(widths))


class Encoder(nn.Module):
    def __init__(self, config: MaskGITVQConfig) -> None:
        super().__init__()
        widths, num = [config.ch * mult for mult in config.ch_mult], config.num_res_blocks
        self.conv_in = nn.Conv2d(3, config.ch, 3, padding=1, bias=False)
        self.down = nn.ModuleList(Level(*pair, num) for pair in pairwise([config.ch, *widths]))
        self.mid = _blocks([widths[-1]] * (num + 1))
        self.norm_out = GroupNorm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.embed_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for i, level in enumerate(self.down):
            x = level(F.avg_pool2d(x, 2) if i else x)
        for block in self.mid:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    def __init__(self, config: MaskGITVQConfig) -> None:
        super().__init__()
        widths, num = [config.ch * mult for mult in config.ch_mult], config.num_res_blocks
        self.conv_in = nn.Conv2d(config.embed_dim, widths[-1], 3, padding=1)
        self.mid = _blocks([widths[-1]] * (num + 1))
        below = pairwise([*widths, widths[-1]])  # width of a level and of the one below it
        self.up = nn.ModuleList(Level(low, width, num, upsample=i > 0) for i, (width, low) in enumerate(below))
        self.norm_out = GroupNorm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        z = self.conv_in(z)
        for module in (*self.mid, *reversed(self.up)):  # full resolution is the first of ``up``
            z = module(z)
        z = self.norm_out(z)
        return self.conv_out(F.silu(z, inplace=True))


class MaskGITVQ(Autoencoder):
    """MaskGIT's tokenizer; its images are clamped to [-1, 1]."""

    kind = "maskgit"
    decides_codes = ("encoder.", "quantize.")
    decodes = ("decoder",)

    def __init__(self, config: MaskGITVQConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(config.n_embed, config.embed_dim)})

    def encode(self, images: Tensor) -> Tensor:
        return self.encoder((images + 1) / 2)

    def codebook(self) -> Tensor:
        return self.quantize["embedding"].weight.float()

    def _decode(self, latents: Tensor) -> Tensor:
        return 2 * self.decoder(latents).clamp(0, 1) - 1
