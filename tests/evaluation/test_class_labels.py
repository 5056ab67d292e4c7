"""Classes of samples: from samples.json, arr_1 or class folders, as the classifier counts them."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.image_files import open_images
from evaluation.image_sets import read_labels

CLASSES = ["cat", "dog", "owl"]


def npz(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez(folder / "a.npz", arr_0=np.zeros((4, 8, 8, 3), np.uint8), **arrays)
    return folder / "a.npz"


def pngs(folder: Path, *places: str) -> Path:
    for i, place in enumerate(places):
        (folder / place).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / place / f"{i}.png")
    return folder


def found(path: Path, drawn: list[dict[str, object]] | None = None) -> list[int] | None:
    labels, warnings = read_labels(open_images(path), drawn or [], CLASSES)
    assert warnings == []
    return None if labels is None else labels.tolist()


def test_of_an_npz(tmp_path: Path) -> None:
    assert found(npz(tmp_path, arr_1=np.array([2, 0, 0, 1]))) == [2, 0, 0, 1]
    assert found(npz(tmp_path)) is None


def test_of_class_folders_at_any_depth(tmp_path: Path) -> None:
    assert found(pngs(tmp_path, "b/owl", "a/dog", "a/cat", "a/dog")) == [0, 1, 1, 2]


def test_other_folders_are_no_classes(tmp_path: Path) -> None:
    assert found(pngs(tmp_path, "one", "two", "")) is None


def test_of_images_that_we_drew(tmp_path: Path) -> None:
    """By name, since a model may count classes in another order; by number where it has no names."""
    path = npz(tmp_path, arr_1=np.array([1, 1, 1, 1]))
    named = [{"label": 7, "class": name} for name in ("dog", "cat", "owl", "dog")]
    assert found(path, named) == [1, 0, 2, 1]
    assert found(path, [{"label": label, "class": None} for label in (0, 2, 1, 1)]) == [0, 2, 1, 1]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_in_one_character_or_two(form: str, tmp_path: Path) -> None:
    """macOS stores names decomposed; a class is the same."""
    names = [unicodedata.normalize(form, name) for name in ("pâté", "café")]
    classes = [unicodedata.normalize("NFC" if form == "NFD" else "NFD", name) for name in ("café", "pâté")]
    labels, warnings = read_labels(open_images(pngs(tmp_path, *names)), [], classes)
    assert (labels.tolist(), warnings) == ([0, 1], [])
    drawn = [{"label": 7, "class": name} for name in (names[0], names[0])]
    labels, warnings = read_labels(open_images(tmp_path), drawn, classes)
    assert (labels.tolist(), warnings) == ([1, 1], [])


@pytest.mark.parametrize(
    ("labels", "says"),
    [([0, 1, 2, 3], "class 3 is none of the classifier's: cat, dog, owl"), ([0, 1], "2 labels of 4")],
)
def test_labels_that_fit_no_class_are_not_used(labels: list[int], says: str, tmp_path: Path) -> None:
    found, warnings = read_labels(open_images(npz(tmp_path, arr_1=np.array(labels))), [], CLASSES)
    assert found is None
    assert len(warnings) == 1
    assert says in warnings[0]


def test_a_network_without_classes_asks_for_none(tmp_path: Path) -> None:
    (tmp_path / "samples.json").write_text(json.dumps({}))
    assert read_labels(open_images(npz(tmp_path, arr_1=np.array([9, 9, 9, 9]))), [], ()) == (None, [])
