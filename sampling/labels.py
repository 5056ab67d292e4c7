"""From what a user types to class indices."""

import csv
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from data.images import imagenet_names
from models.family import Generator
from runtime.errors import UserError

# The classes that papers of this field show: macaw, golden retriever, otter, volcano, lion, valley, balloon, fox, ...
SHOWN_IMAGENET_CLASSES = (207, 360, 387, 974, 88, 979, 417, 279, 388, 113, 355, 980, 323, 22, 562, 437)


def class_names(model: Generator) -> list[str] | None:
    """Human names of a model's classes: its own, or ImageNet's for 1000 classes without names; several by commas."""
    if model.class_names is not None:
        return model.class_names
    names = imagenet_names()
    return names if model.config.class_cond and model.config.num_classes == len(names) else None


def balanced_labels(model: Generator, count: int) -> list[int]:
    """``count`` labels, the classes in turn, each as often as the others or once more."""
    if not model.config.class_cond:
        return [model.unconditional_label] * count
    return [i % model.config.num_classes for i in range(count)]


def shown_labels(model: Generator, count: int) -> list[int]:
    """Up to ``count`` classes to show: all, or the field's usual ones of ImageNet, or evenly spaced ones."""
    num_classes = model.config.num_classes
    if not model.config.class_cond:
        return balanced_labels(model, count)
    if num_classes == len(imagenet_names()):
        return list(SHOWN_IMAGENET_CLASSES[:count])
    count = min(count, num_classes)
    return [i * num_classes // count for i in range(count)]


def read_labels(path: str, model: Generator) -> list[int]:
    """The labels of a text file, an index or a name on a line; a line that is neither is read by ``parse_labels``."""
    if not Path(path).is_file():
        raise UserError(f"no such file: {path}")
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text file; put one index or name on a line") from error
    return _parse(lines, model, names_first=True)


def parse_labels(text: str, model: Generator) -> list[int]:
    """Class indices of a list of indices and names, separated by commas or new lines, as in ``207,"tabby cat",3``.

    Raises UserError: an index out of range, or a name that is no class; the nearest one is named.
    """
    return _parse([text], model, names_first=False)


def _parse(texts: Sequence[str], model: Generator, names_first: bool) -> list[int]:
    """Labels of all texts; with ``names_first``, a text that is a name as a whole is that class and no list."""
    index_of: dict[str, int] = {}
    for label, names in enumerate(class_names(model) or []):
        for name in (names, *names.split(",")):
            index_of.setdefault(name.strip().lower(), label)
    labels: list[int] = []
    for text in texts:
        name = text.strip().lower()
        if names_first and name in index_of:
            labels.append(index_of[name])
        else:
            labels += [_parse_label(word, model.config.num_classes, index_of) for word in _words(text)]
    if not labels:
        raise UserError('labels is empty; give indices or names, as in 207,"tabby cat"')
    return labels


def _words(text: str) -> list[str]:
    lines = text.strip().removeprefix("[").removesuffix("]").splitlines()
    try:
        words = [word.strip() for row in csv.reader(lines, skipinitialspace=True) for word in row]
    except csv.Error as error:
        raise UserError(f'labels are no list ({error}); give indices or names, as in 207,"tabby cat"') from error
    return [word for word in words if word]


def _parse_label(word: str, num_classes: int, index_of: dict[str, int]) -> int:
    if re.fullmatch(r"-?\d{1,18}", word):
        label = int(word)
        if not 0 <= label < num_classes:
            raise UserError(f"label {label} is out of range; this model has classes 0 to {num_classes - 1}")
        return label
    if word.lower() not in index_of:
        near = get_close_matches(word.lower(), index_of, n=1)
        hint = f"did you mean {near[0]}?" if near else "give its index" if index_of else "this model has no class names"
        raise UserError(f"no class is called {word}; {hint}")
    return index_of[word.lower()]
