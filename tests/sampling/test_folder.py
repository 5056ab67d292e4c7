"""A folder that fills with images: exact, resumable after anything, and careful with what it finds."""

import errno
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from models.family import Samples
from runtime.errors import UserError
from sampling import folder as sample_folder
from sampling.folder import SampleFolder, image_name, prepare_folder, remove_samples, write_npz
from sampling.options import Format
from tests.limits import largest_file

COUNT, HEIGHT, WIDTH = 7, 4, 6
SETTINGS = {"seed": 0, "cfg": (1.0, 2.0), "batch_size": 4, "output_dir": "here"}
LABELS = [5, 0, 5, 1, 2, 9, 5]
SCALES = (1, 2)
LENGTH = 5  # locations of both
FORMATS: list[Format] = ["png", "npz"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "new"


@pytest.fixture
def images() -> Tensor:
    """(7, 3, H, W), no two alike."""
    return torch.randint(256, (COUNT, 3, HEIGHT, WIDTH), dtype=torch.uint8)


def prepare(
    folder: Path,
    settings: Mapping[str, Any] = SETTINGS,
    file_format: Format = "png",
    maps: Sequence[str] = (),
) -> bool:
    return prepare_folder(folder, settings, (COUNT, HEIGHT, WIDTH, 3), file_format, dict.fromkeys(maps, LENGTH))


def all_samples(images: Tensor) -> Samples:
    """Maps whose numbers say which image, scale and location they are of."""
    numbers = torch.arange(COUNT * LENGTH).view(COUNT, LENGTH)
    codes = [numbers[:, :1].view(-1, 1, 1), numbers[:, 1:].view(-1, 2, 2)]
    floats = [scale / 1000 for scale in codes]
    return Samples(images, codes, floats, [scale + 1 for scale in codes], [scale / 2 for scale in floats])


def fill(folder: Path, images: Tensor, indices: Sequence[int] = range(COUNT)) -> SampleFolder:
    samples, indices = all_samples(images), list(indices)
    by_name = {
        name: [scale[indices] for scale in getattr(samples, name)]
        for name in ("codes", "entropy", "step", "probability")
    }
    with SampleFolder(folder) as opened:
        opened.add(indices, images[indices], Samples(images[indices], **by_name))
    opened.look()
    return opened


def read_png(path: Path) -> Tensor:
    with Image.open(path) as picture:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def full_disk(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "here")


# Preparing


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_new_folder(file_format: Format, folder: Path) -> None:
    assert prepare(folder / "below", file_format=file_format, maps=("codes", "entropy"))
    assert json.loads((folder / "below/samples.json").read_text()) == SETTINGS | {"cfg": [1.0, 2.0]}
    assert list(contents(folder / "below/.progress")) == ["layout.json"]
    assert SampleFolder(folder / "below").todo.tolist() == list(range(COUNT))


def test_the_same_settings_go_on(folder: Path, images: Tensor) -> None:
    assert prepare(folder)
    fill(folder, images, [0, 4, 6])
    before = contents(folder)
    assert prepare(folder, SETTINGS | {"batch_size": 1, "output_dir": "there"})  # change no image
    assert contents(folder) == before
    assert SampleFolder(folder).todo.tolist() == [1, 2, 3, 5]


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_complete_folder_is_left_alone(file_format: Format, folder: Path, images: Tensor) -> None:
    prepare(folder, file_format=file_format)
    fill(folder, images).finish(LABELS, [])
    before = contents(folder)
    assert not prepare(folder, SETTINGS | {"batch_size": 1}, file_format=file_format)
    assert contents(folder) == before


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize("file_format", FORMATS)
def test_other_settings_are_moved_aside(
    file_format: Format, complete: bool, folder: Path, images: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(folder, file_format=file_format, maps=["codes"])
    opened = fill(folder, images, range(COUNT if complete else 3))
    if complete:
        opened.save_codes(SCALES, LABELS)
        opened.finish(LABELS, [])
    before = contents(folder)
    (folder / "notes.txt").write_text("mine")
    (folder.with_name("new.1")).mkdir()  # taken
    assert prepare(folder, SETTINGS | {"seed": 1}, file_format=file_format)
    assert contents(folder.with_name("new.2")) == before
    assert not any(folder.with_name("new.1").iterdir())
    assert capsys.readouterr().out == f"the earlier samples in {folder} are now in {folder}.2\n"
    assert (folder / "notes.txt").read_text() == "mine"
    assert SampleFolder(folder).todo.tolist() == list(range(COUNT))
    assert not list(folder.glob("*.png"))


def test_damaged_settings_are_those_of_others(folder: Path, images: Tensor) -> None:
    prepare(folder)
    fill(folder, images, [0])
    (folder / "samples.json").write_text('{"seed": ')
    before = contents(folder)
    assert prepare(folder)
    assert contents(folder.with_name("new.1")) == before


@pytest.mark.parametrize("name", ["holiday.png", "000000.png", "samples.npz", "codes.npz"])
def test_foreign_files_are_refused(name: str, folder: Path) -> None:
    folder.mkdir()
    (folder / name).write_bytes(b"mine")
    with pytest.raises(UserError, match=f"holds {name}, which no run of ours is known by; name another --output_dir"):
        prepare(folder)
    assert contents(folder) == {name: b"mine"}


@pytest.mark.parametrize("earlier", [False, True])
def test_too_little_space_is_refused_first(
    earlier: bool, folder: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    if earlier:
        prepare(folder, SETTINGS | {"seed": 1})
        fill(folder, images, [0])
    before = contents(folder)
    needed = 2 * COUNT * HEIGHT * WIDTH * 3
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=needed - 1))
    with pytest.raises(UserError, match=r"7 images take 1.01e-06 GB while samples.npz is written, but .* are free"):
        prepare(folder, file_format="npz")
    assert contents(folder) == before
    assert not folder.with_name("new.1").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=needed))
    assert prepare(folder, file_format="npz")


