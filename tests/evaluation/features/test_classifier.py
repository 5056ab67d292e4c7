"""The classifiers that ship: small, as good as is recorded, and measured by evaluator.py under names of their own."""

import json
import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image

import evaluator
from data.images import open_dataset
from evaluation.features.classifier import Classifier
from evaluation.features.shipped import FOLDER, SIDE, ClassifierName, statistics_file
from evaluation.metrics import frechet_distance, statistics_of
from runtime.errors import UserError
from tests.command_factory import call

CPU = torch.device("cpu")
NAMES = get_args(ClassifierName)
DIGITS_TRAIN = str(statistics_file("digits", "train"))


def digits(split: str, size: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """Real scans (N, H, W, 3) and their classes."""
    data = open_dataset("digits", "", size, split)
    return data.pixels, np.array(data.labels)


def evaluate(folder: Path, *argv: str) -> tuple[dict[str, Any], str, str]:
    """What the evaluator writes and prints."""
    result = folder / "result.json"
    outcome = call(evaluator.main, *argv, "--output_file", str(result))
    assert outcome.code == 0, outcome.err
    return json.loads(result.read_text()), outcome.out, outcome.err


# What ships


def test_each_file_is_small() -> None:
    files = sorted(path.name for path in FOLDER.iterdir())
    expected = [f"{name}{end}" for name in NAMES for end in ("-test.npz", "-train.npz", ".safetensors")]
    assert files == sorted(expected)
    assert all(path.stat().st_size <= 2e6 for path in FOLDER.iterdir())


@pytest.mark.parametrize("split", ["train", "val"])
def test_what_is_recorded_of_real_digits_is_what_they_give(split: str) -> None:
    classifier, (images, labels) = Classifier("digits", CPU), digits(split)
    (features,) = classifier(images)
    real = classifier.real_data("train" if split == "train" else "test")
    assert real.num_images == len(images)
    assert real.accuracy == pytest.approx(classifier.accuracy(features, labels), abs=0.005)  # a rounding may decide one
    assert frechet_distance(real.statistics, statistics_of(features)) < 1e-4 * np.trace(real.statistics.covariance)


def test_digits_and_photographs_are_recognised() -> None:
    for name, least in (("digits", 0.95), ("cifar10", 0.79)):
        classifier = Classifier(name, CPU)
        train, test = (classifier.real_data(split) for split in ("train", "test"))
        assert least < test.accuracy <= train.accuracy
        assert (train.num_images, test.num_images) == {"digits": (1500, 297), "cifar10": (50_000, 10_000)}[name]
        assert 0 < frechet_distance(train.statistics, test.statistics) < np.trace(train.statistics.covariance)


@pytest.mark.parametrize("name", NAMES)
def test_features_times_weights_are_the_logits(name: ClassifierName) -> None:
    classifier = Classifier(name, CPU)
    images = np.random.default_rng(0).integers(256, size=(5, SIDE, SIDE, 3), dtype=np.uint8)
    (features,) = classifier(images)
    with torch.no_grad():
        logits = classifier._network(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1)
    np.testing.assert_allclose(features @ classifier.class_weights, logits.numpy(), rtol=1e-4, atol=1e-4)
    assert classifier.class_weights.shape == (classifier.few, len(classifier.class_names))


def test_other_sizes_are_read_at_32_pixels() -> None:
    """A digit enlarged four times is as it was, nearly."""
    classifier, (images, labels) = Classifier("digits", CPU), digits("val")
    large = images.repeat(4, axis=1).repeat(4, axis=2)
    np.testing.assert_allclose(classifier(large)[0], classifier(images)[0], atol=0.3)
    assert classifier.accuracy(classifier(large)[0], labels) > 0.9


# The command line


def test_real_digits_in_class_folders(tmp_path: Path) -> None:
    """Their metrics are those that stand beside them as real ones."""
    images, labels = digits("val")
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (tmp_path / f"images/{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / f"images/{label}/{i:03d}.png")
    result, out, err = evaluate(tmp_path, DIGITS_TRAIN, str(tmp_path / "images"), "--features", "digits")
    assert result["real_images"].keys() == {"FD-digits-297", "Class accuracy"}
    for name, value in result["real_images"].items():
        assert result[name] == pytest.approx(value, rel=1e-3, abs=5e-3)
    first, second = out.splitlines()[:2]
    assert first.startswith("FD-digits-297: ")
    assert "(real test images: FD-digits-297 " in first
    assert second.startswith("Class accuracy: 0.9")
    assert "FID" not in out + json.dumps(result)
    assert "warning" not in err
    assert len(result["classifier_sha256"]) == 64


def test_labels_of_an_npz_and_samples_without(tmp_path: Path) -> None:
    images, labels = digits("val")
    wrong = np.where(np.arange(len(labels)) < 99, (labels + 1) % 10, labels)
    np.savez(tmp_path / "wrong.npz", arr_0=images, arr_1=wrong)
    np.savez(tmp_path / "bare.npz", arr_0=images)
    flags = ("--features", "digits")
    result, _, _ = evaluate(tmp_path, DIGITS_TRAIN, str(tmp_path / "wrong.npz"), *flags)
    assert result["Class accuracy"] < 198 / 297
    assert result["Class accuracy"] > 0.9 * 198 / 297
    result, out, err = evaluate(tmp_path, DIGITS_TRAIN, str(tmp_path / "bare.npz"), *flags)
    assert result["Class accuracy"] is None
    assert "Class accuracy: not measured (real test images: " in out
    assert "bare.npz does not say its classes" in err
    np.savez(tmp_path / "strange.npz", arr_0=images, arr_1=labels + 1)
    _, _, err = evaluate(tmp_path, DIGITS_TRAIN, str(tmp_path / "strange.npz"), *flags)
    assert "class 10 is none of the classifier's" in err
    assert "does not say its classes" not in err


def test_noise_is_far_from_photographs(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(256, size=(250, SIDE, SIDE, 3), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", arr_0=images, arr_1=np.arange(250) % 10)
    reference = str(statistics_file("cifar10", "train"))
    result, _, _ = evaluate(tmp_path, reference, str(tmp_path / "noise.npz"), "--features", "cifar10")
    real = result["real_images"]
    assert result["FD-cifar10-250"] > 20 * real["FD-cifar10-10000"]
    assert result["Class accuracy"] < 0.3 < 0.75 < real["Class accuracy"]


def test_a_reference_of_images_and_other_sizes(tmp_path: Path) -> None:
    images, labels = digits("train", size=16)
    np.savez(tmp_path / "reference.npz", arr_0=images)
    np.savez(tmp_path / "samples.npz", arr_0=images[:200] // 2, arr_1=labels[:200])
    paths = (str(tmp_path / "reference.npz"), str(tmp_path / "samples.npz"))
    result, _, err = evaluate(tmp_path, *paths, "--features", "digits")
    assert result["FD-digits-200"] > 0
    assert err.count("images of 16 x 16 pixels are read at 32 x 32") == 2
    assert "greyscale" not in err
    assert not list(tmp_path.glob("reference.npz?*"))


def test_a_reference_made_for_a_classifier(tmp_path: Path) -> None:
    """With its statistics alone beside the images, which Inception's would not be mistaken for."""
    images, _ = digits("train")
    (tmp_path / "images").mkdir()
    for i, image in enumerate(images[:80]):
        Image.fromarray(image).save(tmp_path / f"images/{i}.png")
    target = str(tmp_path / "made.npz")
    made = ("--make_reference", str(tmp_path / "images"), target, "--image_size", "32", "--features", "digits")
    assert call(evaluator.main, *made).code == 0
    with np.load(target) as file:
        assert set(file) == {
            "arr_0",
            "num_images",
            *(f"{name}{Classifier('digits', CPU).key_suffixes[0]}" for name in ("mu", "sigma")),
        }
    result, _, _ = evaluate(tmp_path, target, str(tmp_path / "images"), "--features", "digits")
    assert result["FD-digits-80"] == pytest.approx(0, abs=1e-4)
    assert result["reference"]["statistics"] == "stored"


def test_a_files_number_of_images_is_printed(tmp_path: Path) -> None:
    """Also where the statistics alone are left of them."""
    test = str(statistics_file("digits", "test"))
    result, out, _ = evaluate(tmp_path, DIGITS_TRAIN, test, "--features", "digits")
    assert (result["num_reference"], result["num_samples"]) == (1500, 297)
    assert result["FD-digits-297"] == result["real_images"]["FD-digits-297"]
    assert "N = 1500, stored statistics" in out
    assert "N = 297, stored statistics" in out


def refusal(*argv: str) -> str:
    return call(evaluator.main, *argv).error()


def test_mistakes(tmp_path: Path) -> None:
    np.savez(tmp_path / "inception.npz", **dict.fromkeys(("mu", "mu_s"), np.zeros(5)), sigma=np.eye(5))
    other = str(tmp_path / "inception.npz")
    assert "statistics of another network's features" in refusal(other, DIGITS_TRAIN, "--features", "digits")
    assert "statistics of another network's features" in refusal(
        str(statistics_file("cifar10", "train")), DIGITS_TRAIN, "--features", "digits"
    )
    pair = (DIGITS_TRAIN, DIGITS_TRAIN, "--features", "digits")
    assert "--backend means nothing with --features digits" in refusal(*pair, "--backend", "torch")
    assert "--no_prec_recall means nothing" in refusal(*pair, "--no_prec_recall")
    assert "features is mnist" in refusal(DIGITS_TRAIN, DIGITS_TRAIN, "--features", "mnist")


def test_a_damaged_file_is_no_classifier(tmp_path: Path) -> None:
    for content in (None, b"", b"damaged" * 20):
        path = tmp_path / "digits.safetensors"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=r"digits\.safetensors holds no classifier"):
            Classifier("digits", CPU, tmp_path)


def test_real_data_that_are_none(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "digits.safetensors", tmp_path)
    classifier = Classifier("digits", CPU, tmp_path)
    with np.load(statistics_file("digits", "test")) as file:
        arrays = dict(file)
    sigma = f"sigma{classifier.key_suffixes[0]}"
    np.savez(statistics_file("digits", "test", tmp_path), **(arrays | {sigma: -arrays[sigma]}))
    with pytest.raises(UserError, match=r"digits-test\.npz is damaged.*negative eigenvalue"):
        classifier.real_data("test")
