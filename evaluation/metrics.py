"""Fréchet distance, Inception Score, precision and recall from features (formats.md M8).

Letters: N images, n, m of a block, D features of each, K classes. NumPy alone: every backend shares these.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from runtime.errors import UserError

VERSION = 2  # of how images are read and metrics computed; results of others are measured again
ROWS = 4096  # rows turned to float64 at once
SPLIT = 5000  # images a split of the Inception Score
ORDERS, DIRECTIONS, MARGIN = 100, 16, 2  # of the test for an order by class
EPSILON = np.finfo(np.float64).eps
SLACK = 1e-5  # relative; more than statistics lose that were once in float32
NEIGHBOURS = 3  # in precision and recall
BLOCK = 4096  # images of each set whose distances are held at once
CHECKED, CHECKED_SLACK = 200, 0.1  # images of the self-test, and how far its shares may be from 1 and 0
# Squared distances (n, m), float32, of features (n, D) and (m, D); each backend has its own.
Distances = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Statistics:
    """Mean (D,) and unbiased covariance (D, D) of features, float64."""

    mean: np.ndarray
    covariance: np.ndarray

    def named(self, suffix: str) -> dict[str, np.ndarray]:
        """As a file of statistics holds them."""
        return {f"mu{suffix}": self.mean, f"sigma{suffix}": self.covariance}

    @classmethod
    def of_names(cls, arrays: Mapping[str, np.ndarray], suffix: str) -> "Statistics":
        """Of such a file's arrays."""
        return cls(arrays[f"mu{suffix}"], arrays[f"sigma{suffix}"])


def statistics_of(features: np.ndarray) -> Statistics:
    """Mean and covariance of features (N, D) of any float type, N at least 2, as ``np.cov`` has it.

    Block by block: ``np.cov`` would hold two copies of all features in float64.
    """
    blocks = [features[rows] for rows in _slices(features, ROWS)]
    mean = sum(block.sum(axis=0, dtype=np.float64) for block in blocks) / len(features)
    covariance = np.zeros((features.shape[1],) * 2)
    for block in blocks:
        centred = block.astype(np.float64) - mean
        covariance += centred.T @ centred
    return Statistics(mean, covariance / (len(features) - 1))


def fault_of_statistics(mean: np.ndarray, covariance: np.ndarray) -> str:
    """Why two arrays can be no mean and covariance of features, up to rounding; no text if they can."""
    if mean.ndim != 1 or not len(mean) or covariance.shape != 2 * mean.shape:
        return "they must be (D,) and (D, D)"
    if mean.dtype.kind not in "fiu" or covariance.dtype.kind not in "fiu":
        return f"they hold {mean.dtype} and {covariance.dtype}, no real numbers"
    covariance = covariance.astype(np.float64)
    slack = SLACK * np.linalg.norm(covariance)
    if not (np.isfinite(mean).all() and np.isfinite(slack)):
        return "some are not finite"
    if np.abs(covariance - covariance.T).max() > slack:
        return "the covariance is not symmetric"
    lowest = np.linalg.eigvalsh(covariance)[0]
    return f"the covariance has a negative eigenvalue, {lowest:.3g}" if lowest < -slack else ""


def frechet_distance(first: Statistics, second: Statistics) -> float:
    """Squared Fréchet distance of two Gaussians: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).

    Never negative: what rounding leaves below 0 is 0, as it is for equal ones. UserError beyond rounding, where these
    are no Gaussians.
    """
    difference = first.mean - second.mean
    traces = np.trace(first.covariance) + np.trace(second.covariance)
    distance = float(difference @ difference + traces - 2 * trace_of_root(first.covariance, second.covariance))
    if not -SLACK * traces <= distance < np.inf:
        raise UserError(f"a Fréchet distance comes out as {distance:.6g}; make the statistics of both sets again")
    equal = np.array_equal(first.mean, second.mean) and np.array_equal(first.covariance, second.covariance)
    return 0.0 if equal else max(0.0, distance)


def trace_of_root(first: np.ndarray, second: np.ndarray) -> float:
    """Trace of the square root of the product of two covariances (D, D).

    C1 C2 is not symmetric, but with a factor F of C1 = F F^T it has the eigenvalues of F^T C2 F, which is. Those that
    are rounding alone, as fewer images than features leave them, count as zero: their roots would add up.
    """
    values, vectors = np.linalg.eigh(first)
    kept = values > _noise(values)
    factor = vectors[:, kept] * np.sqrt(values[kept])  # (D, rank)
    values = np.linalg.eigvalsh(factor.T @ second @ factor)
    return float(np.sqrt(values[values > _noise(values)]).sum())


def _noise(eigenvalues: np.ndarray) -> float:
    """Below which eigenvalues, in ascending order, cannot be told from zero."""
    return len(eigenvalues) * EPSILON * max(0.0, eigenvalues[-1]) if len(eigenvalues) else 0.0


