"""Learned rotary embedding against formats.md M4 in plain Python."""

import math
from collections.abc import Sequence

import pytest
import torch

from models.checkerboard.layout import make_layout
from models.checkerboard.order import sampling_blocks
from models.checkerboard.rope import Rotary, RotaryEmbedding, initial_angles
from models.transformer import CosSin, rotate, signed
from tests.factory import randomize

pytestmark = pytest.mark.quick
SCALES = (1, 3, 8)
CLASS_ROW, EMPTY_ROW = 74, 75  # after 1 + 9 + 64 locations


def slow_angles(scales: Sequence[int], head_dim: int) -> list[list[float]]:
    """Rows of every position, the class token, the empty token."""
    F = head_dim - head_dim // 8
    if F % 2:
        F += 1
    K = head_dim - F
    theta = max(scales) ** 2
    f = [theta ** (-2 * j / F) for j in range(F // 2)]
    rows = []
    for s, side in enumerate(scales):
        stride = max(scales) / side
        for y in range(side):
            for x in range(side):
                row = [(stride * x + 1) * fj for fj in f] + [(stride * y + 1) * fj for fj in f]
                rows.append(row + [(math.pi / 2) * 10 ** (-k / K) * (s + 1) for k in range(K)])
    return [*rows, [0.0] * head_dim, [0.0] * head_dim]


@pytest.mark.parametrize("head_dim", [4, 6, 12, 16, 20, 32, 64])
@pytest.mark.parametrize("scales", [(1, 2, 4, 8), (1, 3, 8), (1, 2, 5, 16), (6,)])
def test_initial_angles(scales: tuple[int, ...], head_dim: int) -> None:
    expected = torch.tensor(slow_angles(scales, head_dim))
    torch.testing.assert_close(initial_angles(scales, head_dim), expected, atol=1e-5, rtol=1e-5)


def test_table_starts_as_interleaved_unit_numbers() -> None:
    rope = RotaryEmbedding(SCALES, 16, num_heads=2, num_mixing_layers=1)
    rope.reset_parameters()
    angles = torch.tensor(slow_angles(SCALES, 16))
    assert rope.table.shape == (76, 32)
    torch.testing.assert_close(rope.table[:, 0::2], angles.cos(), atol=1e-5, rtol=0)
    torch.testing.assert_close(rope.table[:, 1::2], angles.sin(), atol=1e-5, rtol=0)
    assert torch.equal(rope.mixing_coeffs, torch.zeros(1, 2))


def make_rope(num_mixing_layers: int) -> RotaryEmbedding:
    torch.manual_seed(0)
    rope = RotaryEmbedding(SCALES, 16, num_heads=2, num_mixing_layers=num_mixing_layers)
    rope.reset_parameters()
    randomize(rope, std=0.5)
    return rope


def keys_of(rotary: Rotary, layer: int) -> CosSin:
    real, imaginary = signed(rotary.of_layer(layer))  # which undoes itself
    return real[:, -1], imaginary[:, -1]


def queries_of(rotary: Rotary, layer: int = 0) -> CosSin:
    real, imaginary = signed(rotary.of_layer(layer))
    return real[:, 0], imaginary[:, 0]


def unit_row(rope: RotaryEmbedding, row: int) -> torch.Tensor:
    """(d,) complex numbers of modulus 1."""
    numbers = torch.view_as_complex(rope.table[row].unflatten(0, (16, 2)).detach().contiguous())
    return numbers / numbers.abs()


@pytest.mark.parametrize("remainder", ["separate", "fold"])
def test_queries_take_the_position_and_keys_mix_in_the_previous_one(remainder: str) -> None:
    """Token by token: the class token mixes with itself, a first block with the empty row, and nothing renormalizes."""
    rope = make_rope(num_mixing_layers=2)
    layout = make_layout(SCALES, sampling_blocks(SCALES, 4, remainder))
    rotary = rope(layout.positions, layout.prev_positions)
    positions = [CLASS_ROW, *layout.positions[0].tolist()]
    previous = [CLASS_ROW, *(row if row >= 0 else EMPTY_ROW for row in layout.prev_positions[0].tolist())]
    assert EMPTY_ROW in previous
    for token, (position, prev) in enumerate(zip(positions, previous, strict=True)):
        current = unit_row(rope, position)
        torch.testing.assert_close(torch.complex(*queries_of(rotary))[0, 0, token], current)
        for layer in range(2):
            for head in range(2):
                a = 1 / (1 + math.exp(-rope.mixing_coeffs[layer, head].item()))
                mixed = a * current + (1 - a) * unit_row(rope, prev)
                torch.testing.assert_close(torch.complex(*keys_of(rotary, layer))[0, head, token], mixed)


def test_layers_beyond_the_mixing_ones_turn_keys_like_queries() -> None:
    layout = make_layout(SCALES, sampling_blocks(SCALES, 4))
    rotary = make_rope(1)(layout.positions, layout.prev_positions)
    assert len(rotary.cos_sin) == 2
    assert not torch.equal(keys_of(rotary, 0)[0], queries_of(rotary, 0)[0])
    assert torch.equal(keys_of(rotary, 1)[0], queries_of(rotary, 0)[0][:, :1])
    assert rotary.of_layer(1) is rotary.of_layer(2)
    plain = make_rope(0)
    assert plain.mixing_coeffs is None
    rotary = plain(layout.positions, layout.prev_positions)
    assert len(rotary.cos_sin) == 1


def test_only_the_direction_of_a_stored_number_matters() -> None:
    rope = make_rope(1)
    layout = make_layout(SCALES, sampling_blocks(SCALES, 4))
    before = rope(layout.positions, layout.prev_positions)
    with torch.no_grad():
        rope.table.mul_(torch.rand(76, 16).repeat_interleave(2, dim=1) + 0.5)
    after = rope(layout.positions, layout.prev_positions)
    for pair, scaled in ((queries_of(before), queries_of(after)), (keys_of(before, 0), keys_of(after, 0))):
        torch.testing.assert_close(pair, scaled)


def test_slice_keeps_a_run_of_tokens() -> None:
    layout = make_layout(SCALES, sampling_blocks(SCALES, 4))
    rotary = make_rope(1)(layout.positions, layout.prev_positions)
    run = rotary.slice(slice(3, 7))
    for part, whole in ((queries_of(run), queries_of(rotary)), (keys_of(run, 0), keys_of(rotary, 0))):
        for cut, full in zip(part, whole, strict=True):
            assert torch.equal(cut, full[:, :, 3:7])


def test_rotate_turns_pairs_half_a_head_apart() -> None:
    """Each dimension has its own number: q' = q Re + rotate_half(q) Im, rotate_half = (-second half, first half)."""
    q, real, imaginary = torch.randn(3, 2, 2, 5, 8).unbind(0)
    turned = rotate(q, signed((real, imaginary)))
    for j in range(8):
        partner = -q[..., j + 4] if j < 4 else q[..., j - 4]
        torch.testing.assert_close(turned[..., j], q[..., j] * real[..., j] + partner * imaginary[..., j])
