"""What the classifiers are that ship with the project, and where."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runtime.config import option
from runtime.errors import UserError
from runtime.files import PROJECT

ClassifierName = Literal["digits", "cifar10"]
FOLDER = PROJECT / "pretrained_models/classifiers"
SIDE = 32  # pixels of the images that it reads
Split = Literal["train", "test"]


@dataclass(frozen=True)
class ClassifierSize:
    """The ``model:`` section of a configuration."""

    name: ClassifierName = option("digits", "what ``--features`` calls it")
    widths: tuple[int, int, int, int] = option(
        (32, 48, 96, 192),
        "channels after the stem and after the convolutions at 16, 8 and 4 px; the last are the features",
    )

    def __post_init__(self) -> None:
        if min(self.widths) < 1:
            raise UserError(f"widths is {list(self.widths)}; every one must be at least 1")


@dataclass(frozen=True)
class ClassifierConfig(ClassifierSize):
    """What a classifier is."""

    class_keys: tuple[str, ...] = option((), "name of each class, in order")


def statistics_file(name: ClassifierName, split: Split, folder: Path = FOLDER) -> Path:
    """Where the statistics of real images are; the training ones are a reference for those who lack the data."""
    return folder / f"{name}-{split}.npz"
