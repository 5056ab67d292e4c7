"""Learned rotary embedding over space and scale, and its mixing for keys (paper Sec. 3.4, formats.md M4).

Letters: b = 1 or the batch size, T tokens (the class token and L drawn ones), h heads, d dimension of a head,
R rows of the table: every location, then the class token, then the empty token of a scale's first block.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.checkerboard.layout import NO_LOCATION
from models.transformer import CosSin, signed


def initial_angles(scale_sizes: Sequence[int], head_dim: int) -> Tensor:
    """(R, d) angles: 7/8 of the dimensions for x and y, 1/8 for the scale; 0 for the class and empty rows."""
    spatial = head_dim - head_dim // 8
    spatial += spatial % 2
    num_scale_dims = head_dim - spatial
    theta = max(scale_sizes) ** 2
    frequencies = theta ** (-2 * torch.arange(spatial // 2) / spatial)
    scale_angles = (math.pi / 2) * 10.0 ** (-torch.arange(num_scale_dims) / max(num_scale_dims, 1))
    rows = []
    for index, side in enumerate(scale_sizes):
        coordinates = torch.arange(side) * (max(scale_sizes) / side) + 1
        y, x = torch.meshgrid(coordinates, coordinates, indexing="ij")
        scale = (scale_angles * (index + 1)).expand(side * side, -1)
        rows.append(torch.cat([x.reshape(-1, 1) * frequencies, y.reshape(-1, 1) * frequencies, scale], dim=1))
    rows.append(torch.zeros(2, head_dim))
    return torch.cat(rows)


@dataclass(frozen=True)
class Rotary:
    """Rotations of a run of tokens: ``cos_sin`` for each layer that mixes, then for all others."""

    cos_sin: list[CosSin]  # broadcast over (B, 2, h, T, d): queries and keys are rotated at once

    def of_layer(self, layer: int) -> CosSin:
        return self.cos_sin[min(layer, len(self.cos_sin) - 1)]

    def slice(self, tokens: slice) -> "Rotary":
        return self._map(lambda part: part[..., tokens, :])

    def repeat(self, times: int) -> "Rotary":
        """For a batch that holds every image ``times`` times."""
        return self._map(lambda part: part.repeat(times, *[1] * (part.ndim - 1)))

    def packed(self) -> "Rotary":
        """The same in one block of memory. Tensors made layer by layer leave gaps, half as large as the tensors."""
        if len(self.cos_sin) == 1:
            return self
        cos, sin = (torch.stack(parts).unbind() for parts in zip(*self.cos_sin[:-1], strict=True))
        return Rotary([*zip(cos, sin, strict=True), self.cos_sin[-1]])

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Rotary":
        return Rotary([(change(cos), change(sin)) for cos, sin in self.cos_sin])


def rotary_of(queries: CosSin, keys: Iterable[CosSin]) -> Rotary:
    """Rotations of (cos, sin): (b, 1 or h, T, d) of queries; (b, h, T, d) of the keys of each layer that mixes."""
    cos_sin = []
    for of_layer in keys:
        both = [torch.stack([q.expand_as(k), k], dim=1) for q, k in zip(queries, of_layer, strict=True)]
        cos_sin.append(signed(both))
    return Rotary([*cos_sin, signed(part.unsqueeze(1) for part in queries)])  # elsewhere keys rotate as queries do


class RotaryEmbedding(nn.Module):
    """A table (R, d) of learned unit complex numbers, and a mixing coefficient for each head of the first layers."""

    def __init__(self, scale_sizes: Sequence[int], head_dim: int, num_heads: int, num_mixing_layers: int) -> None:
        super().__init__()
        self.scale_sizes = tuple(scale_sizes)
        self.head_dim = head_dim
        num_rows = sum(side * side for side in scale_sizes) + 2
        self.class_row, self.empty_row = num_rows - 2, num_rows - 1
        self.table = nn.Parameter(torch.empty(num_rows, 2 * head_dim))  # (re, im) interleaved
        self.mixing_coeffs = nn.Parameter(torch.empty(num_mixing_layers, num_heads)) if num_mixing_layers else None

    def reset_parameters(self) -> None:
        if self.table.is_meta:
            return
        angles = initial_angles(self.scale_sizes, self.head_dim)
        with torch.no_grad():
            self.table.copy_(torch.stack([angles.cos(), angles.sin()], dim=-1).flatten(1))
            if self.mixing_coeffs is not None:
                self.mixing_coeffs.zero_()

    def forward(self, positions: Tensor, prev_positions: Tensor) -> Rotary:
        """Rotations of the class token followed by the tokens at ``positions`` (b, L)."""
        current = self._lookup(positions)
        queries = current.unbind(-1)
        if self.mixing_coeffs is None:
            return rotary_of(queries, [])
        previous = self._lookup(torch.where(prev_positions == NO_LOCATION, self.empty_row, prev_positions))
        return rotary_of(queries, self._mixed(current, previous))

    def _mixed(self, current: Tensor, previous: Tensor) -> Iterator[CosSin]:
        """(b, h, T, d) each of the keys of a layer, layer by layer: all at once would take memory."""
        for weight in torch.sigmoid(self.mixing_coeffs):  # (h,)
            yield torch.lerp(previous, current, weight[:, None, None, None]).unbind(-1)

    def _lookup(self, rows: Tensor) -> Tensor:
        """(b, 1, 1 + L, d, 2) unit complex numbers of the class row and then ``rows`` (b, L)."""
        rows = F.pad(rows, (1, 0), value=self.class_row)
        table = F.normalize(self.table.unflatten(1, (self.head_dim, 2)), dim=-1)
        return table[rows].unsqueeze(1)
