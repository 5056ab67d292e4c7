"""Editing an image: what a mask leaves alone keeps its codes at every scale; the rest is drawn.

Letters: H, W sides of the image in pixels, S side of a scale.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from data.crops import center_crop, to_bytes, to_floats
from data.files import UnreadableImageError, read_image, to_rgb
from models.family import Generator
from runtime.errors import UserError
from sampling.bulk import Constraint

Picture = Image.Image | str | Path


@dataclass(frozen=True)
class Edit:
    """An image, cropped to the model's size, and where to draw anew."""

    image: Tensor  # (3, H, W) uint8
    mask: Tensor  # (H, W), True where it is drawn anew
    constraint: Constraint  # what stays, for ``draw_many``
    share: Tensor  # (H, W) of the drawn image in what comes out: 1 where it is drawn anew, falling to 0 beside

    def pictures(self) -> Tensor:
        """(2, 3, H, W) uint8: the image, and the image with what is drawn anew grey."""
        return torch.stack([self.image, torch.where(self.mask, torch.full_like(self.image, 128), self.image)])

    def paste_back(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) uint8 with the original where the mask leaves it alone."""
        share, image = self.share.to(images.device), self.image.to(images.device)
        return (image + share * (images.float() - image)).round().byte()


def make_edit(image: Picture, mask: Picture, model: Generator, blend: int = 0) -> Edit:
    """Of an image and its mask, white where it is to be drawn anew; both are cropped to the model's square.

    Each is a file or a PIL image. What is transparent in the mask is black, whatever colour is hidden there. Within
    ``blend`` pixels of the model's image beside the white, the drawn image fades into the original. A UserError says
    that one cannot be read, that the two differ in size, or that the mask is all black.
    """
    if not isinstance(blend, int) or blend < 0:
        raise UserError(f"blend is {blend}; give a number of pixels, 0 for none")
    image_name, mask_name = _name(image, "the image"), _name(mask, "the mask")
    image, mask = _read(image), _read(mask, ground="black").convert("L")
    if image.size != mask.size:
        sizes = ["{} x {}".format(*picture.size) for picture in (mask, image)]
        raise UserError(f"{mask_name} is {sizes[0]} pixels, but {image_name} is {sizes[1]}; make them the same size")
    size = model.config.img_size
    pixels, redraw = to_bytes(center_crop(image, size)), to_bytes(center_crop(mask, size).convert("RGB"))[0] >= 128
    if not redraw.any():
        raise UserError(
            f"{mask_name} is black all over the middle square that is kept; paint white what is to be drawn anew"
        )
    with torch.inference_mode():
        codes = model.tokenize(to_floats(pixels).unsqueeze(0).to(model.device))
    kept = [~touched_locations(redraw, side) for side in model.scale_sizes]
    return Edit(pixels, redraw, Constraint(kept, [scale[0].cpu() for scale in codes]), _fading(redraw, blend))


def _fading(redraw: Tensor, blend: int) -> Tensor:
    """(H, W) 1 where a mask is True, and beside it less by 1 / (blend + 1) a pixel, down to 0."""
    if not blend:
        return redraw.float()
    from scipy.ndimage import distance_transform_edt  # takes a while to import

    distance = torch.from_numpy(distance_transform_edt(~redraw.numpy()).astype(np.float32))
    return (1 - distance / (blend + 1)).clamp_min(0)


def touched_locations(redraw: Tensor, side: int) -> Tensor:
    """(S, S) locations of a scale with any pixel to be drawn anew (H, W): nothing under a mask is remembered.

    Where S does not divide H, the border pixels of a location belong to its neighbour too.
    """
    return F.adaptive_max_pool2d(redraw.float()[None, None], side)[0, 0] > 0


def _name(picture: Picture, otherwise: str) -> str:
    return otherwise if isinstance(picture, Image.Image) else str(picture)


def _read(picture: Picture, ground: str = "white") -> Image.Image:
    """As RGB, what is transparent being of a colour."""
    if isinstance(picture, Image.Image):
        try:
            return to_rgb(picture, ground)
        except UnreadableImageError as error:
            raise UserError(f"the picture {error}") from error
        except ValueError as error:
            raise UserError(f"a picture of mode {picture.mode} cannot be taken ({error}); convert it to RGB") from error
    if not isinstance(picture, str | Path):
        raise UserError(f"a picture is a {type(picture).__name__}; give a PIL image or the path of a file")
    if not Path(picture).is_file():
        raise UserError(f"no such file: {picture}")
    return read_image(Path(picture), ground)[0]
