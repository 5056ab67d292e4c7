"""Time, operations and memory of sampling, beside what its matrix products and convolutions alone take.

    python -m benchmarks.sampling

Weights are random: only shapes matter. The floor is what all linear layers (all convolutions, for the decoder) take by
torch.nn.functional at the same shapes, in the same process, right after; models.linear may be faster. Each row is
measured in a process of its own.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, the project is not on the path

from runtime.command import run
from runtime.config import option, parse_flags
from runtime.errors import check_at_least


@dataclass(frozen=True)
class BenchmarkArgs:
    """What to time. Seconds of drawing, decoding and their floors are of a batch."""

    configs: tuple[str, ...] = option(
        tuple(f"configs/{name}.yaml" for name in ("config_256_S", "config_256_L", "llamagen_B", "llamagen_L")),
        "training configurations, whose models are built with random weights",
    )
    batch_sizes: tuple[int, ...] = option((1, 8), "images drawn at once")
    dtypes: tuple[Literal["float32", "bfloat16", "float16"], ...] = option(
        ("float32", "bfloat16"), "precisions of the transformer"
    )
    decoder_dtype: Literal["float32", "bfloat16", "float16"] = option(
        "float32", "precision of the decoder; how far its images are from float32's is shown"
    )
    modes: tuple[Literal["eager", "compiled"], ...] = option(("eager", "compiled"), "eager, compiled")
    drawing: dict[str, Any] = option(
        dict, "settings of the drawing, as in '{steps_per_scale: 8}'; what is usual for the family otherwise"
    )
    repeats: int = option(3, "timed runs after one more; medians count")
    device: str = option("auto", "auto, cuda, mps or cpu")

    def __post_init__(self) -> None:
        check_at_least(1, self, "repeats")


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "benchmarks.sampling", __doc__, BenchmarkArgs)
    from benchmarks.sampling_job import print_rows  # takes seconds to import

    print_rows(args)


if __name__ == "__main__":
    run(main)
