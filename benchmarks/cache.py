"""Opening and reading a cache of codes of ImageNet's size: seconds, memory, images a second.

    python -m benchmarks.cache

Two caches are made in a temporary folder and removed again. One has the size of ImageNet's, 10 crops at the scales of
the paper's 256 px configurations, but is sparse: its codes were never written, so it takes no disk and reads as zeros.
It shows what opening costs, and reading without a disk. The other is smaller and holds random codes: they are read from
the disk, as far as this system can be made to forget its copy in memory, and then from memory.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from runtime.command import run
from runtime.config import option, parse_flags
from runtime.errors import check_at_least
from runtime.files import write_json

NUM_CODES = 4096
READ_SCALES = (1, 2, 4, 8, 16)  # of the paper's models at scale ratio 2
ROW = "{:<20}" + "{:>10}" * 7


@dataclass(frozen=True)
class BenchmarkArgs:
    """What to measure."""

    images: int = option(1_281_167, "images of the sparse cache; ImageNet has 1281167")
    stored_images: int = option(20_000, "images of the cache with codes on the disk, 17 kB each")
    batches: int = option(156, "batches read of each")
    batch_size: int = option(128, "images a batch")
    folder: str | None = option(None, "where the caches are made and removed; default the system's temporary folder")

    def __post_init__(self) -> None:
        check_at_least(1, self, "images", "stored_images", "batches", "batch_size")


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "benchmarks.cache", __doc__, BenchmarkArgs)
    from runtime.device import describe_machine, pick_device  # takes seconds to import

    print(f"{describe_machine(pick_device('cpu'))}; one process, batches of {args.batch_size}, scales {READ_SCALES}")
    print(ROW.format("cache", "images", "file GB", "disk GB", "open s", "open MB", "read MB", "images/s"))
    with tempfile.TemporaryDirectory(dir=args.folder) as root:
        sparse, stored = Path(root) / "sparse", Path(root) / "stored"
        _make_cache(sparse, args.images, is_stored=False)
        _measure("sparse, all zeros", sparse, args)
        _make_cache(stored, args.stored_images, is_stored=True)
        if _forget(stored / "codes.npy"):
            _measure("stored, from disk", stored, args)
        _measure("stored, from memory", stored, args)
    print("MB: memory of this process alone, added by opening and by reading; mapped codes are shared and not in it.")


def _make_cache(folder: Path, num_images: int, is_stored: bool) -> None:
    """A cache of random codes, or of none but with files of their size."""
    from data.cache import DONE, MANIFEST, describe
    from data.labelled_images import LabelledImages
    from data.make_cache import PAPER_SCALE_SIZES
    from models.class_names import imagenet_keys

    rng, no_images = np.random.default_rng(0), LabelledImages("synthetic", [], [], imagenet_keys())
    manifest = describe(no_images, 256, "ten", PAPER_SCALE_SIZES, NUM_CODES, autoencoder_sha256="")
    manifest = replace(manifest, num_images=num_images)
    folder.mkdir()
    codes = np.lib.format.open_memmap(folder / "codes.npy", "w+", np.uint16, manifest.shape)
    for row in codes if is_stored else ():
        row[:] = rng.integers(NUM_CODES, size=row.shape, dtype=np.uint16)
    codes.flush()
    np.save(folder / "labels.npy", rng.integers(len(manifest.class_keys), size=num_images))
    np.save(folder / "status.npy", np.full(num_images, DONE, dtype=np.uint8))
    np.save(folder / "checksums.npy", np.zeros(num_images, dtype=np.uint32))
    write_json(folder / MANIFEST, asdict(manifest))


def _forget(path: Path) -> bool:
    """Ask the system to drop its copy of a file from memory; whether it can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def _measure(name: str, folder: Path, args: BenchmarkArgs) -> None:
    """Open a cache, read batches in random order as training does, and print a row."""
    from benchmarks.measure import process_memory
    from data.batches import EpochBatches
    from data.cache import TokenCache, read_manifest
    from data.loading import load_batches

    manifest, memory, start = read_manifest(folder), process_memory("RssAnon"), time.perf_counter()
    cache = TokenCache(folder, manifest, READ_SCALES)
    open_seconds, open_memory = time.perf_counter() - start, process_memory("RssAnon") - memory
    sampler = EpochBatches(len(cache), cache.num_crops, args.batch_size, seed=0, epoch=0)
    batches = load_batches(cache, sampler, 0, cache.collate)
    memory, start = process_memory("RssAnon"), time.perf_counter()
    num_read = sum(len(labels) for _, labels in islice(batches, args.batches))
    seconds, read_memory = time.perf_counter() - start, process_memory("RssAnon") - memory
    file = (folder / "codes.npy").stat()
    cells = (f"{file.st_size / 1e9:.2f}", f"{file.st_blocks * 512 / 1e9:.2f}", f"{open_seconds:.3f}")
    memories = (f"{open_memory / 1e6:.0f}", f"{read_memory / 1e6:.0f}")
    print(ROW.format(name, len(cache), *cells, *memories, f"{num_read / seconds:.0f}"), flush=True)


if __name__ == "__main__":
    run(main)
