"""Class folders: CLASS/IMAGE below a root, or SPLIT/CLASS/IMAGE for train, val, test and the like.

Letters: N images.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.files import Place, left_out_text, list_images, subfolders
from data.splits import NAMES, TRAINING, Split, choose_split
from runtime.errors import UserError
from runtime.files import composed


@dataclass(frozen=True)
class ClassFolders:
    """Images of one split: paths below ``folder``, a label each, and the classes' names in order."""

    folder: Place
    keys: list[str]  # (N,)
    labels: list[int]  # (N,)
    class_keys: list[str]
    remarks: list[str]  # what a user may not expect: how folders were read, what was left out


def read_class_folders(root: Place, held_out: bool) -> ClassFolders:
    """The training images of a root, or the held-out ones, whose labels are those of the training images' classes.

    UserError: there are no such folders, a class is empty or twice there, or a held-out class is none of training.
    """
    splits, remarks = _splits(root)
    split = choose_split(root, splits or {"train": root}, held_out, "{}/")
    return read_split(Split(split.taken, split.training, remarks + split.remarks))


def read_split(split: Split[Place]) -> ClassFolders:
    """The class folders of a split."""
    folder, remarks = split.taken, list(split.remarks)
    folders, left_out = _classes(folder)
    class_keys = list(folders if split.training is folder else _classes(split.training)[0])
    strange = [name for name in folders if name not in class_keys]
    if strange:
        raise UserError(f"{folder}/{strange[0]} is a class that {split.training} lacks; add it there, or move it away")
    keys, labels = _images(folder, folders, class_keys, left_out)
    if len(class_keys) == 1 and isinstance(folder, Path) and all(key.count("/") > 1 for key in keys):
        only = class_keys[0]
        remarks.append(
            f"{folder} has one class, {only}, with folders in it; if they are the classes, move them up into {folder}"
        )
    lacking = [name for name in class_keys if name not in folders]
    remarks += [f"{folder} has no images of {', '.join(lacking)}"] if lacking else []
    remarks += [f"{folder}: {text}"] if (text := left_out_text(left_out)) else []
    return ClassFolders(folder, keys, labels, class_keys, remarks)


def _splits(root: Place) -> tuple[dict[str, Place], list[str]]:
    """Folders of splits by name, in small letters, if no other folder stands beside them; and a remark if one does."""
    folders = subfolders(root).files
    known = [path for path in folders if path.name.lower() in NAMES]
    splits = {path.name.lower(): path for path in known}
    others = [path for path in folders if path.name.lower() not in splits]
    if not others:
        training = [path.name for path in known if path.name.lower() in TRAINING]
        if len(splits) < len(known) or len(training) > 1:
            names = ", ".join(path.name for path in known)
            raise UserError(f"{root} has {names}, more than one folder of a split; join them, or move one away")
        return splits, []
    if not splits:
        return {}, []
    names = ", ".join(path.name for path in splits.values())
    return {}, [f"{root}: {names} counted as a class, and not as a split, because {others[0].name} stands beside it"]


def _classes(folder: Place) -> tuple[dict[str, Place], Counter[str]]:
    """The folder of each class by its name, accents composed; and what else is there."""
    found, folders = subfolders(folder), {}
    for path in found.files:
        name = composed(path.name)
        if name in folders:
            raise UserError(
                f"{folder} has the class {name} twice, its accents once composed and once not; join the two"
            )
        folders[name] = path
    return folders, found.left_out


def _images(
    folder: Place, folders: dict[str, Place], class_keys: Sequence[str], left_out: Counter[str]
) -> tuple[list[str], list[int]]:
    """Keys and labels of all images; adds what is left out."""
    keys, labels, empty, start = [], [], [], 0 if folder == Path() else len(str(folder)) + 1
    for name, path in folders.items():
        found = list_images(path)
        left_out.update(found.left_out)
        keys += [str(file)[start:] for file in found.files]
        labels += [class_keys.index(name)] * len(found.files)
        empty += [] if found.files else [name]
    if empty or not folders:
        no_folder = "it holds no class folder; images without classes go into one, such as all/, with class_cond false"
        lacking = f"{', '.join(empty)} hold none" if empty else no_folder
        text = "; ".join(filter(None, (lacking, left_out_text(left_out))))
        raise UserError(f"{folder} must hold CLASS/IMAGE.jpg, and no empty class ({text})")
    return keys, labels
