"""Which class each image of a set should be: of samples.json, of arr_1 in an npz, or of class folders.

Letters: N images.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.image_files import FolderImages, Images, labels_of_npz

Found = tuple[np.ndarray | None, list[str]]


def read_labels(images: Images, drawn: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> Found:
    """Class (N,) of each image, as its place in ``class_names``; None if the files do not say it, or if none are given.

    Args:
        images: whose classes are asked for.
        drawn: what samples.json says of each image, if there is one.
        class_names: of the classifier.

    Returns:
        The labels, and what is wrong with those that the files have.
    """
    if not class_names:
        return None, []
    if drawn:
        try:
            named = [entry["label"] if entry["class"] is None else entry["class"] for entry in drawn]
        except (KeyError, TypeError):
            return None, [f"{images.path}: its samples.json does not say the classes"]
    elif isinstance(images, FolderImages):
        named = [file.relative_to(images.path).parent.name for file in images.files]
        if not set(named) & set(class_names):
            return None, []  # folders that are no classes
    else:
        named = labels_of_npz(images.path)
    return _numbered(images, named, class_names) if named else (None, [])


def _numbered(images: Images, named: Sequence[str | int], class_names: Sequence[str]) -> Found:
    """Of names, or of numbers where there are none."""
    index_of = {name: label for label, name in enumerate(class_names)}
    index_of |= {label: label for label in range(len(class_names))}
    strange = next((name for name in named if name not in index_of), None)
    if strange is not None:
        return None, [f"{images.path}: class {strange} is none of the classifier's: {', '.join(class_names)}"]
    if len(named) != images.shape[0]:
        return None, [f"{images.path}: {len(named)} labels of {images.shape[0]} images are no use"]
    return np.array([index_of[name] for name in named]), []
