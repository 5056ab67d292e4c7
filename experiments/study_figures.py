"""Draw the figures of the study from what it measured (docs/study.md).

    python -m experiments.study_figures --results docs/study.jsonl --output_dir docs

writes study_nll.png, the likelihood by order and steps per scale; study_steps.png, the distance by steps;
study_seconds.png, the distance by seconds an image; study_loss.png, the losses of the trainings by what they cost;
study_samples.png, images of each model, from the folder that experiments.study writes beside its results.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from experiments.study_facts import (
    NAMES,
    REAL,
    TIME,
    Key,
    Line,
    by_model,
    drawing_seconds,
    keys,
    name_of,
    picture_file,
    picture_folder,
    quiet_minutes,
    read_lines,
    warn_of_mixtures,
)
from experiments.study_plan import BATCH, PICTURED, usual_epochs
from experiments.tokens import PANELS
from experiments.tokens import draw as draw_courses
from runtime.command import run
from runtime.config import option, parse_flags
from runtime.pictures import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ORDERS = ("checkerboard_2x", "random_2x", "raster_2x")
COLOURS = {name: f"C{number}" for number, name in enumerate(NAMES)}
# Of the pictures, in turn.
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MARKERS = dict(zip(NAMES, "os^Dv<>Pp", strict=True))


@dataclass(frozen=True)
class FiguresArgs:
    """What to draw."""

    results: str = option("docs/study.jsonl", "JSON lines of experiments.study")
    output_dir: str = option("docs", "folder to write the pictures to")


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "experiments.study_figures", __doc__, FiguresArgs)
    results, folder = Path(args.results), Path(args.output_dir)
    lines = read_lines(results)
    warn_of_mixtures(lines)
    figures = {"nll": draw_likelihood(lines), "steps": draw_steps(lines), "seconds": draw_seconds(lines)}
    figures |= {"loss": draw_losses(lines), "samples": draw_pictures(picture_rows(results, lines))}
    for name, figure in figures.items():
        if figure is None:
            print(f"there is nothing yet that study_{name}.png shows")
        else:
            save_figure(figure, folder / f"study_{name}.png")
            print(folder / f"study_{name}.png")


def draw_likelihood(lines: Sequence[Line]) -> "Figure | None":
    """Nats a token of the finest scale against steps per scale, by order (Fig. 4c without its noise)."""
    figure, axes = _figure("steps per scale", "nats a token of the finest scale, test images")
    for key, found in by_model(lines, "likelihood").items():
        if key[0] in ORDERS:
            rows = sorted(found, key=lambda line: line["steps_per_scale"])
            ys = [line["finest_scale"]["nats_per_token"] for line in rows]
            _line(axes, key, [line["steps_per_scale"] for line in rows], ys)
    return _finished(figure, axes)


def draw_steps(lines: Sequence[Line]) -> "Figure | None":
    """Distance against all steps of an image (Fig. 5)."""
    figure, axes = _figure("steps of an image", _distance(lines))
    _draw_distances(axes, lines, lambda line, _: line["steps"])
    return _finished(figure, axes)


def draw_seconds(lines: Sequence[Line]) -> "Figure | None":
    """Distance against seconds an image (Table 1 as a picture): of many images at once, and of one alone."""
    from matplotlib.figure import Figure  # takes a second to import

    machines = sorted({line["machine"] for line in lines if line["kind"] == TIME})
    figure = Figure(figsize=(13.5, 5), layout="constrained")
    panels, seconds = figure.subplots(1, 2, sharey=True), drawing_seconds(lines)
    for axes, batch in zip(panels, (BATCH, 1), strict=True):
        found = {(config, steps): 1000 * s for (config, steps, at_once), s in seconds.items() if at_once == batch}
        label = f"{batch} at once" if batch > 1 else "alone"
        _set_up(axes, f"milliseconds an image, {label}", (10, (1, 1.5, 2, 3, 4, 6, 8)))
        _draw_distances(axes, lines, lambda line, key, found=found: found.get((key[0], line["steps"]), math.nan))
        if found:  # room at both sides: what differs by noise alone should look so
            axes.set_xlim(min(found.values()) / 1.5, max(found.values()) * 1.5)
    _number_points(panels[1], lines, found)
    panels[0].set_ylabel(_distance(lines))
    figure.supxlabel(f"on {'; '.join(machines)}", fontsize=8, color="gray", x=0.99, ha="right")
    return _finished(figure, *panels)


def draw_losses(lines: Sequence[Line]) -> "Figure | None":
    """Training losses by images, tokens, and minutes at the pace that was measured of a training step."""
    courses, looks = {}, {}
    for key, (line,) in by_model(lines, "course").items():
        arrays = {name: np.array(line[name.replace(" ", "_")]) for name in (*PANELS[:2], "loss", "side")}
        courses[name_of(*key)] = arrays | {PANELS[2]: quiet_minutes(lines, line)}
        looks[name_of(*key)] = _look(*key)
    return draw_courses(courses, smoothing=1, looks=looks) if courses else None


def picture_rows(results: Path, lines: Sequence[Line]) -> dict[str, Path]:
    """Pictures by what they show: real images, then each model's, with how they were drawn."""
    rows = {label: picture_folder(results) / f"{name}.png" for name, label in REAL.items()}
    drawings = by_model(lines, "pictures")
    for key in keys(lines):
        if key[1] == 0:
            how = [f"{line['steps']} steps, guidance {line['cfg']:g}" for line in drawings.get(key, [])]
            rows["\n".join([name_of(*key), *how])] = picture_file(results, *key)
    return rows


