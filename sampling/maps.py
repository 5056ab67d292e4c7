"""Pictures of how samples come about: maps, entropy over steps (paper Sec. 4.5), an animation.

Letters: B images, S side of a scale, C code dimension, H, W image sides in pixels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from models.family import Generator, Samples
from models.scales import join_scales
from runtime.files import whole
from runtime.pictures import save_figure
from runtime.progress import Progress
from sampling.pictures import grid_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150
MAX_FIGURES = 100
MAX_ANIMATED = 16
MIN_ANIMATED_SIDE = 96  # pixels of each image of an animation
FRAME_MS, HOLD_MS = 300, 2000
UNDRAWN_CONTRAST = 0.35  # of locations still to be drawn; 0 is mid grey, 1 the image itself


def save_maps(samples: Samples, model: Generator, folder: Path) -> None:
    """Write ``maps.npz`` and, for each of the first 100 images, a figure ``maps_{i:06d}.png`` into ``folder``.

    ``maps.npz`` holds ``step_S`` (int64), ``entropy_S`` (float32, nats) and ``probability_S`` (float32) of each scale,
    (B, S, S) each. A figure shows an image decoded at each scale above its maps; colour limits are those of all images.
    """
    names = ("step", "entropy", "probability")
    arrays = {f"{name}_{scale.shape[-1]}": _numpy(scale) for name in names for scale in getattr(samples, name)}
    with whole(folder / "maps.npz") as path:
        np.savez_compressed(path, **arrays)
    for index in Progress(range(min(len(samples.codes[0]), MAX_FIGURES)), unit="figure", desc="writing maps"):
        codes = [scale[index : index + 1].to(model.device) for scale in samples.codes]
        figure = _maps_figure(samples, [model.to_uint8(model.decode(scale))[0] for scale in codes], index)
        save_figure(figure, folder / f"maps_{index:06d}.png", DPI)


def save_entropy_by_step(samples: Samples, path: Path) -> None:
    """Plot ``entropy_by_step`` as in the paper's Fig. 6: the mean as a line, the two percentiles as a band."""
    from matplotlib.figure import Figure  # takes a second to import
    from matplotlib.ticker import MaxNLocator

    mean, low, high = entropy_by_step(samples)
    steps = np.arange(len(mean))
    starts = [int(scale.min()) - 0.5 for scale in samples.step]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.fill_between(steps, low, high, color="C0", alpha=0.25, linewidth=0, label="25th to 75th percentile")
    axes.plot(steps, mean, color="C0", marker="o", markersize=4, label="mean")
    for start in starts[1:]:
        axes.axvline(start, color="0.6", linewidth=0.8, linestyle="--")
    axes.set(xlim=(-0.5, len(mean) - 0.5), ylim=(0, None))
    axes.set_xlabel("step", fontsize=11)
    axes.set_ylabel("entropy (nats)", fontsize=11)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=10)
    scales = axes.secondary_xaxis("top")
    scales.set_xticks(starts, [str(scale.shape[-1]) for scale in samples.step], ha="left", fontsize=10)
    scales.set_xlabel("side of the scale", fontsize=11)
    scales.tick_params(length=0)
    scales.spines["top"].set_visible(False)
    save_figure(figure, path, DPI)


def save_animation(
    samples: Samples, model: Generator, path: Path, finish: Callable[[Tensor], Tensor] = lambda images: images
) -> None:
    """Write a GIF of the images appearing, one frame a step; the last one, the final images, stays for 2 s.

    ``finish`` is what became of the final images (B, 3, H, W) of bytes after they were drawn, and becomes of all.
    Only the first 16 images are shown, in a square grid: a frame is decoded at once and every frame stays in memory.
    """
    samples = samples.first(MAX_ANIMATED, model.device)
    last_step = num_steps(samples) - 1
    side = samples.images.shape[-1]  # which may be another than the model's
    steps = (step_images(samples, model, step) for step in range(last_step))
    frames = [_grid(finish(F.interpolate(images, (side, side), mode="nearest-exact"))) for images in steps]
    frames.append(_grid(model.to_uint8(samples.images)))
    durations = [FRAME_MS] * last_step + [HOLD_MS]
    with whole(path) as temporary:
        frames[0].save(temporary, save_all=True, append_images=frames[1:], duration=durations, loop=0)


