"""Training of the small classifiers: what is shown to them, a whole small run, mistakes."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.features.classifier import Classifier
from experiments import train_classifier
from experiments.train_classifier import ClassifierArgs
from experiments.train_classifier_job import augment
from runtime.errors import UserError
from tests.command_factory import ROOT, Outcome, call

CPU = torch.device("cpu")


def shown(count: int = 400, **args: object) -> torch.Tensor:
    """One image that is 0 but for a bright pixel at row 16, column 10, augmented so often, (N, 32, 32)."""
    images = torch.zeros(count, 3, 32, 32)
    images[:, :, 16, 10] = 1
    return augment(images, ClassifierArgs(**args), torch.Generator().manual_seed(0))[:, 0]


@pytest.mark.quick
def test_images_move_each_way_by_up_to_the_shift() -> None:
    places = shown(shift=2).nonzero()  # (N, 3): image, row, column
    assert places[:, 0].tolist() == list(range(400))
    assert set(map(tuple, places[:, 1:].tolist())) == {(row, c) for row in range(14, 19) for c in range(8, 13)}


@pytest.mark.quick
def test_half_of_the_images_are_mirrored() -> None:
    columns = shown(shift=0, mirror=True).nonzero()[:, 2]
    assert set(columns.tolist()) == {10, 21}
    assert 150 < int((columns == 21).sum()) < 250


@pytest.mark.quick
def test_noise_has_its_deviation() -> None:
    assert float(shown(shift=0, noise=0.1)[:, :8].std()) == pytest.approx(0.1, rel=0.02)
    assert torch.equal(shown(shift=0), shown(shift=0, noise=0.0))


def train(folder: Path, *flags: str) -> Outcome:
    paths = ("--output_dir", str(folder / "run"), "--export_dir", str(folder / "made"))
    config = str(ROOT / "experiments/classifier_digits.yaml")
    return call(train_classifier.main, "--config", config, "--widths", "[8, 8, 16, 16]", *paths, *flags)


def test_a_small_run_learns_and_its_files_say_what_it_learned(tmp_path: Path) -> None:
    outcome = train(tmp_path, "--epochs", "3", "--eval_freq", "1", "--noise", "0.05")
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("held-out images recognised") + outcome.out.count("held-out images recognised") == 3
    classifier = Classifier("digits", CPU, tmp_path / "made")
    train_data, test = (classifier.real_data(split) for split in ("train", "test"))
    assert test.accuracy > 0.5
    assert (train_data.num_images, test.num_images) == (1500, 297)
    assert f"test: {test.accuracy:.2%} of 297 images recognised" in outcome.out
    assert classifier.class_names == [str(digit) for digit in range(10)]
    again = train(tmp_path, "--epochs", "3")
    assert "going on from" in again.out
    np.testing.assert_array_equal(Classifier("digits", CPU, tmp_path / "made").class_weights, classifier.class_weights)


def test_a_run_that_goes_on_replaces_its_own_classifier_alone(tmp_path: Path) -> None:
    assert train(tmp_path, "--epochs", "1").code == 0
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "made", other)
    before = {path: path.read_bytes() for path in other.iterdir()}
    error = train(tmp_path, "--epochs", "2", "--export_dir", str(other)).error()
    assert "is there already, of another run" in error
    assert {path: path.read_bytes() for path in other.iterdir()} == before


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shift 32 must lie in"):
        ClassifierArgs(shift=32)
    assert "no image folder at" in train(tmp_path, "--dataset", "folder", "--data_path", "nowhere").error()
    with pytest.raises(UserError, match="dtype is bfloat16; a classifier is trained in float32"):
        ClassifierArgs(dtype="bfloat16")
    assert "widths is [8, 0, 8, 8]" in train(tmp_path, "--widths", "[8, 0, 8, 8]").error()
    assert "unknown option --class_keys" in train(tmp_path, "--class_keys", "[a, b]").error()
    assert "did you mean --mirror" in train(tmp_path, "--miror").error()
    assert not (tmp_path / "run").exists()
