"""A folder that fills with drawn images and can be killed at any moment: no image is lost, missed or drawn twice.

While images are missing, ``.progress/`` has a folder of each process, which holds one npz for each batch it has drawn:

    indices                             (n,) which images
    hashes                              (n,) uint64 of their pixels
    codes, entropy, step, probability   (n, L), those that are asked for
    images                              (n, H, W, 3) uint8; not of PNGs, which are written before the npz is

An npz appears whole and never changes. So processes, also on machines that share the folder over NFS, never write to
one file, a kill leaves all batches that were finished, and a process that outlives its run finds its folder gone. The
images that are done are those of any npz. Two may hold the same image: its seed makes it the same in both.

Letters: N images, n of a batch, L locations of all scales, S side of a scale, H, W image sides in pixels.
"""

import json
import os
import re
import shutil
import zipfile
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from models.class_names import class_names
from models.draw import DRAWING_VERSION, image_seed
from models.family import Generator, Samples
from models.scales import join_scales, split_scales
from runtime import distributed
from runtime.device import dtype_name, fetch
from runtime.errors import UserError
from runtime.files import flush, flush_folder, free_name, hash_file, read_json, same_settings, whole, write_json
from sampling.options import Format
from sampling.pictures import png_has_its_end, read_png, save_png, write_npz

SETTINGS_NAME, PROGRESS_NAME, NPZ_NAME, CODES_NAME = "samples.json", ".progress", "samples.npz", "codes.npz"
GRID_NAME, MAPS_NAME = "grid.png", "maps.npz"
PNG_TEXT = "parameters"  # of a PNG: how it was drawn, as JSON
ENTROPY_NAME, ANIMATION_NAME = "entropy_by_step.png", "animation.gif"
NUMBER, MAX_PNGS = 6 * "[0-9]", 10**6
UNUSED_NAME = ".progress.unused"  # progress that is being prepared, or removed
MADE_OF_ALL = (MAPS_NAME, GRID_NAME, ENTROPY_NAME, ANIMATION_NAME, CODES_NAME, NPZ_NAME)
# Moved aside in this order: progress never stays with the settings of others.
OUR_FILES = (PROGRESS_NAME, f"{NUMBER}.png", f"maps_{NUMBER}.png", *MADE_OF_ALL, UNUSED_NAME, SETTINGS_NAME)
# Settings that change no image but by rounding, and those of which something else is recorded: of files the hashes, of
# labels what each image has, of devices and precisions those that were found.
UNIMPORTANT = (
    *("batch_size", "compile", "output_dir", "duplicates"),
    *("checkpoint", "config", "edit", "mask", "label_file"),
    *("labels", "num_samples", "list_classes", "device", "dtype"),
)
# Settings that say nothing of one image.
OF_ALL = ("images", "labels", "num_samples", "format", "save_codes", "maps", "animation", "list_classes")
MAPS = ("codes", "entropy", "step", "probability")
# Threads that write, one a core: of 256 px, on 2 cores, one writes 125 PNGs a second, two 245, and four no more.
WRITERS = min(8, os.cpu_count() or 1)
MAX_WAITING = 8  # batches that are being written or wait; then drawing waits, for memory is bounded
CHUNK = 2**28  # bytes of images that are joined at once
BATCH_NAME = re.compile(r"[0-9a-f]{32}-(\d+)\.npz")  # not that of a file that is still being written
EARLIER_NAMES = ("layout.json", "done.npy")  # in the progress of earlier versions
ASIDE_NAME = "earlier"  # and a number: samples that were moved aside within their folder


def image_name(index: int) -> str:
    return f"{index:06d}.png"


