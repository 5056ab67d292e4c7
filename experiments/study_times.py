"""Time the drawing of the study's models, all of them by turns, and put the times beside what else was measured.

    python -m experiments.study_times --results output/study/results.jsonl

Weights are random, for times do not depend on them: no model has to be trained. Times of other days and machines do not
compare, and give way to the new ones. A machine that does nothing else gives the best.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median

from experiments.study_facts import TIME, Line, read_lines, write_lines
from experiments.study_plan import BATCH, MODELS, StudyModel, drawing_settings, named, usual_epochs
from runtime.command import run
from runtime.config import option, parse_flags

ROUNDS = 3  # in each of which all models are timed, so that a slow minute of the machine does not meet one alone
TIMED, CFG = {BATCH: 2, 1: 10}, 1.5  # images at once, and how often a round draws them


@dataclass(frozen=True)
class TimesArgs:
    """What to time."""

    models: str | None = option(None, "names of configurations in configs/study, separated by commas; default all")
    results: str = option("output/study/results.jsonl", "JSON lines of experiments.study to put the times into")
    device: str = option("auto", "auto, cuda, mps or cpu")


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "experiments.study_times", __doc__, TimesArgs)
    models, results = named([model for model in MODELS if model.name == model.config], args.models), Path(args.results)
    if results.exists():
        read_lines(results)  # says now, not after minutes, that it is another file
    lines = measure(models, args.device)
    results.parent.mkdir(parents=True, exist_ok=True)
    write_lines(results, lines)
    print(f"{results}; python -m experiments.study_tables --results {results} prints them")


def measure(models: Sequence[StudyModel], device_name: str) -> list[Line]:
    """Seconds an image of each model, in each number of steps, of many at once and of one alone."""
    from experiments.timing import time_batches  # takes seconds to import
    from models.loading.checkpoint import random_model
    from models.sampling import checked_drawing
    from runtime.device import describe_machine, dtype_name, pick_device
    from runtime.progress import Progress
    from sampling.bulk import place_model
    from sampling.options import ModelArgs

    device = pick_device(device_name)
    built = {model.config: random_model(model.config_path)[0] for model in models}
    for model in built.values():
        place_model(model, ModelArgs(), device)  # in the precision that the study draws in
    cases = [
        (model.config, checked_drawing(built[model.config], drawing_settings(model, CFG, steps)), batch)
        for model in models
        for steps, batch in product(model.all_steps, TIMED)
    ]
    seconds: list[list[float]] = [[] for _ in cases]
    with Progress(total=ROUNDS * len(cases), unit="drawing", desc="timing", leave=None) as bar:
        for _, ((config, drawing, batch), found) in product(range(ROUNDS), zip(cases, seconds, strict=True)):
            found += time_batches(built[config], drawing, batch, TIMED[batch])
            bar.update()
    return [
        {
            "kind": TIME,
            "model": config,
            "seed": 0,
            "epochs": usual_epochs(config),
            "steps": built[config].num_steps(drawing),
            "batch_size": batch,
            "seconds": median(found),
            "dtype": dtype_name(next(built[config].parameters()).dtype),
            "machine": describe_machine(device),
        }
        for (config, drawing, batch), found in zip(cases, seconds, strict=True)
    ]


if __name__ == "__main__":
    run(main)