def entropy_by_step(samples: Samples) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, 25th and 75th percentile, over images and locations, of the entropy (nats) of each step, (steps,) each.

    NaN of a step that drew nothing: codes that an edit keeps do not count.
    """
    parts = samples.entropy, samples.step, samples.probability
    entropy, step, probability = (_numpy(join_scales(maps)) for maps in parts)
    drawn = [entropy[(step == i) & ~np.isnan(probability)] for i in range(num_steps(samples))]
    low, high = np.array([np.percentile(values, [25, 75]) if len(values) else [np.nan] * 2 for values in drawn]).T
    return np.array([values.mean() if len(values) else np.nan for values in drawn]), low, high


def num_steps(samples: Samples) -> int:
    """Steps that drew the samples, over all scales."""
    return int(samples.step[-1].max()) + 1


def known_latents(samples: Samples, model: Generator, step: int) -> tuple[Tensor, Tensor]:
    """Latents (B, C, S, S) of the scale being drawn once ``step`` is done, and (B, S, S), True where it is drawn.

    Elsewhere they are upsampled from the previous scale, zeros in the first scale.
    """
    scale = next(i for i, steps in enumerate(samples.step) if step <= steps.max())
    drawn = samples.step[scale] <= step
    undrawn = model.undrawn_latents(samples.codes, scale)
    return torch.where(drawn.unsqueeze(1), model.autoencoder.lookup(samples.codes[scale]), undrawn), drawn


def step_images(samples: Samples, model: Generator, step: int) -> Tensor:
    """(B, 3, H, W) uint8, at full size: ``known_latents`` decoded, faded to grey where nothing is drawn yet."""
    side = samples.codes[-1].shape[-1] * model.autoencoder.config.stride
    return model.to_uint8(F.interpolate(_scale_so_far(samples, model, step), (side, side), mode="nearest-exact"))


@torch.inference_mode()
def pyramid_images(samples: Samples, model: Generator, step: int) -> list[Tensor]:
    """(B, 3, h, w) uint8 of each scale at its own size once ``step`` is done; none of scales that are not begun."""
    images = []
    for codes, steps in zip(samples.codes, samples.step, strict=True):
        if step < steps.min():
            break
        images.append(model.decode(codes) if step >= steps.max() else _scale_so_far(samples, model, step))
    return [model.to_uint8(scale) for scale in images]


@torch.inference_mode()
def _scale_so_far(samples: Samples, model: Generator, step: int) -> Tensor:
    """(B, 3, h, w) floats: the scale being drawn, at its own size."""
    latents, drawn = known_latents(samples, model, step)
    images = model.autoencoder.decode_latents(latents).float().clamp(-1, 1)
    # The first scale has nothing to show before it is drawn: its latents are zeros there.
    undrawn_contrast = 0.0 if step < samples.step[0].max() else UNDRAWN_CONTRAST
    contrast = torch.where(drawn, 1.0, undrawn_contrast).unsqueeze(1)
    return images * F.interpolate(contrast, images.shape[-2:])  # mid grey is 0


@dataclass(frozen=True)
class MapKind:
    """One of the maps of samples, and how it is coloured: from 0 to ``limit``, which is above 0."""

    name: str
    unit: str
    colours: str  # matplotlib's name
    maps: list[Tensor]  # (B, S, S) of each scale
    limit: float


def kinds_of_maps(samples: Samples) -> list[MapKind]:
    """Step, and of finished samples probability and entropy too."""
    kinds = [MapKind("step", "", "viridis", samples.step, num_steps(samples) - 1 or 1)]
    if samples.entropy:
        max_entropy = max(float(scale.max()) for scale in samples.entropy)
        # Of thousands of codes none is likely; kept ones have none.
        likeliest = max(float(scale.nan_to_num(0).max()) for scale in samples.probability)
        kinds.append(MapKind("probability", "", "viridis", samples.probability, likeliest or 1))
        kinds.append(MapKind("entropy", "nats", "magma", samples.entropy, max_entropy or 1))
    return kinds


def _maps_figure(samples: Samples, images: list[Tensor], index: int) -> "Figure":
    """Figure of one image of the batch, which is ``images`` (3, H, W) uint8 at each scale; columns are scales."""
    from matplotlib.figure import Figure  # takes a second to import
    from matplotlib.ticker import MaxNLocator

    rows = kinds_of_maps(samples)
    figure = Figure(figsize=(1.5 * len(images) + 1, 6.4), layout="compressed")
    axes = figure.subplots(1 + len(rows), len(images), squeeze=False)
    for panel, decoded, step in zip(axes[0], images, samples.step, strict=True):
        panel.imshow(_numpy(decoded.permute(1, 2, 0)), interpolation="nearest")
        panel.set_title(f"{step.shape[-1]} x {step.shape[-1]}", fontsize=11)
    axes[0, 0].set_ylabel("image", fontsize=11)
    for row, kind in zip(axes[1:], rows, strict=True):
        for panel, scale in zip(row, kind.maps, strict=True):
            shown = panel.imshow(
                _numpy(scale[index]), cmap=kind.colours, vmin=0, vmax=kind.limit, interpolation="nearest"
            )
        row[0].set_ylabel(kind.name, fontsize=11)
        ticks = MaxNLocator(4, integer=kind.name == "step")
        bar = figure.colorbar(shown, ax=row, label=kind.unit, ticks=ticks, pad=0.02)
        bar.outline.set_visible(False)
    for panel in axes.flat:
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
    return figure


def _grid(images: Tensor) -> Image.Image:
    """Images (B, 3, H, W) uint8 in a square grid, as a picture of 256 colours."""
    grid = grid_of(images, math.ceil(math.sqrt(len(images))), MIN_ANIMATED_SIDE, border=255)
    return Image.fromarray(_numpy(grid.permute(1, 2, 0))).quantize(256)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()
