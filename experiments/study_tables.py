"""Print the tables of the study from what it measured, in Markdown (docs/study.md).

    python -m experiments.study_tables --results docs/study.jsonl

They are: each model at its best number of steps, beside what it costs; the losses at equal cost; the distances of all
numbers of steps; the likelihood by order and steps per scale.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.study_facts import (
    Line,
    by_model,
    drawing_seconds,
    name_of,
    quiet_minutes,
    read_lines,
    warn_of_mixtures,
)
from experiments.study_plan import BATCH
from runtime.command import run
from runtime.config import option, parse_flags

Row = Sequence[str]
COSTS = ("model", "tokens an image, mean", "tokens computed, millions", "minutes of training")
BEST = ("steps", "guidance", "FD-cifar10", "class accuracy", f"ms an image, {BATCH} at once", "alone")


@dataclass(frozen=True)
class TablesArgs:
    """What to print."""

    results: str = option("docs/study.jsonl", "JSON lines of experiments.study to print")


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "experiments.study_tables", __doc__, TablesArgs)
    lines = read_lines(Path(args.results))
    warn_of_mixtures(lines)
    print(markdown([(*COSTS, *BEST), *_best_rows(lines)]))
    print()
    if by_model(lines, "course"):
        print(markdown(_equal_cost_rows(lines)))
        print()
    print(markdown([("model", "FD-cifar10, by steps of an image"), *_distance_rows(lines)]))
    print()
    print(markdown(_likelihood_rows(lines)))


def markdown(rows: Iterable[Row]) -> str:
    """A table, whose first row is its head."""
    head, *rest = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|" + "---|" * (head.count("|") - 1), *rest])


def _best_rows(lines: Sequence[Line]) -> Iterator[Row]:
    """A model at its lowest distance; before it what its training cost, at the pace of a quiet machine."""
    courses, seconds = by_model(lines, "course"), drawing_seconds(lines)
    for key, found in by_model(lines, "samples").items():
        best = min(found, key=lambda line: line["distance"])
        yield (
            name_of(*key),
            *_costs(lines, courses.get(key)),
            *_drawing(best),
            *(_number(1000 * seconds.get((key[0], best["steps"], batch), math.nan), 1) for batch in (BATCH, 1)),
        )


def _costs(lines: Sequence[Line], course: Sequence[Line] | None) -> Row:
    if course is None:
        return ("-",) * 3
    images, tokens = (course[0][name][-1] for name in ("images_seen", "tokens_computed"))
    return f"{tokens / images:.0f}", f"{tokens / 1e6:.1f}", _number(quiet_minutes(lines, course[0])[-1], 0)


def _equal_cost_rows(lines: Sequence[Line]) -> Iterator[Row]:
    """Training losses at the end, and where the cheapest training ended: after its tokens, and its quiet minutes."""
    courses = {key: course for key, (course,) in by_model(lines, "course").items()}
    minutes = {key: quiet_minutes(lines, course) for key, course in courses.items()}
    tokens = min(course["tokens_computed"][-1] for course in courses.values())
    least = min((found[-1] for found in minutes.values() if not math.isnan(found[-1])), default=math.nan)
    fewest = f"{tokens / 1e6:.1f} million tokens", f"{_number(least, 0)} minutes"
    yield "training loss", "at the end", *(f"after {cost}" for cost in fewest)
    for key, course in courses.items():
        by_tokens = _loss_at(course, np.array(course["tokens_computed"]), tokens)
        by_minutes = _loss_at(course, minutes[key], least)
        yield name_of(*key), *(_number(loss, 3) for loss in (course["loss"][-1], by_tokens, by_minutes))


def _loss_at(course: Line, cost: np.ndarray, spent: float) -> float:
    """The loss on single codes when so much was spent; NaN if the costs are not known, or it learned from patches."""
    single = np.array(course["side"]) == 1
    if not single.any() or np.isnan([*cost, spent]).any():
        return math.nan
    return float(np.interp(spent, cost[single], np.array(course["loss"])[single], left=math.nan))


def _drawing(line: Line) -> Row:
    accuracy = math.nan if line["accuracy"] is None else line["accuracy"]
    return str(line["steps"]), f"{line['cfg']:g}", f"{line['distance']:.2f}", _number(accuracy, 3)


def _distance_rows(lines: Sequence[Line]) -> Iterator[Row]:
    for key, found in by_model(lines, "samples").items():
        rows = sorted(found, key=lambda line: line["steps"])
        yield name_of(*key), ", ".join(f"{line['steps']}: {line['distance']:.2f}" for line in rows)


def _likelihood_rows(lines: Sequence[Line]) -> Iterator[Row]:
    """Of the finest scale of test images; a model that is scored code by code has one value."""
    found = by_model(lines, "likelihood")
    columns = sorted({line["steps_per_scale"] or 0 for rows in found.values() for line in rows})
    yield "nats a token", *(f"{steps} steps per scale" if steps else "code by code" for steps in columns)
    for key, rows in found.items():
        nats = {line["steps_per_scale"] or 0: line["finest_scale"]["nats_per_token"] for line in rows}
        yield name_of(*key), *(_number(nats.get(steps, math.nan), 3) for steps in columns)


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


if __name__ == "__main__":
    run(main)