@pytest.mark.parametrize("content", ["", "nonsense", "[]", '{"num_images": 7}', None])
def test_a_damaged_layout_is_one_line(content: str | None, folder: Path) -> None:
    prepare(folder, file_format="npz", maps=["codes"])
    if content is None:
        (folder / ".progress/layout.json").unlink()
    else:
        (folder / ".progress/layout.json").write_text(content)
    for attempt in (SampleFolder, lambda folder: prepare(folder, file_format="npz", maps=["codes"])):
        with pytest.raises(UserError) as error:
            attempt(folder)
        assert str(error.value).startswith(f"{folder}/.progress is damaged (")
        assert str(error.value).endswith(f"; move {folder} away and start anew")
        assert "\n" not in str(error.value)


def test_the_format_before_parts_is_one_line(folder: Path, images: Tensor) -> None:
    prepare(folder)
    fill(folder, images, [0, 4])
    shutil.rmtree(folder / ".progress")
    (folder / ".progress").mkdir()
    np.save(folder / ".progress/done.npy", np.array([1, 0, 0, 0, 1, 0, 0], np.uint8))
    np.save(folder / ".progress/hashes.npy", np.zeros(COUNT, np.uint64))
    before = contents(folder)
    with pytest.raises(UserError, match=r"\.progress was begun by an earlier version, .* move it away and start anew$"):
        prepare(folder)
    assert contents(folder) == before
    (folder / ".progress").rename(folder / "away")
    assert prepare(folder)
    assert SampleFolder(folder).todo.tolist() == [1, 2, 3, 5, 6]  # pictures count without it


# Filling


def test_pngs_hold_the_images(folder: Path, images: Tensor) -> None:
    prepare(folder)
    opened = fill(folder, images, [6, 0, 3])
    assert opened.num_done == 3
    assert sorted(path.name for path in folder.glob("*.png")) == ["000000.png", "000003.png", "000006.png"]
    opened = fill(folder, images, [1, 2, 4, 5])
    assert opened.num_done == COUNT
    for i, image in enumerate(images):
        assert torch.equal(read_png(folder / image_name(i)), image)
    assert torch.equal(opened.first_images(3), images[:3])
    assert torch.equal(opened.first_images(100), images)
    assert not list((folder / ".progress").glob("*.png"))


