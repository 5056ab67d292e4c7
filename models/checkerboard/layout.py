"""A scan order under block lengths, as tensors: what is drawn when, and told of what (paper Sec. 3.1, Eq. 1).

Letters: S side of one scale, n = S * S its locations, L locations of all scales, b = 1 or the batch size.
A *location index* is an index into all scales concatenated, coarse to fine, each in raster order: its row in every
position table, and its column in a sequence of codes (B, L). A *token* is a location in the order drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from models.checkerboard.order import Blocks, ScanOrder, progressive_checkerboard
from models.scales import scale_slices
from runtime.device import send

NO_LOCATION = -1


@dataclass(frozen=True)
class Layout:
    """Every token's location, and the location whose code it is told of (Eq. 1)."""

    scale_sizes: Sequence[int]
    blocks: Blocks
    positions: Tensor  # (b, L) location index of each token
    # (b, L) that of the token at the same place in the previous block of its scale; NO_LOCATION where there is none.
    prev_positions: Tensor
    steps: Tensor  # (L,) the step, counted over all scales from 0, that draws each token

    def step_of_location(self) -> Tensor:
        """(b, L) the step that draws each location."""
        return torch.empty_like(self.positions).scatter_(1, self.positions, self.steps.expand_as(self.positions))

    def to(self, device: torch.device) -> "Layout":
        moved = (send(t, device) for t in (self.positions, self.prev_positions, self.steps))
        return Layout(self.scale_sizes, self.blocks, *moved)


def make_layout(scale_sizes: Sequence[int], blocks: Blocks, positions: Tensor | None = None) -> Layout:
    """The layout of an order, (b, L) location indices scale by scale, or the progressive checkerboard, under blocks."""
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
        scale_sizes=scale_sizes,
        blocks=blocks,
        positions=positions,
        prev_positions=torch.where(prev == NO_LOCATION, NO_LOCATION, positions[:, prev]),
        steps=torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(positions.device),
    )


@lru_cache(maxsize=64)
def fixed_layout(scale_sizes: tuple[int, ...], scan_order: ScanOrder, blocks: Blocks, device: torch.device) -> Layout:
    """The layout of an order that is the same for every image, on a device; ``blocks`` are tuples."""
    with torch.inference_mode(False):  # training may use what sampling made
        return make_layout(scale_sizes, blocks, fixed_positions(scale_sizes, scan_order)).to(device)


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
