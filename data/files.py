"""Image files: the one way to list a folder of them, and the one way to read one as RGB.

Training, --check_data, editing, references and samples all come through here, so that a file means the same to each.
"""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from runtime.errors import UserError
from runtime.files import composed

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
OTHER_PHOTOGRAPHS = (".heic", ".heif", ".avif", ".gif", ".jp2", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".psd")
MAX_PROPORTION = 100  # long side over short side; scaled to a square's height, longer ones would fill the memory
SIXTEEN_BIT_FORMATS = ("PNG", "PPM")  # whose mode I holds 16 bits; of a TIFF it may be 32, whose white nobody knows
RESOURCE_FORKS = "__MACOSX"  # what macOS adds to archives


class UnreadableImageError(UserError):
    """One image is damaged, missing, or of a kind that has no one meaning as 8-bit RGB."""


class Listing(NamedTuple):
    """Images below a folder, sorted by path, and how many entries of each kind were left out."""

    files: list[Path]
    left_out: Counter[str]


def list_images(folder: Path) -> Listing:
    """Images at any depth. Links are followed, but one that leads back to a folder above it, of the listed or higher.

    Left out, and counted by kind: names that begin with a dot and all below them, macOS's resource forks, broken links,
    what is no regular file, and files of other suffixes.
    """
    found = Listing([], Counter())
    _walk(folder, tuple(map(_place, folder.absolute().parents)), found)
    found.files.sort(key=lambda path: composed(str(path)))
    return found


def subfolders(folder: Path) -> Listing:
    """Folders in a folder, sorted, and what else is there, by kind."""
    found = Listing([], Counter())
    for entry in _entries(folder, found.left_out):
        if _is_folder(entry):
            found.files.append(Path(entry.path))
        else:
            loose = _is_image(entry)
            found.left_out["images outside of class folders" if loose else _kind_of_stray(entry)] += 1
    found.files.sort(key=lambda path: composed(path.name))
    return found


def left_out_text(left_out: Counter[str]) -> str:
    """``left out: 3 hidden, 2 .txt``, or no text if nothing was; photographs of other formats with the mend."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()) if count)
    mend = "; convert such photographs to .jpg or .png" if left_out.keys() & set(OTHER_PHOTOGRAPHS) else ""
    return f"left out: {kinds}{mend}" if kinds else ""


def read_image(path: Path, ground: str = "white") -> tuple[Image.Image, str]:
    """An image as RGB, over a ground of a colour, and the mode it is stored in. Raises UnreadableImageError."""
    try:
        with Image.open(path) as image:
            return to_rgb(image, ground), image.mode
    except UnreadableImageError as error:
        raise UnreadableImageError(f"{path} {error}") from error
    except Exception as error:  # of a damaged file, decoders raise anything
        reason = " ".join(str(error).replace(f" {str(path)!r}", "").split()) or type(error).__name__
        raise UnreadableImageError(f"{path} cannot be read as an image ({reason}); mend or move it") from error


def to_rgb(image: Image.Image, ground: str = "white") -> Image.Image:
    """Any image as 8-bit RGB, upright: turned as its EXIF data say, and laid over the ground where it is transparent.

    Of 16 bits it keeps the upper 8. Floats and 32-bit integers have no agreed white, so they are an
    UnreadableImageError, as are proportions beyond 100 to 1.
    """
    width, height = image.size
    if max(width, height) > MAX_PROPORTION * min(width, height):
        raise UnreadableImageError(f"is {width} x {height} pixels, too narrow for a square; crop or move it")
    if image.mode == "F" or (image.mode == "I" and image.format not in SIXTEEN_BIT_FORMATS):
        kind = "floating-point numbers" if image.mode == "F" else "32-bit integers"
        raise UnreadableImageError(f"holds {kind}, whose black and white are not known; convert it to 8 bits")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = _upper_half(image)
    if image.has_transparency_data:
        image = over(image, ground)
    return image.convert("RGB")


def _upper_half(image: Image.Image) -> Image.Image:
    """The upper 8 of 16 bits of grey, with the transparency of the one value that a file may name."""
    values, clear = np.asarray(image), image.info.get("transparency")
    grey = Image.fromarray((values.clip(0, 65535) // 257).astype(np.uint8))
    if clear is not None:
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def over(image: Image.Image, colour: str) -> Image.Image:
    """An image laid over a colour where it is transparent."""
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, colour), image)


def _walk(folder: Path, above: tuple[tuple[int, int], ...], found: Listing) -> None:
    place = _place(folder)
    if place in above:
        found.left_out["links that lead back"] += 1
        return
    for entry in _entries(folder, found.left_out):
        if _is_folder(entry):
            _walk(Path(entry.path), (*above, place), found)
        elif _is_image(entry):
            found.files.append(Path(entry.path))
        else:
            found.left_out[_kind_of_stray(entry)] += 1


def _entries(folder: Path, left_out: Counter[str]) -> Iterator[os.DirEntry[str]]:
    """What is in a folder, but for what is hidden."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                left_out["hidden"] += 1
            elif entry.name == RESOURCE_FORKS:
                left_out[RESOURCE_FORKS] += 1
            else:
                yield entry


def _place(folder: Path) -> tuple[int, int]:
    """What tells a folder from all others, by whatever path it is reached."""
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    with suppress(OSError):  # a link to itself
        return entry.is_dir()
    return False


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(IMAGE_SUFFIXES) and _is_file(entry)


def _is_file(entry: os.DirEntry[str]) -> bool:
    with suppress(OSError):
        return entry.is_file()
    return False


def _kind_of_stray(entry: os.DirEntry[str]) -> str:
    """What an entry is that is neither a folder nor an image."""
    if _is_file(entry):
        return Path(entry.name).suffix.lower() or "without suffix"
    return "broken links" if entry.is_symlink() else "no files"
