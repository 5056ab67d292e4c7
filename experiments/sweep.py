"""Draw and measure a model at every combination of settings of the drawing, as the paper's Figures 4(a) and 5 do.

    python -m experiments.sweep --checkpoint RUN --cfg 1.0:2.0:0.1 --steps_per_scale 2,4,8 --reference REF

Every setting of how an image is drawn may be a list 1,1.5 or a range FIRST:LAST:STEP, ends included. Writes a row for
each combination to sweep.csv, and sweep.png. The same command again goes on where it was killed; combinations that are
finished are not done again. Several GPUs: torchrun --nproc_per_node=N -m experiments.sweep ...
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from evaluation.options import CheckpointArgs
from runtime.command import run
from runtime.config import parse_open_flags, typed
from runtime.errors import UserError
from sampling.options import drawing_options

TABLE_NAME = "sweep.csv"
DEFAULTS = {"steps_per_scale": "2,4,8", "cfg": "1.0:2.0:0.1"}  # of a family that has them


@dataclass(frozen=True)
class SweepArgs(CheckpointArgs):
    """What to draw and to compare.

    Attributes:
        num_samples: images of each combination, the classes in turn.
        output_dir: folder to write to; default output/sweep/ and the checkpoint's name.
        delete_samples: remove the samples of a combination when it is measured.
    """

    output_dir: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.checkpoint is None:
            raise UserError("name the --checkpoint to draw from")
        if self.reference is None and self.shipped_reference is None:
            raise UserError("name the --reference to compare with")


def main(argv: Sequence[str]) -> None:
    found = drawing_options()
    options = {
        heading: [replace(option, hint=str, default=DEFAULTS.get(option.name, option.default)) for option in group]
        for heading, group in found.items()
    }
    args, texts = parse_open_flags(argv, "experiments.sweep", __doc__, SweepArgs, options)
    hints = {option.name: option.hint for group in found.values() for option in group}
    values = {name: parse_values(name, text, hints[name]) for name, text in (DEFAULTS | texts).items()}
    from experiments.sweep_job import run_sweep  # takes seconds to import

    run_sweep(replace(args, reference=args.reference or args.shipped_reference), values, given=list(texts))


def parse_values(name: str, text: str, hint: Any) -> list[Any]:
    """The values of ``1,2.5``, of ``FIRST:LAST:STEP``, which includes its ends, or of ``[1,2],[1,3]``.

    Raises:
        UserError: one is not of the setting's type, or a range does not reach its end.
    """
    values: list[Any] = []
    for part in re.split(r",(?![^\[]*\])", text):
        try:
            values += _range_of(name, part) if ":" in part else [yaml.safe_load(part)]
        except UserError:
            raise
        except (ValueError, ZeroDivisionError, OverflowError, yaml.YAMLError) as error:
            raise UserError(f"{name} is {text}; give values as in 1,1.5,2 or a range as in 1.0:2.0:0.1") from error
    return list(dict.fromkeys(typed(value, hint, name) for value in values))


def _range_of(name: str, text: str) -> list[float]:
    first, last, step = map(float, text.split(":"))
    count = round((last - first) / step)
    if not math.isclose(first + count * step, last, abs_tol=1e-6) or count < 0:
        raise UserError(f"{name} {text} does not reach its end; write FIRST:LAST:STEP, as in 1.0:2.0:0.1")
    numbers = [round(first + i * step, 6) for i in range(count + 1)]
    return [int(number) if number.is_integer() else number for number in numbers]


def metric_names(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """What the rows of a table call the distance of the samples and their score."""
    distance = next(name for name in rows[0] if name.startswith(("FID", "FD-")))
    return distance, next(name for name in ("Inception Score", "Class accuracy") if name in rows[0])


if __name__ == "__main__":
    run(main)
