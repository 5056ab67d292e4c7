"""Names of kinds of data and of crops."""

from typing import Literal

DatasetName = Literal["folder", "cifar10", "food101", "celeba", "digits"]
CropRecipe = Literal["ten", "five", "center"]
NUM_CROPS = {"ten": 10, "five": 5, "center": 1}
