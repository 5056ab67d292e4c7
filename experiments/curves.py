"""Draw the course of a run: loss and accuracy of each scale by epoch, held-out loss, and its last grid of samples.

python -m experiments.curves --run output/config_cifar10 --output curves.png
"""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.command import run
from runtime.config import option, parse_flags
from runtime.errors import UserError
from runtime.pictures import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEW = 10  # points; a line through one is invisible
PANELS = (("loss_scale_", "loss (nats a token)"), ("accuracy_scale_", "top-1 accuracy"))


@dataclass(frozen=True)
class CurvesArgs:
    """What to draw."""

    run: str | None = option(None, "run folder of main.py")
    output: str = option("output/curves.png", "picture to write")
    smoothing: int = option(5, "log entries that each point is the mean of")


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "experiments.curves", __doc__, CurvesArgs)
    if args.run is None or args.smoothing < 1:
        raise UserError("name the --run to draw, and a --smoothing of at least 1")
    folder = Path(args.run)
    grid = max((folder / "samples").glob("epoch_*.png"), default=None)
    save_figure(draw(read_steps(folder), read_held_out(folder), grid, args.smoothing), args.output)
    print(args.output)


def read_events(folder: Path) -> list[dict[str, Any]]:
    """All entries of a run's log, in order."""
    path = folder / "log.jsonl"
    if not path.is_file():
        raise UserError(f"no such file: {path}; name the folder of a run of main.py")
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(json.JSONDecodeError):  # a line that a kill or a full disk cut short
            entries.append(json.loads(line))
    return [entry for entry in entries if isinstance(entry, dict)]


def read_steps(folder: Path) -> list[dict[str, float]]:
    """What a run logged of its steps, in order, but for those that were lost."""
    entries = _entries_with("lr", folder)
    if not entries:
        raise UserError(f"{folder / 'log.jsonl'} holds no metrics; train longer, or with a lower --log_freq")
    return entries


def without_lost(by_step: Mapping[int, Any], start: Mapping[str, Any]) -> dict[int, Any]:
    """What stays of a run that was killed, or begun anew, when it starts from an earlier step than it had come to."""
    return {step: kept for step, kept in by_step.items() if step <= start["step"]}


def read_held_out(folder: Path) -> list[dict[str, float]]:
    """What a run logged of held-out images, in order, but for what was lost."""
    return _entries_with("val_loss", folder)


def _entries_with(name: str, folder: Path) -> list[dict[str, float]]:
    by_step: dict[int, dict[str, float]] = {}
    for entry in read_events(folder):
        if entry.get("event") == "start":
            by_step = without_lost(by_step, entry)
        elif name in entry:
            by_step[entry["step"]] = entry
    return [by_step[step] for step in sorted(by_step)]


def draw(
    entries: Sequence[dict[str, float]], held_out: Sequence[dict[str, float]], grid: Path | None, smoothing: int
) -> "Figure":
    """A panel each for loss and accuracy, with a line a scale; beside them the grid, if there is one.

    Of a model of one scale there is one line. The loss of held-out images is one more, beside the mean of all scales.
    """
    from matplotlib.figure import Figure  # takes a second to import
    from matplotlib.image import imread

    figure = Figure(figsize=(12 if grid else 8, 4), layout="constrained")
    panels = figure.subplots(1, 3 if grid else 2)
    epochs = [entry["epoch"] for entry in entries]
    for axes, (prefix, label) in zip(panels, PANELS, strict=False):
        sides = [key.removeprefix(prefix) for key in entries[0] if key.startswith(prefix)]
        lines = {f"{prefix}{side}": f"{side} x {side}" for side in sides}
        for name, scale in (lines or {prefix.removesuffix("_scale_"): "all codes"}).items():
            means = smooth([entry.get(name, math.nan) for entry in entries], smoothing)
            axes.plot(epochs, means, marker="o" if len(means) < FEW else None, label=scale)
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
    if held_out:
        if len(panels[0].lines) > 1:  # one for each scale
            means = smooth([entry.get("loss", math.nan) for entry in entries], smoothing)
            panels[0].plot(epochs, means, color="black", linewidth=1, label="all codes")
        x, y = ([entry[name] for entry in held_out] for name in ("epoch", "val_loss"))
        panels[0].plot(x, y, color="black", marker="x", linestyle="dashed", label="all, held out")
    panels[0].legend(title="scale", fontsize=8)
    if grid:
        panels[2].imshow(imread(grid))
        panels[2].axis("off")
    return figure


def smooth(values: Sequence[float], count: int) -> np.ndarray:
    """Each value's mean with its neighbours, ``count`` in all; towards both ends of fewer, as many at each side.

    NaN stays NaN, and counts for no neighbour.
    """
    found, number = np.array(values, float), len(values)
    place, there = np.arange(number), np.isfinite(found)
    reach = np.minimum.reduce([np.full(number, count // 2), place, number - 1 - place])
    sums, counts = (np.cumsum([0.0, *part]) for part in (np.where(there, found, 0), there))
    total, terms = (part[place + reach + 1] - part[place - reach] for part in (sums, counts))
    return np.where(there, total / np.maximum(terms, 1), np.nan)


if __name__ == "__main__":
    run(main)
