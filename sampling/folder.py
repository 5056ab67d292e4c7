"""A folder that fills with drawn images and can be killed at any moment: no image is lost, missed or drawn twice.

Letters: N images, H, W their sides in pixels. While images are missing, ``.progress/`` holds what each rank, on this or
another machine, noted of its own: which are done, a hash of each, and whatever is asked for beside the pictures.
"""

import json
import shutil
import zipfile
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.crops import to_bytes
from models.family import Samples, scale_slices
from runtime import distributed
from runtime.errors import UserError
from runtime.files import write_json
from sampling.names import CODES_NAME, NPZ_NAME, NUMBER, PROGRESS_NAME, SETTINGS_NAME
from sampling.options import Format
from sampling.parts import Column, Contents, Layout, Part, count_records, names_in
from sampling.pictures import save_png

CHUNK = 256  # images copied at once


def image_name(index: int) -> str:
    return f"{index:06d}.png"


def prepare_folder(
    folder: Path,
    settings: Mapping[str, Any],
    shape: Sequence[int],
    file_format: Format,
    maps: Mapping[str, int],
    made: Sequence[str] = (),
) -> bool:
    """Make a folder ready for images, on rank 0.

    A run of the same settings goes on, also one that was complete and lost files since; one of others is moved to a
    folder beside it.

    Args:
        folder: to write to.
        settings: everything that decides the images; becomes ``samples.json``.
        shape: (N, H, W, 3) of all images.
        file_format: single PNGs, or one npz.
        maps: which of ``MAPS`` to keep of each image, and how many numbers each has.
        made: names of the files that are made of all images when the folder is finished.

    Returns:
        Whether anything is missing.

    Raises:
        UserError: the folder holds images that are not ours, there is too little space, or what was begun cannot go on.
    """
    settings = json.loads(json.dumps(settings))
    earlier = (folder / SETTINGS_NAME).exists() or (folder / PROGRESS_NAME).exists()
    goes_on = earlier and _same_settings(folder / SETTINGS_NAME, settings)
    if goes_on and (folder / PROGRESS_NAME).exists():
        Layout.read(folder / PROGRESS_NAME)  # an error is one now, before a model is made ready
        return True
    if goes_on and _is_whole(folder, shape[0], file_format, made):
        shutil.rmtree(folder / FINISHED_NAME, ignore_errors=True)
        return False
    strange = [] if earlier else [path.name for name in ("*.png", *NOT_PNG) for path in folder.glob(name)]
    if strange:
        raise UserError(f"{folder} holds {strange[0]}, which no run of ours is known by; name another --output_dir")
    folder.mkdir(parents=True, exist_ok=True)
    TemporaryFile(dir=folder).close()  # a folder that cannot be written to is an error now, not after the drawing
    if file_format == "npz":
        _check_space(folder, shape)
    if earlier and not goes_on:
        _move_aside(folder)
    _make_progress(folder, shape, file_format, maps)
    if goes_on and file_format == "png" and not maps:
        _note_present(folder, shape[:3])
    write_json(folder / SETTINGS_NAME, settings)
    (folder / NEW_NAME).rename(folder / PROGRESS_NAME)  # last: a folder with progress has all else
    return True


def _is_whole(folder: Path, count: int, file_format: Format, made: Sequence[str]) -> bool:
    """Whether a folder that was complete still is."""
    names = {*([NPZ_NAME] if file_format == "npz" else map(image_name, range(count))), *made}
    if not names <= {path.name for path in folder.iterdir()}:
        return False
    return all(zipfile.is_zipfile(folder / name) for name in names if name.endswith(".npz"))  # not if cut short


def _check_space(folder: Path, shape: Sequence[int]) -> None:
    needed, free = 2 * int(np.prod(shape)), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{shape[0]} images take {needed / 1e9:.3g} GB while {NPZ_NAME} is written, but {free / 1e9:.3g} GB "
            f"are free under {folder}; free space or name another --output_dir"
        )


def _make_progress(folder: Path, shape: Sequence[int], file_format: Format, maps: Mapping[str, int]) -> None:
    row = [(name, MAPS[name], (length,)) for name, length in maps.items()]
    if file_format == "npz":
        row.append(("images", np.uint8, tuple(shape[1:])))
    for name in (NEW_NAME, FINISHED_NAME):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / NEW_NAME).mkdir()
    Layout(shape[0], np.dtype(row)).write(folder / NEW_NAME)


