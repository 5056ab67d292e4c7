"""Where images and stored statistics come from: an npz, a folder of images at any depth, a statistics file.

Letters: N images, B of a batch, H, W their sides in pixels. Images are read a batch at a time.
"""

import math
import os
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np

from data.files import IMAGE_SUFFIXES, left_out_text, list_images, read_image
from evaluation.metrics import Statistics, fault_of_statistics
from runtime.errors import UserError
from runtime.files import hash_file
from sampling.folder import NPZ_NAME, NUMBER, PROGRESS_NAME, SETTINGS_NAME

IMAGES, LABELS, COUNT = "arr_0", "arr_1", "num_images"
LOSSY_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp")
PICKLE_SUFFIXES = (".pt", ".pth", ".pkl")  # torch-fidelity keeps statistics so
READERS = 4  # threads
DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, KeyError, ValueError, RuntimeError)


class Images(ABC):
    """Images of one size. UserError, when made or read, if there are none, or they are damaged or of another kind."""

    path: Path
    shape: tuple[int, int, int] | None  # (N, H, W); None of a file that holds statistics alone

    @cached_property
    def sha256(self) -> str:
        """Of all of them."""
        return hash_file(self.path)

    @abstractmethod
    def batches(self, size: int) -> Iterator[np.ndarray]:
        """The images in order, (B, H, W, 3) uint8, so many at once; the last batch may have fewer."""

    def warnings(self) -> list[str]:
        """What is doubtful about the files, after they have been read."""
        return []

    def left_out(self) -> str:
        """What of a folder is none of its images, by kind; no text if that is nothing."""
        return ""

    def labels(self) -> list[int] | list[str]:
        """Class of each image, by index or name; none if the files do not say it."""
        return []

    def statistics(self, suffix: str) -> Statistics | None:
        """Stored mean and covariance whose keys end so, if there are any."""
        return None

    @property
    def num_stored(self) -> int | None:
        """How many images the stored statistics are of, if the file says it."""
        return None

    @property
    def of_another_program(self) -> bool:
        """Whether they are statistics as pytorch-fid, clean-fid and others write them: of pooled features alone."""
        return False