def sample_settings(
    args: Mapping[str, Any], model: Generator, labels: Sequence[int], files: Mapping[str, Path | str | None]
) -> dict[str, Any]:
    """All that decides the images, as JSON takes it, and what is made of it.

    ``args`` are options by name, with ``seed`` and ``format``, and the model's identity; of ``files`` the hashes count.
    """
    names = class_names(model) if model.config.class_cond else None
    return {
        **args,
        **{f"{name}_sha256": None if path is None else hash_file(Path(path)) for name, path in files.items()},
        "drawing_version": DRAWING_VERSION,
        "resolved_dtype": dtype_name(model.dtype),
        "resolved_decoder_dtype": dtype_name(model.autoencoder.decoder_dtype),
        "resolved_device": model.device.type,
        "torch": version("torch"),
        "images": [
            {
                "file": image_name(i) if args["format"] == "png" else None,
                "label": label if model.config.class_cond else None,
                "class": names[label] if names and label < len(names) else None,
                "seed": image_seed(args["seed"], i),
            }
            for i, label in enumerate(labels)
        ],
    }


class SampleFolder:
    """Images going into a folder. Rank 0 prepares it, all ranks add images, rank 0 finishes it.

    ``shape`` is (N, H, W, 3) of all images, ``maps`` which of ``MAPS`` to keep of each. ``todo`` has the indices (n,)
    of the images that were missing at the last ``look``.
    """

    def __init__(self, path: Path, shape: Sequence[int], file_format: Format, maps: Collection[str] = ()) -> None:
        if file_format == "png" and shape[0] > MAX_PNGS:
            raise UserError(f"{shape[0]} images are too many for single files; add --format npz")
        self.path, self.progress = path, path / PROGRESS_NAME
        self.shape, self.format, self.maps = tuple(shape), file_format, maps

    def prepare(self, settings: Mapping[str, Any], made: Sequence[str] = ()) -> bool:
        """Make it ready for images, and return whether anything is missing.

        A run of the same settings goes on, also one that was complete and lost files since; one of others is moved to
        a folder beside it, or in it. ``settings`` is everything that decides the images; it becomes ``samples.json``.
        ``made`` names the files that are made of all images when the folder is finished. A UserError says that it holds
        images that are not ours, that there is too little space, or that what was begun cannot go on.
        """
        unused, record = self.path / UNUSED_NAME, self.path / SETTINGS_NAME
        begun, recorded = self.progress.exists(), read_json(record)
        same = recorded is not None and same_settings(recorded, settings, UNIMPORTANT)
        if same and begun:
            self.look()  # what cannot go on is an error now, before a model is made ready
            return True
        shutil.rmtree(unused, ignore_errors=True)
        if same and self._is_whole(made):
            return False
        known = begun or record.exists()
        strange = [] if known else [path for name in ("*.png", "*.npz", "*.gif") for path in self.path.glob(name)]
        if strange:
            raise UserError(
                f"{self.path} holds {strange[0].name}, which no run of ours is known by; name another --output_dir"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=self.path).close()  # a folder that cannot be written to is an error now, not after drawing
        self._check_space()
        if known and not same:
            _move_aside(self.path.absolute())
        (unused / "present").mkdir(parents=True)
        if same and self.format == "png" and not self.maps:
            self._note_present(unused / "present")
        write_json(record, settings)
        unused.rename(self.progress)  # last: a folder with progress has all else
        return True

    def _is_whole(self, made: Sequence[str]) -> bool:
        """Whether a folder that was complete still is."""
        names = {*([NPZ_NAME] if self.format == "npz" else map(image_name, range(self.shape[0]))), *made}
        is_whole = {".npz": zipfile.is_zipfile, ".png": png_has_its_end, ".gif": Path.is_file}
        return names <= _names_in(self.path) and all(is_whole[Path(name).suffix](self.path / name) for name in names)

    def _check_space(self) -> None:
        needed, free = 2 * int(np.prod(self.shape)), shutil.disk_usage(self.path).free
        if self.format == "npz" and needed > free:
            raise UserError(
                f"{self.shape[0]} images take {needed / 1e9:.3g} GB while {NPZ_NAME} is written, but {free / 1e9:.3g} "
                f"GB are free under {self.path}; free space or name another --output_dir"
            )

    def _note_present(self, to: Path) -> None:
        """Of a folder that was complete: what is still there, and whole, need not be drawn again."""
        hashes = {}
        for index in range(self.shape[0]):
            with suppress(UserError):  # missing, or damaged
                path = self.path / image_name(index)
                image = read_png(path)
                if tuple(image.shape[1:]) == self.shape[1:3] and png_has_its_end(path):
                    hashes[index] = _hash(image)
        _write_batch(to, list(hashes), list(hashes.values()), {})

    def look(self) -> None:
        """See what all ranks, on any machine, have done; a damaged file or an earlier version's is a UserError."""
        if any((self.progress / name).exists() for name in EARLIER_NAMES):
            raise UserError(
                f"{self.progress} was begun by an earlier version, which kept it otherwise; move it away and start anew"
            )
        folders = [self.progress / name for name in _names_in(self.progress)]
        files = [path / name for path in folders if path.is_dir() for name in _names_in(path)]
        self.files = sorted(path for path in files if BATCH_NAME.fullmatch(path.name))
        self.file_of, self.row_of = np.full(self.shape[0], -1), np.zeros(self.shape[0], np.int64)
        self._hashes = np.zeros(self.shape[0], np.uint64)
        for number, file in enumerate(self.files):
            indices, hashes = _read_batch(file, "indices", "hashes")
            self.file_of[indices], self.row_of[indices], self._hashes[indices] = number, np.arange(len(indices)), hashes
        done = self.file_of >= 0
        if self.format == "png":
            present = _names_in(self.path)
            done &= [image_name(i) in present for i in range(self.shape[0])]
        self.todo = np.flatnonzero(~done)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Images may be added while this lasts; when it ends, those that were added are in their files."""
        self.mine, self.pending = self.progress / f"rank{distributed.rank()}-{uuid4().hex}", deque[Future[None]]()
        self.mine.mkdir()
        self.settings = read_json(self.path / SETTINGS_NAME) or {}
        with ThreadPoolExecutor(WRITERS) as self.writers:  # waits for them, whatever stopped the drawing
            yield
            for written in self.pending:
                written.result()

    def add(self, indices: Sequence[int], images: Tensor, samples: Samples) -> None:
        """Store uint8 images (n, 3, H, W) and what else is kept; an error of an earlier write is raised here.

        They may be on a device: they leave it while the next batch is drawn, and are waited for by who writes them.
        """
        while len(self.pending) >= MAX_WAITING or (self.pending and self.pending[0].done()):
            self.pending.popleft().result()
        arriving = fetch([images, *(join_scales(getattr(samples, name)) for name in self.maps)])
        self.pending.append(self.writers.submit(self._store, list(indices), arriving))

    def _store(self, indices: list[int], arriving: Callable[[], list[Tensor]]) -> None:
        images, *maps = arriving()
        kept = {name: values.numpy() for name, values in zip(self.maps, maps, strict=True)}
        if self.format == "npz":
            kept["images"] = images.permute(0, 2, 3, 1).contiguous().numpy()
        else:
            for index, image in zip(indices, images, strict=True):
                temporary = self.mine / image_name(index)
                save_png(image, temporary, {PNG_TEXT: self._about(index)})
                flush(temporary)
                temporary.replace(self.path / image_name(index))
            flush_folder(self.path)
        _write_batch(self.mine, indices, [_hash(image) for image in images], kept)

    def _about(self, index: int) -> str:
        """What ``samples.json`` says of one image, as JSON."""
        shared = {name: value for name, value in self.settings.items() if name not in (*OF_ALL, *UNIMPORTANT)}
        own = self.settings["images"][index] if "images" in self.settings else {}
        found = shared | own
        return json.dumps({name: found[name] for name in found if name != "file" and found[name] is not None})

    def num_stored(self) -> int:
        """How many images all ranks have stored by now, as far as this machine can see."""
        found = (BATCH_NAME.fullmatch(file.name) for file in self.progress.glob("*/*.npz"))
        return sum(int(name[1]) for name in found if name)

    def read(self, name: str, images: slice = slice(None)) -> np.ndarray:
        """A map (n, L), or ``images`` (n, H, W, 3) of an npz, of all images or these. None may be missing."""
        file_of, row_of = self.file_of[images], self.row_of[images]
        found = None
        for number in np.unique(file_of):
            (rows,) = _read_batch(self.files[number], name)
            found = np.empty((len(file_of), *rows.shape[1:]), rows.dtype) if found is None else found
            found[file_of == number] = rows[row_of[file_of == number]]
        return found

    def first_images(self, count: int) -> Tensor:
        """The first so many of the images, (n, 3, H, W) uint8, read back."""
        if self.format == "npz":
            return torch.from_numpy(self.read("images", slice(count))).permute(0, 3, 1, 2)
        return torch.stack([read_png(self.path / image_name(i)) for i in range(min(count, self.shape[0]))])

    def read_map(self, name: str, scale_sizes: Sequence[int]) -> list[Tensor]:
        """A map of all images, (N, S, S) of each scale."""
        return split_scales(torch.from_numpy(self.read(name)), scale_sizes)

    def finish(self, labels: Sequence[int]) -> list[list[int]]:
        """Join the images of an npz, and remove what going on would need. No image may be missing.

        Returns groups of images that are the same to the last bit; they are also in ``samples.json``.
        """
        assert not len(self.todo)
        if self.format == "npz":
            step = max(1, CHUNK // int(np.prod(self.shape[1:])))
            chunks = (self.read("images", slice(first, first + step)) for first in range(0, self.shape[0], step))
            write_npz(self.path / NPZ_NAME, self.shape, chunks, labels)
        _, inverse, counts = np.unique(self._hashes, return_inverse=True, return_counts=True)
        duplicates = [np.flatnonzero(inverse == group).tolist() for group in np.flatnonzero(counts > 1)]
        write_json(self.path / SETTINGS_NAME, read_json(self.path / SETTINGS_NAME) | {"duplicates": duplicates})
        self.progress.rename(self.path / UNUSED_NAME)  # all at once: half of it would look damaged
        shutil.rmtree(self.path / UNUSED_NAME)
        return duplicates


def remove_samples(folder: Path) -> None:
    """Remove what drawing wrote into a folder, and the folder if nothing of anyone else's is left in it."""
    for path in _our_files(folder):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def _our_files(folder: Path) -> list[Path]:
    return [path for pattern in OUR_FILES for path in folder.glob(pattern)]


