"""Metrics during training: of the images that the settings draw, under honest names; without weights, a warning."""

import json
import urllib.error
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation import metrics as metric_functions
from evaluation.features.classifier import Classifier
from evaluation.features.network import Inception
from evaluation.metrics import frechet_distance, statistics_of
from evaluation.options import NetworkArgs
from models.autoencoder import to_uint8
from models.checkerboard.config import CheckerboardDrawing as Drawing
from runtime import distributed
from runtime.errors import UserError
from sampling.bulk import Request, draw_many
from sampling.folder import SampleFolder
from tests.command_factory import ROOT
from tests.factory import tiny_model
from tests.training_factory import exit_codes, start_ranks, tiny_args, tiny_trainer
from training import preview
from training.preview import DIGITS_SEED, Evaluation, score_digits

CPU, INCEPTION = torch.device("cpu"), NetworkArgs(backend="torch")
WEIGHTS = np.random.default_rng(1).normal(size=(27, 10)).astype(np.float32)


class PatchMeans(Inception):
    """Stands in for Inception: means of a 3 x 3 grid of patches, and of the whole."""

    sha256, versions, class_weights = "0" * 64, {"numpy": np.__version__}, WEIGHTS
    num_seen = 0

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B, 27) and (B, 3) of images (B, H, W, 3)."""
        self.num_seen += len(images)
        rows = np.array_split(images.astype(np.float32) / 255, 3, axis=1)
        patches = [patch.mean((1, 2)) for row in rows for patch in np.array_split(row, 3, axis=2)]
        return np.concatenate(patches, axis=1), images.astype(np.float32).mean((1, 2)) / 255

    def squared_distances(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return ((rows[:, None] - columns[None]) ** 2).sum(-1)


@pytest.fixture
def reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(preview, "load_on_all_ranks", lambda args, device: PatchMeans())
    path = tmp_path / "reference.npz"
    np.savez(path, arr_0=np.random.default_rng(0).integers(256, size=(60, 32, 32, 3), dtype=np.uint8))
    return path


def test_metrics_are_those_of_the_images_drawn(reference: Path, tmp_path: Path) -> None:
    model, request = tiny_model(), Request([i % 10 for i in range(40)], Drawing(), seed=7)
    metrics = Evaluation(INCEPTION, str(reference), CPU).measure(model, request, tmp_path / "drawn")
    images = torch.cat([to_uint8(out.images) for _, out in draw_many(model, request)]).permute(0, 2, 3, 1).numpy()
    with np.load(reference) as file:
        sides = [statistics_of(PatchMeans()(pixels)[0]) for pixels in (file["arr_0"], images)]
    assert metrics["FID-40"] == pytest.approx(frechet_distance(*sides), rel=1e-4)
    assert {"sFID-40", "Inception Score", "Precision", "Recall"} <= metrics.keys()
    assert not (tmp_path / "drawn").exists()


@pytest.mark.parametrize("drawn", [0, 7, 20])
def test_what_a_killed_evaluation_left_is_drawn_anew(drawn: int, reference: Path, tmp_path: Path) -> None:
    """It may be of other weights; also where all images were drawn, but not measured."""
    model, request, folder = tiny_model(), Request([1] * 20, Drawing()), tmp_path / "drawn"
    metrics = Evaluation(INCEPTION, str(reference), CPU).measure(model, request, folder)
    images = SampleFolder(folder, (20, 32, 32, 3), "npz")
    images.prepare({"labels": [1] * 20, "seed": 0})
    images.look()
    with images.writing():
        other = draw_many(tiny_model(seed=1), replace(request, batch_size=1), range(drawn))
        for indices, out in other:
            images.add(indices, to_uint8(out.images), out)
    if drawn == 20:
        images.look()
        images.finish([1] * 20)
    assert Evaluation(INCEPTION, str(reference), CPU).measure(model, request, folder) == metrics
    assert not folder.exists()


def test_a_run_logs_them_every_eval_freq_epochs(reference: Path, tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path / "run", epochs=2, eval_freq=1, eval_samples=12, eval_reference=str(reference))
    trainer.fit()
    entries = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    found = [entry["FID-12"] for entry in entries if "FID-12" in entry]
    assert len(found) == 2
    assert all(np.isfinite(found))
    assert [path.name for path in (tmp_path / "run/samples").iterdir() if path.is_dir()] == []


def test_without_weights_and_network_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("urllib.request.urlopen", offline)
    reference = str(ROOT / "tests/fixtures/evaluator/reference.npz")
    measured = Evaluation(INCEPTION, reference, CPU).measure(tiny_model(), Request([1], Drawing()), tmp_path / "drawn")
    assert measured == {}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: no FID during training: the Inception weights cannot be downloaded (no network)")
    with pytest.raises(FileNotFoundError):  # a path that is named must be there
        Evaluation(replace(INCEPTION, inception_weights=str(tmp_path / "missing.pth")), reference, CPU)
    with pytest.raises(UserError, match="holds no images"):  # now, not after the first epochs
        Evaluation(INCEPTION, str(tmp_path), CPU)
    digits = str(ROOT / "pretrained_models/classifiers/digits-train.npz")
    with pytest.raises(UserError, match="statistics of another network's features"):
        Evaluation(tiny_args(eval_samples=5, eval_features="cifar10").network, digits, CPU)


def test_a_measurement_that_fails_leaves_no_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise UserError("no memory")

    evaluation = Evaluation(tiny_args(eval_samples=5, eval_features="digits").network, None, CPU)
    monkeypatch.setattr(evaluation.measurement, "measure", fail)
    with pytest.raises(UserError, match="no memory"):
        evaluation.measure(tiny_model(), Request([1, 2, 3, 4, 5], Drawing()), tmp_path / ".epoch_0001")
    assert list(tmp_path.iterdir()) == []


def test_impossible_settings_are_refused(tmp_path: Path) -> None:
    for given in ({"eval_samples": 5}, {"eval_reference": str(tmp_path)}, {"eval_features": "digits"}):
        with pytest.raises(UserError, match="eval_samples goes with eval_reference or eval_features"):
            tiny_args(**given)
    with pytest.raises(UserError, match="no eval_reference at"):
        tiny_args(eval_samples=5, eval_reference=str(tmp_path / "nowhere.npz"))
    with pytest.raises(UserError, match="eval_samples is 3; it must be at least 4"):
        tiny_args(eval_samples=3, eval_reference=str(tmp_path))
    with pytest.raises(UserError, match="inception_weights means nothing without eval_samples"):
        tiny_args(inception_weights="file.pth")


def test_a_classifier_that_ships_measures_without_any_download(tmp_path: Path) -> None:
    """The same as ``score_digits`` of the same images."""
    model, request = tiny_model(), Request([i % 10 for i in range(20)], Drawing(), DIGITS_SEED)
    found = Evaluation(tiny_args(eval_samples=20, eval_features="digits").network, None, CPU).measure(
        model, request, tmp_path / "drawn"
    )
    first, second = score_digits(model, 20, Drawing(), tmp_path / "drawn")
    assert first.startswith(f"FD-digits-20: {found['FD-digits-20']:g} ")
    assert f"Class accuracy: {found['Class accuracy']:g} " in second


def test_the_digits_score_is_of_the_digits_drawn(tmp_path: Path) -> None:
    model, classifier = tiny_model(), Classifier("digits", CPU)
    first, second = score_digits(model, 20, Drawing(), tmp_path / "drawn")
    request = Request([i % 10 for i in range(20)], Drawing(), DIGITS_SEED)
    images = torch.cat([to_uint8(out.images) for _, out in draw_many(model, request)]).permute(0, 2, 3, 1).numpy()
    (features,) = classifier(images)
    distance = frechet_distance(classifier.real_data("train").statistics, statistics_of(features))
    name, value, *_, real = first.rstrip(")").split()
    assert (name, float(value)) == ("FD-digits-20:", pytest.approx(distance, rel=1e-4))
    assert float(real) == pytest.approx(1.11555, rel=1e-4)
    accuracy = (features @ classifier.class_weights).argmax(axis=1) == request.labels
    assert second.startswith(f"Class accuracy: {accuracy.mean():.6g} (real test images: Class accuracy 0.983165")
    assert not (tmp_path / "drawn").exists()


# Self-test and ranks


def test_exchanged_precision_and_recall_are_found(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the first evaluation, on a collapsed set, before any metric is printed."""
    right = metric_functions.precision_recall
    monkeypatch.setattr(metric_functions, "precision_recall", lambda *sides, **options: right(*sides, **options)[::-1])
    with pytest.raises(RuntimeError, match=r"of a collapsed set precision is 0\.005 and recall 1\.0"):
        Evaluation(INCEPTION, str(reference), CPU).measure(
            tiny_model(), Request([1] * 8, Drawing()), tmp_path / "drawn"
        )


