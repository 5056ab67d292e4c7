"""Patches of codes, which Next Patch Prediction learns from, and where they lie (formats.md G1, G5).

Letters: B batch, G side of the grid of codes, p side of a patch, M = (G / p) ** 2 patches in raster order, d dimension
of a head.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from models.transformer import CosSin
from runtime.errors import UserError

BASE = 10000.0  # of the rotary frequencies


def by_patch(grid: Tensor, side: int) -> Tensor:
    """(B, M, p * p, ...) of a grid (B, G, G, ...): what belongs to the codes of each patch."""
    size = grid.shape[1]
    if side < 1 or size % side:
        raise UserError(f"patches of side {side} do not divide a grid of {size} x {size} codes; choose one that does")
    rows = grid.unflatten(2, (-1, side)).unflatten(1, (-1, side))  # (B, G/p, p, G/p, p, ...)
    return rows.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def patch_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of one distribution a patch (B, M, V) with each of the patch's codes (B, M, p * p)."""
    if targets.shape[2] == 1:
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    return -logits.log_softmax(-1).gather(-1, targets).mean()


def grid_rotation(side: int, head_dim: int, device: torch.device) -> Tensor:
    """(1 + M, d / 2, 2) cosine and sine for the class token, then for each location: angles of y, then of x.

    The class token's are zeros, not of angle 0: its query and key vanish, and every token scores it exactly 0.
    Published weights need it so.
    """
    return rotation_of_angles(torch.outer(torch.arange(side, device=device), axis_frequencies(head_dim, device)))


def axis_frequencies(head_dim: int, device: torch.device) -> Tensor:
    """(d / 4,) rotary frequencies of an axis, the highest first."""
    return BASE ** (-torch.arange(head_dim // 4, device=device) / (head_dim // 4))


def rotation_of_angles(angles: Tensor) -> Tensor:
    """``grid_rotation`` of the angles (G, d / 4) of the coordinates of an axis."""
    y, x = angles[:, None].expand(-1, len(angles), -1), angles[None].expand(len(angles), -1, -1)
    angles = torch.cat([y, x], dim=-1).flatten(0, 1)  # (M, d / 2)
    rotation = torch.stack([angles.cos(), angles.sin()], dim=-1)
    return torch.cat([torch.zeros_like(rotation[:1]), rotation])


@lru_cache
def pair_rotation(side: int, head_dim: int, device: torch.device) -> CosSin:
    """What ``rotate_pairs`` takes, (1 + M, d) each, for the class token and each location of a grid."""
    with torch.inference_mode(False):  # kept for later, when gradients may pass through
        return signed_pairs(grid_rotation(side, head_dim, device))


def signed_pairs(rotation: Tensor) -> CosSin:
    """What ``rotate_pairs`` takes, (1 + M, d) each, of ``grid_rotation``."""
    cos, sin = rotation.unbind(-1)
    return cos.repeat_interleave(2, dim=-1), torch.stack([-sin, sin], dim=-1).flatten(-2)


def rotate_pairs(x: Tensor, cos_sin: CosSin) -> Tensor:
    """Rotate adjacent components (a, b) of (..., d) into (a cos - b sin, b cos + a sin), in float32."""
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return torch.addcmul(x * cos_sin[0], swapped, cos_sin[1])