def _move_aside(folder: Path) -> None:
    """Move what drawing wrote into a folder to a new one beside it, or in it: one on a disk of its own."""
    files = _our_files(folder)
    for aside in (free_name(folder), free_name(folder / ASIDE_NAME)):
        try:
            aside.mkdir()
            for path in files:
                path.rename(aside / path.name)
        except OSError:  # of a mount point, a link to another disk, or a parent that takes no folder
            with suppress(OSError):
                aside.rmdir()
            if aside.exists() or aside.parent == folder:
                raise
        else:
            print(f"the earlier samples in {folder} are now in {aside}")
            return


def _write_batch(to: Path, indices: list[int], hashes: list[int], kept: Mapping[str, np.ndarray]) -> None:
    """Write a file whose name no other has, and ends with how many images are in it."""
    with whole(to / f"{uuid4().hex}-{len(indices)}.npz") as path:
        np.savez(path, indices=np.array(indices, np.int64), hashes=np.array(hashes, np.uint64), **kept)


def _read_batch(file: Path, *names: str) -> list[np.ndarray]:
    try:
        with np.load(file) as batch:
            return [batch[name] for name in names]
    except (OSError, ValueError, KeyError, TypeError, EOFError, NotImplementedError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} is damaged ({error}); remove it, and run the same command again to go on") from error


def _names_in(folder: Path) -> set[str]:
    """Names of all files of a folder, also of those that other machines just made.

    An NFS client may show a folder as it was up to a minute ago, unless it has changed it itself.
    """
    TemporaryFile(dir=folder).close()
    return {path.name for path in folder.iterdir()}


def _hash(image: Tensor) -> int:
    return int.from_bytes(blake2b(image.contiguous().numpy(), digest_size=8).digest(), "little")
