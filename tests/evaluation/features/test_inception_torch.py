"""torch-fidelity's Inception behind the evaluator, with random weights in the layout of the published ones."""

import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch_fidelity import feature_extractor_inceptionv3
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

import evaluator
from evaluation.features.inception_torch import TorchInception
from tests.command_factory import ROOT, call

FIXTURE = ROOT / "tests/fixtures/evaluator"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    no_download = patch.object(feature_extractor_inceptionv3, "load_state_dict_from_url", return_value={})
    torch.manual_seed(0)
    with no_download, patch.object(FeatureExtractorInceptionV3, "load_state_dict"):
        torch.save(FeatureExtractorInceptionV3("inception", ["2048"]).state_dict(), path)
    return path


def images(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(count, 32, 40, 3), dtype=np.uint8)


def test_features_are_torch_fidelitys(weights: Path) -> None:
    inception = TorchInception(weights, CPU)
    network = FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], str(weights))
    pooled, logits = network(torch.from_numpy(images()).permute(0, 3, 1, 2))
    features, _ = inception(images())
    np.testing.assert_allclose(features, pooled.numpy(), rtol=1e-5)
    np.testing.assert_allclose(features @ inception.class_weights, logits.numpy(), atol=1e-5)


def test_spatial_features_are_the_first_channels_of_mixed_6_in_tensorflows_order(weights: Path) -> None:
    """(B, 17, 17, 7) flattened, as a forward pass by hand has it."""
    inception = TorchInception(weights, CPU)
    _, spatial = inception(images())
    network = FeatureExtractorInceptionV3("x", ["2048"], str(weights))
    x = torch.from_numpy(images()).permute(0, 3, 1, 2).float()
    x = (interpolate_bilinear_2d_like_tensorflow1x(x, size=(299, 299), align_corners=False) - 128) / 128
    for name, layer in network.named_children():
        if name == "Mixed_6d":
            break
        x = layer(x)
    expected = network.Mixed_6d.branch1x1(x).numpy().transpose(0, 2, 3, 1)[..., :7]
    assert expected.shape == (3, 17, 17, 7)
    assert expected.std() > 0
    np.testing.assert_allclose(spatial, expected.reshape(3, -1), rtol=1e-4, atol=1e-6)


def test_distances_are_of_half_precision_unless_they_overflow(weights: Path) -> None:
    inception = TorchInception(weights, CPU)
    random = np.random.default_rng(0)
    rows, columns = (random.normal(size=(count, 2048)).astype(np.float32) for count in (6, 9))
    exact = ((rows[:, None].astype(np.float64) - columns) ** 2).sum(axis=-1)
    small = inception.squared_distances(rows, columns)
    assert small.dtype == np.float32
    assert (small == small.astype(np.float16)).all()
    np.testing.assert_allclose(small, exact, atol=8)
    large = inception.squared_distances(100 * rows, 100 * columns)
    np.testing.assert_allclose(large, 1e4 * exact, rtol=1e-5)
    assert (inception.squared_distances(100 * rows, 100 * rows) >= 0).all()


def test_the_command_line_without_tensorflow(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = []
    for seed in (0, 1):
        paths.append(str(tmp_path / f"{seed}.npz"))
        np.savez(paths[-1], arr_0=np.random.default_rng(seed).integers(256, size=(5, 16, 16, 3), dtype=np.uint8))
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    flags = ("--backend", "torch", "--inception_weights", str(weights), "--device", "cpu")
    outcome = call(evaluator.main, *paths, *flags)
    assert outcome.code == 0, outcome.err
    assert "FID-5: " in outcome.out
    assert "torch-fidelity 0" in outcome.out


def refusal(*flags: str) -> str:
    paths = (str(FIXTURE / "reference.npz"), str(FIXTURE / "samples.npz"))
    return call(evaluator.main, *paths, *flags).error()


def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch_backend = ("--backend", "torch")
    assert "--inception_graph means nothing with --backend torch" in refusal(*torch_backend, "--inception_graph", "a")
    assert "--inception_weights means nothing with --backend tensorflow" in refusal("--inception_weights", "a")
    assert "nowhere.pth" in refusal(*torch_backend, "--inception_weights", "nowhere.pth")
    path = tmp_path / "weights.pth"
    torch.save({"other": torch.zeros(1)}, path)
    assert f"{path} does not hold the weights" in refusal(*torch_backend, "--inception_weights", str(path))
    path.write_bytes(b"damaged")
    assert f"{path} does not hold the weights" in refusal(*torch_backend, "--inception_weights", str(path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    message = refusal(*torch_backend)
    assert "weights-inception-2015-12-05-6726825d.pth" in message
    assert "--inception_weights" in message
