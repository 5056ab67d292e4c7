"""A table of images: a .csv with a column of paths and one of classes, and perhaps one of splits."""

import csv
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data.class_labels import labels_of, read_names
from data.files import left_out_text
from data.labelled_images import ImageFiles
from data.splits import NAMES, Split, choose_split
from runtime.errors import UserError
from runtime.files import composed

PATHS, CLASSES, SPLIT = ("path", "file", "filename"), ("class", "label"), ("split",)
FIRST = 20  # files that are looked for at the start


@dataclass
class Rows:
    """Rows of a split: the number of the line, the path below the table's folder, and the class of each."""

    table: Path
    lines: list[int] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def title(self, index: int) -> str:
        return f"line {self.lines[index]} of {self.table}"


def open_table(table: Path, name: str, held_out: bool) -> ImageFiles:
    """The images of a split in a table, which its column ``split`` tells; without one, all are training images."""
    return _images(name, choose_split(table, _read(table), held_out, "rows of the split {}"))


def open_tables(folder: Path, tables: Mapping[str, Path], name: str, held_out: bool) -> ImageFiles:
    """The images of a split that has a table of its own."""
    chosen = choose_split(folder, tables, held_out, "{}.csv")
    taken = _whole(chosen.taken)
    training = taken if chosen.training is chosen.taken else _whole(chosen.training)
    return _images(name, Split(taken, training, chosen.remarks))


def is_table(path: Path) -> bool:
    """Whether a .csv has the columns."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            _columns(path, next(csv.reader(file), []))
    except (UserError, OSError, ValueError, csv.Error):
        return False
    return True


def _whole(table: Path) -> Rows:
    parts = _read(table)
    if list(parts) != ["train"]:
        raise UserError(f"{table} has a column split, but its name says the split too; drop one of the two")
    return parts["train"]


def _images(name: str, split: Split[Rows]) -> ImageFiles:
    rows, folder = split.taken, split.taken.table.parent
    text = left_out_text(rows.left_out)
    if not rows.keys:
        raise UserError(f"{rows.table} has no row with a path and a class ({text or 'it is empty'}); add some")
    if not any((folder / key).is_file() for key in rows.keys[:FIRST]):
        raise UserError(
            f"{rows.table} names {folder / rows.keys[0]}, which is not there, nor are those after it; paths are "
            f"relative to {folder}"
        )
    labels = labels_of(rows.words, split.training.words, read_names([folder]), str(rows.table), rows.title)
    images = ImageFiles(name, folder, rows.keys, labels.labels, labels.class_keys)
    images.remarks = [*split.remarks, *labels.remarks, *([f"{rows.table}: {text}"] if text else [])]
    return images


def _read(table: Path) -> dict[str, Rows]:
    """Rows by split. UserError: no such columns, a row of another length, one image in two classes or splits."""
    parts: dict[str, Rows] = {}
    seen: dict[str, tuple[str, str]] = {}
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            columns = _columns(table, header)
            for row in filter(any, reader):
                if len(row) != len(header):
                    raise UserError(
                        f"line {reader.line_num} of {table} has {len(row)} fields, but the header {len(header)}; put "
                        "text that holds commas in quotes"
                    )
                path, word, split = ("train" if at is None else row[at].strip() for at in columns)
                _add_row(parts.setdefault(split.lower(), Rows(table)), reader.line_num, path, word, seen, split.lower())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} is no comma-separated text in UTF-8 ({error}); save it so") from error
    strange = next((split for split in parts if split not in NAMES), None)
    if strange is not None:
        raise UserError(f"{table} has the split {strange or 'nothing'}; name one of {', '.join(NAMES)}")
    return parts or {"train": Rows(table)}


def _add_row(rows: Rows, line: int, path: str, word: str, seen: dict[str, tuple[str, str]], split: str) -> None:
    if not path or not word:
        rows.left_out["rows without a path" if word else "rows without a class"] += 1
        return
    key = _key_of(rows.table, path)
    if seen.get(key, (word, split)) != (word, split):
        raise UserError(
            f"line {line} of {rows.table} names {path} again, in another class or split; drop one of the two"
        )
    if key in seen:
        rows.left_out["rows that repeat another"] += 1
        return
    seen[key] = word, split
    rows.lines.append(line)
    rows.keys.append(key)
    rows.words.append(composed(word))


def _columns(table: Path, header: list[str]) -> tuple[int, int, int | None]:
    """Where the path, the class and the split stand in a row."""
    found = [name.strip().lower() for name in header]
    places = [[i for i, name in enumerate(found) if name in names] for names in (PATHS, CLASSES, SPLIT)]
    for names, at in zip((PATHS, CLASSES), places, strict=False):
        if len(header) == 1 and re.search("[;\t]", header[0]):
            raise UserError(f"{table} begins with {header[0]}; separate the columns by commas")
        if len(at) != 1:
            raise UserError(
                f"{table} must have a header with one of {', '.join(names)}; it begins with {', '.join(header[:10])}"
            )
    return places[0][0], places[1][0], (places[2] or [None])[0]


def _key_of(table: Path, path: str) -> str:
    """A path as a key: below the table's folder relative to it, wherever that is; elsewhere as it stands."""
    path, folder = os.path.normpath(path), str(table.parent.absolute())
    return os.path.relpath(path, folder) if path.startswith(folder + os.sep) else path
