"""From what a user types to class indices."""

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

from data.files import composed
from data.images import imagenet_names
from models.family import Generator
from runtime import distributed
from runtime.errors import UserError

FEW_CLASSES = 20  # that a message may name
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


def listed_names(model: Generator) -> list[str]:
    """The name of each class; a UserError if the model has none."""
    if not model.config.class_cond:
        raise UserError("this model was trained without classes")
    names = class_names(model)
    if not names:
        raise UserError(f"this model has no class names, but classes 0 to {model.config.num_classes - 1}")
    return names


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
    return _parse(lines, model)


def parse_labels(text: str, model: Generator) -> list[int]:
    """Class indices of a list of indices and names, separated by commas or new lines, as in ``207,"tabby cat",3``.

    An exact name comes before an index, and a class's first name before other names of it. Raises UserError: an index
    out of range, a name that several classes bear, or that is no class; the nearest one is named.
    """
    return _parse([text], model, in_quotes=True)


def _parse(texts: Sequence[str], model: Generator, in_quotes: bool = False) -> list[int]:
    """Labels of all texts; one that is a name as a whole is that class, and no list.

    ``in_quotes``: a name with commas stands in quotes, unless its parts are names of the same class or none.
    """
    names = ClassNames(model)
    labels: list[int] = []
    for text in texts:
        whole, words = names.bearers(text.strip()), _words(text)
        parts = [label for word in words for label in names.bearers(word)]
        if whole and not (in_quotes and len(words) > 1 and set(parts) - set(whole)):
            words = [text.strip()]
        labels += [names.label(word) for word in words]
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


class ClassNames:
    """Which classes a word may mean. A class has one name or several, separated by commas."""

    def __init__(self, model: Generator) -> None:
        self.names = [composed(name) for name in class_names(model) or []]
        self.num_classes = model.config.num_classes
        parts = [[part.strip() for part in name.split(",")] for name in self.names]
        # Classes by all of their name, by its first part, by any; each as it is, then with small letters for capitals.
        kinds = ([[name] for name in self.names], [names[:1] for names in parts], parts)
        self.tables = [(fold, _by_name(names, fold)) for names in kinds for fold in (str, str.casefold)]
        # Whether classes are called by numbers that are not their indices.
        self.other_numbers = any(_number(name) not in (None, label) for label, name in enumerate(self.names))

    def bearers(self, word: str) -> list[int]:
        """Classes that bear a name, none if there is no such name."""
        return next(filter(None, (table.get(fold(composed(word))) for fold, table in self.tables)), [])

    def label(self, word: str) -> int:
        """The class that a word means, by name or index."""
        bearers, index = self.bearers(word), int(word) if re.fullmatch(r"-?\d{1,18}", word) else None
        if len(bearers) > 1:
            listed = ", ".join(f"{label} ({self.names[label]})" for label in bearers)
            raise UserError(f"several classes are called {word}: {listed}; give the index of one")
        if bearers:
            if index not in (None, bearers[0]):
                distributed.say(f"label {word} is the class called so, which has index {bearers[0]}")
            return bearers[0]
        if index is None:
            near = get_close_matches(word.casefold(), self.tables[-1][1], n=1)
            few = f"known are {', '.join(self.names)}" if len(self.names) <= FEW_CLASSES else "--list_classes names all"
            hint = f"did you mean {near[0]}?" if near else few
            raise UserError(f"no class is called {word}; {hint if self.names else 'this model has no class names'}")
        if not 0 <= index < self.num_classes:
            raise UserError(f"label {word} is out of range; this model has classes 0 to {self.num_classes - 1}")
        if self.other_numbers:
            raise UserError(
                f"no class is called {word}, and index {word} is the class called {self.names[index]}; where classes "
                "are called by numbers, give the name"
            )
        return index


def _number(name: str) -> float | None:
    """What number a name is, if it is one."""
    try:
        return float(name)
    except ValueError:
        return None


def _by_name(names: Sequence[Iterable[str]], fold: Callable[[str], str]) -> dict[str, list[int]]:
    """Classes by name, of the names of each class."""
    table: dict[str, list[int]] = {}
    for label, of_class in enumerate(names):
        for name in set(map(fold, of_class)):
            table.setdefault(name, []).append(label)
    return table
