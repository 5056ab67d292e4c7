"""Class folders: CLASS/IMAGE below a root, or SPLIT/CLASS/IMAGE for train, val, test and the like.

Letters: N images.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.files import left_out_text, list_images, subfolders
from runtime.errors import UserError
from runtime.files import composed

TRAINING_FOLDERS = ("train", "training")
HELD_OUT_FOLDERS = ("val", "valid", "validation", "test", "testing")  # the first that is there is taken


@dataclass(frozen=True)
class ClassFolders:
    """Images of one split: paths below ``folder``, a label each, and the classes' names in order."""

    folder: Path
    keys: list[str]  # (N,)
    labels: list[int]  # (N,)
    class_keys: list[str]
    remarks: list[str]  # what a user may not expect: how folders were read, what was left out


def read_class_folders(root: Path, held_out: bool) -> ClassFolders:
    """The training images of a root, or the held-out ones, whose labels are those of the training images' classes.

    UserError: there are no such folders, a class is empty or twice there, or a held-out class is none of training.
    """
    if not root.is_dir():
        raise UserError(
            f"no image folder at {root}; link or unpack one there, or set data_path (or dataset, see --help)"
        )
    splits, remarks = _splits(root)
    training = [splits[name] for name in TRAINING_FOLDERS if name in splits]
    rest = [splits[name] for name in HELD_OUT_FOLDERS if name in splits]
    if splits and not training and not held_out:
        raise UserError(
            f"{root} has {' and '.join(f'{f.name}/' for f in rest)}, but no train/; add one of class folders, or name "
            "the folder of the classes as data_path"
        )
    if held_out and not rest:
        raise UserError(f"{root} has no val/ or test/ folder; add one of class folders, or take the training images")
    folder = rest[0] if held_out else (training or [root])[0]
    folders, left_out = _classes(folder)
    class_keys = list(_classes(training[0])[0]) if held_out and training else list(folders)
    strange = [name for name in folders if name not in class_keys]
    if strange:
        raise UserError(f"{folder / strange[0]} is a class that {training[0]} lacks; add it there, or move it away")
    keys, labels = _images(folder, folders, class_keys, left_out)
    remarks += [f"{folder} is taken, {rest[1].name}/ is not used"] if held_out and len(rest) > 1 else []
    lacking = [name for name in class_keys if name not in folders]
    remarks += [f"{folder} has no images of {', '.join(lacking)}"] if lacking else []
    remarks += [f"{folder}: {text}"] if (text := left_out_text(left_out)) else []
    return ClassFolders(folder, keys, labels, class_keys, remarks)


def _splits(root: Path) -> tuple[dict[str, Path], list[str]]:
    """Folders of splits by name, in small letters, if no other folder stands beside them; and a remark if one does."""
    folders = subfolders(root).files
    known = [path for path in folders if path.name.lower() in TRAINING_FOLDERS + HELD_OUT_FOLDERS]
    splits = {path.name.lower(): path for path in known}
    others = [path for path in folders if path.name.lower() not in splits]
    if not others:
        training = [path.name for path in known if path.name.lower() in TRAINING_FOLDERS]
        if len(splits) < len(known) or len(training) > 1:
            names = ", ".join(path.name for path in known)
            raise UserError(f"{root} has {names}, more than one folder of a split; join them, or move one away")
        return splits, []
    if not splits:
        return {}, []
    names = ", ".join(path.name for path in splits.values())
    return {}, [f"{root}: {names} counted as a class, and not as a split, because {others[0].name} stands beside it"]


def _classes(folder: Path) -> tuple[dict[str, Path], Counter[str]]:
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
    folder: Path, folders: dict[str, Path], class_keys: Sequence[str], left_out: Counter[str]
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
        lacking = f"{', '.join(empty)} hold none" if empty else "it holds no class folder"
        text = "; ".join(filter(None, (lacking, left_out_text(left_out))))
        raise UserError(f"{folder} must hold CLASS/IMAGE.jpg, and no empty class ({text})")
    return keys, labels