def measure_on_rank(reference: Path, folder: Path, count: int) -> None:
    """One evaluation, for ``start_ranks``; what rank 0 finds and how many images each rank saw."""
    distributed.set_up(CPU)
    network = PatchMeans()
    preview.load_on_all_ranks = lambda args, device: network
    request = Request([i % 10 for i in range(count)], Drawing(), seed=7)
    metrics = Evaluation(INCEPTION, str(reference), CPU).measure(tiny_model(), request, folder / "drawn")
    (folder / f"metrics{distributed.rank()}.json").write_text(json.dumps([metrics, network.num_seen]))
    distributed.tear_down()


@pytest.mark.parametrize("count", [150, 40])
def test_two_ranks_share_the_work_and_find_what_one_does(count: int, reference: Path, tmp_path: Path) -> None:
    """The second rank computes the first batch too, to learn how many features there are; of 40 images that is all."""
    request = Request([i % 10 for i in range(count)], Drawing(), seed=7)
    alone = Evaluation(INCEPTION, str(reference), CPU).measure(tiny_model(), request, tmp_path / "alone")
    processes = start_ranks(tmp_path, 2, measure_on_rank, reference, tmp_path, count)
    assert exit_codes(processes) == [0, 0], (tmp_path / "rank0.txt").read_text()
    (found, seen), (nothing, others) = (json.loads((tmp_path / f"metrics{i}.json").read_text()) for i in (0, 1))
    assert found == pytest.approx(alone, rel=1e-3)
    assert nothing == {}
    assert (seen, others) == ((86, 128) if count == 150 else (40, 40))
    assert not (tmp_path / "drawn").exists()
