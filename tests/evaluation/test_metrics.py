"""Fréchet distance and Inception Score against formulas that share no code with ours."""

import numpy as np
import pytest
from scipy import linalg

from evaluation import metrics as statistics
from evaluation.metrics import (
    Statistics,
    fault_of_statistics,
    frechet_distance,
    inception_score,
    is_by_class,
    statistics_of,
    trace_of_root,
)
from runtime.errors import UserError


def random_features(count: int, width: int, seed: int = 0) -> np.ndarray:
    """Correlated features (count, width) float32 with means of their own."""
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(count, width)) @ random.normal(size=(width, width))
    return (mixed + random.normal(size=width)).astype(np.float32)


@pytest.mark.parametrize(("count", "rows"), [(50, 4096), (50, 7), (8, 8), (2, 1)])
def test_statistics_are_numpys(count: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "ROWS", rows)
    features = random_features(count, 6)
    found = statistics_of(features)
    np.testing.assert_allclose(found.mean, features.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-10)
    assert found.covariance.dtype == np.float64


def test_mean_far_from_zero_loses_no_digits() -> None:
    features = random_features(100, 4).astype(np.float64) + 1e6
    np.testing.assert_allclose(statistics_of(features).covariance, np.cov(features, rowvar=False), rtol=1e-9)


def test_trace_of_root_is_that_of_the_matrix_root() -> None:
    first, second = (statistics_of(random_features(60, 12, seed)).covariance for seed in (0, 1))
    root = linalg.sqrtm(first @ second)
    assert trace_of_root(first, second) == pytest.approx(np.trace(root).real, rel=1e-10)
    assert trace_of_root(second, first) == pytest.approx(trace_of_root(first, second), rel=1e-10)


def test_distance_of_diagonal_gaussians() -> None:
    """|m1 - m2|^2 + sum (s1 - s2)^2 of the standard deviations."""
    random = np.random.default_rng(0)
    means, deviations = random.normal(size=(2, 9)), random.uniform(0.1, 3, size=(2, 9))
    sides = [Statistics(m, np.diag(s**2)) for m, s in zip(means, deviations, strict=True)]
    expected = ((means[0] - means[1]) ** 2).sum() + ((deviations[0] - deviations[1]) ** 2).sum()
    assert frechet_distance(*sides) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("count", "width"), [(200, 16), (20, 64), (5, 100)])
def test_distance_to_itself_is_zero_and_never_below(count: int, width: int) -> None:
    for seed in range(20):
        side = statistics_of(random_features(count, width, seed))
        assert frechet_distance(side, side) == 0
        turned = Statistics(side.mean, np.nextafter(side.covariance, 0))  # the same but for the last digit
        assert 0 <= frechet_distance(side, turned) < 1e-9 * np.trace(side.covariance)


def test_a_distance_below_zero_is_none() -> None:
    """Of covariances that are none: the product has a root, whose trace is larger than both."""
    none = np.array([[1.0, 10.0], [10.0, 1.0]])
    with pytest.raises(UserError, match=r"distance comes out as -"):
        frechet_distance(Statistics(np.zeros(2), none), Statistics(np.zeros(2), none))
    with pytest.raises(UserError, match="distance comes out as nan"):
        frechet_distance(Statistics(np.full(2, np.nan), np.eye(2)), Statistics(np.zeros(2), np.eye(2)))


def damaged(row: int, column: int, value: float) -> np.ndarray:
    covariance = statistics_of(random_features(50, 6)).covariance
    covariance[row, column] = value
    return covariance


@pytest.mark.parametrize(
    ("mean", "covariance", "says"),
    [
        (np.zeros(6), np.eye(5), "must be"),
        (np.zeros(0), np.zeros((0, 0)), "must be"),
        (np.zeros((6, 1)), np.eye(6), "must be"),
        (np.full(6, np.inf), np.eye(6), "not finite"),
        (np.zeros(6), damaged(2, 2, np.nan), "not finite"),
        (np.zeros(6), damaged(2, 3, 40.0), "not symmetric"),
        (np.zeros(6), damaged(2, 2, -1.0), "negative eigenvalue"),
        (np.zeros(6), np.eye(6) - 0.2, "negative eigenvalue"),
        (np.zeros(6), np.eye(6).astype(np.str_), "no real numbers"),
    ],
)
def test_what_are_no_statistics(mean: np.ndarray, covariance: np.ndarray, says: str) -> None:
    assert says in fault_of_statistics(mean, covariance)


