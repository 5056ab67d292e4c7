"""From what data say of an image's class, a number or a name, to labels and the classes' keys."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from models.class_names import class_keys_of
from runtime.errors import UserError
from runtime.files import composed

NAMES_FILES = ("classes.txt", "classnames.txt")
NUMBER = re.compile(r"0|-?[1-9]\d{0,99}")
WHOLE = re.compile(r"-?\d+(\.0*)?")  # with a point, as a table has whole numbers if one of them is missing
MAX_CLASSES = 100_000  # without names; a larger number is no class but, say, the number of an image


@dataclass(frozen=True)
class Labels:
    """A label of each image, the classes' keys in order, and what a user may not expect."""

    labels: list[int]
    class_keys: list[str]
    remarks: list[str] = field(default_factory=list)


def read_names(folders: Iterable[Path]) -> list[str] | None:
    """Names of classes, a line each in order of their numbers, from the first folder that has such a file."""
    for path in (folder / name for folder in folders for name in NAMES_FILES):
        if path.is_file():
            try:
                names = [composed(name.strip()) for name in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
            except ValueError as error:
                raise UserError(f"{path} is no text in UTF-8 ({error}); save it so") from error
            if "" in names or not names:
                raise UserError(f"{path} has an empty line; put the name of a class on each, in order of the numbers")
            return names
    return None


def labels_of(
    found: Sequence[int] | Sequence[str],
    training: Sequence[int] | Sequence[str],
    names: Sequence[str] | None,
    place: str,
    title: Callable[[int], str],
) -> Labels:
    """Labels of what was found, the classes being those of the training images.

    Numbers are labels as they are, whose classes ``names`` may name. Other words are the classes' names, which sort as
    folders do; numbers beside such words, or with zeros before them, are words.

    Args:
        found: of each image.
        training: of each training image; ``found`` itself if these are they.
        place: what messages call the whole.
        title: what messages call the place of an image's label.

    Raises:
        UserError: a number is negative or beyond the classes, a name has lines or is a number like 10.0, or a held-out
            class is none of training.
    """
    words = set(found) | set(training)
    numbers = {word for word in words if isinstance(word, int) or NUMBER.fullmatch(word)}
    if numbers == words:
        made = _numbered(found, training, names, place, title)
    else:
        made = _named(found, training, names, place, title)
        if numbers:
            made.remarks.append(f"{place}: classes are names, because {min(words - numbers)} is no number")
    held_out = found is not training  # of training images a report says what they lack
    lacking = set(range(len(made.class_keys))) - set(made.labels) if held_out else ()
    if lacking:
        told = ", ".join(made.class_keys[label] for label in sorted(lacking))
        made.remarks.append(f"{place} has no held-out images of {told}")
    return made


def _named(
    found: Sequence[str],
    training: Sequence[str],
    names: Sequence[str] | None,
    place: str,
    title: Callable[[int], str],
) -> Labels:
    numbers = all(WHOLE.fullmatch(word) for word in {*found, *training})
    for i, word in enumerate(found):
        if numbers and "." in word:
            raise UserError(f"{title(i)} is of class {word}; write whole numbers without a point")
        if len(word.splitlines()) > 1 or "\0" in word:
            raise UserError(f"{title(i)} is of class {word!r}, which is no name on one line; mend it")
    keys = sorted({composed(word) for word in training})
    index = {key: label for label, key in enumerate(keys)}
    labels = [index.get(composed(word), -1) for word in found]
    if -1 in labels:
        wrong = labels.index(-1)
        raise UserError(f"{title(wrong)} names the class {found[wrong]}, which the training images lack; mend it")
    unused = [] if names is None else [f"{place}: classes have names, so {' or '.join(NAMES_FILES)} is not used"]
    return Labels(labels, keys, unused)


def _numbered(
    found: Sequence[int] | Sequence[str],
    training: Sequence[int] | Sequence[str],
    names: Sequence[str] | None,
    place: str,
    title: Callable[[int], str],
) -> Labels:
    limit = min(max(map(int, training), default=-1) + 1, MAX_CLASSES) if names is None else len(names)
    labels = [int(word) for word in found]
    wrong = next((i for i, label in enumerate(labels) if not 0 <= label < limit), None)
    if wrong is not None:
        known = f"there are {limit} classes" if limit < MAX_CLASSES else f"there may be {MAX_CLASSES} classes"
        raise UserError(f"{title(wrong)} is of class {labels[wrong]}, but {known}, counted from 0; mend it")
    numbers = [str(label) for label in range(limit)]
    keys = class_keys_of(numbers if names is None else names)
    remarks = []
    if names is None and keys != numbers:
        remarks = [f"{place}: {len(keys)} classes without names are taken for ImageNet's, in the usual order"]
    return Labels(labels, keys, remarks)
