"""LlamaGen's VQ autoencoder: images <-> unit-norm latents <-> codes, one scale at a time (paper Sec. 3.3).

Letters: B batch, H, W image sides in pixels, S = H / stride side of the code map, C code dimension, V codebook size,
N = B * S * S vectors to quantize. Images are in [-1, 1]; module names are the keys of the published files.
"""

from collections.abc import Iterable
from itertools import chain, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import AutoencoderConfig

QUANTIZE_CHUNK = 4096


class GroupNorm(nn.GroupNorm):
    """32 groups. Unlike ``F.group_norm`` it takes groups of one value too: one image of one location, 32 channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(32, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class ResidualBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = GroupNorm(channels_out)
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

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels)
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

    def __init__(self, channels: list[int], attend: bool, downsample: bool = False, upsample: bool = False) -> None:
        super().__init__()
        self.res = nn.ModuleList(ResidualBlock(*pair) for pair in pairwise(channels))
        self.attn = nn.ModuleList(AttentionBlock(c) for c in channels[1:] if attend)
        self.downsample = Resample(channels[-1], halve=True) if downsample else nn.Identity()
        self.upsample = Resample(channels[-1], halve=False) if upsample else nn.Identity()


def _in_order(levels: Iterable[Level]) -> list[nn.Module]:
    """Every module of the levels, for one loop: a loop in each level would hold the level's input until its end."""
    modules = []
    for level in levels:
        modules += chain.from_iterable(zip(level.res, level.attn, strict=True)) if level.attn else level.res
        modules += [level.downsample, level.upsample]
    return modules


def _middle(c: int) -> nn.ModuleList:
    return nn.ModuleList([ResidualBlock(c, c), AttentionBlock(c), ResidualBlock(c, c)])


class Encoder(nn.Module):
    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.ch * mult for mult in config.ch_mult]
        lowest = len(widths) - 1
        self.conv_in = nn.Conv2d(3, config.ch, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        for i, (width_in, width) in enumerate(pairwise([config.ch, *widths])):
            channels = [width_in] + [width] * config.num_res_blocks
            self.conv_blocks.append(Level(channels, attend=i == lowest, downsample=i != lowest))
        self.mid = _middle(widths[-1])
        self.norm_out = GroupNorm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for module in (*_in_order(self.conv_blocks), *self.mid):
            x = module(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.ch * mult for mult in reversed(config.ch_mult)]  # lowest resolution first
        self.conv_in = nn.Conv2d(config.z_channels, widths[0], 3, padding=1)
        self.mid = _middle(widths[0])
        self.conv_blocks = nn.ModuleList()
        for i, (width_in, width) in enumerate(pairwise([widths[0], *widths])):
            channels = [width_in] + [width] * (config.num_res_blocks + 1)
            self.conv_blocks.append(Level(channels, attend=i == 0, upsample=i != len(widths) - 1))
        self.norm_out = GroupNorm(widths[-1])
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

    @torch.no_grad()
    def nearest(self, latents_NC: Tensor) -> Tensor:
        """(N,) code of each latent; float64 where the device has it, a (chunk, V) table at a time."""
        exact = torch.float32 if latents_NC.device.type == "mps" else torch.float64
        codebook = self.codebook().to(exact)
        half_norms = codebook.square().sum(-1) / 2
        chunks = latents_NC.split(QUANTIZE_CHUNK)
        # |z - e|^2 = |z|^2 - 2 (z.e - |e|^2 / 2), and |z|^2 is the same for every code.
        return torch.cat([(chunk.to(exact) @ codebook.T - half_norms).argmax(-1) for chunk in chunks])


class Autoencoder(nn.Module):
    """Images to codes and back. Frozen wherever it is not itself being trained."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)
        self.quantize = Quantizer(config.n_embed, config.embed_dim)
        self.register_buffer("cluster_usage_train", torch.zeros(config.n_embed))  # usage frequencies, (V,)

    def encode(self, images: Tensor) -> Tensor:
        """Unit-norm latents (B, C, S, S) of images (B, 3, H, W)."""
        return F.normalize(self.quant_conv(self.encoder(images)), dim=1)

    def quantize_latents(self, latents: Tensor) -> Tensor:
        """Codes (B, S, S) of latents (B, C, S, S)."""
        B, C, H, W = latents.shape
        return self.quantize.nearest(latents.permute(0, 2, 3, 1).reshape(-1, C)).view(B, H, W)

    def lookup(self, codes: Tensor) -> Tensor:
        """Unit-norm latents (B, C, S, S) of codes (B, S, S)."""
        return F.embedding(codes, self.quantize.codebook()).permute(0, 3, 1, 2)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W), unclamped, of latents (B, C, S, S)."""
        return self.decoder(self.post_quant_conv(F.normalize(latents, dim=1)))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Images (B, 3, H, W), unclamped, of the codes (B, S, S) of any scale."""
        return self.decode_latents(self.lookup(codes)).float()

    @torch.no_grad()
    def tokenize(self, images: Tensor, scale_sizes: tuple[int, ...]) -> list[Tensor]:
        """Codes (B, S, S) of each scale; every scale encodes the image at its own size (method.md Sec. 3)."""
        return [self.quantize_latents(self.encode(resize_image(images, S * self.config.stride))) for S in scale_sizes]


def resize_image(images: Tensor, size: int) -> Tensor:
    """Images (B, 3, size, size) of the pyramid: bilinear, without antialiasing."""
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=False)


def to_uint8(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1], clamped to it, as uint8 by the paper's 8-bit rule (method.md Sec. 6)."""
    return (((images.float() + 1) / 2).clamp(0, 1) * 255).to(torch.uint8)


def upsample_latents(latents: Tensor, size: int) -> Tensor:
    """Latents (B, C, size, size) for the next scale: bilinear, then unit norm again; zeros stay zeros."""
    return F.normalize(F.interpolate(latents, (size, size), mode="bilinear", align_corners=False), dim=1)


def quantizer_loss(latents: Tensor, quantized: Tensor, commitment: float = 0.001) -> Tensor:
    """Codebook loss plus ``commitment`` times the pull of the latents to their codes (method.md Sec. 7)."""
    return F.mse_loss(quantized, latents.detach()) + commitment * F.mse_loss(latents, quantized.detach())
