"""Editing an image: what a mask leaves alone keeps its codes at every scale; the rest is drawn.

Letters: H, W sides of the image in pixels, S side of a scale.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from data.crops import center_crop, to_bytes, to_floats
from data.files import read_image
from models.family import Generator
from runtime.errors import UserError
from sampling.bulk import Constraint


@dataclass(frozen=True)
class Edit:
    """An image, cropped to the model's size, and where to draw anew."""

    image: Tensor  # (3, H, W) uint8
    mask: Tensor  # (H, W), True where it is drawn anew
    constraint: Constraint  # what stays, for ``draw_many``

    def pictures(self) -> Tensor:
        """(2, 3, H, W) uint8: the image, and the image with what is drawn anew grey."""
        return torch.stack([self.image, torch.where(self.mask, torch.full_like(self.image, 128), self.image)])

    def paste_back(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) uint8 with the original where the mask leaves it alone."""
        return torch.where(self.mask.to(images.device), images, self.image.to(images.device))


def load_edit(image_path: str, mask_path: str, model: Generator) -> Edit:
    """Read an image and its mask, white where it is to be drawn anew; both are cropped to the model's square.

    What is transparent in the mask is black, whatever colour is hidden there. A UserError says that one cannot be
    read, that the two differ in size, or that the mask is all black.
    """
    image, mask = _read(image_path), _read(mask_path, ground="black").convert("L")
    if image.size != mask.size:
        sizes = ["{} x {}".format(*picture.size) for picture in (mask, image)]
        raise UserError(f"{mask_path} is {sizes[0]} pixels, but {image_path} is {sizes[1]}; make them the same size")
    size = model.config.img_size
    pixels, redraw = to_bytes(center_crop(image, size)), to_bytes(center_crop(mask, size).convert("RGB"))[0] >= 128
    if not redraw.any():
        raise UserError(
            f"{mask_path} is black all over the middle square that is kept; paint white what is to be drawn anew"
        )
    with torch.inference_mode():
        codes = model.tokenize(to_floats(pixels).unsqueeze(0).to(model.device))
    kept = [~touched_locations(redraw, side) for side in model.scale_sizes]
    return Edit(pixels, redraw, Constraint(kept, [scale[0].cpu() for scale in codes]))


def touched_locations(redraw: Tensor, side: int) -> Tensor:
    """(S, S) locations of a scale with any pixel to be drawn anew (H, W): nothing under a mask is remembered.

    Where S does not divide H, the border pixels of a location belong to its neighbour too.
    """
    return F.adaptive_max_pool2d(redraw.float()[None, None], side)[0, 0] > 0


def _read(path: str, ground: str = "white") -> Image.Image:
    if not Path(path).is_file():
        raise UserError(f"no such file: {path}")
    return read_image(Path(path), ground)[0]
