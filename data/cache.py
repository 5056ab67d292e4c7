"""The cache of codes: one memory-mapped array of all images, crops and scales, and a manifest that says of what.

Letters: N images, K crops, L codes of all cached scales, small scales first, each in raster order.
A folder holds codes.npy (N, K, L) uint16, labels.npy, status.npy and checksums.npy (N,) and manifest.json. While it is
being made it is called ``NAME.partial``; status.npy says what is done, so that a killed creation goes on where it was;
checksums.npy says of which images, so that a changed one is noticed.
"""

import hashlib
import math
import mmap
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.labelled_images import LabelledImages
from data.options import NUM_CROPS, CropRecipe
from models.scales import scale_slices
from runtime.errors import UserError
from runtime.files import composed, read_json, write_json

VERSION = 3  # raised when the same images give other codes: 3 reads photographs upright and lays alpha over white
MANIFEST = "manifest.json"
MAX_CODES = 2**16
MEND = "make it again by --create_cache --rebuild_cache, which keeps this one beside it, or set another cached_path"
TODO, DONE, UNREADABLE = 0, 1, 2  # status of an image
FLUSH_EVERY = 5.0  # seconds; a kill loses at most what was encoded since
CHECKED_AT_ONCE = 10_000  # images
MAX_COMPARED = 2000  # images whose checksums are compared when a cache is opened; reading 2,000 files takes seconds


@dataclass(frozen=True)
class Manifest:
    """What a cache holds; caches with equal manifests hold equal codes."""

    version: int
    dataset: str
    num_images: int
    img_size: int
    crop: CropRecipe
    scale_sizes: list[int]
    num_codes: int
    autoencoder_sha256: str
    images_sha256: str
    class_keys: list[str]
    class_names: list[str]
    data_path: str  # where the images were; they may have moved since

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, K, L) of the codes."""
        return self.num_images, NUM_CROPS[self.crop], sum(side * side for side in self.scale_sizes)

    @property
    def arrays(self) -> dict[str, tuple[type, tuple[int, ...]]]:
        """Type and shape of each array of a cache."""
        types = {"codes": np.uint16, "labels": np.int64, "status": np.uint8, "checksums": np.uint32}
        return {name: (kind, self.shape if name == "codes" else self.shape[:1]) for name, kind in types.items()}

    @property
    def num_bytes(self) -> int:
        return 2 * math.prod(self.shape)

    @property
    def folder_name(self) -> str:
        return cache_name(self.dataset, self.img_size, self.crop)


def cache_name(dataset: str, size: int, crop: CropRecipe) -> str:
    """Folder of a cache; it tells apart datasets, sizes and crop recipes."""
    return f"{dataset}-{size}-{crop}"


def describe(
    images: LabelledImages,
    size: int,
    crop: CropRecipe,
    scales: Sequence[int],
    num_codes: int,
    autoencoder_sha256: str,
    data_path: str = "",
) -> Manifest:
    """The manifest of a cache of these images, read from a path, under an autoencoder of this hash and codes."""
    if num_codes > MAX_CODES:
        raise UserError(f"a cache holds up to {MAX_CODES} codes, not {num_codes}; train from images")
    listing = "\n".join(f"{composed(key)}\t{label}" for key, label in zip(images.keys, images.labels, strict=True))
    return Manifest(
        version=VERSION,
        dataset=images.name,
        num_images=len(images),
        img_size=size,
        crop=crop,
        scale_sizes=list(scales),
        num_codes=num_codes,
        autoencoder_sha256=autoencoder_sha256,
        images_sha256=hashlib.sha256(os.fsencode(listing)).hexdigest(),
        class_keys=images.class_keys,
        class_names=images.class_names,
        data_path=data_path,
    )


def partial_folder(folder: Path) -> Path:
    return folder.with_name(folder.name + ".partial")


def begin_cache(folder: Path, manifest: Manifest, labels: Sequence[int]) -> None:
    """Make the files of the cache that will be ``folder``, if there is room, or check those that were begun."""
    partial, root = partial_folder(folder), folder.parent
    if (partial / MANIFEST).exists():
        check_manifest(partial, manifest)
        return
    if not partial.exists():
        free, needed = shutil.disk_usage(root).free, manifest.num_bytes
        print(f"the cache takes {needed / 1e9:.3g} GB; {free / 1e9:.3g} GB are free under {root}", flush=True)
        if needed > free:
            raise UserError(
                f"the cache of {needed / 1e9:.3g} GB does not fit under {root}; free space or set cached_path"
            )
    partial.mkdir(parents=True, exist_ok=True)
    for name, (dtype, shape) in manifest.arrays.items():
        array = np.lib.format.open_memmap(partial / f"{name}.npy", "w+", dtype, shape)
        if hasattr(os, "posix_fallocate"):  # a disk that is full later would kill the process, not raise an error
            with (partial / f"{name}.npy").open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        if name == "labels":
            array[:] = labels
    write_json(partial / MANIFEST, asdict(manifest))  # last: a folder with a manifest has all its files


def is_complete(folder: Path) -> bool:
    """Whether there is a cache that was made to its end."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    if not (folder / MANIFEST).exists():
        raise UserError(f"no cache of codes at {folder}; make it by adding --create_cache")
    content = read_json(folder / MANIFEST)
    if content is None:
        raise UserError(f"{folder / MANIFEST} is damaged; {MEND}")
    if content.get("version") != VERSION or set(content) != {field.name for field in fields(Manifest)}:
        raise UserError(f"{folder} is a cache of another version; {MEND}")
    return Manifest(**content)


