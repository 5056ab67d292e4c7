"""Fréchet distance and Inception Score against formulas that share no code with ours."""

import numpy as np
import pytest
from scipy import linalg

from evaluation import metrics as statistics
from evaluation.metrics import Statistics, frechet_distance, inception_score, statistics_of, trace_of_root


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


def test_distance_to_itself_is_zero() -> None:
    side = statistics_of(random_features(200, 16))
    assert abs(frechet_distance(side, side)) < 1e-9 * np.trace(side.covariance)


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
