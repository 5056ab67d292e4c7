"""Which class each image of a set should be: of samples.json, of arr_1 in an npz, or of class folders.

Letters: N images.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.image_files import FolderImages, Images


def read_labels(
    images: Images, drawn: Sequence[Mapping[str, Any]], class_names: Sequence[str]
) -> tuple[np.ndarray | None, list[str]]:
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
    try:
        named = [entry["label"] if entry["class"] is None else entry["class"] for entry in drawn] or images.labels()
    except (KeyError, TypeError):
        return None, [f"{images.path}: its samples.json does not say the classes"]
    index_of = {key: index for index, name in enumerate(class_names) for key in (index, name)}
    folders = isinstance(images, FolderImages) and not drawn
    if not named or (folders and not index_of.keys() & set(named)):  # folders that are no classes
        return None, []
    strange = next((name for name in named if name not in index_of), None)
    if strange is not None:
        return None, [f"{images.path}: class {strange} is none of the classifier's: {', '.join(class_names)}"]
    if len(named) != images.shape[0]:
        return None, [f"{images.path}: {len(named)} labels of {images.shape[0]} images are no use"]
    return np.array([index_of[name] for name in named]), []
