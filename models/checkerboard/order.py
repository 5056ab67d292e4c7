"""Which locations are drawn together, and when: scan orders and blocks of scales of side S (paper Sec. 3.1, 3.2)."""

import math
import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from runtime.errors import UserError

Blocks = Sequence[Sequence[int]]  # lengths of each scale's blocks, in the order drawn
Remainder = Literal["separate", "fold"]
ScanOrder = Literal["checkerboard", "raster", "random"]


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
    """Raster indices of an S x S grid by Algorithm 1; for no power of two, the next one's order within the grid."""
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


def sampling_blocks(scale_sizes: Sequence[int], steps_per_scale: int, remainder: Remainder = "separate") -> Blocks:
    """Block lengths of every scale for ``steps_per_scale`` steps, on small odd scales some more (formats.md M2)."""
    if steps_per_scale < 1:
        raise UserError(f"steps_per_scale is {steps_per_scale}; it must be at least 1")
    sizes = (side * side for side in scale_sizes)
    return tuple(split_blocks(n, max(1, n // steps_per_scale), remainder) for n in sizes)


def draw_block_size(num_locations: int, rng: random.Random) -> int:
    """A training block size: x or n // x for x uniform in 1..sqrt(n), the middle counted once (formats.md M5)."""
    middle = math.isqrt(num_locations)
    while True:
        divisor = rng.randint(1, middle)
        if rng.random() < 0.5:
            return divisor
        if divisor != middle:
            return num_locations // divisor


def training_blocks(scale_sizes: Sequence[int], rng: random.Random) -> Blocks:
    """Block lengths of every scale for one training step: random sizes, a remainder folded half of the time."""
    sizes = (side * side for side in scale_sizes)
    return tuple(split_blocks(n, draw_block_size(n, rng), "fold" if rng.random() < 0.5 else "separate") for n in sizes)
