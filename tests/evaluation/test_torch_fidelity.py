"""Stock torch-fidelity's own functions, fed the same features, give our figures."""

import numpy as np
import torch
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_prc import (
    KEY_METRIC_PRECISION,
    KEY_METRIC_RECALL,
    calculate_precision_recall_full,
    prc_features_to_metric,
)

from evaluation.metrics import frechet_distance, inception_score, precision_recall, statistics_of

WIDTH, CLASSES = 40, 12


def features(count: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Correlated, as features are."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).normal(size=(WIDTH, WIDTH)) / WIDTH**0.5
    return (random.normal(size=(count, WIDTH)) @ mixing + shift).astype(np.float32)


def exact(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return ((rows[:, None].astype(np.float64) - columns) ** 2).sum(-1).astype(np.float32)


def theirs(samples: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """What torch-fidelity calls precision and recall."""
    settings = {"prc_neighborhood": 3, "prc_batch_size": 64, "save_cpu_ram": False, "verbose": False}
    return prc_features_to_metric(*map(torch.from_numpy, (samples, reference)), **settings)


def test_fid() -> None:
    sides = features(300, 1), features(200, 2, shift=0.3)
    their_statistics = [fid_features_to_statistics(torch.from_numpy(side.astype(np.float64))) for side in sides]
    expected = fid_statistics_to_metric(*their_statistics, verbose=False)[KEY_METRIC_FID]
    np.testing.assert_allclose(frechet_distance(*map(statistics_of, sides)), expected, rtol=1e-7)


def test_inception_score() -> None:
    """Of splits of one size, in order: theirs shuffles and makes ten unless told otherwise."""
    weights = np.random.default_rng(5).normal(size=(WIDTH, CLASSES)).astype(np.float32)
    samples = features(200, 3)
    logits = torch.from_numpy(samples.astype(np.float64) @ weights.astype(np.float64))
    for splits in (1, 4):
        expected = isc_features_to_metric(logits, splits=splits, shuffle=False)[KEY_METRIC_ISC_MEAN]
        np.testing.assert_allclose(inception_score(samples, weights, 200 // splits), expected, rtol=1e-9)


def test_precision_and_recall() -> None:
    """Which of theirs is which is found on a collapsed set, not taken from the release's names."""
    reference, samples = features(150, 1), 0.8 * features(120, 2)
    names = [KEY_METRIC_PRECISION, KEY_METRIC_RECALL]
    collapsed = reference[:1] + 1e-3 * features(100, 4)
    shares = theirs(collapsed, reference)
    names.sort(key=lambda name: -shares[name])
    assert shares[names[0]] == 1
    assert shares[names[1]] < 0.1
    found = theirs(samples, reference)
    ours = precision_recall(reference, samples, exact, block=64)
    np.testing.assert_allclose(ours, [found[name] for name in names], atol=1e-6)
    assert ours[0] != ours[1]
    full = calculate_precision_recall_full(*map(torch.from_numpy, (samples, reference)))
    assert sorted(full) == sorted(found[name] for name in names)
