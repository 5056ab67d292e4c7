"""A folder that fills with images: exact, resumable after anything, and careful with what it finds."""

import errno
import json
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from evaluation.image_files import open_images
from models.checkerboard.config import CheckerboardDrawing
from models.family import Samples
from runtime import distributed
from runtime.errors import UserError
from runtime.lock import lock_folder
from sampling import folder as sample_folder
from sampling.bulk import Request, draw_into
from sampling.folder import MAPS, SampleFolder, image_name, remove_samples
from sampling.options import Format
from sampling.pictures import write_npz
from tests.factory import tiny_model
from tests.limits import largest_file
from tests.training_factory import exit_codes, start_ranks

COUNT, HEIGHT, WIDTH = 7, 4, 6
SHAPE = (COUNT, HEIGHT, WIDTH, 3)
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
    maps: Collection[str] = (),
    made: Sequence[str] = (),
) -> bool:
    return SampleFolder(folder, SHAPE, file_format, maps).prepare(settings, made)


def opened(folder: Path, file_format: Format = "png", maps: Collection[str] = ()) -> SampleFolder:
    found = SampleFolder(folder, SHAPE, file_format, maps)
    found.look()
    return found


def todo(folder: Path, file_format: Format = "png") -> list[int]:
    return opened(folder, file_format).todo.tolist()


def all_samples(images: Tensor) -> Samples:
    """Maps whose numbers say which image, scale and location they are of."""
    numbers = torch.arange(COUNT * LENGTH).view(COUNT, LENGTH)
    codes = [numbers[:, :1].view(-1, 1, 1), numbers[:, 1:].view(-1, 2, 2)]
    floats = [scale / 1000 for scale in codes]
    return Samples(images, codes, floats, [scale + 1 for scale in codes], [scale / 2 for scale in floats])


def add(into: SampleFolder, images: Tensor, indices: Sequence[int]) -> None:
    indices, samples = list(indices), all_samples(images)
    maps = {name: [scale[indices] for scale in getattr(samples, name)] for name in MAPS}
    into.add(indices, images[indices], Samples(images[indices], **maps))


def fill(
    folder: Path,
    images: Tensor,
    indices: Sequence[int] = range(COUNT),
    file_format: Format = "png",
    maps: Collection[str] = (),
) -> SampleFolder:
    found = opened(folder, file_format, maps)
    with found.writing():
        add(found, images, indices)
    found.look()
    return found


def read_png(path: Path) -> Tensor:
    with Image.open(path) as picture:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def read_npz(folder: Path) -> tuple[Tensor, list[int]]:
    with np.load(folder / "samples.npz") as arrays:
        assert sorted(arrays) == ["arr_0", "arr_1"]
        assert (arrays["arr_0"].dtype, arrays["arr_1"].dtype) == (np.uint8, np.int64)
        return torch.from_numpy(arrays["arr_0"]).permute(0, 3, 1, 2), arrays["arr_1"].tolist()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def full_disk(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "here")


# Preparing


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_new_folder(file_format: Format, folder: Path) -> None:
    assert prepare(folder / "below", file_format=file_format, maps=("codes", "entropy"))
    assert list(contents(folder / "below")) == ["samples.json"]
    assert json.loads((folder / "below/samples.json").read_text()) == SETTINGS | {"cfg": [1.0, 2.0]}
    assert todo(folder / "below", file_format) == list(range(COUNT))


