"""Which locations are drawn together, and when: scales, scan orders, blocks (paper Sec. 3.1, 3.2; pure functions).

Letters: S side of one scale, n = S * S its locations.
"""

import math
import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from runtime.errors import UserError

Remainder = Literal["separate", "fold"]
ScanOrder = Literal["checkerboard", "raster", "random"]


def compute_scale_sizes(
    img_size: int,
    stride: int,
    scale_ratio: float,
    scale_min_size: int = 1,
    single_scale: bool = False,
) -> tuple[int, ...]:
    """Sides of the code maps of the pyramid, ascending.

    Args:
        img_size: side of the full image, in pixels.
        stride: the autoencoder's pixels per code.
        scale_ratio: side of a scale over the side of the one before it, above 1.
        scale_min_size: side at which the division by ``scale_ratio`` stops.
        single_scale: keep the largest scale alone.

    Raises:
        UserError: the image does not divide into codes, or a ratio or size makes no pyramid.
    """
    largest, rest = divmod(img_size, stride)
    if rest or largest < 1:
        raise UserError(f"img_size {img_size} is not a multiple of the autoencoder's stride {stride}; change img_size")
    if scale_ratio <= 1:
        raise UserError(f"scale_ratio {scale_ratio} makes no pyramid; it must be above 1")
    if not 1 <= scale_min_size <= largest:
        raise UserError(f"scale_min_size {scale_min_size} must lie between 1 and the largest scale, {largest}")
    if single_scale:
        return (largest,)
    sides = [float(largest)]
    while sides[-1] > scale_min_size:
        sides.append(sides[-1] / scale_ratio)
    sides.append(scale_min_size)
    return tuple(sorted({round(side) for side in sides} - {0}))


def _checkerboard_locations(size: int, y: int = 0, x: int = 0) -> list[tuple[int, int]]:
    """Algorithm 1 for a power of two: quadrants TL, BR, TR, BL, taken in turn."""
    if size == 1:
        return [(y, x)]
    half = size // 2
    corners = ((y, x), (y + half, x + half), (y, x + half), (y + half, x))
    quadrants = [_checkerboard_locations(half, *corner) for corner in corners]
    return [location for group in zip(*quadrants, strict=True) for location in group]


@lru_cache
def progressive_checkerboard(size: int) -> tuple[int, ...]:
    """Raster indices of an S x S grid in progressive-checkerboard order (Algorithm 1).

    A size that is no power of two takes the order of the next one, restricted to the grid.
    """
    power = 1 << (size - 1).bit_length()
    return tuple(y * size + x for y, x in _checkerboard_locations(power) if y < size and x < size)


def split_blocks(num_locations: int, block_size: int, remainder: Remainder = "separate") -> tuple[int, ...]:
    """Block lengths over one scale: full blocks, then the remainder alone or folded into the last full one."""
    if remainder not in ("separate", "fold"):
        raise UserError(f"remainder {remainder!r} is unknown; choose 'separate' or 'fold'")
    num_full, rest = divmod(num_locations, block_size)
    lengths = [block_size] * num_full
    if rest and remainder == "fold":
        lengths[-1] += rest
    elif rest:
        lengths.append(rest)
    return tuple(lengths)


def sampling_blocks(
    scale_sizes: Sequence[int], steps_per_scale: int, remainder: Remainder = "separate"
) -> tuple[tuple[int, ...], ...]:
    """Block lengths of every scale for ``steps_per_scale`` steps (method.md Sec. 2).

    The published rule, ``separate``, gives a remainder a step of its own; ``fold`` does not. On small odd scales either
    may run more steps than asked, never more than the scale has locations.
    """
    if steps_per_scale < 1:
        raise UserError(f"steps_per_scale is {steps_per_scale}; it must be at least 1")
    sizes = (side * side for side in scale_sizes)
    return tuple(split_blocks(n, max(1, n // steps_per_scale), remainder) for n in sizes)


def draw_block_size(num_locations: int, rng: random.Random) -> int:
    """A training block size: x or n // x for x uniform in 1..sqrt(n), the middle counted once (method.md Sec. 5)."""
    middle = math.isqrt(num_locations)
    while True:
        divisor = rng.randint(1, middle)
        if rng.random() < 0.5:
            return divisor
        if divisor != middle:
            return num_locations // divisor


def training_blocks(scale_sizes: Sequence[int], rng: random.Random) -> tuple[tuple[int, ...], ...]:
    """Block lengths of every scale for one training step: random sizes, a remainder folded half of the time."""
    drawn = []
    for side in scale_sizes:
        size = draw_block_size(side * side, rng)
        drawn.append(split_blocks(side * side, size, "fold" if rng.random() < 0.5 else "separate"))
    return tuple(drawn)