def test_an_npz_holds_images_and_labels(folder: Path, images: Tensor) -> None:
    prepare(folder, file_format="npz")
    fill(folder, images, [6, 0, 3])
    assert SampleFolder(folder).todo.tolist() == [1, 2, 4, 5]
    opened = fill(folder, images, [1, 2, 4, 5])
    assert torch.equal(opened.first_images(3), images[:3])
    assert torch.equal(opened.first_images(100), images)
    opened.finish(LABELS, [])
    assert sorted(contents(folder)) == ["samples.json", "samples.npz"]
    with np.load(folder / "samples.npz") as arrays:
        assert sorted(arrays) == ["arr_0", "arr_1"]
        assert arrays["arr_0"].dtype == np.uint8
        assert np.array_equal(arrays["arr_0"], images.permute(0, 2, 3, 1).numpy())
        assert arrays["arr_1"].dtype == np.int64
        assert arrays["arr_1"].tolist() == LABELS


def test_a_deleted_png_is_drawn_again(folder: Path, images: Tensor) -> None:
    prepare(folder)
    fill(folder, images, [0, 1, 2, 3])
    (folder / image_name(2)).unlink()
    assert SampleFolder(folder).todo.tolist() == [2, 4, 5, 6]


def test_a_full_disk_stops_the_run_and_the_rest_can_go_on(
    folder: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(folder)
    save_png = sample_folder.save_png

    def nearly_full(image: Tensor, path: Path) -> None:
        if path.name.endswith(image_name(3)):
            path.write_bytes(b"half a picture")
            full_disk()
        save_png(image, path)

    with monkeypatch.context() as patch:
        patch.setattr(sample_folder, "save_png", nearly_full)
        with pytest.raises(OSError, match="No space"), SampleFolder(folder) as opened:
            opened.add(range(5), images[:5], all_samples(images))
            wait(opened.pending)
            opened.add([5, 6], images[5:], all_samples(images))
    assert not (folder / image_name(3)).exists()
    todo = SampleFolder(folder).todo.tolist()
    assert set(todo) >= {3, 5, 6}
    assert all(torch.equal(read_png(folder / image_name(i)), images[i]) for i in range(COUNT) if i not in todo)
    fill(folder, images, todo).finish(LABELS, [])
    assert all(torch.equal(read_png(folder / image_name(i)), image) for i, image in enumerate(images))


def test_an_npz_run_that_finds_no_space_can_go_on(folder: Path, images: Tensor) -> None:
    prepare(folder, file_format="npz", maps=["codes"])
    row = HEIGHT * WIDTH * 3 + LENGTH * 4
    fill(folder, images, [4])
    with largest_file(5 * row // 2), pytest.raises(OSError, match="too large"):
        fill(folder, images, [0, 1, 2, 3])
    todo = SampleFolder(folder).todo.tolist()
    assert 4 not in todo
    assert 4 <= len(todo) <= 6  # two rows may have been flushed in time
    fill(folder, images, todo).finish(LABELS, [])
    with np.load(folder / "samples.npz") as arrays:
        assert np.array_equal(arrays["arr_0"], images.permute(0, 2, 3, 1).numpy())


def test_an_error_of_the_last_image_is_not_missed(
    folder: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(folder)
    monkeypatch.setattr(sample_folder, "save_png", full_disk)
    with pytest.raises(OSError, match="No space"), SampleFolder(folder) as opened:
        opened.add([0], images[:1], all_samples(images))
    with pytest.raises(RuntimeError, match="shutdown"):  # no thread is left behind
        opened.writers.submit(print)


# Finishing


def test_finish_refuses_while_images_are_missing(folder: Path, images: Tensor) -> None:
    prepare(folder, file_format="npz")
    opened = fill(folder, images, range(5))
    with pytest.raises(UserError, match="still lacks 2 images; run the same command again to go on"):
        opened.finish(LABELS, [])
    assert prepare(folder, file_format="npz")
    assert not (folder / "samples.npz").exists()


@pytest.mark.parametrize("file_format", FORMATS)
def test_duplicates_are_found(file_format: Format, folder: Path, images: Tensor) -> None:
    images[4] = images[1]
    images[[3, 6]] = images[0].clone()
    images[5] = images[2]
    images[5, 0, 0, 0] ^= 1  # nearly
    prepare(folder, file_format=file_format)
    opened = fill(folder, images)
    groups = opened.duplicates()
    assert sorted(groups) == [[0, 3, 6], [1, 4]]
    opened.finish(LABELS, groups)
    recorded = json.loads((folder / "samples.json").read_text())
    assert recorded == json.loads(json.dumps(SETTINGS)) | {"duplicates": groups}


def test_distinct_images_have_no_duplicates(folder: Path, images: Tensor) -> None:
    prepare(folder)
    assert fill(folder, images).duplicates() == []


def test_codes_are_kept_by_scale(folder: Path, images: Tensor) -> None:
    prepare(folder, maps=["codes"])
    fill(folder, images, [5, 1])
    fill(folder, images, [0, 2, 3, 4, 6]).save_codes(SCALES, LABELS)
    with np.load(folder / "codes.npz") as codes:
        assert sorted(codes) == ["codes_1", "codes_2", "labels"]
        assert codes["labels"].tolist() == LABELS
        for side, expected in zip(SCALES, all_samples(images).codes, strict=True):
            assert np.array_equal(codes[f"codes_{side}"], expected.numpy())


def test_all_maps_come_back(folder: Path, images: Tensor) -> None:
    prepare(folder, maps=["codes", "entropy", "step", "probability"])
    expected, found = all_samples(images), fill(folder, images).samples(SCALES, images)
    for name in ("codes", "entropy", "step", "probability"):
        for ours, theirs in zip(getattr(found, name), getattr(expected, name), strict=True):
            torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_kill_while_finishing_loses_nothing(
    file_format: Format, folder: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, *args: Any, **kwargs: Any) -> None:
        next(path.glob("*.done")).unlink()
        raise KeyboardInterrupt

    prepare(folder, file_format=file_format)
    opened = fill(folder, images)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            opened.finish(LABELS, [])
    assert not prepare(folder, file_format=file_format)
    pictures = [image_name(i) for i in range(COUNT)] if file_format == "png" else ["samples.npz"]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*pictures, "samples.json"])


@pytest.mark.parametrize("count", [0, 2, 3, 7])
def test_an_npz_of_several_chunks(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_folder, "CHUNK", 3)
    images = np.random.randint(256, size=(count, HEIGHT, WIDTH, 3), dtype=np.uint8)
    write_npz(tmp_path / "samples.npz", images, LABELS[:count])
    with np.load(tmp_path / "samples.npz") as arrays:
        assert np.array_equal(arrays["arr_0"], images)
        assert arrays["arr_1"].tolist() == LABELS[:count]
    assert [path.name for path in tmp_path.iterdir()] == ["samples.npz"]


def test_a_kill_while_a_folder_is_prepared_is_made_good(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(folder, file_format="npz")
    assert prepare(folder, file_format="npz")
    assert SampleFolder(folder).todo.tolist() == list(range(COUNT))
    assert not (folder / ".progress.new").exists()


@pytest.mark.parametrize("damage", [b"", b"cut short"])
def test_a_complete_folder_takes_a_damaged_picture_for_a_missing_one(
    damage: bytes, folder: Path, images: Tensor
) -> None:
    prepare(folder)
    fill(folder, images).finish(LABELS, [])
    (folder / image_name(1)).unlink()
    whole = (folder / image_name(4)).read_bytes()
    (folder / image_name(4)).write_bytes(damage or whole[:50])
    Image.new("RGB", (1, 1)).save(folder / image_name(5))
    assert prepare(folder)
    assert SampleFolder(folder).todo.tolist() == [1, 4, 5]


def test_a_complete_folder_that_lost_what_is_made_of_all_images(folder: Path, images: Tensor) -> None:
    prepare(folder)
    fill(folder, images).finish(LABELS, [])
    shape = (COUNT, HEIGHT, WIDTH, 3)
    assert not prepare_folder(folder, SETTINGS, shape, "png", {})
    assert prepare_folder(folder, SETTINGS, shape, "png", {}, ["grid.png"])
    assert SampleFolder(folder).todo.tolist() == []


def test_removing_samples_leaves_what_is_not_ours(folder: Path, images: Tensor) -> None:
    prepare(folder)
    fill(folder, images).finish(LABELS, [])
    (folder / "notes.txt").write_text("mine")
    remove_samples(folder)
    assert contents(folder) == {"notes.txt": b"mine"}
    (folder / "notes.txt").unlink()
    prepare(folder)
    remove_samples(folder)
    assert not folder.exists()
