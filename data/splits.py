"""What training and held-out parts of a data set are called, and which of them is read."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from data.files import Place
from runtime.errors import UserError

TRAINING = ("train", "training")
HELD_OUT = ("val", "valid", "validation", "test", "testing")  # the first that is there is taken
NAMES = TRAINING + HELD_OUT

Part = TypeVar("Part")


@dataclass(frozen=True)
class Split(Generic[Part]):
    """The part to read, and the one whose classes count: that of training if there is one."""

    taken: Part
    training: Part
    remarks: list[str]


def choose_split(root: Place, parts: Mapping[str, Part], held_out: bool, shape: str) -> Split[Part]:
    """The part of training, or the held-out one, of parts by name; UserError if it is not there.

    ``shape`` makes of a name what a user calls the part, as ``{}/`` a folder.
    """
    training = [parts[name] for name in TRAINING if name in parts]
    rest = [name for name in HELD_OUT if name in parts]
    called = {name: shape.format(name) for name in NAMES}
    if len(training) > 1:
        raise UserError(f"{root} has {' and '.join(called[name] for name in TRAINING)}; join them, or move one away")
    if not held_out:
        if not training:
            raise UserError(
                f"{root} has {' and '.join(map(called.get, rest))}, but no {called['train']}; add it, or name as "
                "data_path what to train on"
            )
        return Split(training[0], training[0], [])
    if not rest:
        raise UserError(
            f"{root} has no {called['val']} or {called['test']}; add one, or give --split train to a program that has "
            "that option"
        )
    remarks = [f"{root}: {called[rest[0]]} is taken, {called[rest[1]]} is not used"] if len(rest) > 1 else []
    return Split(parts[rest[0]], (training or [parts[rest[0]]])[0], remarks)


def split_shards(root: Path, files: Sequence[Path], held_out: bool) -> Split[list[Path]]:
    """Files of a split, whose names say it, or the names of their folders; if none does, all are training images.

    UserError: some files say it and others do not, one says two, or two of a split have one name.
    """
    parts: dict[str, list[Path]] = {}
    unnamed = []
    for file in files if list(files) != [root] else ():  # a file that is named itself is all that is meant
        words = _splits_in(file.stem) or (_splits_in(file.parent.name) if file.parent != root else [])
        if len(words) > 1:
            raise UserError(f"{file} names two splits, {words[0]} and {words[1]}; rename it")
        (parts.setdefault(words[0], []) if words else unnamed).append(file)
    if parts and unnamed:
        raise UserError(
            f"{unnamed[0]} names no split, but {next(iter(parts.values()))[0].name} does; rename the one, or move it "
            "away"
        )
    split = choose_split(root, parts or {"train": list(files)}, held_out, f"{{}}-*{files[0].suffix.lower()}")
    names = Counter(file.name for file in split.taken)
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice is not None:
        raise UserError(f"two files of a split are called {twice}; rename one, because images are known by their file")
    split.remarks.extend(_missing(split.taken))
    return split


def _splits_in(name: str) -> list[str]:
    """Names of splits that stand in a name as words."""
    return list(dict.fromkeys(word for word in re.findall(r"[a-z]+", name.lower()) if word in NAMES))


def _missing(files: Sequence[Path]) -> list[str]:
    """A warning if files are numbered, as ``-00000-of-00294``, and some are not there; UserError: of two numberings."""
    numbered = [match for file in files if (match := re.search(r"-(\d+)-of-(\d+)", file.name))]
    counts = sorted({int(match[2]) for match in numbered})
    if len(counts) > 1:
        told = " and ".join(f"of {count}" for count in counts[:2])
        raise UserError(f"{files[0].parent} has files numbered {told}, as of two versions; move those of one away")
    count = sum(counts)
    lacking = count - len({int(match[1]) for match in numbered})
    if lacking <= 0:
        return []
    return [f"warning: {files[0].parent} lacks {lacking} of {count} files such as {files[0].name}; fetch them"]
