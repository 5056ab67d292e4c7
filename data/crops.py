"""From an image file to a square training image: ADM's centre crop and the ten crops (formats.md M5).

One recipe serves live training, the cache and reference sets, so that the same image and crop give the same codes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.options import NUM_CROPS, CropRecipe

MARGINS = {"ten": 1.1, "ten105": 1.05, "five": 1.1}  # sides of what crops are taken from, over theirs


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's centre crop: halve with BOX while the short side is twice ``size`` or more, then BICUBIC to ``size``."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def all_crops(image: Image.Image, size: int, recipe: CropRecipe) -> Sequence[Tensor]:
    """Every training crop of an RGB image as bytes (3, size, size).

    ``center`` is the centre crop alone, ``flip`` that and its mirror image; ``five`` and ``ten`` first crop to
    ``int(1.1 * size)``, then take top left, top right, bottom left, bottom right and centre; ``ten`` goes on with those
    of the mirror image; ``ten105`` is ``ten`` of ``int(1.05 * size)``; ``twenty`` is ``ten`` and then ``ten105``.
    """
    if recipe == "twenty":
        return [*all_crops(image, size, "ten"), *all_crops(image, size, "ten105")]
    if recipe in ("center", "flip"):
        square = to_bytes(center_crop(image, size))
        return [square] if recipe == "center" else [square, square.flip(2)]
    from torchvision.transforms.v2.functional import five_crop  # seconds to import, which other recipes need not pay

    square = to_bytes(center_crop(image, int(MARGINS[recipe] * size)))
    crops = five_crop(square, [size, size])
    return crops if recipe == "five" else crops + five_crop(square.flip(2), [size, size])


def crop_image(image: Image.Image, size: int, recipe: CropRecipe, crop: int) -> Tensor:
    """One of ``all_crops``, by its number."""
    if recipe == "twenty":  # without the other half
        recipe, crop = ("ten", crop) if crop < NUM_CROPS["ten"] else ("ten105", crop - NUM_CROPS["ten"])
    return all_crops(image, size, recipe)[crop]


def to_bytes(image: Image.Image) -> Tensor:
    """(3, H, W) uint8 of an RGB image."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def to_floats(image: Tensor) -> Tensor:
    """Bytes -> floats in [-1, 1]."""
    return image.float() / 127.5 - 1


def from_floats(image: Tensor) -> Tensor:
    """Floats -> the nearest bytes; those of ``to_floats`` come back as they were."""
    return ((image.float() + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)
