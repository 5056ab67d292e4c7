"""Images as files hold them."""

import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torch.nn import functional as F

from data.crops import to_bytes
from runtime.errors import UserError
from runtime.files import whole
from runtime.pictures import save_image

PNG_END = bytes.fromhex("0000000049454e44ae426082")  # the last part of every PNG, which is empty
CAPTION_SIZE = 14  # pixels
MAX_ROWS = 16  # of a grid that has one for each class
MIN_CAPTIONED_SIDE = 128  # pixels; each image with a caption below has at least as many, or nearly
MIN_GRID_SIDE = 64  # pixels; each image of a grid has at least as many, or nearly
GAP = 2  # pixels between and around the images of a grid


def save_png(image: Tensor, path: Path, text: Mapping[str, str] | None = None) -> None:
    """Write one uint8 image (3, H, W), and what ``text`` says of it."""
    about = PngInfo()
    for name, value in (text or {}).items():
        about.add_text(name, value)
    Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(path, pnginfo=about)


def read_png(path: Path) -> Tensor:
    """One image (3, H, W), uint8."""
    try:
        with Image.open(path) as image:
            if image.mode != "RGB":
                raise ValueError(f"its pixels are {image.mode}, not RGB as they were written")
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
    save_image(captioned(picture, captions) if captions else picture, path)


def save_labelled_grid(images: Tensor, captions: Sequence[str], path: Path) -> None:
    """Write uint8 images (B, 3, H, W) as one picture that says what each is.

    Where a few captions come in turn, a row has the images of one; else each stands under its image.
    """
    if not any(captions):
        return save_grid(images, path, math.ceil(math.sqrt(len(images))))
    count, period = len(images), len(set(captions))
    in_turn = all(caption == captions[i % period] for i, caption in enumerate(captions))
    if not in_turn or not 1 < period <= min(MAX_ROWS, count - 1):
        return save_image(_captioned_below(images, captions), path)
    columns = -(-count // period)
    missing = images.new_full((columns * period - count, *images.shape[1:]), 0)
    rows = torch.cat([images, missing]).unflatten(0, (columns, period)).transpose(0, 1).flatten(0, 1)
    return save_grid(rows, path, columns, captions[:period])


def _captioned_below(images: Tensor, captions: Sequence[str]) -> Image.Image:
    """Images (B, 3, H, W) in a square grid, a caption, cut to the width, under each."""
    font, columns = caption_font(CAPTION_SIZE), math.ceil(math.sqrt(len(images)))
    factor = max(1, MIN_CAPTIONED_SIDE // images.shape[-1])
    height, width = (side * factor for side in images.shape[-2:])
    row, column = height + 2 * CAPTION_SIZE, width + CAPTION_SIZE // 2
    rows = -(-len(images) // columns)
    picture = Image.new("RGB", (columns * column, rows * row), "white")
    draw = ImageDraw.Draw(picture)
    for number, (image, caption) in enumerate(zip(images.cpu().numpy(), captions, strict=True)):
        left, top = number % columns * column, number // columns * row
        enlarged = image.transpose(1, 2, 0).repeat(factor, axis=0).repeat(factor, axis=1)
        picture.paste(Image.fromarray(enlarged), (left, top))
        caption = caption[:width]  # no letter is narrower than a pixel
        while font.getlength(caption) > width:
            caption = caption.rstrip("…")[:-1] + "…"
        draw.text((left + width / 2, top + height + CAPTION_SIZE / 4), caption, "black", font, anchor="ma")
    return picture


def caption_font(size: int) -> ImageFont.FreeTypeFont:
    """One with the letters of most alphabets, which comes with matplotlib; to import that takes a second."""
    (package,) = find_spec("matplotlib").submodule_search_locations
    return ImageFont.truetype(Path(package) / "mpl-data/fonts/ttf/DejaVuSans.ttf", size)


def captioned(picture: Image.Image, captions: Sequence[str]) -> Image.Image:
    """A picture of as many equal rows as there are captions, which stand at its left."""
    font = caption_font(CAPTION_SIZE)
    margin = 2 * CAPTION_SIZE + round(max(map(font.getlength, captions)))
    whole_picture = Image.new("RGB", (margin + picture.width, picture.height), "white")
    whole_picture.paste(picture, (margin, 0))
    draw, row = ImageDraw.Draw(whole_picture), picture.height / len(captions)
    for number, caption in enumerate(captions):
        draw.text((margin - CAPTION_SIZE, row * (number + 0.5)), caption, "black", font, anchor="rm")
    return whole_picture


def grid_of(images: Tensor, columns: int, min_side: int, border: int = 0) -> Tensor:
    """(3, H, W) of uint8 images (B, 3, H, W), row by row; small ones enlarged by a whole factor.

    As torchvision's make_grid, without the seconds that every command would take to import it.
    """
    factor = max(1, min_side // images.shape[-1])
    images = images.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)
    if len(images) == 1:
        return images[0]
    columns = min(columns, len(images))
    cells = F.pad(images, (GAP, 0, GAP, 0, 0, 0, 0, -len(images) % columns), value=border)
    rows = cells.unflatten(0, (-1, columns)).permute(2, 0, 3, 1, 4)  # (3, rows, H, columns, W)
    return F.pad(rows.flatten(3).flatten(1, 2), (0, GAP, 0, GAP), value=border)


def write_npz(path: Path, shape: Sequence[int], chunks: Iterable[np.ndarray], labels: Sequence[int]) -> None:
    """Write uint8 images (N, H, W, 3), some at a time, as ``arr_0`` and labels as ``arr_1``, as ADM's tools do."""
    with whole(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)})
            for chunk in chunks:
                file.write(np.ascontiguousarray(chunk).data)
        with archive.open("arr_1.npy", "w") as file:
            np.lib.format.write_array(file, np.asarray(labels, dtype=np.int64))
