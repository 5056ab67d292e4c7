"""Maps of each scale, and all scales concatenated.

Letters: B images, S side of a scale, L locations of all scales. Lists run over scales, coarse to fine.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor


def scale_slices(scale_sizes: Sequence[int]) -> list[slice]:
    """Where each scale's locations lie among L."""
    ends = list(accumulate(side * side for side in scale_sizes))
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def join_scales(maps: Sequence[Tensor]) -> Tensor:
    """(B, S, S) of each scale -> (B, L) by location."""
    return torch.cat([scale.flatten(1) for scale in maps], dim=1)


def split_scales(values: Tensor, scale_sizes: Sequence[int]) -> list[Tensor]:
    """(B, L) by location -> (B, S, S) of each scale."""
    slices = zip(scale_sizes, scale_slices(scale_sizes), strict=True)
    return [values[:, locations].unflatten(1, (side, side)) for side, locations in slices]


def raster_order(batch: int, num_locations: int, device: torch.device) -> Tensor:
    """(B, L) raster indices, the same for each image."""
    return torch.arange(num_locations, device=device).expand(batch, -1)
