"""Labelled image datasets under one interface: files in class folders, and the built-in digits."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from sklearn.datasets import load_digits
from timm.data import ImageNetInfo
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from data.crops import NUM_CROPS, CropRecipe, crop_image, to_floats
from models.errors import UserError

DIGITS_HELD_OUT = 297  # the last of 1,797 scans, which no model of ours trains on
IMAGENET_CLASSES = 1000


class LabelledImages(Dataset):
    """Images with class labels.

    Attributes:
        name: identifies the dataset in caches and logs.
        keys: an identifier of each image, stable over runs (a path below the root, or a number).
        labels: class index of each image.
        class_names: human name of each class.
        class_keys: name of each class in the data (a folder); its place in the list is the class index.
    """

    def __init__(self, name: str, keys: Sequence[str], labels: Sequence[int], class_keys: Sequence[str]) -> None:
        self.name, self.keys, self.labels, self.class_keys = name, list(keys), list(labels), list(class_keys)
        self.class_names = human_names(self.class_keys)

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: int) -> Image.Image:
        """An image as RGB, of its original size."""
        raise NotImplementedError


class FolderImages(LabelledImages):
    """``root/class/*.jpg`` and so on, classes in sorted order of their folders' names."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise UserError(f"no image folder at {root}; link or unpack one there, or set data_path")
        try:
            files = ImageFolder(str(root))
        except FileNotFoundError as error:
            raise UserError(f"{root} holds no class folders with images; expected {root}/CLASS/IMAGE.jpg") from error
        paths, labels = zip(*files.samples, strict=True)
        self.root = root
        super().__init__(root.name, [str(Path(p).relative_to(root)) for p in paths], labels, files.classes)

    def read(self, index: int) -> Image.Image:
        path = self.root / self.keys[index]
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise UserError(f"{path} cannot be read as an image ({error}); mend or move it") from error


class Digits(LabelledImages):
    """scikit-learn's 8 x 8 scans of handwritten digits, enlarged and as RGB, ink bright on black."""

    def __init__(self, size: int, held_out: bool) -> None:
        scans, labels = load_digits(return_X_y=True)
        part = slice(-DIGITS_HELD_OUT, None) if held_out else slice(-DIGITS_HELD_OUT)
        keys = [f"{i:04d}" for i in range(len(labels))][part]
        self.size = size
        self.scans = scans.reshape(-1, 8, 8)[part]  # 0..16
        super().__init__("digits", keys, labels[part].tolist(), [str(digit) for digit in range(10)])

    def read(self, index: int) -> Image.Image:
        scan = np.round(self.scans[index] * (255 / 16)).astype(np.uint8)
        return Image.fromarray(scan).resize((self.size, self.size), Image.Resampling.BICUBIC).convert("RGB")


def open_dataset(dataset: str, data_path: str, img_size: int, split: str = "train") -> LabelledImages:
    """The training or validation images that a configuration names.

    Args:
        dataset: ``folder`` or ``digits``.
        data_path: root of a folder dataset: class folders, or ``train/`` and ``val/`` of them.
        img_size: side that built-in images are enlarged to, in pixels.
        split: ``train`` or ``val``.
    """
    if dataset == "digits":
        return Digits(img_size, held_out=split == "val")
    root = Path(data_path)
    return FolderImages(root / split if (root / "train").is_dir() else root)


def check_num_classes(dataset: LabelledImages, num_classes: int) -> None:
    """Refuse a class count that is not the data's, and data of empty classes."""
    found = len(dataset.class_keys)
    if found != num_classes:
        raise UserError(
            f"{dataset.name} has {found} classes, but num_classes is {num_classes}; set num_classes {found}"
        )
    counts = Counter(dataset.labels)
    empty = [key for label, key in enumerate(dataset.class_keys) if not counts[label]]
    if empty:
        raise UserError(f"class {empty[0]} of {dataset.name} has no image; remove its folder or add one")


def human_names(class_keys: Sequence[str]) -> list[str]:
    """Names of classes for people: ImageNet's words for its identifiers (n02099601), the keys themselves otherwise."""
    imagenet = ImageNetInfo("imagenet-1k")
    words = {key: imagenet.label_name_to_description(key) for key in imagenet.label_names()}
    return [words.get(key, key) for key in class_keys]


def imagenet_names() -> list[str]:
    """Human names of ImageNet's 1000 classes in the field's order, several for one class separated by commas."""
    return human_names(ImageNetInfo("imagenet-1k").label_names())


class CroppedImages(Dataset):
    """(image, label) of an (index, crop) pair: floats (3, size, size) in [-1, 1] and the class index."""

    def __init__(self, images: LabelledImages, size: int, recipe: CropRecipe) -> None:
        self.images, self.size, self.recipe = images, size, recipe

    @property
    def num_crops(self) -> int:
        return NUM_CROPS[self.recipe]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int]:
        index, crop = item
        image = to_floats(crop_image(self.images.read(index), self.size, self.recipe, crop))
        return image, self.images.labels[index]
