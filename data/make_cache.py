"""Making the cache of codes on one or several processes, with progress; going on with one; checking one."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

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
    read_manifest,
)
from data.crops import all_crops, to_floats
from data.images import LabelledImages, UnreadableImageError, check_unreadable, no_unreadable, note_unreadable
from data.options import NUM_CROPS
from models.autoencoder import Autoencoder
from runtime import distributed
from runtime.errors import UserError
from runtime.lock import lock_file

# What the published cache holds: 850 codes a crop, the scales of all 256 px configurations (method.md Sec. 1) and a few
# more.
PAPER_SCALE_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 13, 16)


class AllCrops(Dataset):
    """(index, crops (K, 3, size, size) as bytes, checksum) of chosen images; (index, error, 0) of an unreadable one."""

    def __init__(self, images: LabelledImages, indices: np.ndarray, manifest: Manifest) -> None:
        self.images, self.indices, self.manifest = images, indices, manifest

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> tuple[int, Tensor | UnreadableImageError, int]:
        index = int(self.indices[item])
        try:
            checksum = self.images.checksum(index)
            image = self.images.read(index)
        except UnreadableImageError as error:
            return index, error, 0
        return index, all_crops(image, self.manifest.img_size, self.manifest.crop), checksum


class CacheMaker:
    """Encodes a dataset's crops as a manifest says.

    Args:
        images: the dataset.
        autoencoder: the tokenizer.
        manifest: of the cache.
        batch_size: crops encoded at once.
        num_workers: processes that load images.
        device: where to encode.
    """

    def __init__(
        self,
        images: LabelledImages,
        autoencoder: Autoencoder,
        manifest: Manifest,
        batch_size: int,
        num_workers: int,
        device: torch.device,
    ) -> None:
        self.images, self.autoencoder, self.manifest = images, autoencoder.to(device), manifest
        self.batch_size, self.num_workers, self.device = batch_size, num_workers, device

    def create(self, root: Path) -> Path:
        """Make, or go on making, the cache below ``root``; return its folder.

        Raises:
            UserError: not enough disk space, or another cache is in the way. What was done stays done.
        """
        folder = root / self.manifest.folder_name
        if not distributed.from_main(folder.exists()):
            if distributed.is_main():
                root.mkdir(parents=True, exist_ok=True)
            with lock_file(
                folder.with_name(folder.name + ".lock"),
                f"another process is making the cache {folder}; wait for it, and run the same command again",
            ):
                if not distributed.from_main(folder.exists()):
                    return self._make(folder)
        check_manifest(folder, self.manifest)
        check_images(folder, self.images)
        distributed.say(f"the cache {folder} is complete already")
        return folder

    def _make(self, folder: Path) -> Path:
        if distributed.is_main():
            if not partial_folder(folder).exists():
                self._check_space(folder.parent)
            begin_cache(folder, self.manifest, self.images.labels)
            check_images(partial_folder(folder), self.images)
        distributed.barrier()
        self.manifest = read_manifest(partial_folder(folder))  # what was begun may hold more scales
        partial = PartialCache(folder)
        todo = np.flatnonzero(partial.status != DONE)  # unreadable images may have been mended
        distributed.barrier()  # all have read the status before anyone changes it
        self._fill(partial, todo)
        distributed.barrier()
        if distributed.is_main():
            check_unreadable(np.count_nonzero(partial.status == UNREADABLE), len(self.images))  # of all ranks
            partial.finish()
        distributed.barrier()
        return folder

    def verify(self, folder: Path, count: int, seed: int) -> tuple[int, int]:
        """Encode a random sample of a cache's images again; return how many codes differ, and of how many.

        Codes differ only where rounding decides between two codes, on another device or library version.
        """
        cache = TokenCache(folder, self.manifest, scale_sizes=())
        done = np.flatnonzero(cache.stand_in == np.arange(len(cache)))
        chosen = np.random.default_rng(seed).choice(done, min(count, len(done)), replace=False)
        self.manifest = read_manifest(folder)
        different, compared = 0, 0
        for indices, rows, _ in self._encode(np.sort(chosen)):
            if isinstance(rows, UnreadableImageError):
                raise rows
            different += int((rows.numpy() != cache.codes[indices]).sum())
            compared += rows.numel()
        return different, compared

    def _fill(self, partial: PartialCache, todo: np.ndarray) -> None:
        mine = todo[distributed.rank() :: distributed.num_ranks()]
        unreadable = no_unreadable(len(self.images))
        with tqdm(total=len(mine), unit="image", desc="caching codes", disable=not distributed.is_main()) as bar:
            for indices, rows, checksums in self._encode(mine):
                if isinstance(rows, UnreadableImageError):
                    note_unreadable(rows, indices[0], unreadable)
                    partial.status[indices] = UNREADABLE
                else:
                    partial.write(indices, rows, checksums)
                bar.update(len(indices))

    def _encode(self, indices: np.ndarray) -> Iterator[tuple[list[int], Tensor | UnreadableImageError, list[int]]]:
        """(indices, codes (n, K, L), checksums) of groups of images, and ([index], error, []) of unreadable ones."""
        loader = DataLoader(
            AllCrops(self.images, indices, self.manifest),
            batch_size=max(1, self.batch_size // NUM_CROPS[self.manifest.crop]),
            num_workers=self.num_workers,
            collate_fn=list,
        )
        for group in loader:
            yield from (([index], crops, []) for index, crops, _ in group if isinstance(crops, UnreadableImageError))
            readable = [item for item in group if isinstance(item[1], Tensor)]
            if readable:
                numbers, crops, checksums = zip(*readable, strict=True)
                yield list(numbers), self._codes(crops), list(checksums)

    def _codes(self, crops: Sequence[Tensor]) -> Tensor:
        pixels = to_floats(torch.cat(list(crops)).to(self.device))
        scales = self.autoencoder.tokenize(pixels, tuple(self.manifest.scale_sizes))
        rows = torch.cat([scale.flatten(1) for scale in scales], dim=1).cpu()
        return rows.unflatten(0, (len(crops), -1))

    def _check_space(self, root: Path) -> None:
        free, needed = shutil.disk_usage(root).free, self.manifest.num_bytes
        distributed.say(f"the cache takes {needed / 1e9:.3g} GB; {free / 1e9:.3g} GB are free under {root}")
        if needed > free:
            raise UserError(
                f"the cache of {needed / 1e9:.3g} GB does not fit under {root}; free space or set cached_path"
            )
