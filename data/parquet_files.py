"""Parquet files as the Hugging Face hub serves images: a column of {bytes, path} and one of labels, numbers or names.

pyarrow is imported where it is needed: it takes a third of a second.
"""

import json
import os
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.class_labels import labels_of, read_names
from data.files import UnreadableImageError, left_out_text, raise_of_machine
from data.labelled_images import StoredImages
from data.splits import split_shards
from runtime.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

IMAGE, LABEL = "image", "label"
OTHER_LABELS = ("labels", "class", "cls", "target", "fine_label", "coarse_label")
SECRET = -1  # what the hub puts for labels that are not published
BATCH = 8  # rows decoded at once
LARGE = 64e6  # bytes of a row group, from where on to read images in any order takes long


@dataclass(frozen=True)
class Table:
    """A file: its rows by groups, and what its columns are called."""

    path: Path
    metadata: "pq.FileMetaData"
    image: str
    label: str
    text: bool  # whether labels are the classes' names, and not numbers
    names: list[str] | None  # of the classes, as the hub stores them

    @cached_property
    def ends(self) -> np.ndarray:
        """Number of the first row after each row group."""
        groups = range(self.metadata.num_row_groups)
        return np.cumsum([self.metadata.row_group(group).num_rows for group in groups])

    @property
    def largest(self) -> int:
        """Bytes of the largest row group, unpacked."""
        groups = range(self.metadata.num_row_groups)
        return max((self.metadata.row_group(group).total_byte_size for group in groups), default=0)

    def labels(self) -> list[int | str | None]:
        """The label of each row; None is of a row that has none."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            column = pq.ParquetFile(self.path, metadata=self.metadata).read([self.label], use_threads=False)[0]
        except (pa.ArrowException, OSError) as error:
            raise_of_machine(error, str(self.path))
            raise _not_whole(self.path, error) from error
        if self.text:
            return [(word or "").strip() or None for word in column.to_pylist()]
        return column.to_pylist() if column.null_count else column.to_numpy().tolist()  # the latter is faster


def _not_whole(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(f"{path} is no whole .parquet file ({reason}); fetch it again")


class ParquetImages(StoredImages):
    """Images in rows, ``keys`` being file and row."""

    def __init__(
        self, name: str, tables: Sequence[Table], rows: np.ndarray, labels: Sequence[int], class_keys: Sequence[str]
    ) -> None:
        self.tables, self.rows = list(tables), rows  # (N, 2): number of the table, row
        self.opened: tuple[tuple[int, int], _OpenGroup] | None = None  # with the process and thread that opened it
        super().__init__(name, [f"{tables[n].path.name}/{row}" for n, row in rows.tolist()], labels, class_keys)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"opened": None}

    def file_of(self, index: int) -> Path:
        return self.tables[self.rows[index, 0]].path

    def title(self, index: int) -> str:
        return f"row {self.rows[index, 1]} of {self.file_of(index)}"

    def fetch(self, index: int) -> bytes:
        number, row = self.rows[index].tolist()
        table = self.tables[number]
        group = int(np.searchsorted(table.ends, row, side="right"))
        row -= int(table.ends[group - 1]) if group else 0
        owner, opened = self.opened or (None, None)
        reader = os.getpid(), threading.get_ident()
        if owner != reader or opened.table is not table or opened.group != group or row < opened.start:
            opened = _OpenGroup(table, group)
        self.opened = None  # of what is damaged nothing is kept
        content = opened.read(row)
        self.opened = reader, opened
        if content is None:
            raise UnreadableImageError(f"{self.title(index)} holds no image; mend the file, or drop the row")
        return content


class _OpenGroup:
    """A row group, decoded from its start on as far as rows were asked for; the page and the rows read last are kept.

    The file is mapped, so that of a compressed page there is no copy. The hub's library makes a page of each 100 rows,
    pyarrow one of up to 1024.
    """

    def __init__(self, table: Table, group: int) -> None:
        import pyarrow.parquet as pq

        self.table, self.group, self.start = table, group, 0
        self.rows: Sequence[Any] = ()
        file = pq.ParquetFile(table.path, metadata=table.metadata, memory_map=True)
        self.batches = file.iter_batches(BATCH, [group], [f"{table.image}.bytes"], use_threads=False)

    def read(self, row: int) -> bytes | None:
        while row >= self.start + len(self.rows):
            self.start += len(self.rows)
            self.rows = next(self.batches).column(0)
        found = self.rows[row - self.start].as_py()
        return None if found is None else found["bytes"]


def open_parquet(root: Path, files: Sequence[Path], name: str, held_out: bool) -> ParquetImages:
    """The images of a split in parquet files of one data set."""
    split = split_shards(root, files, held_out)
    tables = [open_file(path) for path in split.taken]
    training = tables if split.training is split.taken else [open_file(path) for path in split.training]
    _check_alike([*tables, *training], training[0])
    found = [label for table in tables for label in table.labels()]
    every = [(number, row) for number, table in enumerate(tables) for row in range(table.metadata.num_rows)]
    kept = [index for index, label in enumerate(found) if label is not None]
    if not kept:
        raise UserError(f"{root} has no image with a label in its .parquet files; fetch them again")
    rows, words = np.array(every, np.int64)[kept], [found[index] for index in kept]
    if set(words) == {SECRET}:
        mend = "move it away, so that the next held-out split counts" if held_out else "take files that have some"
        raise UserError(f"{tables[0].path} has no labels, only {SECRET} for those that are not published; {mend}")
    names = training[0].names or read_names(dict.fromkeys((root, *(file.parent for file in files))))
    of_training = words
    if training is not tables:
        of_training = [label for table in training for label in table.labels() if label is not None]
    labels = labels_of(words, of_training, names, str(root), lambda i: f"row {rows[i, 1]} of {tables[rows[i, 0]].path}")
    images = ParquetImages(name, tables, rows, labels.labels, labels.class_keys)
    images.remarks = [*split.remarks, *labels.remarks, *_remarks(root, tables, len(found) - len(kept))]
    return images


def _check_alike(tables: Sequence[Table], first: Table) -> None:
    for table in tables:
        if table.names != first.names:
            raise UserError(f"{table.path} has other names of classes than {first.path}; keep files of one data set")
        if (table.label, table.text) != (first.label, first.text):
            raise UserError(f"{table.path} has other labels than {first.path}; keep files of one data set")


def _remarks(root: Path, tables: Sequence[Table], unlabelled: int) -> list[str]:
    largest = max(tables, key=lambda table: table.largest)
    remarks = [f"{root}: {text}" for text in [left_out_text(Counter({"rows without a label": unlabelled}))] if text]
    if largest.largest > LARGE:
        remarks.append(
            f"{largest.path} has row groups of {largest.largest / 1e6:.0f} MB, half of which is decoded for each image "
            "out of order; make a cache of codes, or write the files again in groups of 100 rows"
        )
    return remarks


def is_parquet_of_images(path: Path) -> bool:
    """Whether a file has the columns."""
    try:
        open_file(path)
    except UserError:
        return False
    return True


def open_file(path: Path) -> Table:
    """What a file holds. UserError: it is damaged, or has no one column of images and one of labels."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(path)
        schema = metadata.schema.to_arrow_schema()
    except (pa.ArrowException, OSError) as error:
        raise_of_machine(error, str(path))
        raise _not_whole(path, error) from error
    image = _chosen([column.name for column in schema if _holds_images(column.type)], IMAGE)
    label = _chosen([column.name for column in schema if column.name in (LABEL, *OTHER_LABELS)], LABEL)
    text = label is not None and _is_text(schema.field(label).type)
    if None in (image, label) or not (text or pa.types.is_integer(schema.field(label).type)):
        there = ", ".join(f"{column.name} ({column.type})" for column in schema)
        raise UserError(
            f"{path} must have one column of images {{bytes, path}}, called {IMAGE} if there are more, and of labels, "
            f"whole numbers or names, {LABEL} or one of {', '.join(OTHER_LABELS)}; it has {there}"
        )
    return Table(path, metadata, image, label, text, _names(schema, label))


def _is_text(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _holds_images(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return False
    return pa.types.is_binary(kind.field("bytes").type) or pa.types.is_large_binary(kind.field("bytes").type)


def _chosen(names: Sequence[str], usual: str) -> str | None:
    """The column of the usual name, or the only one."""
    return usual if usual in names else names[0] if len(names) == 1 else None


def _names(schema: "pa.Schema", label: str) -> list[str] | None:
    """The classes' names that the hub keeps beside the columns, if there are any."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names]
