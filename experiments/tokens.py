"""Draw the losses of runs against what they cost: images seen, tokens computed, seconds.

    python -m experiments.tokens --runs output/llamagen_cifar10,output/npp_cifar10 --output tokens.png

A stage of Next Patch Prediction is a dashed line: it predicts the codes of a whole patch alike, from less, so that its
losses compare with no others.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.curves import read_events, smooth, without_lost
from runtime.command import run
from runtime.config import option, parse_flags
from runtime.errors import UserError
from runtime.pictures import save_figure

PANELS = ("images seen", "tokens computed", "minutes")


@dataclass(frozen=True)
class TokensArgs:
    """What to draw."""

    runs: str | None = option(None, "run folders of main.py, separated by commas")
    output: str = option("output/tokens.png", "picture to write")
    smoothing: int = option(9, "log entries that each point is the mean of")


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "experiments.tokens", __doc__, TokensArgs)
    if args.runs is None or args.smoothing < 1:
        raise UserError("name the --runs to compare, folders separated by commas, and a --smoothing of at least 1")
    courses = {str(Path(name)): course(Path(name)) for name in args.runs.split(",")}
    for name, found in courses.items():
        costs = ", ".join(f"{found[key][-1]:,.4g} {key}" for key in PANELS)
        print(f"{name}: loss {found['loss'][-args.smoothing :].mean():.3f} after {costs}")
    save_figure(draw(courses, args.smoothing), args.output)
    print(args.output)


def course(folder: Path) -> dict[str, np.ndarray]:
    """What a run had cost at each log entry, its loss, and the side of the patches it learned from.

    Each start of a run is logged with the images of its steps; the time between a stop and a start does not count.
    Steps between the last entry and a stop have left none: they count with the pace of those before. Steps that were
    lost, because a run was killed and went on from an earlier checkpoint, do not count.
    """
    images = tokens = minutes = pace = 0.0
    at, images_a_step, share, per_image = None, 0, 1.0, _tokens_an_image(folder)
    rows: dict[int, list[float]] = {}
    for entry in read_events(folder):
        starts, trained = entry.get("event") == "start", 0 if at is None else entry.get("step", 0) - at[0]
        if not starts and ("lr" not in entry or at is None):
            continue
        computed = trained * share
        if not starts:
            before, share = share, entry.get("patch_side", 1.0) ** -2
            new = min(trained, _steps_of_epoch(entry)) if rows and share != before else trained
            computed = new * share + (trained - new) * before
            pace = (entry["time"] - at[1]) / 60 / max(1, trained)
        images, minutes = images + trained * images_a_step, minutes + trained * pace
        tokens += computed * images_a_step * per_image
        at = (entry["step"], entry["time"])
        if starts:
            images_a_step = entry.get("images_a_step", 0)
            rows = without_lost(rows, entry)
        else:
            rows[entry["step"]] = [images, tokens, minutes, entry["loss"], share**-0.5]
    if not rows:
        raise UserError(f"{folder / 'log.jsonl'} holds no metrics yet; train longer")
    if not images:
        raise UserError(f"{folder / 'log.jsonl'} does not say how many images a step has; train anew")
    return dict(zip((*PANELS, "loss", "side"), np.array(list(rows.values())).T, strict=True))


def _steps_of_epoch(entry: Mapping[str, Any]) -> float:
    """How many steps of its epoch a log entry has behind it; where its stage is new, those of that stage."""
    return entry["step"] * (1 - (math.ceil(entry["epoch"]) - 1) / entry["epoch"])


def _tokens_an_image(folder: Path) -> int:
    """Those that the run's model computes in training."""
    from models.loading.autoencoder import load_autoencoder
    from models.loading.checkpoint import CHECKPOINT_NAME, read_model_config

    config = read_model_config(folder / CHECKPOINT_NAME)
    stride = load_autoencoder(config.autoenc, folder).config.stride
    return config.sequence_length(stride)


def draw(
    courses: dict[str, dict[str, np.ndarray]], smoothing: int, looks: Mapping[str, dict[str, Any]] | None = None
) -> Any:
    """A panel for each cost, a colour for each run; or ``looks``, what matplotlib takes for its lines."""
    from matplotlib.figure import Figure  # takes a second to import
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(4.2 * len(PANELS), 4), layout="constrained")
    for axes, cost in zip(figure.subplots(1, len(PANELS), sharey=True), PANELS, strict=True):
        for number, (name, found) in enumerate(courses.items()):
            for side in dict.fromkeys(found["side"].tolist()):
                chosen = found["side"] == side
                xs, ys = found[cost][chosen], smooth(found["loss"][chosen].tolist(), smoothing)
                label = name if side == 1 else f"{name}, patches of {side:g} x {side:g}"
                look = {"color": f"C{number}", "linestyle": "-"} | (looks or {}).get(name, {})
                look |= ({} if side == 1 else {"linestyle": "--"}) | {"marker": "o" if len(xs) < 5 else ""}
                axes.plot(xs, ys, label=label, **look)
        axes.set_xlabel(cost)
        axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("training loss (nats a token)")
    figure.axes[-1].legend(fontsize=8)
    return figure


if __name__ == "__main__":
    run(main)
