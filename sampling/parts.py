"""What is known of images while a folder fills: each process appends to files of its own, and all are read as one.

Letters: N images. A part is two files that one process writes and that are never written again:

    NAME.rows   a row of ``Layout.row`` for each image, in the order of writing: what is kept beside or instead of PNGs
    NAME.done   (index, hash) of each row, written after the row is on the disk; what is cut short counts for nothing

So machines that share the folder over NFS never write one page, a killed process leaves whatever it did, and one that
outlives its run disturbs no other. Files only grow: they take the space that they need, and a full disk is an error.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from threading import Lock
from typing import BinaryIO
from uuid import uuid4

import numpy as np

from runtime.errors import UserError
from runtime.files import write_json

LAYOUT_NAME = "layout.json"
RECORD = np.dtype([("index", "<i8"), ("hash", "<u8")])
EARLIER_NAME = "done.npy"  # of the format before parts


@dataclass(frozen=True)
class Layout:
    """Of all parts of a folder.

    Attributes:
        num_images: N.
        row: names, dtypes and shapes of what is kept of an image; may be nothing.
    """

    num_images: int
    row: np.dtype

    def write(self, folder: Path) -> None:
        fields = {name: [self.row[name].base.str, self.row[name].shape] for name in self.row.names or ()}
        write_json(folder / LAYOUT_NAME, {"num_images": self.num_images, "row": fields})

    @classmethod
    def read(cls, folder: Path) -> "Layout":
        """Of a folder that was begun.

        Raises:
            UserError: it is damaged, or of the format before parts.
        """
        path = folder / LAYOUT_NAME
        if not path.exists() and (folder / EARLIER_NAME).exists():
            raise UserError(
                f"{folder} was begun by an earlier version, which kept it otherwise; move it away and start anew"
            )
        try:
            content = json.loads(path.read_text())
            row = np.dtype([(name, kind, tuple(shape)) for name, (kind, shape) in content["row"].items()])
            return cls(int(content["num_images"]), row)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(folder, error) from error


class Part:
    """What this process adds to a folder. Threads may add at once; one of them commits.

    Args:
        folder: has a layout.
        owner: in the files' names, for people; the rest of a name is of this object alone.
    """

    def __init__(self, folder: Path, owner: str) -> None:
        self.layout, self.name = Layout.read(folder), f"{owner}-{uuid4().hex[:12]}"
        self.rows: BinaryIO = (folder / f"{self.name}.rows").open("xb", buffering=0)
        self.done: BinaryIO = (folder / f"{self.name}.done").open("xb", buffering=0)
        self.records: list[tuple[int, int]] = []  # of all rows
        self.num_committed = 0
        self.lock, self.failed = Lock(), False

    def add(self, index: int, digest: int, values: Mapping[str, np.ndarray]) -> None:
        """Append a row. It counts once it is committed."""
        row = np.zeros((), self.layout.row)
        for name, value in values.items():
            row[name] = value
        with self._writing():
            _write_at(self.rows, len(self.records) * row.nbytes, row.tobytes())
            self.records.append((index, digest))

    def commit(self) -> None:
        """Make what was added count, its rows on the disk first: their pages may reach a server in any order."""
        with self._writing():
            new = np.array(self.records[self.num_committed :], RECORD)
            if len(new) and not self.failed:
                if self.layout.row.itemsize:
                    os.fsync(self.rows.fileno())
                _write_at(self.done, self.num_committed * RECORD.itemsize, new.tobytes())
                self.num_committed = len(self.records)

    def close(self) -> None:
        """Commit, and close the files: a machine that opens them after this sees all of them, also over NFS."""
        with self.rows, self.done:
            self.commit()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """For one thread at a time. After an error nothing is committed: a system says only once that it lost rows."""
        with self.lock:
            try:
                yield
            except OSError:
                self.failed = True
                raise


def _write_at(file: BinaryIO, offset: int, content: bytes) -> None:
    """Write all of it, over what an attempt that was interrupted may have left there."""
    file.seek(offset)
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


class Contents:
    """What all parts of a folder held when this was made.

    Attributes:
        done: (N,) bool, whether any part holds the image.
        hashes: (N,) uint64, 0 where none does.
    """

    def __init__(self, folder: Path) -> None:
        self.layout = Layout.read(folder)
        shape = (self.layout.num_images,)
        self.hashes = np.zeros(shape, np.uint64)
        self.part_of, self.row_of = np.full(shape, -1), np.zeros(shape, np.int64)
        self.parts = sorted(folder / name for name in names_in(folder) if name.endswith(".done"))
        for number, part in enumerate(self.parts):
            records = _read_records(part, self.layout)
            indices = records["index"]  # an image that two parts hold is the same in both
            self.part_of[indices], self.row_of[indices] = number, np.arange(len(records))
            self.hashes[indices] = records["hash"]
        self.done = self.part_of >= 0

    def column(self, name: str) -> "Column":
        return Column(self, name)


def _read_records(part: Path, layout: Layout) -> np.ndarray:
    """(n,) of ``RECORD``, of the rows that are whole."""
    try:
        records = np.fromfile(part, RECORD)  # drops what is cut short
        if layout.row.itemsize:
            records = records[: _size_now(_rows_of(part)) // layout.row.itemsize]
    except OSError as error:
        raise _damaged(part.parent, error) from error
    strange = records["index"][(records["index"] < 0) | (records["index"] >= layout.num_images)]
    if len(strange):
        raise _damaged(part.parent, f"{part.name} has image {strange[0]} of {layout.num_images}")
    return records


class Column:
    """An array (N, ...) of which row i is of image i, wherever that lies; 0 where no part has it.

    A slice of rows is read when it is asked for. No file stays open: NFS cannot remove a folder of open files.
    """

    def __init__(self, contents: Contents, name: str) -> None:
        self.contents, self.name = contents, name
        self.dtype = contents.layout.row[name].base
        self.shape = (contents.layout.num_images, *contents.layout.row[name].shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, images: slice) -> np.ndarray:
        part_of, row_of = self.contents.part_of[images], self.contents.row_of[images]
        out = np.zeros((len(part_of), *self.shape[1:]), self.dtype)
        for number in np.unique(part_of[part_of >= 0]):
            here = part_of == number
            rows = row_of[here]
            path = _rows_of(self.contents.parts[number])
            out[here] = np.memmap(path, self.contents.layout.row, "r", shape=(rows.max() + 1,))[self.name][rows]
        return out


def count_records(folder: Path) -> int:
    """How many rows the parts of a folder have by now, as far as this machine can see."""
    return sum(path.stat().st_size // RECORD.itemsize for path in folder.glob("*.done"))


def names_in(folder: Path) -> set[str]:
    """Names of all files of a folder, also of those that other machines just made.

    An NFS client may show a folder as it was up to a minute ago, unless it has changed it itself.
    """
    TemporaryFile(dir=folder).close()
    return {path.name for path in folder.iterdir()}


def _size_now(path: Path) -> int:
    """Bytes of a file, 0 if it is missing; opened for it, as NFS may say otherwise what was true a minute ago."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        return os.fstat(file.fileno()).st_size
    return 0


def _rows_of(part: Path) -> Path:
    return part.with_suffix(".rows")


def _damaged(folder: Path, error: object) -> UserError:
    return UserError(f"{folder} is damaged ({error}); move {folder.parent} away and start anew")
