"""Parts of a folder: each process has its own, all of them are one, and only what is whole counts."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from runtime.errors import UserError
from sampling import parts as sample_parts
from sampling.parts import Contents, Layout, Part, count_records, names_in
from tests.limits import largest_file

COUNT = 6
LAYOUT = Layout(COUNT, np.dtype([("codes", np.int32, (5,)), ("images", np.uint8, (2, 3, 3))]))
CODES = np.arange(COUNT * 5, dtype=np.int32).reshape(COUNT, 5)
IMAGES = (np.arange(COUNT * 18).reshape(COUNT, 2, 3, 3) * 7 % 251).astype(np.uint8)
HASHES = 2**63 + np.arange(COUNT, dtype=np.uint64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    LAYOUT.write(tmp_path)
    return tmp_path


def add(part: Part, indices: Sequence[int]) -> None:
    for i in indices:
        part.add(i, int(HASHES[i]), {"codes": CODES[i], "images": IMAGES[i]})


def write(folder: Path, owner: str, indices: Sequence[int]) -> Part:
    part = Part(folder, owner)
    add(part, indices)
    part.close()
    return part


def assert_holds(folder: Path, indices: Sequence[int]) -> None:
    """These images, and zeros in place of the others."""
    found, there = Contents(folder), np.isin(np.arange(COUNT), indices)
    assert found.done.tolist() == there.tolist()
    assert found.hashes.tolist() == np.where(there, HASHES, 0).tolist()
    for name, expected in (("codes", CODES), ("images", IMAGES)):
        column = found.column(name)
        assert (column.shape, column.dtype, len(column)) == (expected.shape, expected.dtype, COUNT)
        mask = there.reshape(-1, *[1] * (expected.ndim - 1))
        assert np.array_equal(column[:], expected * mask)
        assert np.array_equal(column[2:4], (expected * mask)[2:4])


def test_a_layout_comes_back(folder: Path) -> None:
    assert Layout.read(folder) == LAYOUT
    Layout(3, np.dtype([])).write(folder)
    assert Layout.read(folder) == Layout(3, np.dtype([]))


def test_many_parts_are_one(folder: Path) -> None:
    write(folder, "rank-0", [5, 0])
    write(folder, "rank-1", [])
    assert_holds(folder, [0, 5])
    write(folder, "rank-0", [3, 2])  # of a later run
    write(folder, "rank-7", [0, 4])  # image 0 was drawn again: any of the two is right
    assert_holds(folder, [0, 2, 3, 4, 5])
    assert count_records(folder) == 6


def test_no_two_parts_share_a_file(folder: Path) -> None:
    first = write(folder, "rank-0", [0])
    before = {name: (folder / name).read_bytes() for name in names_in(folder)}
    second = Part(folder, "rank-0")
    add(second, [1, 2])
    second.close()
    assert first.name != second.name
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert len(names_in(folder)) == len(before) + 2


def test_nothing_counts_before_it_is_on_the_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part, counted = Part(folder, "rank-0"), []
    fsync = os.fsync

    def noting(file: int) -> None:
        counted.append((os.fstat(file).st_size // LAYOUT.row.itemsize, count_records(folder)))
        fsync(file)

    monkeypatch.setattr(os, "fsync", noting)
    add(part, [0, 1])
    assert_holds(folder, [])
    part.commit()
    assert_holds(folder, [0, 1])
    part.commit()  # nothing new
    add(part, [2])
    part.close()
    assert_holds(folder, [0, 1, 2])
    assert counted == [(2, 0), (3, 2)]  # rows in the file that is flushed, and records of them so far


@pytest.mark.parametrize("suffix", [".done", ".rows"])
@pytest.mark.parametrize("lost", [1, 15, 17, 10**6])
def test_what_was_cut_short_counts_for_nothing(suffix: str, lost: int, folder: Path) -> None:
    write(folder, "rank-1", [4])
    part = write(folder, "rank-0", [0, 1, 2])
    path = (folder / part.name).with_suffix(suffix)
    size = max(path.stat().st_size - lost, 0)
    os.truncate(path, size)
    record = {".done": sample_parts.RECORD, ".rows": LAYOUT.row}[suffix].itemsize
    left = list(range(size // record))
    assert len(left) < 3
    assert_holds(folder, [*left, 4])
    write(folder, "rank-0", [5])  # as the next run would
    assert_holds(folder, [*left, 4, 5])


@pytest.mark.parametrize("names", [["rank-0-x.rows"], ["rank-0-x.done"], ["rank-0-x.rows", "rank-0-x.done"]])
def test_a_part_whose_making_was_cut_short_is_empty(names: Sequence[str], folder: Path) -> None:
    for name in names:
        (folder / name).touch()
    assert_holds(folder, [])
    write(folder, "rank-0", [0, 2])
    assert_holds(folder, [0, 2])


def test_a_part_of_foreign_images_is_one_line(folder: Path) -> None:
    part = write(folder, "rank-0", [0, 1])
    (folder / f"{part.name}.done").write_bytes(np.array([(COUNT, 1)], sample_parts.RECORD).tobytes())
    with pytest.raises(UserError, match=rf"is damaged \({part.name}.done has image 6 of 6\); move .* and start anew$"):
        Contents(folder)


def test_nothing_counts_after_a_full_disk(folder: Path) -> None:
    part = Part(folder, "rank-0")
    add(part, [0])
    part.commit()
    add(part, [1])
    with largest_file(2 * LAYOUT.row.itemsize + 10), pytest.raises(OSError, match="too large"):
        add(part, [2])
    assert (folder / f"{part.name}.rows").stat().st_size == 2 * LAYOUT.row.itemsize + 10
    part.close()  # image 1 may be among what is lost, over NFS
    assert_holds(folder, [0])


def test_rows_that_the_disk_lost_never_count(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second attempt to flush them succeeds, as the system has dropped them."""
    part = Part(folder, "rank-0")
    add(part, [0])

    def lost(file: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lost)
        with pytest.raises(OSError, match="quota"):
            part.commit()
    part.close()
    assert_holds(folder, [])
