"""How well an autoencoder represents images at each scale, and pictures of it.

Letters: B batch, C code dimension, S side of a code map, V codes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity
from torch import Tensor
from torch.utils.data import Dataset

from data.crops import to_uint8
from models.autoencoder import Autoencoder, resize_image
from sampling.pictures import save_grid
from train_ae_codebook.codebook import perplexity

BATCH = 32
SHOWN_IMAGES = 16
MAX_HELD_OUT = 1000  # evenly spaced over the validation images
SSIM_WINDOW = 7  # pixels of the library's uniform window
SMALLEST_ERROR = 1e-10  # mean square, so that an exact reconstruction has 100 dB


@dataclass(frozen=True)
class ScaleFigures:
    """What one scale of the pyramid keeps of the images, resized to its own number of pixels.

    Attributes:
        psnr: mean over images, in dB.
        ssim: mean over images; None of images too small for its window of 7 pixels, or not asked for.
        l1: mean absolute error of pixels in [-1, 1].
        quantization_error: mean square distance of unit-norm latents from their codes, a component.
        usage: share of the codes that occur.
        perplexity: exp of the entropy of the codes' frequencies.
    """

    psnr: float
    ssim: float | None
    l1: float
    quantization_error: float
    usage: float
    perplexity: float


class ScaleMeter:
    """Gathers the figures of one scale over batches.

    Args:
        autoencoder: what is judged.
        side: of the code map.
        with_ssim: measure SSIM too, which is slow.
    """

    def __init__(self, autoencoder: Autoencoder, side: int, with_ssim: bool = False) -> None:
        self.autoencoder, self.side = autoencoder, side
        self.size = side * autoencoder.config.stride
        self.with_ssim = with_ssim and self.size >= SSIM_WINDOW
        self.counts = torch.zeros(autoencoder.config.n_embed, dtype=torch.long)
        self.psnr, self.ssim, self.l1, self.error = [], [], [], []  # of each image

    @torch.no_grad()
    def update(self, images: Tensor) -> None:
        """Take in images (B, 3, H, W) in [-1, 1]."""
        small = resize_image(images, self.size)
        latents = self.autoencoder.encode(small)  # (B, C, S, S)
        codes = self.autoencoder.quantize_latents(latents)
        difference = self.autoencoder.lookup(codes) - latents
        rebuilt = self.autoencoder.decode(codes).clamp(-1, 1)
        self.counts += torch.bincount(codes.flatten(), minlength=len(self.counts)).cpu()
        mse = ((rebuilt - small) / 2).square().mean((1, 2, 3)).clamp_min(SMALLEST_ERROR)  # of pixels in [0, 1]
        self.psnr += (-10 * mse.log10()).tolist()
        self.l1 += (rebuilt - small).abs().mean((1, 2, 3)).tolist()
        self.error += difference.square().mean((1, 2, 3)).tolist()
        if self.with_ssim:
            pairs = zip(small.cpu().numpy(), rebuilt.cpu().numpy(), strict=True)
            self.ssim += [float(structural_similarity(*pair, channel_axis=0, data_range=2.0)) for pair in pairs]

    def figures(self) -> ScaleFigures:
        """Of the images so far, at least one."""
        return ScaleFigures(
            psnr=_mean(self.psnr),
            ssim=_mean(self.ssim) if self.with_ssim else None,
            l1=_mean(self.l1),
            quantization_error=_mean(self.error),
            usage=(self.counts > 0).float().mean().item(),
            perplexity=perplexity(self.counts.double()).item(),
        )


def held_out_batches(images: Dataset, most: int = MAX_HELD_OUT, size: int = BATCH) -> Iterator[Tensor]:
    """Batches (B, 3, H, W), B ``size`` or fewer, of at most ``most`` images evenly spaced over a data set of crops."""
    count = min(most, len(images))
    spread = [i * len(images) // count for i in range(count)]
    for start in range(0, count, size):
        yield torch.stack([images[(i, 0)][0] for i in spread[start : start + size]])


def measure_scales(
    autoencoder: Autoencoder, batches: Iterator[Tensor], sides: Sequence[int], with_ssim: bool = False
) -> tuple[dict[int, ScaleFigures], int]:
    """Figures of each side of a code map, on the autoencoder's device, and how many codes occur at any of them."""
    meters = [ScaleMeter(autoencoder, side, with_ssim) for side in sides]
    device = autoencoder.quantize.embedding.device
    for images in batches:
        for meter in meters:
            meter.update(images.to(device))
    used = sum(meter.counts for meter in meters) > 0
    return {meter.side: meter.figures() for meter in meters}, int(used.sum())


@torch.no_grad()
def save_pyramid(autoencoder: Autoencoder, images: Tensor, sides: Sequence[int], path: Path) -> None:
    """A grid of images (B, 3, H, W), a column each: originals over reconstructions at every scale, pixels enlarged."""
    rows = []
    for side in sides:
        small = resize_image(images, side * autoencoder.config.stride)
        rebuilt = autoencoder.decode(autoencoder.quantize_latents(autoencoder.encode(small)))
        rows += [F.interpolate(pixels, images.shape[-2:], mode="nearest") for pixels in (small, rebuilt)]
    save_grid(to_uint8(torch.cat(rows)), path, len(images))


def show_held_out(
    autoencoder: Autoencoder, images: Dataset, sides: Sequence[int], path: Path
) -> dict[int, ScaleFigures]:
    """Write a grid of some held-out images; return the figures of more."""
    shown = torch.cat(list(held_out_batches(images, SHOWN_IMAGES))).to(autoencoder.quantize.embedding.device)
    save_pyramid(autoencoder, shown, sides, path)
    return measure_scales(autoencoder, held_out_batches(images), sides)[0]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
