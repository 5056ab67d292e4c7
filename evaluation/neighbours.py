"""Precision and recall by k-nearest-neighbour manifolds, block by block (method.md Sec. 9).

Letters: N images, D features of each, n, m images of a block. Memory is that of a few blocks of distances.
"""

from collections.abc import Callable

import numpy as np

NEIGHBOURS = 3
CHECKED, CHECKED_SLACK = 200, 0.1  # images of the self-test, and how far its shares may be from 1 and 0
BLOCK = 4096  # images of each side whose distances are held at once


# Squared distances (n, m), float32, of features (n, D) and (m, D); each backend has its own.
Distances = Callable[[np.ndarray, np.ndarray], np.ndarray]


def precision_recall(
    reference: np.ndarray, samples: np.ndarray, distances: Distances, block: int = BLOCK
) -> tuple[float, float]:
    """Precision: share of samples inside the reference's manifold; recall: share of the reference inside the samples'.

    Args:
        reference: features (N, D) float32.
        samples: features (N', D) float32; each side has more images than ``NEIGHBOURS``.
        distances: computes squared distances of a block.
        block: images of each side whose distances are held at once.
    """
    radii_reference, radii_samples = (manifold_radii(side, distances, block) for side in (reference, samples))
    reference_inside, samples_inside = (np.zeros(len(side), dtype=bool) for side in (reference, samples))
    for i in _slices(reference, block):
        for j in _slices(samples, block):
            d = distances(reference[i], samples[j])  # (n, m)
            reference_inside[i] |= (d <= radii_samples[j]).any(axis=1)
            samples_inside[j] |= (d <= radii_reference[i, None]).any(axis=0)
    return float(samples_inside.mean()), float(reference_inside.mean())


def check_order(distances: Distances, width: int) -> None:
    """A self-test of which share is which: samples that are all alike are precise, and recall next to nothing.

    Args:
        distances: computes squared distances of a block.
        width: number of features, D.

    Raises:
        RuntimeError: the shares are exchanged, or the distances are none.
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
            candidates = np.concatenate([nearest, distances(features[i], features[j])], axis=1)
            last = min(NEIGHBOURS, candidates.shape[1] - 1)
            nearest = np.partition(candidates, last, axis=1)[:, : last + 1]
        radii[i] = nearest.max(axis=1)
    return radii


def _slices(features: np.ndarray, block: int) -> list[slice]:
    return [slice(first, first + block) for first in range(0, len(features), block)]
