"""Image files: the one way to list a folder of them, and the one way to read one as RGB.

Training, --check_data, editing, references and samples all come through here, so that a file means the same to each.
"""

import errno
import io
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from data.zip_entries import ZipEntry
from runtime.errors import UserError
from runtime.files import composed

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
OTHER_PHOTOGRAPHS = (".heic", ".heif", ".avif", ".gif", ".jp2", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".psd")
MAX_PROPORTION = 100  # long side over short side; scaled to a square's height, longer ones would fill the memory
SIXTEEN_BIT_FORMATS = ("PNG", "PPM")  # whose mode I holds 16 bits; of a TIFF it may be 32, whose white nobody knows
# Folders that no user has made: macOS's of archives, thumbnails and waste of a NAS, a disk's own.
OF_THE_SYSTEM = ("__MACOSX", "@eaDir", "#recycle", "lost+found", "$RECYCLE.BIN", "System Volume Information")
# What an OSError says of a file; another one with a number is of the machine: its disk, its network, its memory.
OF_THE_FILE = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG),
    *(errno.EINVAL, errno.EOVERFLOW),  # of damaged numbers in it
}
TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # back, by the orientation that EXIF data say

Place = Path | ZipEntry  # a file or folder, on the disk or in an archive
Entry = os.DirEntry[str] | ZipEntry


class UnreadableImageError(UserError):
    """One image is damaged, missing, or of a kind that has no one meaning as 8-bit RGB."""


class Listing(NamedTuple):
    """Files or folders, sorted by path, and how many entries of each kind were left out."""

    files: list[Place]
    left_out: Counter[str]


def list_images(folder: Place) -> Listing:
    """Images at any depth. Links are followed, but one that leads back to a folder above it, of the listed or higher.

    Left out, and counted by kind: names that begin with a dot and all below them, folders of systems, broken links,
    what is no regular file, and files of other suffixes.
    """
    found = Listing([], Counter())
    above = folder.absolute().parents if isinstance(folder, Path) else ()
    _walk(folder, tuple(map(_place, above)), found)
    found.files.sort(key=lambda path: composed(str(path)))
    return found


def list_files(folder: Path, suffixes: tuple[str, ...]) -> Listing:
    """Files of these suffixes in a folder itself, and what else but folders is there."""
    found = Listing([], Counter())
    for entry in _entries(folder, found.left_out):
        if entry.name.lower().endswith(suffixes) and _is_file(entry):
            found.files.append(_of(entry))
        elif not _is_folder(entry):
            found.left_out[_kind_of_stray(entry)] += 1
    found.files.sort(key=lambda path: composed(path.name))
    return found


def subfolders(folder: Place) -> Listing:
    """Folders in a folder, sorted, and what else is there, by kind."""
    found = Listing([], Counter())
    for entry in _entries(folder, found.left_out):
        if _is_folder(entry):
            found.files.append(_of(entry))
        else:
            loose = _is_image(entry)
            found.left_out["images outside of class folders" if loose else _kind_of_stray(entry)] += 1
    found.files.sort(key=lambda path: composed(path.name))
    return found


def holds_images(folder: Path, depth: int) -> bool:
    """Whether there is an image in a folder, or at most so many folders below."""
    return any(
        _is_image(entry) or (depth > 0 and _is_folder(entry) and holds_images(Path(entry.path), depth - 1))
        for entry in _entries(folder, Counter())
    )


