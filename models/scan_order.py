"""Which locations are drawn together, and when: scales, scan orders, blocks (paper Sec. 3.1, 3.2; pure functions).

Letters: S side of one scale, n = S * S its locations, L locations of all scales, b = 1 or the batch size.
A *location index* counts all scales' locations in raster order, small scales first: it is the row of a location in
every position table and its column in a sequence of codes (B, L). A *token* is a location in the order of drawing.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from models.errors import UserError

Remainder = Literal["separate", "fold"]
ScanOrder = Literal["checkerboard", "raster", "random"]
NO_LOCATION = -1


def compute_scale_sizes(
    img_size: int,
    num_levels: int,
    scale_ratio: float,
    scale_min_size: int = 1,
    single_scale: bool = False,
) -> tuple[int, ...]:
    """Sides of the code maps of the pyramid, ascending.

    Args:
        img_size: side of the full image, in pixels.
        num_levels: resolution levels of the autoencoder; each but the first halves the side.
        scale_ratio: side of a scale over the side of the one before it, above 1.
        scale_min_size: side at which the division by ``scale_ratio`` stops.
        single_scale: keep the largest scale alone.

    Raises:
        UserError: the image does not divide into codes, or a ratio or size makes no pyramid.
    """
    stride = 2 ** (num_levels - 1)
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


@dataclass(frozen=True)
class Layout:
    """Every token's location, and the location whose code it is told of (Eq. 1).

    Attributes:
        scale_sizes: side of each scale, ascending.
        blocks: block lengths of each scale, in the order drawn.
        positions: (b, L) location index of each token.
        prev_positions: (b, L) location index of the token at the same place in the previous block of its scale;
            NO_LOCATION in a scale's first block and beyond the previous block's length.
        steps: (L,) the step, counted over all scales from 0, that draws each token.
    """

    scale_sizes: tuple[int, ...]
    blocks: tuple[tuple[int, ...], ...]
    positions: Tensor
    prev_positions: Tensor
    steps: Tensor

    @property
    def num_steps(self) -> int:
        return sum(len(lengths) for lengths in self.blocks)

    def scale_slices(self) -> list[slice]:
        """Where each scale's tokens (and locations) lie in a sequence of L."""
        return scale_slices(self.scale_sizes)

    def to(self, device: torch.device) -> "Layout":
        moved = (t.to(device, non_blocking=True) for t in (self.positions, self.prev_positions, self.steps))
        return Layout(self.scale_sizes, self.blocks, *moved)


def scale_slices(scale_sizes: Sequence[int]) -> list[slice]:
    """Where each scale's locations lie in a sequence of L."""
    ends = list(accumulate(side * side for side in scale_sizes))
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def make_layout(scale_sizes: Sequence[int], blocks: Sequence[Sequence[int]], positions: Tensor | None = None) -> Layout:
    """The layout of an order under the given block lengths.

    Args:
        scale_sizes: side of each scale, ascending.
        blocks: block lengths of each scale.
        positions: (b, L) location indices in the order drawn, scale by scale; the progressive checkerboard if None.
    """
    positions = fixed_positions(scale_sizes, "checkerboard") if positions is None else positions
    prev_tokens, start = [], 0
    for lengths in blocks:
        prev_length = 0
        for length in lengths:
            kept = min(length, prev_length)
            prev_tokens += range(start - prev_length, start - prev_length + kept)
            prev_tokens += [NO_LOCATION] * (length - kept)
            start, prev_length = start + length, length
    lengths = torch.tensor([length for scale in blocks for length in scale])
    prev = torch.tensor(prev_tokens, device=positions.device)
    return Layout(
        scale_sizes=tuple(scale_sizes),
        blocks=tuple(tuple(scale) for scale in blocks),
        positions=positions,
        prev_positions=torch.where(prev == NO_LOCATION, NO_LOCATION, positions[:, prev]),
        steps=torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(positions.device),
    )


def fixed_positions(scale_sizes: Sequence[int], scan_order: ScanOrder) -> Tensor:
    """(1, L) location indices in an order that is the same for every image: checkerboard or raster."""
    positions: list[int] = []
    for side in scale_sizes:
        order = progressive_checkerboard(side) if scan_order == "checkerboard" else range(side * side)
        offset = len(positions)
        positions += [offset + location for location in order]
    return torch.tensor(positions)[None]


def random_positions(scale_sizes: Sequence[int], uniforms: Tensor) -> Tensor:
    """(B, L) location indices in an order of each image's own: a permutation within each scale, from (B, L) numbers."""
    return torch.cat([s.start + uniforms[:, s].argsort(dim=1) for s in scale_slices(scale_sizes)], dim=1)


def block_causal_mask(steps: Tensor) -> Tensor:
    """(1 + L, 1 + L) boolean, True where a token may attend: its own block, earlier ones, the class token (step -1)."""
    steps = torch.cat([steps.new_full((1,), -1), steps])
    return steps[:, None] >= steps[None, :]
