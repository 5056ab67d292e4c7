"""From what a user types to class indices."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from models.class_names import NUM_IMAGENET, ClassNames, class_names
from models.family import Generator
from runtime.errors import UserError

# The classes that papers of this field show: macaw, golden retriever, otter, volcano, lion, valley, balloon, fox, ...
SHOWN_IMAGENET_CLASSES = (207, 360, 387, 974, 88, 979, 417, 279, 388, 113, 355, 980, 323, 22, 562, 437)


def balanced_labels(model: Generator, count: int) -> list[int]:
    """``count`` labels, the classes in turn, each as often as the others or once more."""
    if not model.config.class_cond:
        return [model.unconditional_label] * count
    return [i % model.config.num_classes for i in range(count)]


def class_captions(model: Generator, labels: Sequence[int]) -> list[str]:
    """What a picture calls the class of each label: the first of its names, or its index; nothing if there is none."""
    if not model.config.class_cond:
        return [""] * len(labels)
    names = class_names(model)
    return [f"class {label}" if names is None else names[label].split(",")[0] for label in labels]


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
    if num_classes == NUM_IMAGENET:
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


def labels_text(labels: Sequence[int], model: Generator) -> str:
    """The text that ``parse_labels`` reads these class indices from, by the first name of each where that is clear."""
    names = ClassNames(model)
    return ",".join(_quoted(_clear_word(names, label)) for label in labels)


def _clear_word(names: ClassNames, label: int) -> str:
    name = names.names[label] if label < len(names.names) else ""
    words = (name.split(",")[0].strip(), name)
    return next((word for word in words if word and names.bearers(word) == [label]), str(label))


def _quoted(word: str) -> str:
    """As a list in CSV has it: what would end a word or the list stands in quotes."""
    return '"' + word.replace('"', '""') + '"' if re.search(r'[",\[\]\n]', word) else word


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
