"""The look at a dataset before training: counts, unreadable files, suspicious class orders, exit code."""

import sys
from pathlib import Path

import pytest

import main as training
from data.images import open_dataset
from data.labelled_images import LabelledImages
from data.report import check_data, data_report
from models.class_names import imagenet_keys
from runtime.command import run
from runtime.errors import UserError
from tests.pictures import damage, write_pictures

pytestmark = pytest.mark.quick


def labelled(class_keys: list[str], labels: list[int] | None = None) -> LabelledImages:
    labels = list(range(len(class_keys))) if labels is None else labels
    return LabelledImages("made_up", [str(i) for i in range(len(labels))], labels, class_keys)


def warnings(images: LabelledImages) -> list[str]:
    return [remark for remark in data_report(images) if remark.startswith("warning")]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_counts_and_unreadable_files(tmp_path: Path, num_workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    paths = write_pictures(tmp_path / "pets", {"ant": 3, "n02099601": 2, "zebu": 7})
    for path, how in zip((paths[1], paths[4], paths[9]), ("truncated", "text", "empty"), strict=True):
        damage(path, how)
    (tmp_path / "pets/ant/notes.txt").write_text("")
    (tmp_path / "pets/zebu/phone.heic").write_text("")
    with pytest.raises(UserError, match="3 unreadable images, over 1 %"):
        check_data(open_dataset("folder", str(tmp_path / "pets"), 32), num_workers, 1000)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["0", "ant", "3"], ["1", "n02099601", "2", "golden", "retriever"], ["2", "zebu", "7"],
    ]  # fmt: skip
    assert ".heic" in lines[3]
    assert ".txt" in lines[3]
    assert lines[4] == "pets: 12 images of 3 classes; 2 to 7 images a class, median 3"
    assert lines[5] == "warning: the configuration has num_classes 1000; to train, set num_classes 3"
    for line, path in zip(lines[6:9], (paths[1], paths[4], paths[9]), strict=True):
        assert line.startswith(f"{path} cannot be read as an image")
    assert lines[9:] == ["3 of 12 images are unreadable"]


def test_what_training_would_skip_is_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(write_pictures(tmp_path, {"ant": 3})[1], "truncated")
    check_data(open_dataset("folder", str(tmp_path), 32), 0, 1)
    assert capsys.readouterr().out.splitlines()[-1] == "training skips them, since they are few"


def test_clean_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path, {"ant": 2})
    check_data(open_dataset("folder", str(tmp_path), 32), 0, 0)
    assert capsys.readouterr().out.splitlines()[-1] == "0 of 2 images are unreadable"


@pytest.mark.parametrize(
    ("keys", "warned"),
    [
        (["1", "10", "2"], True),
        (["01", "02", "10"], False),
        (["0", "1", "2"], False),
        (["1", "10", "2", "cat"], False),
    ],
)
def test_numbers_that_sort_as_text_are_warned_of(keys: list[str], warned: bool) -> None:
    assert [("sort as text" in line) for line in warnings(labelled(keys))] == [True] * warned


def test_a_thousand_classes_that_are_not_imagenets() -> None:
    keys = imagenet_keys()
    swapped = [keys[1], keys[0], *keys[2:]]
    other = [*keys[:-1], "n99999999"]
    assert warnings(labelled(keys)) == []
    assert warnings(labelled(keys[:-1])) == []  # 999 are somebody's own data
    for changed in (swapped, other):
        assert len(warnings(labelled(changed))) == 1
        assert "not ImageNet's" in warnings(labelled(changed))[0]


def test_an_empty_class_is_warned_of() -> None:
    assert warnings(labelled(["a", "b", "c"], labels=[0, 0, 2])) == ["warning: class b has no image"]


@pytest.mark.parametrize("damaged", [False, True])
def test_the_command_exits_with_2_if_files_are_unreadable(
    tmp_path: Path, damaged: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = write_pictures(tmp_path / "pets", {"ant": 2, "bee": 2})
    for path in paths[2:] if damaged else []:
        damage(path, "truncated")
    flags = ["--check_data", "--data_path", str(tmp_path / "pets"), "--num_workers", "0"]
    monkeypatch.setattr(sys, "argv", ["main.py", *flags])
    code = 0
    try:
        run(training.main)
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert code == (2 if damaged else 0)
    assert (str(paths[3]) in out) == damaged
    assert [line for line in err.splitlines() if line.startswith("error: ")] == (
        ["error: 2 unreadable images, over 1 % of the data; mend it (--check_data lists them)"] if damaged else []
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pets"]  # looking writes nothing
