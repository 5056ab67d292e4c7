"""Names of classes, and which class a name means."""

import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING

from models.family import Generator
from runtime.errors import UserError
from runtime.files import composed

if TYPE_CHECKING:
    from timm.data import ImageNetInfo

NUM_IMAGENET = 1000  # classes
IDENTIFIER = re.compile(r"n\d{8}")  # of a class of ImageNet
FEW_CLASSES = 20  # that a message may name


def human_names(class_keys: Sequence[str]) -> list[str]:
    """Names of classes for people: ImageNet's words for its identifiers (n02099601), the keys themselves otherwise."""
    if not any(map(IDENTIFIER.fullmatch, class_keys)):
        return list(class_keys)
    imagenet = _imagenet()
    words = {key: imagenet.label_name_to_description(key) for key in imagenet.label_names()}
    return [words.get(key, key) for key in class_keys]


def imagenet_names() -> list[str]:
    """Human names of ImageNet's 1000 classes in the field's order, several for one class separated by commas."""
    return list(_imagenet_names())


@cache
def _imagenet_names() -> tuple[str, ...]:
    return tuple(human_names(imagenet_keys()))


def imagenet_keys() -> list[str]:
    """ImageNet's 1000 class identifiers in the field's order."""
    return _imagenet().label_names()


@cache
def _imagenet() -> "ImageNetInfo":
    from timm.data import ImageNetInfo  # takes a second to import

    return ImageNetInfo("imagenet-1k")


def class_keys_of(names: Sequence[str]) -> list[str]:
    """Keys of classes of these names: ImageNet's identifiers if they are its 1000, the names themselves otherwise.

    They are if each, in the field's order, is a name of ImageNet's class (where two have one name, the hub calls the
    second crane2), or if they are the numbers 0 to 999.
    """
    if len(names) != NUM_IMAGENET:
        return list(names)
    keys = imagenet_keys()
    if list(names) == [str(label) for label in range(len(keys))]:
        return keys
    if all(_words(a) & _words(b) for a, b in zip(names, human_names(keys), strict=True)):
        return keys
    return list(names)


def class_names(model: Generator) -> list[str] | None:
    """Human names of a model's classes: its own, or ImageNet's for 1000 classes without names; several by commas."""
    if model.class_names is not None:
        return model.class_names
    return imagenet_names() if model.config.class_cond and model.config.num_classes == NUM_IMAGENET else None


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
                warnings.warn(f"label {word} is the class called so, which has index {bearers[0]}", stacklevel=2)
            return bearers[0]
        if index is None:
            near = get_close_matches(word.casefold(), self.tables[-1][1], n=1)
            parts = [name for name in self.tables[-1][1] if word.casefold() in name]
            listed = "; ".join(f"{label}: {name.split(',')[0]}" for label, name in enumerate(self.names))
            few = f"known are {listed}" if len(self.names) <= FEW_CLASSES else "--list_classes names all"
            hint = f"did you mean {(near or parts)[0]}?" if near or parts else few
            raise UserError(f"no class is called {word}; {hint if self.names else 'this model has no class names'}")
        if not 0 <= index < self.num_classes:
            raise UserError(f"label {word} is out of range; this model has classes 0 to {self.num_classes - 1}")
        if self.other_numbers:
            raise UserError(
                f"no class is called {word}, and index {word} is the class called {self.names[index]}; where classes "
                "are called by numbers, give the name"
            )
        return index


def _words(name: str) -> set[str]:
    """The names that stand in one, separated by commas, however they are written."""
    return {part.strip().rstrip("0123456789").casefold() for part in composed(name).replace("_", " ").split(",")}


def _number(name: str) -> float | None:
    """What number a name is, if it is one in digits."""
    return float(name) if re.fullmatch(r"[-+]?\d+(\.\d*)?", name.strip()) else None


def _by_name(names: Sequence[Iterable[str]], fold: Callable[[str], str]) -> dict[str, list[int]]:
    """Classes by name, of the names of each class."""
    table: dict[str, list[int]] = {}
    for label, of_class in enumerate(names):
        for name in set(map(fold, of_class)):
            table.setdefault(name, []).append(label)
    return table
