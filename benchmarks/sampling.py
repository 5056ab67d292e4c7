"""Time, operations and memory of sampling, beside what its matrix products and convolutions alone take.

    python benchmarks/sampling.py

Weights are random: only shapes matter. The floor is the sum over all linear layers (all convolutions, for the decoder)
of their own time at the same shapes, in the same process, right after. Each row is measured in a process of its own.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, the project is not on the path

from runtime.command import run
from runtime.config import parse_flags
from runtime.errors import check_at_least


@dataclass(frozen=True)
class BenchmarkArgs:
    """What to time. Seconds of drawing, decoding and their floors are of a batch.

    Attributes:
        configs: training configurations, whose models are built with random weights.
        batch_sizes: images drawn at once.
        dtypes: precisions of the transformer.
        modes: eager, compiled.
        drawing: settings of the drawing, as in '{steps_per_scale: 8}'; cfg 1.5 and the family's otherwise.
        repeats: timed runs after one more; medians count.
        device: auto, cuda, mps or cpu.
    """

    configs: tuple[str, ...] = ("configs/config_256_S.yaml", "configs/config_256_L.yaml")
    batch_sizes: tuple[int, ...] = (1, 8)
    dtypes: tuple[Literal["float32", "bfloat16", "float16"], ...] = ("float32", "bfloat16")
    modes: tuple[Literal["eager", "compiled"], ...] = ("eager", "compiled")
    drawing: dict[str, Any] = field(default_factory=dict)
    repeats: int = 3
    device: str = "auto"

    def __post_init__(self) -> None:
        check_at_least(1, self, "repeats")


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "benchmarks/sampling.py", __doc__, BenchmarkArgs)
    from benchmarks.sampling_job import print_rows  # takes seconds to import

    print_rows(args)


if __name__ == "__main__":
    run(main)