def check_manifest(folder: Path, expected: Manifest) -> Manifest:
    """Refuse a cache of other data, naming the difference; more scales, other names for people, a move are welcome."""
    manifest = read_manifest(folder)
    for field in fields(Manifest):
        found, wanted = getattr(manifest, field.name), getattr(expected, field.name)
        if field.name in ("class_names", "data_path") or (field.name == "scale_sizes" and set(wanted) <= set(found)):
            continue
        if found != wanted:
            raise UserError(f"{folder} was made with {field.name} {_short(found)}, not {_short(wanted)}; {MEND}")
    return manifest


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def check_images(folder: Path, images: LabelledImages) -> None:
    """Refuse a cache, complete or partial, of images or labels that have changed since; up to 2,000 are compared."""
    arrays = _open_arrays(folder, read_manifest(folder), "r")
    if not np.array_equal(arrays["labels"], images.labels):
        raise UserError(f"{folder} is damaged: its labels are not the data's; {MEND}")
    done = np.flatnonzero(arrays["status"] == DONE)
    for index in done[:: -(-len(done) // MAX_COMPARED) or 1].tolist():
        if images.checksum(index) != arrays["checksums"][index]:
            raise UserError(f"{folder} was made of other images: {images.keys[index]} has changed since; {MEND}")


class PartialCache:
    """A cache in the making. Several processes may write disjoint images of one at once."""

    def __init__(self, folder: Path) -> None:
        self.final, self.folder = folder, partial_folder(folder)
        self.manifest = read_manifest(self.folder)
        arrays = _open_arrays(self.folder, self.manifest, "r+")
        self.codes, self.status, self.checksums = arrays["codes"], arrays["status"], arrays["checksums"]
        self.written: list[int] = []  # images that are not flushed yet, and so not done
        self.flushed_at = time.monotonic()

    def write(self, indices: Sequence[int], codes: Tensor, checksums: Sequence[int]) -> None:
        """Take all crops (n, K, L) of some images; every few seconds, all that were taken are flushed."""
        self.codes[indices] = codes.numpy().astype(np.uint16)
        self.checksums[indices] = checksums
        self.written += indices
        if time.monotonic() - self.flushed_at >= FLUSH_EVERY:
            self.flush()

    def flush(self) -> None:
        """Bring all codes that were taken to the disk. Their images count as done only after that."""
        self.codes.flush()
        self.checksums.flush()
        self.status[self.written] = DONE
        self.written, self.flushed_at = [], time.monotonic()

    def finish(self) -> Path:
        """Give the complete cache its final name."""
        self.flush()
        missing = int((self.status == TODO).sum())
        if missing:
            raise UserError(f"{self.folder} still lacks {missing} images; run the same command again to go on")
        self.status.flush()
        return self.folder.replace(self.final)


def unreadable_images(folder: Path) -> list[int]:
    """The images that could not be read when a complete cache was made: others stand in for them."""
    return np.flatnonzero(_open_arrays(folder, read_manifest(folder), "r")["status"] == UNREADABLE).tolist()


class TokenCache(Dataset):
    """(codes, label) of (index, crop) pairs, a whole batch at a time; pages are shared by all processes that read.

    What is not as ``expected`` is an error that names it; ``scale_sizes`` are those to read, a subset of the cached.
    """

    def __init__(self, folder: Path, expected: Manifest, scale_sizes: Sequence[int]) -> None:
        self.folder, self.arguments = folder, (folder, expected, scale_sizes)
        self.manifest = check_manifest(folder, expected)
        arrays = _open_arrays(folder, self.manifest, "r")
        self.codes, self.labels = arrays["codes"], np.array(arrays["labels"])
        if hasattr(mmap, "MADV_RANDOM"):  # else a row of 2 kB drags in up to megabytes around it, out of 22 GB
            self.codes.base.madvise(mmap.MADV_RANDOM)
        done = np.flatnonzero(arrays["status"] == DONE)
        if not len(done):
            raise UserError(f"{folder} is damaged: none of its images is done; {MEND}")
        # Each image's index, or for an unreadable one that of the next readable image.
        self.stand_in = done[np.searchsorted(done, np.arange(len(self.labels))) % len(done)]
        slices = dict(zip(self.manifest.scale_sizes, scale_slices(self.manifest.scale_sizes), strict=True))
        self.slices = {side: slices[side] for side in scale_sizes}

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return TokenCache, self.arguments  # a worker that was not forked maps the files too, and gets no copy

    @property
    def num_crops(self) -> int:
        return self.codes.shape[1]

    def __len__(self) -> int:
        return len(self.codes)

    def collate(self, batch: tuple[list[Tensor], Tensor]) -> tuple[list[Tensor], Tensor]:
        return batch

    def check_codes(self) -> None:
        """Refuse a cache that holds numbers which are no codes; all are read."""
        for start in range(0, len(self.codes), CHECKED_AT_ONCE):
            self._check_codes(self.codes[start : start + CHECKED_AT_ONCE])

    def _check_codes(self, rows: np.ndarray) -> None:
        if rows.max(initial=0) >= self.manifest.num_codes:
            raise UserError(f"{self.folder} is damaged: it holds code {rows.max()}; {MEND}")

    def __getitems__(self, items: list[tuple[int, int]]) -> tuple[list[Tensor], Tensor]:
        """((B, S, S) codes of each scale, (B,) labels) of a batch."""
        indices, crops = np.array(items).T
        indices = self.stand_in[indices]
        rows = self.codes[indices, crops].astype(np.int64)
        self._check_codes(rows)
        rows = torch.from_numpy(rows)
        codes = [rows[:, s].unflatten(1, (side, side)) for side, s in self.slices.items()]
        return codes, torch.from_numpy(self.labels[indices])


def _open_arrays(folder: Path, manifest: Manifest, mode: Literal["r", "r+"]) -> dict[str, np.ndarray]:
    """All arrays of a cache, mapped; of a wrong size is an error (NumPy fills up a short file with zeros in r+)."""
    arrays = {}
    for name, (_, shape) in manifest.arrays.items():
        try:
            for each in ("r", mode):
                arrays[name] = np.load(folder / f"{name}.npy", mmap_mode=each)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{folder} is damaged ({error}); {MEND}") from error
        if arrays[name].shape != shape:
            raise UserError(f"{folder} is damaged: its arrays are of another size; {MEND}")
    return arrays