@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_statistics_of_few_images_in_single_precision_are_some(kind: type) -> None:
    """Most eigenvalues are rounding alone, half of them below 0."""
    side = statistics_of(random_features(30, 200))
    mean, covariance = side.mean.astype(kind), side.covariance.astype(kind)
    assert fault_of_statistics(mean, covariance) == ""
    rounded = Statistics(mean.astype(np.float64), covariance.astype(np.float64))
    assert 0 <= frechet_distance(rounded, side) < 1e-4 * np.trace(side.covariance)


def test_fewer_images_than_features() -> None:
    """Singular covariances: the trace is the nuclear norm of the product of the centred data, without any root."""
    first, second = (random_features(20, 64, seed).astype(np.float64) for seed in (0, 1))
    centred = [side - side.mean(axis=0) for side in (first, second)]
    nuclear = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum() / 19
    covariances = [statistics_of(side).covariance for side in (first, second)]
    assert trace_of_root(*covariances) == pytest.approx(nuclear, rel=1e-7)


def test_constant_features() -> None:
    side = statistics_of(np.ones((5, 3), dtype=np.float32))
    assert frechet_distance(side, Statistics(side.mean + 2, side.covariance)) == pytest.approx(12)


def textbook_score(features: np.ndarray, weights: np.ndarray) -> float:
    """exp(H(mean p) - mean H(p)): mutual information of image and class."""
    logits = features.astype(np.float64) @ weights
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    marginal = p.mean(axis=0)
    return float(np.exp((p * np.log(p)).sum(axis=1).mean() - (marginal * np.log(marginal)).sum()))


def test_inception_score_of_one_split() -> None:
    features, weights = random_features(40, 8), np.random.default_rng(1).normal(size=(8, 5)).astype(np.float32)
    assert inception_score(features, weights) == pytest.approx(textbook_score(features, weights), rel=1e-9)


def test_inception_score_is_the_mean_over_splits_the_last_shorter() -> None:
    features, weights = random_features(25, 8), np.random.default_rng(1).normal(size=(8, 5))
    parts = [textbook_score(features[first : first + 10], weights) for first in (0, 10, 20)]
    assert inception_score(features, weights, split=10) == pytest.approx(np.mean(parts), rel=1e-9)


def test_inception_score_spans_one_to_the_number_of_classes() -> None:
    """All alike is 1; certain and balanced is K; logits of thousands overflow nothing."""
    weights = 5000 * np.eye(4)
    assert inception_score(np.ones((10, 4)), weights) == pytest.approx(1)
    assert inception_score(np.eye(4), weights) == pytest.approx(4)
    assert inception_score(np.eye(4)[:2], weights) == pytest.approx(2)


def test_a_score_that_is_none() -> None:
    with pytest.raises(UserError, match="Inception Score is not finite"):
        inception_score(random_features(9, 3), np.full((3, 4), np.nan))


# Order by class


def of_classes(labels: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Features and weights that take images for their classes more or less surely."""
    width = labels.max() + 1
    return np.eye(width)[labels] + np.random.default_rng(0).normal(scale=noise, size=(len(labels), width)), np.eye(
        width
    )


@pytest.mark.parametrize("noise", [0.01, 0.3])
@pytest.mark.parametrize(
    ("count", "classes", "split"), [(1000, 5, 200), (1010, 5, 1000), (990, 40, 100), (2000, 2, 99)]
)
def test_an_order_by_class_is_told_from_others(count: int, classes: int, split: int, noise: float) -> None:
    in_turn = np.arange(count) % classes
    by_class, at_random = np.sort(in_turn), np.random.default_rng(1).permutation(in_turn)
    found = [is_by_class(*of_classes(labels, noise), split) for labels in (by_class, in_turn, at_random)]
    assert found == [True, False, False]
    assert not is_by_class(*of_classes(by_class, noise), count)  # one split has no order


def test_images_that_are_all_alike_have_no_order() -> None:
    assert not is_by_class(np.ones((500, 3), np.float32), np.eye(3), split=100)


def test_the_order_of_the_score() -> None:
    features, weights = of_classes(np.repeat(np.arange(5), 20), 0.1)
    order = np.random.default_rng(0).permutation(100)
    shuffled = inception_score(features, 9 * weights, 20, order)
    assert shuffled == pytest.approx(inception_score(features[order], 9 * weights, 20))
    assert inception_score(features, 9 * weights, 20) < 1.5 < 3 < shuffled
