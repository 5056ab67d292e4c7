"""Codes as the tools of LlamaGen and of RandAR write them, read as a data set: a file an image.

Letters: N images, A code maps an image (of crops or mirror images), G side of a code map.
LlamaGen's folder has ``imagenet{size}_codes/{n}.npy`` int64 (1, A, G * G) and ``imagenet{size}_labels/{n}.npy`` int64
(1,) (formats.md G3); RandAR's has ``{class}/{index}.npy`` int64 (A, G * G) (formats.md R4).
"""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from runtime.errors import UserError

MOST_REPEATED = 1024  # images that the last round of as many processes may have added
MOST_COMPARED = 100  # labels that tell two folders apart


class CodeFolders(Dataset):
    """((B, G, G) codes in a list, (B,) labels) of (index, crop) pairs; a crop names a folder, then a map in it.

    UserError: a folder lacks files, or folders are of different images. ``remarks`` say what was left out.
    """

    def __init__(self, paths: Sequence[str], img_size: int) -> None:
        self.folders = [_open(Path(path), img_size) for path in paths]
        first, self.count = self.folders[0], self.folders[0].num_images
        compared = range(0, self.count, -(-self.count // MOST_COMPARED))
        labels = [[folder.label(n) for n in compared] for folder in self.folders if folder.num_images == self.count]
        if len(labels) < len(self.folders) or any(found != labels[0] for found in labels):
            raise UserError(f"{', '.join(paths)} are of different images; name folders of the same ones")
        self.num_locations = first.shape[1]
        if any(folder.shape[1] != self.num_locations for folder in self.folders):
            raise UserError(f"{', '.join(paths)} are of different sizes; name folders of one")
        self.remarks = [remark for folder in self.folders for remark in folder.remarks]
        self.num_crops = len(self.folders) * math.lcm(*(folder.num_maps for folder in self.folders))

    def check(self, scale_sizes: Sequence[int], num_codes: int, num_classes: int | None) -> None:
        """Refuse codes that are not of a model's one scale; each code and label is checked when it is read.

        ``num_classes`` is None of a model that learns no classes.
        """
        if [side * side for side in scale_sizes] != [self.num_locations]:
            raise UserError(
                f"{self.folders[0].path} holds {self.num_locations} codes an image, but the model has the scales "
                f"{', '.join(map(str, scale_sizes))}; name codes of its size"
            )
        for folder in self.folders:
            if isinstance(folder, _ClassFolders):  # which knows its labels already
                folder.label(len(folder.files) - 1, num_classes)
        self.side, self.num_codes, self.num_classes = scale_sizes[0], num_codes, num_classes

    def __len__(self) -> int:
        return self.count

    def collate(self, batch: tuple[list[Tensor], Tensor]) -> tuple[list[Tensor], Tensor]:
        return batch

    def __getitems__(self, items: list[tuple[int, int]]) -> tuple[list[Tensor], Tensor]:
        codes, labels = [], []
        for index, crop in items:
            folder = self.folders[crop % len(self.folders)]
            codes.append(folder.read(index, self.num_codes)[crop // len(self.folders) % folder.num_maps])
            labels.append(folder.label(index, self.num_classes))
        return [torch.from_numpy(np.stack(codes)).unflatten(1, (self.side, self.side))], torch.tensor(labels)


class _Folder:
    """The files of one folder. With several processes the last files may repeat the first images: they do not count."""

    def __init__(self, path: Path, img_size: int) -> None:
        self.path = path
        self.codes, self.labels = (path / f"imagenet{img_size}_{kind}" for kind in ("codes", "labels"))
        counts = [_count(folder) for folder in (self.codes, self.labels)]
        if counts[0] != counts[1]:
            raise UserError(f"{path} has codes of {counts[0]} images, but {counts[1]} labels; extract them again")
        self.shape: tuple[int, ...] | None = None
        self.shape = self.read(0).shape
        self.num_maps = self.shape[0]
        repeated = self._repeated(counts[0])
        self.num_images = counts[0] - repeated
        self.remarks = (
            [f"{path}: the last {repeated} of {counts[0]} files repeat the first and are left out"] if repeated else []
        )

    def label(self, index: int, num_classes: int | None = None) -> int:
        file = self.labels / f"{index}.npy"
        found = _load(file)
        if found.shape != (1,) or found.dtype.kind not in "iu":
            raise UserError(f"{file} holds {found.dtype} {found.shape}, not one label (1,); extract the codes again")
        return int(_within(found, num_classes, "classes", file)[0])

    def read(self, index: int, num_codes: int | None = None) -> np.ndarray:
        """(A, G * G) codes of an image."""
        file = self.codes / f"{index}.npy"
        found = _load(file)
        if found.ndim != 3 or len(found) != 1:
            raise UserError(f"{file} holds {found.dtype} {found.shape}, not integers (1, maps, codes); name others")
        return _checked(found[0], self.shape, num_codes, file)

    def _repeated(self, count: int) -> int:
        """How many of the last files repeat the first images."""
        most = min(MOST_REPEATED, count // 2)
        head, tail = (
            [(self.read(n).tobytes(), self.label(n)) for n in part]
            for part in (range(most), range(count - most, count))
        )
        return next((length for length in range(most, 0, -1) if tail[most - length :] == head[:length]), 0)


class _ClassFolders:
    """RandAR's folder: the files of each class in a folder called by the class's index. Other folders do not count."""

    def __init__(self, path: Path) -> None:
        self.path, self.remarks = path, []
        found = {entry.name: _code_files(path / entry.name) for entry in os.scandir(path) if entry.is_dir()}
        names = [name for name, files in found.items() if files]
        wrong = next((name for name in names if str(_index(name)) != name), None)
        if wrong is not None:
            raise UserError(f"{path / wrong} holds codes, but is not called by a class index; name it 0, 1 and so on")
        self.files = [(path / name / file, int(name)) for name in sorted(names, key=int) for file in found[name]]
        self.shape: tuple[int, ...] | None = None
        self.shape = self.read(0).shape
        self.num_maps, self.num_images = self.shape[0], len(self.files)

    def label(self, index: int, num_classes: int | None = None) -> int:
        file, label = self.files[index]
        return int(_within(np.array([label]), num_classes, "classes", file.parent)[0])

    def read(self, index: int, num_codes: int | None = None) -> np.ndarray:
        """(A, G * G) codes of an image."""
        file = self.files[index][0]
        return _checked(_load(file), self.shape, num_codes, file)


def _index(name: str) -> int | None:
    return int(name) if name.isascii() and name.isdecimal() else None


def _code_files(folder: Path) -> list[str]:
    """Names of the files of codes in a folder, by number."""
    names = [entry.name for entry in os.scandir(folder) if entry.name.endswith(".npy") and entry.name[0] != "."]
    return sorted(names, key=lambda name: (len(name), name))


def _open(path: Path, img_size: int) -> _Folder | _ClassFolders:
    """A folder of either kind; what is neither is refused as LlamaGen's."""
    of_llamagen = (path / f"imagenet{img_size}_codes").is_dir() or not path.is_dir()
    by_class = not of_llamagen and any(path.glob("*/*.npy")) and not any(path.glob("imagenet*_codes"))
    return _ClassFolders(path) if by_class else _Folder(path, img_size)


def _checked(maps: np.ndarray, shape: tuple[int, ...] | None, num_codes: int | None, file: Path) -> np.ndarray:
    """(A, G * G) codes of a file as int64; they must have the ``shape`` of the others."""
    if maps.ndim != 2 or not maps.size or maps.dtype.kind not in "iu":
        raise UserError(f"{file} holds {maps.dtype} {maps.shape}, not integers (maps, codes); name others")
    if shape is not None and maps.shape != shape:
        said = f"{maps.shape[0]} maps of {maps.shape[1]} codes, but the first file {shape[0]} of {shape[1]}"
        raise UserError(f"{file} holds {said}; extract them again")
    return _within(maps, num_codes, "codes", file).astype(np.int64)


def _count(folder: Path) -> int:
    """How many files there are, which must be numbered from 0."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; name the one that holds it, as LlamaGen's extract_codes_c2i.sh makes it")
    numbers = {match[1] for entry in os.scandir(folder) if (match := re.fullmatch(r"(\d+)\.npy", entry.name))}
    missing = next((n for n in range(len(numbers)) if str(n) not in numbers), None)
    if missing is not None or not numbers:
        raise UserError(f"{folder} lacks {missing or 0}.npy; extract the codes again")
    return len(numbers)


def _within(values: np.ndarray, end: int | None, kind: str, file: Path) -> np.ndarray:
    """The values as they are; with an ``end`` they must lie between 0 and before it."""
    wrong = [] if end is None else values[(values < 0) | (values >= end)]
    if len(wrong):
        raise UserError(
            f"{file} holds {wrong[0]}, but the model has {end} {kind}, counted from 0; name codes of its own"
        )
    return values


def _load(file: Path) -> np.ndarray:
    try:
        with file.open("rb") as content:
            return np.lib.format.read_array(content)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file} is missing or damaged ({error}); extract the codes again") from error