def test_the_same_settings_go_on(folder: Path, images: Tensor) -> None:
    assert prepare(folder)
    fill(folder, images, [0, 4, 6])
    before = contents(folder)
    assert prepare(folder, SETTINGS | {"batch_size": 1, "output_dir": "there"})  # change no image
    assert contents(folder) == before
    assert todo(folder) == [1, 2, 3, 5]


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_complete_folder_is_left_alone(file_format: Format, folder: Path, images: Tensor) -> None:
    prepare(folder, file_format=file_format)
    fill(folder, images, file_format=file_format).finish(LABELS)
    before = contents(folder)
    assert not prepare(folder, SETTINGS | {"batch_size": 1}, file_format=file_format)
    assert contents(folder) == before


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize("file_format", FORMATS)
def test_other_settings_are_moved_aside(
    file_format: Format, complete: bool, tmp_path: Path, images: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "cfg1.5"
    prepare(folder, file_format=file_format, maps=["codes"])
    found = fill(folder, images, range(COUNT if complete else 3), file_format, ["codes"])
    (folder / "codes.npz").write_bytes(b"codes")
    if complete:
        found.finish(LABELS)
    before = contents(folder)
    (folder / "notes.txt").write_text("mine")
    (tmp_path / "cfg1.5.1").mkdir()  # taken
    assert prepare(folder, SETTINGS | {"seed": 1}, file_format=file_format)
    assert contents(tmp_path / "cfg1.5.2") == before
    assert not any((tmp_path / "cfg1.5.1").iterdir())
    assert capsys.readouterr().out == f"the earlier samples in {folder} are now in {folder}.2\n"
    assert sorted(contents(folder)) == ["notes.txt", "samples.json"]
    assert todo(folder, file_format) == list(range(COUNT))


def another_disk(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """From now on files in ``folder`` cannot be renamed to a place out of it, as if it were a disk of its own."""
    rename = Path.rename

    def on_one_disk(path: Path, target: Path) -> Path:
        if folder in path.parents and folder not in Path(target).parents:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", on_one_disk)


def no_folder_beside(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """From now on no folder can be made beside ``folder``, as in a parent of someone else's."""
    mkdir = Path.mkdir

    def in_folder(path: Path, *args: Any, **kwargs: Any) -> None:
        if path.parent == folder.parent and path != folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        mkdir(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", in_folder)


@pytest.mark.parametrize("hindrance", [another_disk, no_folder_beside])
@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize("file_format", FORMATS)
def test_where_nothing_can_be_moved_beside_it_is_moved_within(
    file_format: Format,
    complete: bool,
    hindrance: Callable[[pytest.MonkeyPatch, Path], None],
    folder: Path,
    images: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepare(folder, file_format=file_format)
    found = fill(folder, images, range(COUNT if complete else 3), file_format)
    if complete:
        found.finish(LABELS)
    (folder / "notes.txt").write_text("mine")
    before = contents(folder)
    hindrance(monkeypatch, folder)
    for number in (1, 2):
        assert prepare(folder, SETTINGS | {"seed": number}, file_format=file_format)
        aside = folder / f"earlier.{number}"
        assert capsys.readouterr().out == f"the earlier samples in {folder} are now in {aside}\n"
        assert contents(aside) | {"notes.txt": b"mine"} == before
        assert list(folder.parent.iterdir()) == [folder]
        fill(folder, images, file_format=file_format).finish(LABELS)
        before = {name: content for name, content in contents(folder).items() if "earlier" not in name}
        assert open_images(folder).shape == SHAPE[:3]  # evaluation sees those of now alone
    assert not prepare(folder, SETTINGS | {"seed": 2}, file_format=file_format)
    remove_samples(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["earlier.1", "earlier.2", "notes.txt"]


def test_what_can_be_moved_nowhere_stays(folder: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(folder)
    fill(folder, images, [0])
    before = contents(folder)

    def refused(path: Path, target: Path) -> Path:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(PermissionError):
        prepare(folder, SETTINGS | {"seed": 1})
    assert contents(folder) == before
    assert not list(folder.parent.rglob("*.1"))


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


@pytest.mark.parametrize("names", [["layout.json", "rank-0-1a.done", "rank-0-1a.rows"], ["done.npy", "hashes.npy"]])
def test_what_an_earlier_version_began_is_refused(names: Sequence[str], folder: Path, images: Tensor) -> None:
    prepare(folder)
    fill(folder, images, [0, 4])
    shutil.rmtree(folder / ".progress")
    (folder / ".progress").mkdir()
    for name in names:
        (folder / ".progress" / name).write_bytes(b"other")
    before = contents(folder)
    with pytest.raises(UserError, match=r"\.progress was begun by an earlier version, .* move it away and start anew$"):
        prepare(folder)
    assert contents(folder) == before
    (folder / ".progress").rename(folder / "away")
    assert prepare(folder)
    assert todo(folder) == [1, 2, 3, 5, 6]  # pictures count without it


def test_a_kill_while_a_folder_is_prepared_is_made_good(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(folder, file_format="npz")
    assert prepare(folder, file_format="npz")
    assert todo(folder, "npz") == list(range(COUNT))
    assert sorted(path.name for path in folder.iterdir()) == [".progress", "samples.json"]


# Filling


def test_pngs_hold_the_images(folder: Path, images: Tensor) -> None:
    prepare(folder)
    found = fill(folder, images, [6, 0, 3])
    assert found.num_stored() == 3
    assert sorted(path.name for path in folder.glob("*.png")) == ["000000.png", "000003.png", "000006.png"]
    found = fill(folder, images, [1, 2, 4, 5])
    assert found.num_stored() == COUNT
    for i, image in enumerate(images):
        assert torch.equal(read_png(folder / image_name(i)), image)
    assert torch.equal(found.first_images(3), images[:3])
    assert torch.equal(found.first_images(100), images)
    assert not list((folder / ".progress").rglob("*.png"))


def test_an_npz_holds_images_and_labels(folder: Path, images: Tensor) -> None:
    prepare(folder, file_format="npz")
    fill(folder, images, [6, 0, 3], "npz")
    assert todo(folder, "npz") == [1, 2, 4, 5]
    found = fill(folder, images, [1, 2, 4, 5], "npz")
    assert torch.equal(found.first_images(3), images[:3])
    assert torch.equal(found.first_images(100), images)
    found.finish(LABELS)
    assert sorted(contents(folder)) == ["samples.json", "samples.npz"]
    pixels, labels = read_npz(folder)
    assert torch.equal(pixels, images)
    assert labels == LABELS


@pytest.mark.parametrize("file_format", FORMATS)
def test_an_image_that_two_processes_drew_is_one(file_format: Format, folder: Path, images: Tensor) -> None:
    prepare(folder, file_format=file_format, maps=MAPS)
    fill(folder, images, [5, 0, 2], file_format, MAPS)
    before = contents(folder / ".progress")
    fill(folder, images, [0, 1, 2], file_format, MAPS)
    assert before.items() <= contents(folder / ".progress").items()  # no file is written to again
    assert todo(folder, file_format) == [3, 4, 6]
    found = fill(folder, images, [3, 4, 6], file_format, MAPS)
    assert torch.equal(found.first_images(COUNT), images)
    for name in MAPS:
        expected = getattr(all_samples(images), name)
        assert all(map(torch.equal, found.read_map(name, SCALES), expected)), name
    assert found.finish(LABELS) == []


def test_a_deleted_png_is_drawn_again(folder: Path, images: Tensor) -> None:
    prepare(folder)
    fill(folder, images, [0, 1, 2, 3])
    (folder / image_name(2)).unlink()
    assert todo(folder) == [2, 4, 5, 6]


@pytest.mark.parametrize("damage", [b"", b"cut short"])
def test_a_damaged_batch_is_one_line_and_can_be_removed(damage: bytes, folder: Path, images: Tensor) -> None:
    prepare(folder, file_format="npz")
    fill(folder, images, [0, 4], "npz")
    (file,) = folder.glob(".progress/*/*.npz")
    fill(folder, images, [1], "npz")
    file.write_bytes(damage or file.read_bytes()[:-50])
    with pytest.raises(UserError, match=rf"{file} is damaged \(.*\); remove it, and run the same command again"):
        prepare(folder, file_format="npz")
    file.unlink()
    assert prepare(folder, file_format="npz")
    assert todo(folder, "npz") == [0, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("file_format", FORMATS)
def test_nothing_counts_before_all_of_it_is_on_the_disk(
    file_format: Format, folder: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are flushed before the batch gets its name, so that a loss of power leaves no gap."""
    prepare(folder, file_format=file_format)
    found, flushed, fsync = opened(folder, file_format), set[str](), os.fsync

    def noting(descriptor: int) -> None:
        suffix = Path(f"/proc/self/fd/{descriptor}").readlink().suffix  # none of a folder
        assert not suffix or found.num_stored() == 0
        flushed.add(suffix)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    with found.writing():
        add(found, images, range(3))
    assert flushed == ({".png", ".npz", ""} if file_format == "png" else {".npz", ""})
    assert found.num_stored() == 3


def test_a_full_disk_stops_the_run_and_the_rest_can_go_on(
    folder: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(folder)
    save_png, found, all_added = sample_folder.save_png, opened(folder), threading.Event()

    def nearly_full(image: Tensor, path: Path, text: Mapping[str, str]) -> None:
        if torch.equal(image, images[3]):
            path.write_bytes(b"half a picture")
            all_added.wait(10)  # the error would end the loop below
            full_disk()
        save_png(image, path, text)

    with monkeypatch.context() as patch:
        patch.setattr(sample_folder, "save_png", nearly_full)
        with pytest.raises(OSError, match="No space"), found.writing():
            for indices in ([0, 1], [2, 3], [4, 5]):
                add(found, images, indices)
            all_added.set()
            wait(found.pending)
            for _ in range(sample_folder.WRITERS):
                add(found, images, [6])
    assert not (folder / image_name(3)).exists()
    assert set(todo(folder)) - {6} == {2, 3}
    assert all(torch.equal(read_png(folder / image_name(i)), images[i]) for i in (0, 1, 4, 5))
    fill(folder, images, [2, 3, 6]).finish(LABELS)
    assert all(torch.equal(read_png(folder / image_name(i)), image) for i, image in enumerate(images))


def test_an_npz_run_that_finds_no_space_can_go_on(folder: Path, images: Tensor) -> None:
    prepare(folder, file_format="npz", maps=["codes"])
    fill(folder, images, [4], "npz", ["codes"])
    (file,) = folder.glob(".progress/*/*.npz")
    with largest_file(file.stat().st_size + 50), pytest.raises(UserError, match=r"could not write .* free some space"):
        fill(folder, images, [0, 1, 2, 3], "npz", ["codes"])
    assert todo(folder, "npz") == [0, 1, 2, 3, 5, 6]
    found = fill(folder, images, [0, 1, 2, 3, 5, 6], "npz", ["codes"])
    with largest_file(COUNT * HEIGHT * WIDTH * 3), pytest.raises(UserError, match=r"could not write .*samples\.npz"):
        found.finish(LABELS)
    assert prepare(folder, file_format="npz", maps=["codes"])
    opened(folder, "npz").finish(LABELS)
    assert sorted(contents(folder)) == ["samples.json", "samples.npz"]
    assert torch.equal(read_npz(folder)[0], images)


def test_an_error_of_the_last_image_is_not_missed(
    folder: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(folder)
    monkeypatch.setattr(sample_folder, "save_png", full_disk)
    found = opened(folder)
    with pytest.raises(OSError, match="No space"), found.writing():
        add(found, images, [0])
    with pytest.raises(RuntimeError, match="shutdown"):  # no thread is left behind
        found.writers.submit(print)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, UserError])
def test_what_was_drawn_when_drawing_stopped_is_kept(stop: type[BaseException], folder: Path, images: Tensor) -> None:
    prepare(folder)
    found = opened(folder)
    with pytest.raises(stop), found.writing():
        add(found, images, [1, 2])
        add(found, images, [5])
        raise stop
    assert todo(folder) == [0, 3, 4, 6]


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("complete", [False, True])
def test_a_process_that_outlives_its_run_disturbs_no_other(
    complete: bool, file_format: Format, folder: Path, images: Tensor
) -> None:
    """A rank whose rank 0 was killed goes on, while the next run begins, with other settings, or has finished."""
    settings = SETTINGS | ({} if complete else {"seed": 1})
    prepare(folder, file_format=file_format)
    outlived = opened(folder, file_format)
    with pytest.raises((UserError, FileNotFoundError)), outlived.writing():
        if complete:
            fill(folder, images, file_format=file_format).finish(LABELS)
        else:
            prepare(folder, settings, file_format)
            fill(folder, images, [0], file_format)
        before = contents(folder)
        add(outlived, 255 - images, [0, 1])
    assert contents(folder) == before
    assert prepare(folder, settings, file_format) != complete


# Finishing


def test_finish_refuses_while_images_are_missing(folder: Path, images: Tensor) -> None:
    prepare(folder, file_format="npz")
    found = fill(folder, images, range(5), "npz")
    with pytest.raises(AssertionError):
        found.finish(LABELS)
    assert prepare(folder, file_format="npz")
    assert not (folder / "samples.npz").exists()


@pytest.mark.parametrize("file_format", FORMATS)
def test_duplicates_are_found(file_format: Format, folder: Path, images: Tensor) -> None:
    images[4] = images[1]
    images[[3, 6]] = images[0].clone()
    images[5] = images[2]
    images[5, 0, 0, 0] ^= 1  # nearly
    prepare(folder, file_format=file_format)
    groups = fill(folder, images, file_format=file_format).finish(LABELS)
    assert sorted(groups) == [[0, 3, 6], [1, 4]]
    recorded = json.loads((folder / "samples.json").read_text())
    assert recorded == json.loads(json.dumps(SETTINGS)) | {"duplicates": groups}


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_kill_while_finishing_loses_nothing(
    file_format: Format, folder: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, *args: Any, **kwargs: Any) -> None:
        next(path.rglob("*.npz")).unlink()
        raise KeyboardInterrupt

    prepare(folder, file_format=file_format)
    found = fill(folder, images, file_format=file_format)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            found.finish(LABELS)
    assert not prepare(folder, file_format=file_format)
    pictures = [image_name(i) for i in range(COUNT)] if file_format == "png" else ["samples.npz"]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*pictures, "samples.json"])


@pytest.mark.parametrize("chunk", [1, 3 * HEIGHT * WIDTH * 3, 2**20])
def test_an_npz_is_joined_in_chunks(chunk: int, folder: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one image, of three, or of all, from batches whose images lie scattered."""
    monkeypatch.setattr(sample_folder, "CHUNK", chunk)
    prepare(folder, file_format="npz")
    for indices in ([5, 1, 3], [0], [6, 2, 4]):
        found = fill(folder, images, indices, "npz")
    found.finish(LABELS)
    assert torch.equal(read_npz(folder)[0], images)


@pytest.mark.parametrize("sizes", [[], [2], [3, 3, 1]])
def test_an_npz_of_several_chunks(sizes: Sequence[int], tmp_path: Path) -> None:
    chunks = [np.random.randint(256, size=(size, *SHAPE[1:]), dtype=np.uint8) for size in sizes]
    write_npz(tmp_path / "samples.npz", (sum(sizes), *SHAPE[1:]), chunks, LABELS[: sum(sizes)])
    pixels, labels = read_npz(tmp_path)
    assert np.array_equal(pixels.permute(0, 2, 3, 1), np.concatenate([np.empty((0, *SHAPE[1:]), np.uint8), *chunks]))
    assert labels == LABELS[: sum(sizes)]
    assert [path.name for path in tmp_path.iterdir()] == ["samples.npz"]


@pytest.mark.parametrize("damage", ["empty", "cut short", "a byte", "another size"])
def test_a_complete_folder_takes_a_damaged_picture_for_a_missing_one(damage: str, folder: Path, images: Tensor) -> None:
    prepare(folder)
    fill(folder, images).finish(LABELS)
    (folder / image_name(1)).unlink()
    path = folder / image_name(4)
    whole = path.read_bytes()
    if damage == "another size":
        Image.new("RGB", (1, 1)).save(path)
    else:
        path.write_bytes({"empty": b"", "cut short": whole[:50], "a byte": whole[:60] + b"\xff" + whole[61:]}[damage])
    assert prepare(folder)
    assert todo(folder) == [1, 4]
    fill(folder, images, [1, 4]).finish(LABELS)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", ["empty", "cut short", "no end"])
def test_a_complete_folder_whose_picture_was_cut_short_is_not_whole(damage: str, folder: Path, images: Tensor) -> None:
    prepare(folder)
    fill(folder, images).finish(LABELS)
    assert not prepare(folder)
    path = folder / image_name(4)
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "cut short": whole[: len(whole) // 2], "no end": whole[:-12]}[damage])
    assert prepare(folder)
    assert todo(folder) == [4]
    fill(folder, images, [4]).finish(LABELS)
    assert path.read_bytes() == whole
    assert not prepare(folder)


def test_a_complete_folder_that_lost_what_is_made_of_all_images(folder: Path, images: Tensor) -> None:
    prepare(folder)
    fill(folder, images).finish(LABELS)
    assert not prepare(folder)
    assert prepare(folder, made=["grid.png"])
    assert todo(folder) == []


def test_removing_samples_leaves_what_is_not_ours(folder: Path, images: Tensor) -> None:
    prepare(folder)
    fill(folder, images).finish(LABELS)
    (folder / "notes.txt").write_text("mine")
    remove_samples(folder)
    assert contents(folder) == {"notes.txt": b"mine"}
    (folder / "notes.txt").unlink()
    prepare(folder)
    fill(folder, images, [3])
    remove_samples(folder)
    assert not folder.exists()


# Ranks that are killed

MANY = 48


def draw_on_rank(path: Path, file_format: Format, batch_size: int) -> None:
    """A run of one rank, for ``start_ranks``, as main_sample.py does it."""
    distributed.set_up(torch.device("cpu"))
    model = tiny_model()
    request = Request([i % 10 for i in range(MANY)], CheckerboardDrawing(), seed=3, batch_size=batch_size)
    folder = SampleFolder(path, (MANY, 32, 32, 3), file_format, ["codes"])
    with lock_folder(path):
        if distributed.from_main(folder.prepare({"seed": 3}) if distributed.is_main() else None):
            draw_into(folder, model, request)
            if distributed.is_main():
                codes = folder.read_map("codes", model.scale_sizes)
                np.savez(path / "codes.npz", **{str(i): scale for i, scale in enumerate(codes)})
                folder.finish(request.labels)
    distributed.tear_down()


def pixels_and_codes(folder: Path) -> dict[str, np.ndarray]:
    found = {path.name: read_png(path).numpy() for path in folder.glob("*.png")}
    for path in folder.glob("*.npz"):
        with np.load(path) as arrays:
            found |= {f"{path.name} {name}": arrays[name] for name in arrays}
    return found


@pytest.mark.ranks
@pytest.mark.parametrize("file_format", FORMATS)
def test_ranks_killed_at_random_moments_draw_what_an_undisturbed_run_does(file_format: Format, tmp_path: Path) -> None:
    """One to four ranks, in batches of other sizes; some or all are killed, and the others may outlive the next run."""
    whole, folder, outlived, stored = tmp_path / "whole", tmp_path / "killed", list[BaseProcess](), set[int]()

    def start(folder: Path, ranks: int, batch_size: int) -> list[BaseProcess]:
        return start_ranks(tmp_path, ranks, draw_on_rank, folder, file_format, batch_size)

    assert exit_codes(start(whole, 1, 4)) == [0]
    while (folder / ".progress").exists() or not (folder / "samples.json").exists():
        processes = start(folder, random.randint(1, 4), random.choice([1, 3, 4]))
        if len(stored) < 6:  # then a run may come to its end
            while num_batches(folder) in stored and any(process.is_alive() for process in processes):
                time.sleep(0.002)
            time.sleep(random.uniform(0, 0.1))
            for process in random.sample(processes, random.randint(1, len(processes))):
                process.kill()
        else:
            exit_codes(processes)
        stored.add(num_batches(folder))
        kill(outlived)
        outlived = processes
    kill(outlived)
    assert exit_codes(start(folder, 1, 4)) == [0]  # removes what a kill at the very end has left
    found, expected = pixels_and_codes(folder), pixels_and_codes(whole)
    assert found.keys() == expected.keys()
    assert len(found) == (MANY + 4 if file_format == "png" else 6)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert not list(folder.glob(".*"))


def kill(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.kill()
        process.join()


def num_batches(folder: Path) -> int:
    return sum(1 for _ in folder.glob(".progress/rank*/[!.]*.npz"))


def test_files_that_others_put_into_progress_do_not_count(folder: Path, images: Tensor) -> None:
    prepare(folder)
    found = fill(folder, images, range(3))
    batch = next(folder.glob(".progress/rank*/[!.]*.npz"))
    for name in ("a.npz", f"{batch.stem} (copy).npz"):
        batch.with_name(name).write_bytes(b"strange")
    assert found.num_stored() == 3
    assert todo(folder) == list(range(3, COUNT))


def test_a_truncated_png_of_a_run_under_way_is_named(folder: Path, images: Tensor) -> None:
    prepare(folder)
    fill(folder, images, range(COUNT))
    path = folder / "000001.png"
    path.write_bytes(path.read_bytes()[:60])
    found = opened(folder)
    with pytest.raises(UserError, match=r"000001\.png is damaged .*; remove it, and run the same command again"):
        found.first_images(COUNT)
    path.unlink()
    assert todo(folder) == [1]


def test_more_images_than_names_of_six_digits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="add --format npz"):
        SampleFolder(tmp_path, (1_000_001, 8, 8, 3), "png")
    SampleFolder(tmp_path, (1_000_001, 8, 8, 3), "npz")
