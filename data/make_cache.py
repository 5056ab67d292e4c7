"""Making the cache of codes on one or several processes, with progress; going on with one; checking one."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler

from data.cache import (
    DONE,
    UNREADABLE,
    Manifest,
    PartialCache,
    TokenCache,
    begin_cache,
    check_images,
    check_manifest,
    partial_folder,
    unreadable_images,
)
from data.crops import all_crops, to_floats
from data.files import UnreadableImageError
from data.images import Attempts, check_unreadable, note_unreadable
from data.labelled_images import LabelledImages
from data.loading import load_batches, one_ahead
from data.options import NUM_CROPS
from models.autoencoder import Autoencoder
from models.scales import join_scales
from runtime import distributed
from runtime.errors import UserError
from runtime.files import move_aside
from runtime.lock import lock_file
from runtime.progress import Progress

# What the published cache holds: 850 codes a crop, the scales of all 256 px configurations (formats.md M1) and more.
PAPER_SCALE_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 13, 16)


@dataclass
class CacheMaker:
    """Encodes a dataset's crops as a manifest says."""

    images: LabelledImages
    autoencoder: Autoencoder  # on the device to encode on
    manifest: Manifest
    batch_size: int  # crops encoded at once
    num_workers: int  # processes that load images

    def create(self, root: Path, rebuild: bool = False) -> Path:
        """Make, or go on making, the cache below ``root``; return its folder. What was done before an error stays.

        One that is not of these images and this autoencoder is an error, or moved aside to ``rebuild``.
        """
        folder = root / self.manifest.folder_name
        if rebuild or not distributed.from_main(folder.exists(), "a look at the cache"):
            if distributed.is_main():
                root.mkdir(parents=True, exist_ok=True)
            busy = f"another process is making the cache {folder}; wait for it, and run the same command again"
            with lock_file(folder.with_name(folder.name + ".lock"), busy):
                if rebuild and distributed.is_main():
                    self._make_way(folder, complete=True)
                    self._make_way(partial_folder(folder), complete=False)
                distributed.barrier("a look at the cache")
                if not distributed.from_main(folder.exists(), "a look at the cache"):
                    return self._make(folder)
        self.check(folder)
        distributed.say(f"the cache {folder} is complete already")
        if lacking := len(unreadable_images(folder)):
            distributed.say(
                f"{lacking} of its images could not be read, others stand in for them; mend them, and add "
                "--rebuild_cache to make it again"
            )
        return folder

    def check(self, folder: Path) -> None:
        """Refuse a cache of other images, scales or another autoencoder than these."""
        check_manifest(folder, self.manifest)
        if distributed.is_main():
            check_images(folder, self.images)

    def _make_way(self, place: Path, complete: bool) -> None:
        """Move a cache aside that cannot be used or gone on with, or that lacks images which can be read now."""
        if place.exists():
            try:
                self.check(place)
                if complete:
                    TokenCache(place, self.manifest, scale_sizes=()).check_codes()
                if not complete or not any(map(self._is_readable, unreadable_images(place))):
                    return
            except UserError:
                pass
            move_aside(place)

    def _is_readable(self, index: int) -> bool:
        try:
            self.images.read(index)
        except UnreadableImageError:
            return False
        return True

    def _make(self, folder: Path) -> Path:
        if distributed.on_several_machines():  # which would write whole pages of one file over each other's
            raise UserError(
                "several machines cannot write one cache; make it by --create_cache on one, and train from it by "
                "--use_cache on all"
            )
        if distributed.is_main():
            begin_cache(folder, self.manifest, self.images.labels)
        distributed.barrier("room for the cache")
        partial = PartialCache(folder)
        if distributed.is_main():
            check_images(partial.folder, self.images)
        self.manifest = partial.manifest  # what was begun may hold more scales
        todo = np.flatnonzero(partial.status != DONE)  # unreadable images may have been mended
        distributed.barrier("a look at the cache")  # all have read the status before anyone changes it
        mine = todo[distributed.rank() :: distributed.num_ranks()]
        unreadable = torch.zeros(len(self.images), dtype=torch.bool)
        with Progress(total=len(mine), unit="image", desc="caching codes", disable=not distributed.is_main()) as bar:
            try:
                for indices, rows, checksums in self._encode(mine):
                    if isinstance(rows, UnreadableImageError):
                        note_unreadable(rows, indices[0], unreadable)
                        partial.status[indices] = UNREADABLE
                    else:
                        partial.write(indices, rows, checksums)
                    bar.update(len(indices))
            finally:  # after an error or Ctrl-C, too
                partial.flush()
        distributed.barrier("the cache")
        if distributed.is_main():
            check_unreadable(np.count_nonzero(partial.status == UNREADABLE), len(self.images))  # of all ranks
            partial.finish()
        distributed.barrier("the cache")
        return folder

    def verify(self, folder: Path, count: int, seed: int) -> tuple[int, int]:
        """Encode some images again; return how many codes differ, as rounding may let them, and of how many."""
        cache = TokenCache(folder, self.manifest, scale_sizes=())
        done = np.flatnonzero(cache.stand_in == np.arange(len(cache)))
        chosen = np.random.default_rng(seed).choice(done, min(count, len(done)), replace=False)
        self.manifest = cache.manifest
        different, compared = 0, 0
        for indices, rows, _ in self._encode(np.sort(chosen)):
            if isinstance(rows, UnreadableImageError):
                raise rows
            different += int((rows.numpy() != cache.codes[indices]).sum())
            compared += rows.numel()
        return different, compared

    def _encode(self, indices: np.ndarray) -> Iterator[tuple[list[int], Tensor | UnreadableImageError, list[int]]]:
        """(indices, codes (n, K, L), checksums) of groups of images, and ([index], error, []) of unreadable ones."""
        attempts = Attempts(functools.partial(_read, self.images, self.manifest), indices)
        group_size = max(1, self.batch_size // NUM_CROPS[self.manifest.crop])
        device = next(self.autoencoder.parameters()).device
        groups = BatchSampler(range(len(attempts)), group_size, drop_last=False)
        loaded = load_batches(attempts, groups, self.num_workers, list)
        for group in loaded if self.num_workers else one_ahead(loaded):  # processes read ahead by themselves
            yield from (([index], found, []) for index, found in group if isinstance(found, UnreadableImageError))
            readable = [(index, *found) for index, found in group if isinstance(found, tuple)]
            if readable:
                numbers, crops, checksums = zip(*readable, strict=True)
                pixels = to_floats(torch.cat(crops).to(device))
                scales = self.autoencoder.tokenize(pixels, tuple(self.manifest.scale_sizes))
                codes = join_scales(scales).cpu().unflatten(0, (len(crops), -1))
                yield list(numbers), codes, list(checksums)


def _read(images: LabelledImages, manifest: Manifest, index: int) -> tuple[Tensor, int]:
    """(K, 3, size, size) crops as bytes of an image, and its checksum."""
    image, checksum = images.read_with_checksum(index)
    return torch.stack(list(all_crops(image, manifest.img_size, manifest.crop))), checksum