def draw_pictures(rows: Mapping[str, Path]) -> "Figure | None":
    """The pictures that are there, below each other: the same classes in each, and beside it what it shows."""
    from matplotlib.figure import Figure  # takes a second to import

    shown = {label: file for label, file in rows.items() if file.exists()}
    if not shown:
        return None
    figure = Figure(figsize=(13.5, 0.72 * len(shown)), layout="constrained")
    for axes, (label, file) in zip(figure.subplots(len(shown), squeeze=False)[:, 0], shown.items(), strict=True):
        axes.imshow(Image.open(file))
        axes.set(xticks=[], yticks=[])
        axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    first, width = figure.axes[0], Image.open(next(iter(shown.values()))).width / PICTURED
    names = [CLASSES[number % len(CLASSES)] for number in range(PICTURED)]
    first.xaxis.tick_top()
    first.set_xticks([width * (number + 0.5) for number in range(PICTURED)], names, fontsize=8)
    first.tick_params(length=0)
    return figure


def _distance(lines: Sequence[Line]) -> str:
    count = max((line["num_samples"] for line in lines if line["kind"] == "samples"), default=0)
    return f"FD-cifar10-{count}"


def _draw_distances(axes: "Axes", lines: Sequence[Line], x_of: Callable[[Line, Key], float]) -> None:
    for key, found in by_model(lines, "samples").items():
        rows = sorted(found, key=lambda line: line["steps"])
        _line(axes, key, [x_of(line, key) for line in rows], [line["distance"] for line in rows])


def _number_points(axes: "Axes", lines: Sequence[Line], seconds: Mapping[tuple[str, int], float]) -> None:
    """The steps of each point, in small print; ``seconds`` by configuration and steps."""
    for (config, _, _), found in by_model(lines, "samples").items():
        for line in found:
            x = seconds.get((config, line["steps"]))
            if x is not None:
                style = {"fontsize": 6, "color": COLOURS[config], "textcoords": "offset points"}
                axes.annotate(str(line["steps"]), (x, line["distance"]), xytext=(4, 4), **style)


def _figure(x: str, y: str) -> tuple["Figure", "Axes"]:
    """Of one panel, over steps."""
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(9.5, 5), layout="constrained")
    axes = figure.subplots()
    _set_up(axes, x, (2, (1,)))
    axes.set_ylabel(y)
    return figure, axes


def _set_up(axes: "Axes", x: str, ticks: tuple[float, tuple[float, ...]]) -> None:
    """A logarithmic axis, and where numbers stand: at powers of a base, times these."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set(xlabel=x, xscale="log")
    axes.xaxis.set_major_locator(LogLocator(*ticks))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)


def _line(axes: "Axes", key: Key, xs: Sequence[float], ys: Sequence[float]) -> None:
    """One of a model: a colour and a mark for its configuration, dashed for another seed."""
    axes.plot(xs, ys, label=name_of(*key), marker=MARKERS[key[0]], markersize=5, **_look(*key))


def _look(config: str, seed: int, epochs: int) -> dict[str, Any]:
    linewidth = 2.5 if epochs > usual_epochs(config) else 1.3
    return {"color": COLOURS[config], "linestyle": "--" if seed else "-", "linewidth": linewidth}


def _finished(figure: "Figure", *panels: "Axes") -> "Figure | None":
    """None if it has no lines."""
    if not any(axes.lines for axes in panels):
        return None
    panels[-1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))  # beside the lines, over none
    return figure


if __name__ == "__main__":
    run(main)
