"""What every kind of autoencoder does: images <-> latents <-> codes, one scale at a time (paper Sec. 3.3).

Letters: B batch, H, W image sides in pixels, S = H / stride side of the code map, C code dimension, V codebook size,
N = B * S * S vectors to quantize. Images are in [-1, 1] for every kind, whatever it computes with inside.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import NORM_GROUPS, AutoencoderConfig
from models.pretrained import Pretrained
from runtime.device import exact_float32

# What is computed at once: on a CPU so little that its caches hold it, which is up to four times as fast; on a GPU what
# takes about 2 GB, 16 images of 256 px.
ENCODED_PIXELS, ENCODED_PIXELS_CPU = 2**20, 2**15
QUANTIZE_TABLE, QUANTIZE_TABLE_CPU = 2**24, 2**18  # scores of latents and codes


class Autoencoder(Pretrained, nn.Module, ABC):
    """Images to codes and back. Frozen wherever it is not itself being trained."""

    kind: ClassVar[str]  # its name in an autoencoder's YAML
    decides_codes: ClassVar[tuple[str, ...]]  # how the names of the weights begin that decide an image's codes
    decodes: ClassVar[tuple[str, ...]]  # names of the modules that make images of latents
    unit_norm: ClassVar[bool] = False  # whether all latents have norm 1

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Latents (B, C, S, S) of images (B, 3, H, W), before they are quantized."""

    @abstractmethod
    def codebook(self) -> Tensor:
        """(V, C) latents of all codes, float32."""

    @abstractmethod
    def _decode(self, latents: Tensor) -> Tensor:
        """As ``decode_latents``, of latents in the decoder's precision."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def decoder_dtype(self) -> torch.dtype:
        return next(self.get_submodule(self.decodes[0]).parameters()).dtype

    def decode_in(self, dtype: torch.dtype) -> None:
        """Decode in a precision from now on. Codes stay as they are."""
        for name in self.decodes:
            self.get_submodule(name).to(dtype)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W), about [-1, 1], of latents (B, C, S, S), in the decoder's precision."""
        return self._decode(latents.to(self.decoder_dtype))

    def quantize_latents(self, latents: Tensor) -> Tensor:
        """Codes (B, S, S) of latents (B, C, S, S)."""
        B, C, H, W = latents.shape
        return nearest_codes(latents.permute(0, 2, 3, 1).reshape(-1, C), self.codebook()).view(B, H, W)

    def lookup(self, codes: Tensor) -> Tensor:
        """Latents (B, C, S, S) of codes (B, S, S); channels last in memory, which convolutions are fastest in."""
        return F.embedding(codes, self.codebook()).permute(0, 3, 1, 2)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Images (B, 3, H, W), about [-1, 1], of the codes (B, S, S) of any scale."""
        return self.decode_latents(self.lookup(codes)).float()

    @torch.no_grad()
    def tokenize(self, images: Tensor, scale_sizes: tuple[int, ...]) -> list[Tensor]:
        """Codes (B, S, S) of each scale; every scale encodes the image at its own size (formats.md M3).

        In exact float32 on every device: TF32 and bfloat16 would give some locations the code next to the nearest.
        """
        with exact_float32():
            return [self._codes(resize_image(images, S * self.config.stride)) for S in scale_sizes]

    def _codes(self, images: Tensor) -> Tensor:
        """Codes (B, S, S) of images (B, 3, H, W) of one scale, a part of them at a time."""
        pixels = ENCODED_PIXELS_CPU if self.device.type == "cpu" else ENCODED_PIXELS
        parts = images.split(max(1, pixels // (images.shape[-2] * images.shape[-1])))
        return torch.cat([self.quantize_latents(self.encode(part)) for part in parts])


class GroupNorm(nn.GroupNorm):
    """Unlike ``F.group_norm`` it takes groups of one value too: one image of one location, 32 channels."""

    def __init__(self, channels: int, groups: int = NORM_GROUPS) -> None:
        super().__init__(groups, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


@torch.no_grad()
def nearest_codes(latents_NC: Tensor, codebook_VC: Tensor) -> Tensor:
    """(N,) nearest code of each latent by Euclidean distance.

    In float64 where the device has it, a table of scores (n, V) at a time.
    """
    exact = torch.float32 if latents_NC.device.type == "mps" else torch.float64
    codebook = codebook_VC.to(exact)
    half_norms = codebook.square().sum(-1) / 2
    table = QUANTIZE_TABLE_CPU if latents_NC.device.type == "cpu" else QUANTIZE_TABLE
    chunks = latents_NC.split(max(1, table // len(codebook)))
    # |z - e|^2 = |z|^2 - 2 (z.e - |e|^2 / 2), and |z|^2 is the same for every code.
    return torch.cat([torch.addmm(-half_norms, chunk.to(exact), codebook.T).argmax(-1) for chunk in chunks])


def resize_image(images: Tensor, size: int) -> Tensor:
    """Images (B, 3, size, size) of the pyramid: bilinear, without antialiasing."""
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=False)


def to_uint8(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1], clamped to it, as uint8 by the paper's 8-bit rule (formats.md M6)."""
    return (((images.float() + 1) / 2).clamp(0, 1) * 255).to(torch.uint8)


def upsample_latents(latents: Tensor, size: int) -> Tensor:
    """Latents (B, C, size, size) for the next scale: bilinear, then unit norm again; zeros stay zeros."""
    return F.normalize(F.interpolate(latents, (size, size), mode="bilinear", align_corners=False), dim=1)


def quantizer_loss(latents: Tensor, quantized: Tensor, commitment: float = 0.001) -> Tensor:
    """Codebook loss plus ``commitment`` times the pull of the latents to their codes (formats.md M7)."""
    return F.mse_loss(quantized, latents.detach()) + commitment * F.mse_loss(latents, quantized.detach())
