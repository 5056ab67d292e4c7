"""Labelled image datasets: the user's own, wherever they lie, torchvision's downloads, and the built-in digits."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from tqdm import tqdm

from data.crops import crop_image, to_floats
from data.files import UnreadableImageError
from data.labelled_images import ImageArrays, ImageFiles, LabelledImages
from data.options import NUM_CROPS, CropRecipe, DatasetName
from data.places import name_of, open_place
from runtime.errors import UserError
from runtime.files import located

TORCHVISION = {"cifar10": "CIFAR10", "food101": "Food101", "celeba": "CelebA"}
DIGITS_HELD_OUT = 297  # the last of 1,797 scans, which no model of ours trains on
MAX_UNREADABLE_SHARE = 0.01


def open_dataset(dataset: DatasetName, data_path: str, img_size: int, split: str = "train") -> LabelledImages:
    """The images of a split, ``train`` or ``val``, or a UserError if there are none; digits come in ``img_size``."""
    held_out = split == "val"
    if dataset == "digits":
        return _digits(img_size, held_out)
    root = located(data_path)
    if dataset == "folder":
        return open_place(root, held_out)
    try:
        return _downloaded(dataset, root, held_out)
    except (RuntimeError, FileNotFoundError) as error:
        call = f"torchvision.datasets.{TORCHVISION[dataset]}({str(root)!r}, download=True)"
        raise UserError(f"no {dataset} under {root}; fetch it in Python by {call}, or set data_path") from error


def dataset_name(dataset: DatasetName, data_path: str) -> str:
    """What a dataset is called in caches and logs, whether it is there or not: a folder's by its own name."""
    return name_of(Path(data_path).expanduser()) if dataset == "folder" else dataset


def _downloaded(dataset: str, root: Path, held_out: bool) -> LabelledImages:
    """What torchvision has fetched. Each of its classes names the split in a way of its own."""
    import torchvision  # takes seconds

    opened = getattr(torchvision.datasets, TORCHVISION[dataset])
    if dataset == "cifar10":
        data = opened(str(root), train=not held_out)
        return ImageArrays(dataset, data.data, data.targets, data.classes)
    if dataset == "food101":
        data = opened(str(root), split="test" if held_out else "train")
        keys = [str(Path(path).relative_to(root)) for path in data._image_files]
        return ImageFiles(dataset, root, keys, data._labels, data.classes)
    data = opened(str(root), split="valid" if held_out else "train")
    folder = root / data.base_folder / "img_align_celeba"
    return ImageFiles(dataset, folder, data.filename, [0] * len(data), ["face"])


def _digits(size: int, held_out: bool) -> ImageArrays:
    """scikit-learn's 8 x 8 scans of handwritten digits, enlarged and as RGB, ink bright on black."""
    from sklearn.datasets import load_digits  # a second to import, which other data need not pay

    scans, labels = load_digits(return_X_y=True)  # (1797, 64) of 0..16
    part = slice(-DIGITS_HELD_OUT, None) if held_out else slice(-DIGITS_HELD_OUT)
    grey = np.round(scans[part].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    large = [Image.fromarray(scan).resize((size, size), Image.Resampling.BICUBIC).convert("RGB") for scan in grey]
    return ImageArrays("digits", np.stack(large), labels[part].tolist(), [str(digit) for digit in range(10)])


def check_num_classes(name: str, class_keys: Sequence[str], num_classes: int) -> None:
    """Refuse a class count that is not that of the data of this name."""
    found = len(class_keys)
    if found != num_classes:
        raise UserError(f"{name} has {found} classes, but num_classes is {num_classes}; set num_classes {found}")


class Attempts(Dataset):
    """(index, what ``work(index)`` makes of an image), or the error of one that cannot be read in its place."""

    def __init__(self, work: Callable[[int], Any], indices: Sequence[int]) -> None:
        self.work, self.indices = work, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> tuple[int, Any]:
        index = int(self.indices[item])
        try:
            return index, self.work(index)
        except UnreadableImageError as error:
            return index, error


class CroppedImages(Dataset):
    """(image, label) of an (index, crop) pair: floats (3, size, size) in [-1, 1] and the class index.

    An unreadable image is named on stderr and its place taken by the next readable one; more than 1 % of them stop the
    run. A cache of codes follows the same rule.
    """

    def __init__(self, images: LabelledImages, size: int, recipe: CropRecipe) -> None:
        self.images, self.size, self.recipe = images, size, recipe
        self.unreadable = torch.zeros(len(images), dtype=torch.bool).share_memory_()  # with the loading processes

    @property
    def num_crops(self) -> int:
        return NUM_CROPS[self.recipe]

    def __len__(self) -> int:
        return len(self.images)

    def check_all_readable(self) -> None:
        """UserError if another image has stood in for one, where each image counts."""
        if count := int(self.unreadable.count_nonzero()):
            raise UserError(f"{count} of the images cannot be read; move the files named above away")

    def collate(self, items: list[tuple[Tensor, int]]) -> list[Tensor]:
        return default_collate(items)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int]:
        index, crop = item
        while True:
            try:
                image = to_floats(crop_image(self.images.read(index), self.size, self.recipe, crop))
                return image, self.images.labels[index]
            except UnreadableImageError as error:
                note_unreadable(error, index, self.unreadable)
                index = (index + 1) % len(self)


def note_unreadable(error: UnreadableImageError, index: int, unreadable: Tensor) -> None:
    """Report an unreadable image once, in the flags (N,) too; too many of them are an error."""
    if not unreadable[index]:
        unreadable[index] = True
        tqdm.write(f"skipped: {error}", file=sys.stderr)  # on a line of its own, above any progress bar
    check_unreadable(int(unreadable.count_nonzero()), len(unreadable))


def check_unreadable(count: int, num_images: int) -> None:
    """Too many unreadable images are an error."""
    if count > max(1, MAX_UNREADABLE_SHARE * num_images) or count == num_images:
        raise UserError(f"{count} unreadable images, over 1 % of the data; mend it (--check_data lists them)")
