"""Precision and recall against a search by brute force."""

import numpy as np
import pytest

from evaluation.metrics import check_order, manifold_radii, precision_recall


def exact_distances(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return ((rows[:, None] - columns[None]) ** 2).sum(axis=-1).astype(np.float32)


def brute_force(reference: np.ndarray, samples: np.ndarray) -> tuple[float, float]:
    def share_inside(points: np.ndarray, manifold: np.ndarray) -> float:
        inside = 0
        for point in points:
            for i, centre in enumerate(manifold):
                others = np.delete(manifold, i, axis=0)
                third = sorted(float(((other - centre) ** 2).sum()) for other in others)[2]
                if float(((point - centre) ** 2).sum()) <= third:
                    inside += 1
                    break
        return inside / len(points)

    return share_inside(samples, reference), share_inside(reference, samples)


def clouds() -> tuple[np.ndarray, np.ndarray]:
    """Different counts, overlapping in part. Whole numbers: distances are exact, whatever order they are summed in."""
    random = np.random.default_rng(0)
    return (
        random.integers(0, 60, size=(43, 3)).astype(np.float32),
        random.integers(20, 70, size=(31, 3)).astype(np.float32),
    )


@pytest.mark.parametrize("block", [1, 2, 3, 5, 31, 43, 4096])
def test_equal_to_brute_force_in_blocks_of_any_size(block: int) -> None:
    reference, samples = clouds()
    expected = brute_force(reference, samples)
    assert 0 < min(expected) <= max(expected) < 1
    assert expected[0] != expected[1]
    assert precision_recall(reference, samples, exact_distances, block) == expected


def test_collapsed_samples_have_precision_and_no_recall() -> None:
    reference = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    samples = np.repeat(reference[:1], 50, axis=0)
    precision, recall = precision_recall(reference, samples, exact_distances)
    assert precision == 1
    assert recall == 1 / 200


def test_radius_is_the_third_neighbours() -> None:
    line = np.array([[0], [1], [3], [7], [20]], dtype=np.float32)
    assert manifold_radii(line, exact_distances).tolist() == [49, 36, 16, 49, 361]
    assert manifold_radii(line, exact_distances, block=2).tolist() == [49, 36, 16, 49, 361]


@pytest.mark.parametrize("width", [5, 300])
def test_the_self_test_passes_on_right_distances_and_fails_on_wrong_ones(width: int) -> None:
    check_order(exact_distances, width)
    with pytest.raises(RuntimeError, match="of a collapsed set"):
        check_order(lambda rows, columns: np.zeros((len(rows), len(columns)), np.float32), width)
