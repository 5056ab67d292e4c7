"""Names of kinds of data and of crops."""

from typing import Literal

DatasetName = Literal["folder", "cifar10", "food101", "celeba", "digits"]
CropRecipe = Literal["ten", "ten105", "twenty", "five", "flip", "center"]
NUM_CROPS = {"ten": 10, "ten105": 10, "twenty": 20, "five": 5, "flip": 2, "center": 1}
