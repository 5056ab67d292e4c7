"""Reading images from every kind of place: images a second of processor time, in order and shuffled, one thread.

    python -m benchmarks.reading

Photographs are made up in a temporary folder, packed as parquet, tar, zip and csv, read, and removed again. They lie in
the system's memory then, so that no disk is measured.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runtime.command import run
from runtime.config import option, parse_flags
from runtime.errors import check_at_least

if TYPE_CHECKING:
    from data.labelled_images import StoredImages

SIDES = 500, 375  # pixels of a photograph, as of most of ImageNet
MADE = 20  # different photographs; the others are copies
CLASSES = 10
ROW = "{:<26}" + "{:>10}" * 5


@dataclass(frozen=True)
class BenchmarkArgs:
    """What to measure."""

    images: int = option(3000, "photographs, 0.1 MB each")
    reads: int = option(300, "images read in a run")
    repeats: int = option(3, "runs; the median counts")
    folder: str | None = option(None, "where the photographs are made and removed; default the temporary folder")

    def __post_init__(self) -> None:
        check_at_least(1, self, "images", "reads", "repeats")


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "benchmarks.reading", __doc__, BenchmarkArgs)
    from benchmarks.packing import pack  # what computes takes seconds to import
    from data.images import open_dataset
    from runtime.device import describe_machine, pick_device

    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        root = Path(name)
        write_photographs(root / "folders/train", args.images)
        images = open_dataset("folder", str(root / "folders"), SIDES[0])
        places = {"class folders": root / "folders"} | pack({"train": images}, root / "groups of 100")
        whole = pack({"train": images}, root / "whole", group_rows=args.images)
        megabytes = sum(images.file_of(i).stat().st_size for i in range(len(images))) / 1e6
        print(f"{describe_machine(pick_device('cpu'))}; {args.images} photographs, {megabytes:.0f} MB, one thread")
        print(ROW.format("images a second", "opening, s", "bytes", "shuffled", "decoded", "shuffled"))
        for kind, place in (places | {"parquet, one row group": whole["parquet"]}).items():
            print(ROW.format(kind, *measure(place, args)), flush=True)


def write_photographs(root: Path, count: int) -> None:
    """Class folders of JPEG files about as large as ImageNet's: waves and grain."""
    from PIL import Image

    rng = np.random.default_rng(0)
    y, x = np.mgrid[: SIDES[1], : SIDES[0]][..., None]
    made: list[bytes] = []
    for number in range(count):
        path = root / f"class{number % CLASSES}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < MADE:
            waves = 128 + 100 * np.sin(x * rng.uniform(-0.1, 0.1, 3) + y * rng.uniform(-0.1, 0.1, 3))
            pixels = (waves + rng.normal(0, 14, (SIDES[1], SIDES[0], 1))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(path, quality=90)
            made.append(path.read_bytes())
        path.write_bytes(made[number % len(made)])


def measure(place: Path, args: BenchmarkArgs) -> Iterator[str]:
    """Cells of a row: seconds to open, then images a second, their bytes alone and decoded."""
    from data.images import open_dataset

    start = time.process_time()
    images = open_dataset("folder", str(place), SIDES[0])
    yield f"{time.process_time() - start:.3f}"
    orders = np.arange(args.reads) % len(images), np.random.default_rng(0).permutation(len(images))[: args.reads]
    for decoded in (False, True):
        yield from (f"{_rate(images, order, decoded, args.repeats):.0f}" for order in orders)


def _rate(images: "StoredImages", order: np.ndarray, decoded: bool, repeats: int) -> float:
    """Images a second, the median of a few runs."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()  # of a busy machine too, what counts
        for index in order.tolist():
            images.read(index) if decoded else images.content(index)
        seconds.append(time.process_time() - start)
    return len(order) / float(np.median(seconds))


if __name__ == "__main__":
    run(main)