def _note_present(folder: Path, shape: Sequence[int]) -> None:
    """Of a folder of (N, H, W) images that was complete: what is still there, and whole, need not be drawn again."""
    with closing(Part(folder / NEW_NAME, "present")) as part:
        for index in range(shape[0]):
            with suppress(OSError):  # missing, or cut short
                pixels = read_images(folder, [index])[0].permute(1, 2, 0).contiguous().numpy()
                if pixels.shape[:2] == tuple(shape[1:]):
                    part.add(index, _hash(pixels), {})


def _hash(pixels: np.ndarray) -> int:
    return int.from_bytes(blake2b(pixels, digest_size=8).digest(), "little")


class SampleFolder:
    """Images going into a prepared folder; several ranks may write to one. Use as a context, which waits for files.

    Attributes:
        todo: (n,) indices of the images that were missing when it was opened.
        done: (N,) bool, whether the image was there at the last ``look``.
        images: (N, H, W, 3) uint8 of an npz, as of then, or None.
        maps: (N, length) of each that is kept, as of then.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.progress = folder, folder / PROGRESS_NAME
        self.look()
        self.todo = np.flatnonzero(~self.done)

    def look(self) -> None:
        """See what all ranks have done so far, of those on other machines what they had closed."""
        contents = Contents(self.progress)
        names = contents.layout.row.names or ()
        self.images = contents.column("images") if "images" in names else None
        self.maps = {name: contents.column(name) for name in names if name != "images"}
        self.done, self.hashes = contents.done, contents.hashes
        if self.images is None:
            present = names_in(self.folder)
            self.done &= [image_name(i) in present for i in range(len(self.done))]
        self.num_seen, self.records_seen = int(np.count_nonzero(self.done)), count_records(self.progress)

    def __enter__(self) -> "SampleFolder":
        self.part = Part(self.progress, f"rank-{distributed.rank()}")
        self.writers, self.pending = ThreadPoolExecutor(WRITERS), deque[Future[None]]()
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self.writers.shutdown(cancel_futures=True)
            self.part.close()

    def add(self, indices: Sequence[int], images: Tensor, samples: Samples) -> None:
        """Store uint8 images (n, 3, H, W) and what else is kept; an error of an earlier write is raised here."""
        self.part.commit()  # once a batch: the disk takes milliseconds
        kept = {name: torch.cat([s.flatten(1) for s in getattr(samples, name)], dim=1).numpy() for name in self.maps}
        for place, (index, image) in enumerate(zip(indices, images, strict=True)):
            while len(self.pending) >= MAX_PENDING or (self.pending and self.pending[0].done()):
                self.pending.popleft().result()
            values = {name: rows[place] for name, rows in kept.items()}
            self.pending.append(self.writers.submit(self._store, index, image, values))

    def wait(self) -> None:
        """Until all images added are in their files; an error of writing one is raised here."""
        while self.pending:
            self.pending.popleft().result()
            self.part.commit()

    def _store(self, index: int, image: Tensor, values: Mapping[str, np.ndarray]) -> None:
        pixels = image.permute(1, 2, 0).contiguous().numpy()  # (H, W, 3)
        if self.images is None:
            temporary = self.progress / f"{self.part.name}-{image_name(index)}"  # of this process alone
            save_png(image, temporary)
            temporary.replace(self.folder / image_name(index))
        else:
            values = {**values, "images": pixels}
        self.part.add(index, _hash(pixels), values)

    @property
    def num_done(self) -> int:
        """Images done by all ranks by now; of those on other machines, as far as this one can see."""
        return self.num_seen + count_records(self.progress) - self.records_seen

    def first_images(self, count: int) -> Tensor:
        """The first so many of the images, (n, 3, H, W) uint8, read back."""
        if self.images is not None:
            return torch.from_numpy(self.images[:count]).permute(0, 3, 1, 2)
        return read_images(self.folder, range(min(count, len(self.done))))

    def samples(self, scale_sizes: Sequence[int], images: Tensor) -> Samples:
        """All maps as ``sample`` gives them, if all are kept; with these images (n, 3, H, W), the first ones."""
        slices = list(zip(scale_sizes, scale_slices(scale_sizes), strict=True))
        whole = {name: torch.from_numpy(self.maps[name][:]) for name in MAPS}
        by_scale = {name: [rows[:, s].unflatten(1, (side, side)) for side, s in slices] for name, rows in whole.items()}
        by_scale |= {name: [scale.long() for scale in by_scale[name]] for name in ("codes", "step")}
        return Samples(images=images, **by_scale)

    def save_codes(self, scale_sizes: Sequence[int], labels: Sequence[int]) -> None:
        """Write ``codes.npz``: labels, and codes_S of each scale."""
        slices, rows = zip(scale_sizes, scale_slices(scale_sizes), strict=True), self.maps["codes"][:]
        codes = {f"codes_{side}": rows[:, s].reshape(-1, side, side).astype(np.int64) for side, s in slices}
        np.savez(self.folder / CODES_NAME, labels=np.array(labels), **codes)

    def duplicates(self) -> list[list[int]]:
        """Groups of images that are the same to the last bit."""
        _, inverse, counts = np.unique(self.hashes, return_inverse=True, return_counts=True)
        return [np.flatnonzero(inverse == group).tolist() for group in np.flatnonzero(counts > 1)]

    def finish(self, labels: Sequence[int], duplicates: list[list[int]]) -> None:
        """Write the npz if asked for, note duplicates, and remove what going on would need. ``look`` before it.

        Raises:
            UserError: images are missing.
        """
        missing = np.count_nonzero(~self.done)
        if missing:
            raise UserError(f"{self.folder} still lacks {missing} images; run the same command again to go on")
        if self.images is not None:
            write_npz(self.folder / NPZ_NAME, self.images, labels)
        settings = json.loads((self.folder / SETTINGS_NAME).read_text())
        write_json(self.folder / SETTINGS_NAME, settings | {"duplicates": duplicates})
        self.progress.rename(self.folder / FINISHED_NAME)  # all at once: half of it would look damaged
        shutil.rmtree(self.folder / FINISHED_NAME)


def remove_samples(folder: Path) -> None:
    """Remove what drawing wrote into a folder, and the folder if nothing of anyone else's is left in it."""
    for path in [path for name in OUR_FILES for path in folder.glob(name)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def write_npz(path: Path, images: np.ndarray | Column, labels: Sequence[int]) -> None:
    """Write images (N, H, W, 3) as ``arr_0`` and labels as ``arr_1``, as ADM's tools do, a chunk at a time."""
    temporary = path.with_name(path.name + ".tmp")
    with zipfile.ZipFile(temporary, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            header = {"descr": images.dtype.str, "fortran_order": False, "shape": images.shape}
            np.lib.format.write_array_header_1_0(file, header)
            for first in range(0, len(images), CHUNK):
                file.write(np.ascontiguousarray(images[first : first + CHUNK]).data)
        with archive.open("arr_1.npy", "w") as file:
            np.lib.format.write_array(file, np.asarray(labels, dtype=np.int64))
    temporary.replace(path)


def read_images(folder: Path, indices: Sequence[int]) -> Tensor:
    """(n, 3, H, W) uint8 of the PNGs of these indices."""

    def read(index: int) -> Tensor:
        with Image.open(folder / image_name(index)) as image:
            return to_bytes(image)

    return torch.stack([read(index) for index in indices])


def _same_settings(path: Path, settings: Mapping[str, Any]) -> bool:
    try:
        found = json.loads(path.read_text())
    except (ValueError, FileNotFoundError):
        return False
    if not isinstance(found, dict):
        return False
    important = [{key: v for key, v in values.items() if key not in UNIMPORTANT} for values in (found, settings)]
    return important[0] == important[1]


def _move_aside(folder: Path) -> None:
    folder = folder.absolute()
    aside = next(p for i in range(1, 10**6) if not (p := folder.with_name(f"{folder.name}.{i}")).exists())
    aside.mkdir()
    for pattern in OUR_FILES:
        for path in folder.glob(pattern):
            path.rename(aside / path.name)
    print(f"the earlier samples in {folder} are now in {aside}")


NEW_NAME, FINISHED_NAME = ".progress.new", ".progress.finished"  # not yet complete; about to be removed
OUR_FILES = (  # moved aside in this order: progress never stays with the settings of others
    PROGRESS_NAME,
    f"{NUMBER}.png",
    f"maps_{NUMBER}.png",
    "maps.npz",
    "grid.png",
    "entropy_by_step.png",
    "animation.gif",
    CODES_NAME,
    NPZ_NAME,
    NEW_NAME,
    FINISHED_NAME,
    SETTINGS_NAME,
)


NOT_PNG = tuple(name for name in OUR_FILES if name.endswith((".npz", ".gif")))
MAPS = {"codes": np.int32, "entropy": np.float32, "step": np.int32, "probability": np.float32}


# Settings that change no image but by rounding; of files that were read, the hashes count.
UNIMPORTANT = ("batch_size", "compile", "output_dir", "duplicates", "checkpoint", "edit", "mask", "label_file")
WRITERS, MAX_PENDING = 4, 256  # threads, and images that may wait for them
