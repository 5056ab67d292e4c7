"""Whether models compute on this device what they compute on the CPU, and how fast: sampling and training, one table.

    python -m benchmarks.device

Weights are random: only shapes matter. Numeric checks come first, then rows in the order of importance until the time
is up. Needs a copy of the project and torch, numpy, safetensors and tqdm, nothing else. Exit code 1 if a check fails,
or a row for anything but memory.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.command import FAILED, run
from runtime.config import option, parse_flags
from runtime.errors import UserError


@dataclass(frozen=True)
class BenchmarkArgs:
    """What to measure, and how long."""

    minutes: float = option(8.0, "time for all; rows that may not fit into what is left are skipped")
    output: str = option("output/device.json", "JSON file of everything that is measured, written after each row")
    device: str = option("auto", "auto, cuda, mps or cpu")
    compiled: bool = option(
        True, "also check and measure compiled sampling and training; compiling takes most of the time"
    )
    small: bool = option(False, "tiny models and batches, to try the program without a GPU")

    def __post_init__(self) -> None:
        if self.minutes <= 0:
            raise UserError(f"minutes is {self.minutes}; it must be above 0")


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "benchmarks.device", __doc__, BenchmarkArgs)
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # or torch's profiler writes lines between those of the table
    from benchmarks.device_job import run_all  # takes seconds to import

    if not run_all(args):
        sys.exit(FAILED)


if __name__ == "__main__":
    run(main)
