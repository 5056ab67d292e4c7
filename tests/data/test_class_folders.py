"""Which folders are classes and which are splits, and how classes of two splits are matched."""

import unicodedata
from pathlib import Path

import pytest

from data.class_folders import read_class_folders
from data.images import open_dataset
from runtime.errors import UserError
from tests.pictures import write_pictures

pytestmark = pytest.mark.quick


def test_folders_called_as_splits_beside_others_are_classes_and_it_is_said(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"bus": 1, "car": 1, "train/steam": 2, "train/diesel": 1})
    found = read_class_folders(tmp_path, held_out=False)
    assert found.class_keys == ["bus", "car", "train"]
    assert found.labels == [0, 1, 2, 2, 2]
    assert found.remarks == [f"{tmp_path}: train counted as a class, and not as a split, because bus stands beside it"]


@pytest.mark.parametrize("name", ["train", "Train", "training"])
def test_splits_may_be_written_otherwise(tmp_path: Path, name: str) -> None:
    write_pictures(tmp_path / name, {"a": 1, "b": 2})
    write_pictures(tmp_path / "Validation", {"a": 1, "b": 1})
    assert read_class_folders(tmp_path, held_out=False).labels == [0, 1, 1]
    assert read_class_folders(tmp_path, held_out=True).labels == [0, 1]


@pytest.mark.parametrize("names", [("train", "Train"), ("train", "training"), ("val", "VAL", "train")])
def test_two_folders_of_one_split_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        write_pictures(tmp_path / name, {"a": 1})
    with pytest.raises(UserError, match="more than one folder of a split"):
        read_class_folders(tmp_path, held_out=False)


def test_held_out_folders_that_are_not_used_are_said(tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        write_pictures(tmp_path / name, {"a": 1})
    assert read_class_folders(tmp_path, held_out=True).remarks == [f"{tmp_path}: val/ is taken, test/ is not used"]


def test_held_out_folders_alone_are_no_training_images(tmp_path: Path) -> None:
    write_pictures(tmp_path / "val", {"a": 1})
    write_pictures(tmp_path / "test", {"a": 1})
    with pytest.raises(UserError, match="but no train/"):
        read_class_folders(tmp_path, held_out=False)


def test_held_out_classes_are_matched_by_name(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", {"a": 1, "b": 1, "caf\xe9": 1})
    write_pictures(tmp_path / "val", {"b": 1, unicodedata.normalize("NFD", "caf\xe9"): 2})
    held_out = open_dataset("folder", str(tmp_path), 32, "val")
    assert held_out.class_keys == ["a", "b", "caf\xe9"]
    assert held_out.labels == [1, 2, 2]
    assert held_out.remarks == [f"{tmp_path / 'val'} has no images of a"]
    assert held_out.read(2).mode == "RGB"


def test_a_class_that_training_lacks_is_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", {"a": 1})
    write_pictures(tmp_path / "val", {"a": 1, "zebra": 1})
    with pytest.raises(UserError, match=r"zebra is a class that .*train lacks"):
        read_class_folders(tmp_path, held_out=True)


def test_one_class_written_in_two_ways_is_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"caf\xe9": 1, unicodedata.normalize("NFD", "caf\xe9"): 1})
    with pytest.raises(UserError, match="twice"):
        read_class_folders(tmp_path, held_out=False)


def test_one_class_that_holds_folders_is_said(tmp_path: Path) -> None:
    """As where the folder above the classes was named."""
    write_pictures(tmp_path, {"images/ant": 2, "images/bee": 1})
    found = read_class_folders(tmp_path, held_out=False)
    assert found.class_keys == ["images"]
    assert found.remarks == [
        f"{tmp_path} has one class, images, with folders in it; if they are the classes, move them up into {tmp_path}"
    ]
    assert read_class_folders(tmp_path / "images", held_out=False).remarks == []


def test_hidden_folders_are_no_classes_and_what_is_left_out_is_said(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"a": 1, ".ipynb_checkpoints": 1, "a/.ipynb_checkpoints": 2})
    (tmp_path / "notes.txt").touch()
    write_pictures(tmp_path, {".": 1})  # an image beside the classes
    found = read_class_folders(tmp_path, held_out=False)
    assert (found.class_keys, found.keys) == (["a"], ["a/000.jpg"])
    assert found.remarks == [f"{tmp_path}: left out: 1 .txt, 2 hidden, 1 images outside of class folders"]


def test_the_working_directory_is_a_root_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path / "pets", {"ant": 1})
    monkeypatch.chdir(tmp_path / "pets")
    images = open_dataset("folder", ".", 32)
    assert (images.name, images.keys) == ("pets", ["ant/000.jpg"])
    assert images.read(0).size == (60, 45)


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path / "pets", {"ant": 1})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(open_dataset("folder", "~/pets", 32)) == 1
