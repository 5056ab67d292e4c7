"""Where the classifiers that ship with the project are."""

from pathlib import Path
from typing import Literal

ClassifierName = Literal["digits", "cifar10"]
FOLDER = Path(__file__).resolve().parents[2] / "pretrained_models/classifiers"
SIDE = 32  # pixels of the images that it reads
Split = Literal["train", "test"]


def weights_file(name: ClassifierName, folder: Path = FOLDER) -> Path:
    """Where a classifier is."""
    return folder / f"{name}.safetensors"


def statistics_file(name: ClassifierName, split: Split, folder: Path = FOLDER) -> Path:
    """Where the statistics of real images are; the training ones are a reference for those who lack the data."""
    return folder / f"{name}-{split}.npz"
