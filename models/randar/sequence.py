"""Orders of locations, and the sequence of instructions and codes that follows one (formats.md R2).

Letters: B batch, L locations, l of some of them, T tokens. An order (B, L) holds raster indices in the order drawn.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.transformer import CosSin, SameRotation
from runtime.errors import UserError


def checked_order(order: Tensor, batch: int, num_locations: int, device: torch.device) -> Tensor:
    """(B, L) int64 on a device; a UserError for what is not one permutation of all locations an image."""
    try:
        order = torch.as_tensor(order)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError("the order is no tensor; give raster indices, one row an image") from error
    if order.is_floating_point() or order.is_complex():
        raise UserError(f"the order has type {order.dtype}; give raster indices, which are whole numbers")
    if tuple(order.shape) != (batch, num_locations):
        raise UserError(f"the order has shape {tuple(order.shape)}; give one row an image, {(batch, num_locations)}")
    order = order.long().to(device)
    if (order.sort(dim=1).values != torch.arange(num_locations, device=device)).any():
        raise UserError(f"the order is no permutation; name each location 0 to {num_locations - 1} once an image")
    return order


def interleave(instructions: Tensor, tokens: Tensor) -> Tensor:
    """q_1 x_1 q_2 x_2 .. (B, 2l, ...) of q and x, each (B, l, ...)."""
    return torch.stack([instructions, tokens], dim=2).flatten(1, 2)


def rotation_at(table: CosSin, places: Tensor) -> SameRotation:
    """The rotation of tokens (B, T) by the rows of a table: 0 for the class token, 1 + location for others."""
    cos, sin = (F.embedding(places, part)[:, None, None] for part in table)  # (B, 1, 1, T, d)
    return SameRotation((cos, sin))