class NpzImages(Images):
    """``arr_0`` of an npz, uint8 (N, H, W, 3), compressed or not, never held whole; or an npz of statistics alone."""

    def __init__(self, path: Path) -> None:
        self.path, self.shape = path, None
        with self._archive() as archive:
            self.names = {name.removesuffix(".npy") for name in archive.namelist()}
        if IMAGES not in self.names:
            if not any(name.startswith("mu") for name in self.names):
                held = ", ".join(sorted(self.names)) or "nothing"
                raise UserError(f"{path} holds {held}; neither images ({IMAGES}) nor statistics")
            return
        with self._archive() as archive, archive.open(f"{IMAGES}.npy") as file:
            shape, fortran, dtype = _read_header(file)
        if len(shape) == 3 or shape[3:] == (1,):
            raise UserError(f"{path} holds greyscale images {shape}; repeat the channel to (N, H, W, 3)")
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or fortran or not shape[0]:
            raise UserError(f"{path} holds {dtype} {shape} as {IMAGES}; it must be uint8 (N, H, W, 3) in C order")
        self.shape = shape[:3]

    def batches(self, size: int) -> Iterator[np.ndarray]:
        num_images, *sides = self.shape
        with self._archive() as archive, archive.open(f"{IMAGES}.npy") as file:
            _read_header(file)
            for first in range(0, num_images, size):
                shape = (min(size, num_images - first), *sides, 3)
                pixels = bytearray(file.read(math.prod(shape)))
                if len(pixels) < math.prod(shape):
                    raise EOFError(f"it ends {math.prod(shape) - len(pixels)} bytes too early")
                yield np.frombuffer(pixels, np.uint8).reshape(shape)
            file.read(1)  # past the end: only then is the checksum compared

    def labels(self) -> list[int]:
        """``arr_1``, as ADM's tools write it."""
        labels = self._read(LABELS) if LABELS in self.names else np.empty(0)
        return labels.tolist() if labels.ndim == 1 else []

    def statistics(self, suffix: str) -> Statistics | None:
        """As in the base; UserError if they can be of no features."""
        keys = [f"mu{suffix}", f"sigma{suffix}"]
        if not set(keys) <= self.names:
            return None
        mean, covariance = (self._read(key) for key in keys)
        fault = fault_of_statistics(mean, covariance)
        if fault:
            shapes = f"{keys[0]} {mean.shape} and {keys[1]} {covariance.shape}"
            raise UserError(f"{self.path}: {shapes} are no statistics of features: {fault}; make the file again")
        return Statistics(mean.astype(np.float64), covariance.astype(np.float64))

    @property
    def num_stored(self) -> int | None:
        count = self._read(COUNT) if COUNT in self.names else None
        return int(count) if count is not None and count.shape == () and count.dtype.kind in "iu" else None

    @property
    def of_another_program(self) -> bool:
        return self.shape is None and {"mu", "sigma"} <= self.names and "mu_s" not in self.names

    @contextmanager
    def _archive(self) -> Iterator[zipfile.ZipFile]:
        """The file, open; damage to it is a UserError."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                yield archive
        except (*DAMAGE, OSError) as error:
            if getattr(error, "filename", None) is not None:  # it cannot be opened
                raise
            raise UserError(f"{self.path} is damaged, still being written, or no npz ({error})") from error

    def _read(self, name: str) -> np.ndarray:
        with self._archive() as archive, archive.open(f"{name}.npy") as file:
            return np.lib.format.read_array(file)


class FolderImages(Images):
    """Image files at any depth of a folder, by path; of a folder that main_sample.py wrote, its images alone."""

    def __init__(self, path: Path) -> None:
        if (path / PROGRESS_NAME).exists():
            raise UserError(f"{path} still lacks images; run the main_sample.py command that draws them again")
        if (path / SETTINGS_NAME).is_file():
            files, self._left_out = sorted(f for f in path.glob(f"{NUMBER}.png") if f.is_file()), Counter[str]()
        else:
            files, self._left_out = list_images(path)
        self.path, self.files = path, files
        if not files:
            found = self.left_out()
            raise UserError(f"{path} holds no images ({', '.join(IMAGE_SUFFIXES)}){found and f'; {found}'}")
        first, _ = read_image(files[0])
        self.shape = (len(files), first.height, first.width)
        self._modes: Counter[str] = Counter()

    @cached_property
    def sha256(self) -> str:
        """Of all files and their names."""
        digest = sha256()
        for file in self.files:
            digest.update(os.fsencode(f"{file.relative_to(self.path).as_posix()}\0{hash_file(file)}\n"))
        return digest.hexdigest()

    def batches(self, size: int) -> Iterator[np.ndarray]:
        self._modes.clear()
        with ThreadPoolExecutor(READERS) as readers:
            for first in range(0, len(self.files), size):
                found = list(readers.map(self._read, self.files[first : first + size]))
                self._modes.update(mode for _, mode in found)
                yield np.stack([pixels for pixels, _ in found])

    def _read(self, path: Path) -> tuple[np.ndarray, str]:
        """Pixels (H, W, 3) and the mode they are stored in."""
        _, height, width = self.shape
        image, mode = read_image(path)
        if image.size != (width, height):
            raise UserError(
                f"{path} has {image.width} x {image.height} pixels, {self.files[0].name} {width} x {height}; all must "
                "have one size, as evaluator.py --make_reference FOLDER OUT.npz --image_size N makes them"
            )
        return np.array(image), mode

    def warnings(self) -> list[str]:
        found = lossy_warnings([file.name for file in self.files])
        modes = ", ".join(f"{count} {mode}" for mode, count in self._modes.items() if mode != "RGB")
        if modes:
            found.append(f"files that are not RGB were converted to it: {modes} (L is greyscale, I;16 of 16 bits)")
        return found

    def left_out(self) -> str:
        return left_out_text(self._left_out)

    def labels(self) -> list[str]:
        """Names of their folders."""
        return [file.relative_to(self.path).parent.name for file in self.files]


def lossy_warnings(names: Sequence[str]) -> list[str]:
    """What is doubtful about images of these names."""
    num_lossy = sum(name.lower().endswith(LOSSY_SUFFIXES) for name in names)
    lossy = f"{num_lossy} of {len(names)} images are JPEG or WebP, whose losses change every metric; use PNG"
    return [lossy] if num_lossy else []


def open_images(path: Path) -> Images:
    """What a path holds: a folder, an npz, or the samples.npz in a folder that main_sample.py wrote."""
    if not path.exists():
        raise UserError(f"{path} does not exist; name an npz or a folder of images")
    if (path / SETTINGS_NAME).is_file() and (path / NPZ_NAME).is_file():
        path = path / NPZ_NAME
    if path.is_dir():
        return FolderImages(path)
    if path.suffix.lower() in PICKLE_SUFFIXES or not path.is_file():
        raise UserError(
            f"{path} is no npz; statistics that torch-fidelity keeps in a .pt file become one by "
            "numpy.savez('statistics.npz', **torch.load('FILE.pt', weights_only=False)), which runs what the file "
            "holds: only for a file of your own"
        )
    return NpzImages(path)


def _read_header(file: zipfile.ZipExtFile) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran order, and type."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)
