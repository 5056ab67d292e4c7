"""Compare models by their sweeps, over all steps and, where all have them, over steps per scale (paper Fig. 5).

    python -m experiments.compare --sweeps output/sweep/config_256_S,output/sweep/config_256_S_4x --output compare.png

Each point is the lowest distance over guidance; beside it, the mean score of the guidances whose distance is within 2 %
of it, from the least to the greatest. A dashed line is what real images have.
"""

import csv
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from experiments.sweep import TABLE_NAME, metric_names, real_value
from runtime.command import run
from runtime.config import option, parse_flags
from runtime.errors import UserError
from runtime.pictures import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEAR = 1.02  # times the lowest distance
# Columns of a sweep that must agree for distances to compare.
SAME = ("features", "backend", "reference_sha256", "inception_sha256", "classifier_sha256", "metrics_version")


@dataclass(frozen=True)
class CompareArgs:
    """What to draw."""

    sweeps: str | None = option(None, "folders of experiments.sweep, separated by commas")
    output: str = option("output/compare.png", "picture to write")


class Point(NamedTuple):
    """A model at one number of steps: the lowest distance over guidance, and the scores of the guidances near it."""

    steps: int
    steps_per_scale: int | None  # None of a model that has no such setting
    distance: float
    scores: tuple[float, ...]  # NaN alone where none was measured


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "experiments.compare", __doc__, CompareArgs)
    if args.sweeps is None:
        raise UserError("name the --sweeps to compare, folders separated by commas")
    tables = {str(Path(folder)): read_table(Path(folder)) for folder in args.sweeps.split(",")}
    names = {metric_names(rows) for rows in tables.values()}
    if len(names) > 1:
        raise UserError(f"the sweeps measured different things, {' and '.join(sorted(d for d, _ in names))}")
    distance, score = names.pop()
    for message in differences(tables):
        warnings.warn(message, stacklevel=2)
    points = {name: best_points(rows, distance, score) for name, rows in tables.items()}
    for name, line in points.items():
        for point in line:
            print(f"{name}, {point.steps} steps: {distance} {point.distance:.4g}, {score} {fmean(point.scores):.4g}")
    figure, row = draw_comparison(points, distance, score), next(iter(tables.values()))[0]
    for panel in figure.axes:  # the distances' and the scores', in their rows
        real = real_value(row, distance if panel.get_subplotspec().is_first_row() else score)
        if real is not None:
            panel.axhline(real, color="black", linestyle="--", label="real images")
    figure.axes[len(figure.axes) // 2 - 1].legend(fontsize=8)
    save_figure(figure, args.output)
    print(args.output)


def read_table(folder: Path) -> list[dict[str, str]]:
    """The rows of a sweep."""
    path = folder / TABLE_NAME
    if not path.is_file():
        raise UserError(f"no such file: {path}; name folders that experiments.sweep wrote")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise UserError(f"{path} is empty; run its sweep again")
    if not {"cfg", "steps"} <= rows[0].keys():
        raise UserError(f"{path} is no table of experiments.sweep; run its sweep again")
    return rows


def differences(tables: dict[str, list[dict[str, str]]]) -> Iterator[str]:
    """A sentence on each thing that must be the same for distances to compare, and is not."""
    for name in SAME:
        found = {folder: rows[0].get(name) for folder, rows in tables.items()}
        if len(set(found.values())) > 1:
            told = ", ".join(f"{value or 'none'} in {folder}" for folder, value in found.items())
            yield f"the sweeps differ in {name} ({told}): their distances do not compare"


def best_points(rows: Sequence[dict[str, str]], distance: str, score: str) -> list[Point]:
    """One for each number of steps, in order."""
    points = []
    for steps in sorted({int(row["steps"]) for row in rows}):
        at_steps = [row for row in rows if int(row["steps"]) == steps]
        per_scale = at_steps[0].get("steps_per_scale")
        lowest = min(float(row[distance]) for row in at_steps)
        near = [row for row in at_steps if float(row[distance]) <= NEAR * lowest]
        scores = tuple(float(row[score]) for row in near if row[score])
        points.append(Point(steps, None if per_scale is None else int(per_scale), lowest, scores or (math.nan,)))
    return points


def draw_comparison(points: dict[str, list[Point]], distance: str, score: str) -> "Figure":
    """Distances above scores, over steps per scale at the left and over all steps at the right; a line a model."""
    from matplotlib.figure import Figure  # takes a second to import

    labels = {"steps_per_scale": "steps per scale", "steps": "steps in all"}
    if any(point.steps_per_scale is None for line in points.values() for point in line):
        del labels["steps_per_scale"]
    figure = Figure(figsize=(4.5 * len(labels), 6.5), layout="constrained")
    panels = figure.subplots(2, len(labels), sharex="col", sharey="row", squeeze=False)
    for (above, below), (key, label) in zip(panels.T, labels.items(), strict=True):
        for name, line in points.items():
            xs = [getattr(point, key) for point in line]
            above.plot(xs, [point.distance for point in line], marker="o", label=name)
            means = [fmean(point.scores) for point in line]
            down = [mean - min(point.scores) for mean, point in zip(means, line, strict=True)]
            up = [max(point.scores) - mean for mean, point in zip(means, line, strict=True)]
            below.errorbar(xs, means, (down, up), marker="o", capsize=3)
        below.set_xlabel(label)
    panels[0, 0].set_ylabel(distance)
    panels[1, 0].set_ylabel(score)
    for panel in panels.flat:
        panel.grid(alpha=0.3)
        panel.locator_params(axis="x", integer=True)
    return figure


if __name__ == "__main__":
    run(main)
