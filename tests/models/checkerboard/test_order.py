"""Scales, scan orders, blocks, layouts: against restatements of formats.md M1, M2, M5 in plain Python."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import chain
from typing import Any

import pytest
import torch

from models.checkerboard.config import CheckerboardConfig
from models.checkerboard.layout import (
    NO_LOCATION,
    Layout,
    block_causal_mask,
    fixed_positions,
    make_layout,
    random_positions,
)
from models.checkerboard.order import (
    draw_block_size,
    progressive_checkerboard,
    sampling_blocks,
    split_blocks,
    training_blocks,
)
from models.scales import scale_slices
from runtime.errors import UserError

pytestmark = pytest.mark.quick
REMAINDERS = ("separate", "fold")
POWERS_OF_TWO = (1, 2, 4, 8, 16, 32)
STRIDE = 16  # pixels per code


# Scales


def scales_of(img_size: int, ratio: float, **settings: Any) -> tuple[int, ...]:
    return CheckerboardConfig(img_size=img_size, scale_ratio=ratio, **settings).scale_sizes(STRIDE)


@pytest.mark.parametrize(
    ("img_size", "ratio", "scales"),
    [
        (256, 2, (1, 2, 4, 8, 16)),
        (256, 4, (1, 4, 16)),
        (256, 3, (1, 2, 5, 16)),
        (256, math.sqrt(2), (1, 2, 3, 4, 6, 8, 11, 16)),
        (512, 2, (1, 2, 4, 8, 16, 32)),
        (512, 4, (1, 2, 8, 32)),
    ],
)
def test_scales_of_the_published_table(img_size: int, ratio: float, scales: tuple[int, ...]) -> None:
    assert scales_of(img_size, ratio) == scales


def test_scales_with_a_minimum_or_a_single_one() -> None:
    assert scales_of(256, 2, scale_min_size=4) == (4, 8, 16)
    assert scales_of(256, 3, scale_min_size=2) == (2, 5, 16)
    assert scales_of(256, 2, scale_min_size=16) == (16,)
    assert scales_of(256, 2, single_scale=True) == (16,)
    assert scales_of(16, 2) == (1,)


@pytest.mark.parametrize(
    ("img_size", "ratio", "min_size", "named"),
    [
        (250, 2, 1, "img_size 250"),
        (0, 2, 1, "img_size is 0"),
        (256, 1, 1, "scale_ratio 1"),
        (256, 0.5, 1, "scale_ratio 0.5"),
        (256, 2, 0, "scale_min_size 0"),
        (256, 2, 17, "scale_min_size 17"),
    ],
)
def test_impossible_scales_are_refused(img_size: int, ratio: float, min_size: int, named: str) -> None:
    with pytest.raises(UserError, match=named):
        scales_of(img_size, ratio, scale_min_size=min_size)


# Scan order


def rank(y: int, x: int, size: int) -> int:
    """formats.md M2, for a power of two."""
    if size == 1:
        return 0
    quadrant = {(0, 0): 0, (1, 1): 1, (0, 1): 2, (1, 0): 3}[y % 2, x % 2]
    return quadrant * (size // 2) ** 2 + rank(y // 2, x // 2, size // 2)


@pytest.mark.parametrize("size", range(1, 34))
def test_order_is_a_permutation(size: int) -> None:
    assert sorted(progressive_checkerboard(size)) == list(range(size * size))


@pytest.mark.parametrize("size", range(1, 34))
def test_order_sorts_the_grid_by_the_rank_on_the_next_power_of_two(size: int) -> None:
    power = next(power for power in (*POWERS_OF_TWO, 64) if power >= size)
    by_rank = sorted(range(size * size), key=lambda location: rank(*divmod(location, size), power))
    assert list(progressive_checkerboard(size)) == by_rank


@pytest.mark.parametrize("size", POWERS_OF_TWO)
def test_every_prefix_balances_the_quadrants_at_every_level(size: int) -> None:
    """Within every node of the quadtree, the drawn counts of its four children never differ by more than one."""
    order = progressive_checkerboard(size)
    for half in POWERS_OF_TWO[: POWERS_OF_TWO.index(size)]:  # side of a child
        drawn: Counter[tuple[int, int]] = Counter()
        for location in order:
            y, x = divmod(location, size)
            drawn[y // half, x // half] += 1
            top, left = y // half // 2 * 2, x // half // 2 * 2
            counts = [drawn[top + dy, left + dx] for dy in (0, 1) for dx in (0, 1)]
            assert max(counts) - min(counts) <= 1


# Blocks


@pytest.mark.parametrize("remainder", REMAINDERS)
@pytest.mark.parametrize("size", range(1, 34))
def test_blocks_partition_each_scale(size: int, remainder: str) -> None:
    n = size * size
    for steps in chain(range(1, 40), (n - 1, n, n + 1, 3 * n)):
        (lengths,) = sampling_blocks([size], max(1, steps), remainder)
        assert sum(lengths) == n
        assert min(lengths) >= 1
        assert len(lengths) <= n
        block_size = max(1, n // max(1, steps))
        assert set(lengths[:-1]) <= {block_size}
        if remainder == "separate":
            assert lengths[-1] <= block_size
        else:
            assert block_size <= lengths[-1] < 2 * block_size


def test_published_block_counts() -> None:
    assert sampling_blocks([5], 4) == ((6, 6, 6, 6, 1),)
    assert sampling_blocks([5], 4, "fold") == ((6, 6, 6, 7),)
    assert sampling_blocks([3], 5) == sampling_blocks([3], 5, "fold") == ((1,) * 9,)
    assert sampling_blocks([1, 2, 4], 4) == ((1,), (1,) * 4, (4,) * 4)


@pytest.mark.parametrize(("scales", "steps_per_scale"), [((1, 2, 4, 8, 16), 4), ((1, 4, 16), 8)])
def test_both_released_models_run_17_steps(scales: tuple[int, ...], steps_per_scale: int) -> None:
    assert make_layout(scales, sampling_blocks(scales, steps_per_scale)).steps[-1] + 1 == 17


def test_wrong_block_settings_are_refused() -> None:
    with pytest.raises(UserError, match="steps_per_scale is 0"):
        sampling_blocks([4], 0)
    with pytest.raises(UserError, match="remainder 'drop'"):
        sampling_blocks([4], 4, "drop")


def block_size_distribution(n: int) -> dict[int, Fraction]:
    """formats.md M5, enumerated: each x of 1..m as it is or as n // x, the latter redrawn for x == m."""
    middle = math.isqrt(n)
    outcomes = Counter(chain(range(1, middle + 1), (n // x for x in range(1, middle))))
    return {size: Fraction(count, outcomes.total()) for size, count in outcomes.items()}


@pytest.mark.parametrize("n", [1, 4, 9, 25, 64, 256])
def test_training_block_sizes_follow_their_definition(n: int) -> None:
    rng, draws = random.Random(0), 20_000
    counts = Counter(draw_block_size(n, rng) for _ in range(draws))
    expected = block_size_distribution(n)
    assert counts.keys() == expected.keys()
    chi_square = sum((counts[size] - draws * p) ** 2 / (draws * p) for size, p in expected.items())
    freedom = len(expected) - 1
    assert chi_square <= freedom + 4 * math.sqrt(2 * freedom)  # 4 standard deviations above the mean


def test_training_blocks_partition_and_fold_half_of_the_remainders() -> None:
    rng, folded, remainders = random.Random(0), 0, 0
    for _ in range(2000):
        blocks = training_blocks((1, 3, 5), rng)
        assert [sum(lengths) for lengths in blocks] == [1, 9, 25]
        lengths = blocks[2]
        if len(set(lengths)) > 1:
            remainders += 1
            folded += lengths[-1] > lengths[0]
    assert remainders > 500
    assert abs(folded / remainders - 0.5) < 4 * math.sqrt(0.25 / remainders)


def test_split_blocks_lengths() -> None:
    assert split_blocks(9, 4) == (4, 4, 1)
    assert split_blocks(9, 4, "fold") == (4, 5)
    assert split_blocks(9, 9) == split_blocks(9, 9, "fold") == (9,)


# Layouts


def slow_layout(positions: Sequence[int], blocks: Sequence[Sequence[int]]) -> list[tuple[int, int, int]]:
    """(location, previous location, step) of every token, one block at a time; positions are in the order drawn."""
    tokens, step, start = [], 0, 0
    for lengths in blocks:
        previous: Sequence[int] = []
        for length in lengths:
            block = positions[start : start + length]
            for j, location in enumerate(block):
                tokens.append((location, previous[j] if j < len(previous) else NO_LOCATION, step))
            previous, step, start = block, step + 1, start + length
    return tokens


def checkerboard_positions(scales: Sequence[int]) -> list[int]:
    """Location indices of all scales in the order drawn."""
    starts = [sum(side * side for side in scales[:i]) for i in range(len(scales))]
    return [start + i for start, side in zip(starts, scales, strict=True) for i in progressive_checkerboard(side)]


def rows_of(layout: Layout, image: int = 0) -> list[tuple[int, int, int]]:
    columns = (layout.positions[image], layout.prev_positions[image], layout.steps)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize("remainder", REMAINDERS)
@pytest.mark.parametrize("steps_per_scale", [1, 2, 3, 4, 5, 8, 1000])
@pytest.mark.parametrize("scales", [(1, 2, 4, 8), (1, 3, 8), (1, 2, 5, 16), (6,)])
def test_layout_against_a_slow_restatement(scales: tuple[int, ...], steps_per_scale: int, remainder: str) -> None:
    blocks = sampling_blocks(scales, steps_per_scale, remainder)
    layout = make_layout(scales, blocks)
    assert layout.positions.shape == layout.prev_positions.shape == (1, len(layout.steps))
    assert rows_of(layout) == slow_layout(checkerboard_positions(scales), blocks)
    assert sum(map(len, layout.blocks)) == layout.steps[-1] + 1


def test_layout_of_drawn_blocks() -> None:
    rng, scales = random.Random(1), (1, 3, 5, 8)
    for _ in range(50):
        blocks = training_blocks(scales, rng)
        assert rows_of(make_layout(scales, blocks)) == slow_layout(checkerboard_positions(scales), blocks)


def test_raster_order_counts_the_locations() -> None:
    assert fixed_positions((1, 2, 3), "raster").tolist() == [list(range(14))]
    assert fixed_positions((1, 3, 4), "checkerboard").tolist() == [checkerboard_positions((1, 3, 4))]


def test_random_orders_permute_each_scale_of_each_image() -> None:
    scales, blocks = (1, 3, 8), sampling_blocks((1, 3, 8), 4)
    positions = random_positions(scales, torch.rand(5, 74))
    for locations in scale_slices(scales):
        expected = torch.arange(locations.start, locations.stop).expand(5, -1)
        assert torch.equal(positions[:, locations].sort(dim=1).values, expected)
    assert len({tuple(row) for row in positions.tolist()}) == 5
    layout = make_layout(scales, blocks, positions)
    for image in range(5):
        assert rows_of(layout, image) == slow_layout(positions[image].tolist(), blocks)


def test_a_folded_remainder_takes_the_empty_inputs() -> None:
    folded = make_layout([5], sampling_blocks([5], 4, "fold"))
    assert (folded.prev_positions[0, :6] == NO_LOCATION).all()
    assert (folded.prev_positions[0, 6:24] >= 0).all()
    assert folded.prev_positions[0, 24] == NO_LOCATION
    short = make_layout([5], sampling_blocks([5], 4))
    assert short.prev_positions[0, 24] == short.positions[0, 18]  # the first token of the block before


def test_slices_cover_the_sequence() -> None:
    assert scale_slices([1, 2, 4]) == [slice(0, 1), slice(1, 5), slice(5, 21)]


def test_layout_moves_between_devices() -> None:
    layout = make_layout([1, 2], sampling_blocks([1, 2], 2))
    moved = layout.to(torch.device("meta"))
    assert isinstance(moved, Layout)
    assert {t.device.type for t in (moved.positions, moved.prev_positions, moved.steps)} == {"meta"}
    assert (moved.scale_sizes, moved.blocks) == (layout.scale_sizes, layout.blocks)


def test_mask_allows_the_own_block_and_every_earlier_one() -> None:
    steps = torch.tensor([0, 1, 1, 2])
    expected = [
        [1, 0, 0, 0, 0],  # the class token sees itself alone
        [1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1],
    ]
    assert block_causal_mask(steps).int().tolist() == expected