def left_out_text(left_out: Counter[str]) -> str:
    """``left out: 3 hidden, 2 .txt``, or no text if nothing was; photographs of other formats with the mend."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()) if count > 0)
    mend = "; convert such photographs to .jpg or .png" if left_out.keys() & set(OTHER_PHOTOGRAPHS) else ""
    return f"left out: {kinds}{mend}" if kinds else ""


def read_image(source: Path | bytes | BinaryIO, ground: str = "white", name: str = "") -> tuple[Image.Image, str]:
    """An image as RGB, over a ground of a colour, and the mode it is stored in. Raises UnreadableImageError.

    ``source`` is a file, its bytes or an open file; ``name`` is what messages call the latter two.
    """
    name = str(source) if isinstance(source, Path) else name
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return to_rgb(image, ground), image.mode
    except UnreadableImageError as error:
        raise UnreadableImageError(f"{name} {error}") from error
    except Exception as error:  # of a damaged file, decoders raise anything
        raise_of_machine(error, name)
        raise damaged(name, error) from error


def raise_of_machine(error: Exception, name: str) -> None:
    """Raise an error again that tells of the machine, and nothing of the file ``name`` that could not be read."""
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, OSError) and error.errno is not None and error.errno not in OF_THE_FILE:
        error.filename = error.filename or name
        raise error


def damaged(name: str, error: Exception) -> UnreadableImageError:
    """The error of an image of a name that raised another, which may name the file once more."""
    if isinstance(error, FileNotFoundError):
        return UnreadableImageError(f"{name} is missing; put it there, or drop what names it")
    said = re.sub(r" <[^>]* object at \w+>", "", str(error).replace(f" {name!r}", ""))
    reason = " ".join(said.split()) or type(error).__name__
    return UnreadableImageError(f"{name} cannot be read as an image ({reason}); mend or move it")


def to_rgb(image: Image.Image, ground: str = "white") -> Image.Image:
    """Any image as 8-bit RGB, upright: turned as its EXIF data say, and laid over the ground where it is transparent.

    16 bits are scaled to 8 by 255 / 65535, rounded down. Floats and 32-bit integers have no agreed white, so they are
    an UnreadableImageError, as are proportions beyond 100 to 1.
    """
    width, height = image.size
    if max(width, height) > MAX_PROPORTION * min(width, height):
        raise UnreadableImageError(f"is {width} x {height} pixels, too narrow for a square; crop or move it")
    if image.mode == "F" or (image.mode == "I" and image.format not in SIXTEEN_BIT_FORMATS):
        kind = "floating-point numbers" if image.mode == "F" else "32-bit integers"
        raise UnreadableImageError(f"holds {kind}, whose black and white are not known; convert it to 8 bits")
    image = _upright(image)
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        image = over(image, ground)
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """As its EXIF data say, also where something else in them is wrong, which Pillow could not write again."""
    image.load()  # what is damaged is an error here already
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # of what Pillow writes
        method = TURNED.get(image.getexif().get(ExifTags.Base.Orientation))
        return image if method is None else image.transpose(method)


def _eight_bits(image: Image.Image) -> Image.Image:
    """16 bits of grey as 8, with the transparency of the one value that a file may name."""
    values, clear = np.asarray(image), image.info.get("transparency")
    grey = Image.fromarray((values.clip(0, 65535) // 257).astype(np.uint8))
    if clear is not None:
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def over(image: Image.Image, colour: str) -> Image.Image:
    """An image laid over a colour where it is transparent."""
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, colour), image)


def _walk(folder: Place, above: tuple[tuple[int, int], ...], found: Listing) -> None:
    place = _place(folder)
    if place in above:
        found.left_out["links that lead back"] += 1
        return
    for entry in _entries(folder, found.left_out):
        if _is_folder(entry):
            _walk(_of(entry), (*above, place), found)
        elif _is_image(entry):
            found.files.append(_of(entry))
        else:
            found.left_out[_kind_of_stray(entry)] += 1


def _entries(folder: Place, left_out: Counter[str]) -> Iterator[Entry]:
    """What is in a folder, but for what is hidden."""
    with os.scandir(folder) if isinstance(folder, Path) else nullcontext(folder.entries.values()) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                left_out["hidden"] += 1
            elif entry.name in OF_THE_SYSTEM:
                left_out[entry.name] += 1
            else:
                yield entry


def _of(entry: Entry) -> Place:
    return entry if isinstance(entry, ZipEntry) else Path(entry.path)


def _place(folder: Place) -> tuple[int, int]:
    """What tells a folder from all others, by whatever path it is reached."""
    if isinstance(folder, ZipEntry):
        return 0, id(folder)
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_folder(entry: Entry) -> bool:
    with suppress(OSError):  # a link to itself
        return entry.is_dir()
    return False


def _is_image(entry: Entry) -> bool:
    return entry.name.lower().endswith(IMAGE_SUFFIXES) and _is_file(entry)


def _is_file(entry: Entry) -> bool:
    with suppress(OSError):
        return entry.is_file()
    return False


def _kind_of_stray(entry: Entry) -> str:
    """What an entry is that is neither a folder nor an image."""
    if _is_file(entry):
        return Path(entry.name).suffix.lower() or "without suffix"
    return "broken links" if entry.is_symlink() else "no files"
