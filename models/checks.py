"""What users pass to a model: labels, seeds, codes to keep. What is wrong with it is a UserError.

Letters: B images, S side of a scale, L locations.
"""

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from models.config import NUM_SEEDS
from models.scales import join_scales
from runtime.errors import UserError

INDEX_TYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def as_labels(labels: Tensor | Sequence[int]) -> Tensor:
    """Labels as a tensor; UserError if they are none."""
    try:
        return torch.as_tensor(labels)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"labels are {labels}; give one class index an image") from error


def checked_seeds(seeds: Sequence[int], num_labels: int, batch: int) -> Tensor:
    """(B,) seeds of a batch of so many images and their labels; a UserError says what is wrong."""
    try:
        seeds = [operator.index(seed) for seed in seeds]
    except TypeError as error:
        raise UserError(f"seeds are {seeds}; give a whole number for each image") from error
    if len(seeds) != num_labels:
        raise UserError(f"{len(seeds)} seeds for {num_labels} labels; give one an image")
    if num_labels != batch:
        raise UserError(f"{num_labels} labels for a sampler of {batch} images; give as many, or make another sampler")
    if not all(0 <= seed < NUM_SEEDS for seed in seeds):
        raise UserError("seeds must lie between 0 and 2**32 - 1")
    return torch.tensor(seeds, dtype=torch.long)


def checked_maps(maps: Sequence[Tensor] | None, shapes: Sequence[tuple[int, ...]], name: str) -> Tensor:
    """(B, L) what maps (B, S, S) of all scales hold; UserError if they have other ``shapes``."""
    if maps is None or [tuple(scale.shape) for scale in maps] != list(shapes):
        raise UserError(f"{name} must be a list of one map for each scale, of shapes {list(shapes)}")
    return join_scales([torch.as_tensor(scale) for scale in maps])


def check_codes(codes: Tensor, num_codes: int) -> None:
    """Refuse codes to keep that are none of a model's."""
    if codes.dtype not in INDEX_TYPES:
        raise UserError(f"keep_codes are {codes.dtype}; give whole numbers, as model.tokenize does")
    if codes.min() < 0 or codes.max() >= num_codes:
        raise UserError(f"keep_codes must lie between 0 and {num_codes - 1}")
