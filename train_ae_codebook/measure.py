"""How well an autoencoder represents images at each scale, and pictures of it.

Letters: B batch, C code dimension, S side of a code map, V codes.
"""

from collections.abc import Iterable, Iterator, Sequence
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
class ScaleMetrics:
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


@torch.no_grad()
def measure_scales(
    autoencoder: Autoencoder, batches: Iterable[Tensor], sides: Sequence[int], with_ssim: bool = False
) -> tuple[dict[int, ScaleMetrics], int]:
    """Metrics of each scale, and how many codes occur at any of them.

    Args:
        autoencoder: what is judged; computes on its device.
        batches: images (B, 3, H, W) in [-1, 1], one at least.
        sides: of the scales' code maps.
        with_ssim: measure SSIM too, which is slow.
    """
    device, num_codes = autoencoder.quantize.embedding.device, autoencoder.config.n_embed
    counts = {side: torch.zeros(num_codes, dtype=torch.long) for side in sides}
    values: dict[int, dict[str, list[float]]] = {side: {} for side in sides}  # of each image
    for images in batches:
        for side in sides:
            small = resize_image(images.to(device), side * autoencoder.config.stride)
            codes, measured = _measure(autoencoder, small, with_ssim)
            counts[side] += torch.bincount(codes.flatten(), minlength=num_codes).cpu()
            for name, more in measured.items():
                values[side].setdefault(name, []).extend(more)
    metrics = {}
    for side, count in counts.items():
        means = {"ssim": None} | {name: sum(found) / len(found) for name, found in values[side].items()}
        used, diversity = (count > 0).float().mean().item(), perplexity(count.double()).item()
        metrics[side] = ScaleMetrics(**means, usage=used, perplexity=diversity)
    return metrics, int((sum(counts.values()) > 0).sum())


def _measure(autoencoder: Autoencoder, images: Tensor, with_ssim: bool) -> tuple[Tensor, dict[str, list[float]]]:
    """Codes (B, S, S) of images (B, 3, H, W), and metrics of each image."""
    latents = autoencoder.encode(images)  # (B, C, S, S)
    codes = autoencoder.quantize_latents(latents)
    difference = autoencoder.lookup(codes) - latents
    rebuilt = autoencoder.decode(codes).clamp(-1, 1)
    mse = ((rebuilt - images) / 2).square().mean((1, 2, 3)).clamp_min(SMALLEST_ERROR)  # of pixels in [0, 1]
    metrics = {
        "psnr": (-10 * mse.log10()).tolist(),
        "l1": (rebuilt - images).abs().mean((1, 2, 3)).tolist(),
        "quantization_error": difference.square().mean((1, 2, 3)).tolist(),
    }
    if with_ssim and images.shape[-1] >= SSIM_WINDOW:
        pairs = zip(images.cpu().numpy(), rebuilt.cpu().numpy(), strict=True)
        metrics["ssim"] = [float(structural_similarity(*pair, channel_axis=0, data_range=2.0)) for pair in pairs]
    return codes, metrics


def held_out_batches(images: Dataset, most: int = MAX_HELD_OUT, size: int = BATCH) -> Iterator[Tensor]:
    """Batches (B, 3, H, W), B ``size`` or fewer, of at most ``most`` images evenly spaced over a data set of crops."""
    count = min(most, len(images))
    spread = [i * len(images) // count for i in range(count)]
    for start in range(0, count, size):
        yield torch.stack([images[(i, 0)][0] for i in spread[start : start + size]])


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
) -> dict[int, ScaleMetrics]:
    """Write a grid of some held-out images; return the metrics of more."""
    shown = torch.cat(list(held_out_batches(images, SHOWN_IMAGES))).to(autoencoder.quantize.embedding.device)
    save_pyramid(autoencoder, shown, sides, path)
    return measure_scales(autoencoder, held_out_batches(images), sides)[0]
