"""Images as files hold them."""

import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

from data.crops import to_bytes
from runtime.errors import UserError
from runtime.files import whole

PNG_END = bytes.fromhex("0000000049454e44ae426082")  # the last part of every PNG, which is empty
CAPTION_SIZE = 14  # pixels
MIN_GRID_SIDE = 64  # pixels; each image of a grid has at least as many, or nearly


def save_png(image: Tensor, path: Path) -> None:
    """Write one uint8 image (3, H, W)."""
    Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(path)


def read_png(path: Path) -> Tensor:
    """One image (3, H, W), uint8."""
    try:
        with Image.open(path) as image:
            return to_bytes(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it, and run the same command again") from error


def png_has_its_end(path: Path) -> bool:
    """Whether a PNG that we wrote was not cut short, without reading all of it."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(PNG_END)))
        return file.read() == PNG_END


def save_grid(images: Tensor, path: Path, columns: int, captions: Sequence[str] = ()) -> None:
    """Write uint8 images (B, 3, H, W) as one picture, row by row; a caption stands at the left of each row."""
    picture = Image.fromarray(grid_of(images, columns, MIN_GRID_SIDE).permute(1, 2, 0).cpu().numpy())
    (captioned(picture, captions) if captions else picture).save(path)


def captioned(picture: Image.Image, captions: Sequence[str]) -> Image.Image:
    """A picture of as many equal rows as there are captions, which stand at its left."""
    font = ImageFont.load_default(CAPTION_SIZE)
    margin = 2 * CAPTION_SIZE + round(max(map(font.getlength, captions)))
    whole_picture = Image.new("RGB", (margin + picture.width, picture.height), "white")
    whole_picture.paste(picture, (margin, 0))
    draw, row = ImageDraw.Draw(whole_picture), picture.height / len(captions)
    for number, caption in enumerate(captions):
        draw.text((margin - CAPTION_SIZE, row * (number + 0.5)), caption, "black", font, anchor="rm")
    return whole_picture


def grid_of(images: Tensor, columns: int, min_side: int, border: int = 0) -> Tensor:
    """(3, H, W) of uint8 images (B, 3, H, W), row by row; small ones enlarged by a whole factor."""
    factor = max(1, min_side // images.shape[-1])
    images = images.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)
    return make_grid(images, nrow=columns, padding=2, pad_value=border)


def write_npz(path: Path, shape: Sequence[int], chunks: Iterable[np.ndarray], labels: Sequence[int]) -> None:
    """Write uint8 images (N, H, W, 3), some at a time, as ``arr_0`` and labels as ``arr_1``, as ADM's tools do."""
    with whole(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)})
            for chunk in chunks:
                file.write(np.ascontiguousarray(chunk).data)
        with archive.open("arr_1.npy", "w") as file:
            np.lib.format.write_array(file, np.asarray(labels, dtype=np.int64))