def inception_score(
    features: np.ndarray, weights: np.ndarray, split: int = SPLIT, order: np.ndarray | None = None
) -> float:
    """Inception Score of features (N, D) under the classifier's weights (D, K), its bias left out as ADM does.

    The mean over splits of ``split`` images, the last as long as what remains, in the order given, or that of the
    indices ``order`` (N,). UserError if it is not finite.
    """
    weights = weights.astype(np.float64)
    parts = [rows if order is None else order[rows] for rows in _slices(features, split)]
    score = float(np.mean([_score(features[part].astype(np.float64) @ weights) for part in parts]))
    if not np.isfinite(score):
        raise UserError("the Inception Score is not finite; get the file of the Inception network again")
    return score


def _score(logits: np.ndarray) -> float:
    """exp of the mean Kullback-Leibler divergence of each image's classes (N, K) from those of all."""
    log_p = _log_softmax(logits)
    p = np.exp(log_p)
    marginal = p.mean(axis=0)
    # A class whose share underflows to 0 adds nothing: p log p and p log(marginal) both vanish.
    log_marginal = np.log(marginal, where=marginal > 0, out=np.zeros_like(marginal))
    return float(np.exp((p * (log_p - log_marginal)).sum(axis=1).mean()))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def is_by_class(features: np.ndarray, weights: np.ndarray, split: int = SPLIT) -> bool:
    """Whether images come by class, so that the splits of the Inception Score hold other classes than all of them.

    Predicted classes of features (N, D) differ between splits more than in ``ORDERS`` random orders: in a few random
    directions, for the ranking of orders needs no more.
    """
    random, starts = np.random.default_rng(0), np.arange(0, len(features), split)
    if len(starts) < 2:
        return False
    directions = random.normal(size=(weights.shape[1], DIRECTIONS))
    p = np.concatenate(
        [np.exp(_log_softmax(features[rows] @ weights)) @ directions for rows in _slices(features, ROWS)]
    )
    p -= p.mean(axis=0)  # (N, DIRECTIONS)
    sizes = np.diff(starts, append=len(features))[:, None]

    def spread(p: np.ndarray) -> float:
        """Between splits."""
        return float((np.add.reduceat(p, starts) ** 2 / sizes).sum())

    return spread(p) > MARGIN * max(spread(random.permutation(p)) for _ in range(ORDERS))


def precision_recall(
    reference: np.ndarray, samples: np.ndarray, distances: Distances, block: int = BLOCK
) -> tuple[float, float]:
    """Precision: share of samples inside the reference's manifold; recall: share of the reference inside the samples'.

    Of features (N, D) and (N', D), float32; each set has more images than ``NEIGHBOURS``. Memory is that of a few
    blocks of distances, ``block`` images of each set.
    """
    radii_reference, radii_samples = (manifold_radii(side, distances, block) for side in (reference, samples))
    reference_inside, samples_inside = (np.zeros(len(side), dtype=bool) for side in (reference, samples))
    for i in _slices(reference, block):
        for j in _slices(samples, block):
            d = _finite(distances(reference[i], samples[j]))  # (n, m)
            reference_inside[i] |= (d <= radii_samples[j]).any(axis=1)
            samples_inside[j] |= (d <= radii_reference[i, None]).any(axis=0)
    return float(samples_inside.mean()), float(reference_inside.mean())


def check_order(distances: Distances, width: int) -> None:
    """A self-test of which share is which: samples that are all alike are precise, and recall next to nothing.

    RuntimeError if the shares of features (N, ``width``) are exchanged, or the distances are none.
    """
    random = np.random.default_rng(0)
    reference = random.normal(size=(CHECKED, width)).astype(np.float32)
    collapsed = reference[:1] + random.normal(scale=1e-2, size=(CHECKED, width)).astype(np.float32)
    precision, recall = precision_recall(reference, collapsed, distances)
    if precision < 1 - CHECKED_SLACK or recall > CHECKED_SLACK:
        raise RuntimeError(f"of a collapsed set precision is {precision} and recall {recall}; they are exchanged")


def manifold_radii(features: np.ndarray, distances: Distances, block: int = BLOCK) -> np.ndarray:
    """(N,) squared distance of each image to its third nearest neighbour; the nearest of all is the image itself."""
    radii = np.empty(len(features), dtype=np.float32)
    for i in _slices(features, block):
        nearest = np.empty((len(radii[i]), 0), dtype=np.float32)
        for j in _slices(features, block):
            candidates = np.concatenate([nearest, _finite(distances(features[i], features[j]))], axis=1)
            last = min(NEIGHBOURS, candidates.shape[1] - 1)
            nearest = np.partition(candidates, last, axis=1)[:, : last + 1]
        radii[i] = nearest.max(axis=1)
    return radii


def _finite(distances: np.ndarray) -> np.ndarray:
    if not np.isfinite(distances).all():
        raise UserError("distances of features are not finite; get the file of the Inception network again")
    return distances


def _slices(features: np.ndarray, block: int) -> list[slice]:
    return [slice(first, first + block) for first in range(0, len(features), block)]
