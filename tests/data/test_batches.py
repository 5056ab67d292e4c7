"""Which images and crops a step sees."""

from itertools import chain

import numpy as np
import pytest

from data.batches import EpochBatches, mix_seed

pytestmark = pytest.mark.quick
Pair = tuple[int, int]


def pairs(**overrides: int) -> list[Pair]:
    """All pairs of one rank's epoch, in order."""
    settings = {"num_images": 103, "num_crops": 10, "batch_size": 4, "seed": 3, "epoch": 5}
    return list(chain.from_iterable(EpochBatches(**(settings | overrides))))


def test_an_epoch_is_a_permutation() -> None:
    seen = pairs(num_images=100)
    assert sorted(index for index, _ in seen) == list(range(100))
    assert [index for index, _ in seen] != list(range(100))


def test_a_remainder_is_left_out() -> None:
    batches = list(EpochBatches(num_images=103, num_crops=10, batch_size=4, seed=3, epoch=5))
    assert len(batches) == len(EpochBatches(num_images=103, num_crops=10, batch_size=4, seed=3, epoch=5)) == 25
    assert {len(batch) for batch in batches} == {4}
    indices = [index for batch in batches for index, _ in batch]
    assert len(set(indices)) == 100
    left_out = {
        frozenset(range(103)) - {index for index, _ in pairs(epoch=epoch)} for epoch in range(8)
    }  # other images each epoch
    assert len(left_out) == 8


@pytest.mark.parametrize("num_ranks", [2, 3, 6])
def test_ranks_share_out_the_same_global_batches(num_ranks: int) -> None:
    alone = EpochBatches(num_images=103, num_crops=10, batch_size=12, seed=3, epoch=5)
    parts = [
        list(EpochBatches(103, 10, 12 // num_ranks, seed=3, epoch=5, rank=rank, num_ranks=num_ranks))
        for rank in range(num_ranks)
    ]
    assert {len(part) for part in parts} == {len(alone)}
    for step, batch in enumerate(alone):
        assert list(chain.from_iterable(part[step] for part in parts)) == batch
    indices = [index for part in parts for batch in part for index, _ in batch]
    assert len(indices) == len(set(indices))


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_start_skips_exactly_what_is_done(num_ranks: int) -> None:
    settings = {"num_images": 103, "num_crops": 10, "batch_size": 4, "seed": 3, "epoch": 5, "num_ranks": num_ranks}
    for rank in range(num_ranks):
        whole = list(EpochBatches(**settings, rank=rank))
        for start in (0, 1, 7, len(whole)):
            rest = EpochBatches(**settings, rank=rank, start=start)
            assert list(rest) == whole[start:]
            assert len(rest) == len(whole) - start


def test_crops_are_uniform_and_independent_of_the_image() -> None:
    num_images, num_crops = 20_000, 10
    drawn = pairs(num_images=num_images, num_crops=num_crops)
    expected = num_images / num_crops
    counts = np.bincount([crop for _, crop in drawn], minlength=num_crops)
    assert len(counts) == num_crops
    assert ((counts - expected) ** 2 / expected).sum() < 27.9  # chi-square, 9 degrees, p = 0.001
    indices, crops = np.array(drawn).T
    assert abs(np.corrcoef(indices, crops)[0, 1]) < 0.03


def test_crops_of_an_image_change_with_the_epoch() -> None:
    first, second = (dict(pairs(num_images=1000, epoch=epoch)) for epoch in (0, 1))
    same = sum(first[index] == second[index] for index in range(1000))
    assert 50 < same < 150  # one in ten, by chance


def test_the_same_seed_and_epoch_give_the_same_batches_and_others_do_not() -> None:
    assert pairs() == pairs()
    assert len({tuple(pairs(seed=seed, epoch=epoch)) for seed in range(4) for epoch in range(4)}) == 16
    assert pairs(seed=3, epoch=5) != pairs(seed=5, epoch=3)


def test_one_crop_only() -> None:
    assert {crop for _, crop in pairs(num_crops=1)} == {0}


def test_mix_seed_is_a_spread_function_of_all_parts() -> None:
    seeds = [mix_seed(a, b, c) for a in range(10) for b in range(10) for c in range(10)]
    assert mix_seed(1, 2, 3) == mix_seed(1, 2, 3)
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    bits = np.array([[seed >> bit & 1 for bit in range(63)] for seed in seeds]).mean(axis=0)
    assert (np.abs(bits - 0.5) < 0.09).all()  # each bit is a fair coin, within 5.7 standard deviations
