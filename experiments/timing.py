"""Time drawing and decoding of a checkpoint, at every combination of settings of the drawing.

    python -m experiments.timing --checkpoint output/quickstart --steps_per_scale 1,2,4 --batch_size 64

prints seconds an image: the median of several batches, after one more. Settings are lists as experiments.sweep takes
them.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from experiments.sweep import parse_listed
from runtime.command import run
from runtime.config import option
from runtime.errors import UserError, check_at_least
from runtime.files import prepare_output, write_json
from sampling.options import SamplingArgs

if TYPE_CHECKING:
    from models.config import Drawing
    from models.family import Generator


@dataclass(frozen=True)
class TimingArgs(SamplingArgs):
    """What to time."""

    repeats: int = option(3, "batches timed, after one more; the median counts")
    output_file: str | None = option(None, "JSON to write")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.checkpoint is None:
            raise UserError("name the --checkpoint to time")
        if self.resize_to is not None:
            raise UserError("timing stores no images; leave out resize_to")
        check_at_least(1, self, "repeats")


def main(argv: Sequence[str]) -> None:
    args, _, values = parse_listed(argv, "experiments.timing", __doc__, TimingArgs, {})
    prepare_output(args.output_file)
    found = measure(args, [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())])
    for row in found["rows"]:
        print(f"{row['drawing'] or 'as it is drawn by default'}: {row['steps']} steps, {row['seconds']:.4g} s an image")
    if args.output_file is not None:
        write_json(Path(args.output_file), found)


def measure(args: TimingArgs, choices: Sequence[dict]) -> dict:
    """The machine, and for each choice of settings its steps and seconds an image."""
    from models.loading.checkpoint import load_checkpoint
    from models.sampling import checked_drawing
    from runtime.device import describe_machine, pick_device
    from runtime.progress import Progress
    from sampling.bulk import place_model
    from sampling.memory import pick_batch_size

    device = pick_device(args.device)
    model = load_checkpoint(args.checkpoint, args.use_ema)
    place_model(model, args, device)
    drawings = [checked_drawing(model, choice) for choice in choices]
    rows = []
    with Progress(total=len(drawings), unit="drawing", desc="timing", leave=None) as bar:
        for choice, drawing in zip(choices, drawings, strict=True):
            batch = args.batch_size or pick_batch_size(model, drawing)
            seconds = median(time_batches(model, drawing, batch, args.repeats, args.seed))
            rows.append({"drawing": choice, "steps": model.num_steps(drawing), "batch_size": batch, "seconds": seconds})
            bar.update()
    return {"checkpoint": args.checkpoint, "machine": describe_machine(device), "rows": rows}


def time_batches(model: "Generator", drawing: "Drawing", batch: int, repeats: int, seed: int = 0) -> list[float]:
    """Seconds an image of each of ``repeats`` batches, drawn and decoded, after one more."""
    import torch  # takes seconds

    from sampling.labels import balanced_labels

    labels, sampler, seconds = torch.tensor(balanced_labels(model, batch)), model.sampler(batch, drawing), []
    for first in range(seed, seed + (repeats + 1) * batch, batch):
        start = time.perf_counter()
        images = sampler(labels, range(first, first + batch)).images
        if images is not None:
            model.to_uint8(images).cpu()  # waits for the device
        seconds.append((time.perf_counter() - start) / batch)
    return seconds[1:]


if __name__ == "__main__":
    run(main)
