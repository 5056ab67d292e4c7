"""Draw the losses of runs against what they cost: images seen, tokens computed, seconds.

    python -m experiments.tokens --runs output/llamagen_cifar10,output/npp_cifar10 --output tokens.png

A stage of Next Patch Prediction is a dashed line: it predicts the codes of a whole patch alike, from less, so that its
losses compare with no others. Seconds are between the log's entries, pauses of more than a minute left out.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.curves import read_steps, smooth
from runtime.command import run
from runtime.config import option, parse_flags, read_yaml
from runtime.errors import UserError

LONGEST_STEP = 60.0  # seconds between entries; a longer pause is not training
PANELS = ("images seen", "tokens computed", "minutes")


@dataclass(frozen=True)
class TokensArgs:
    """What to draw."""

    runs: str | None = option(None, "run folders of main.py, separated by commas")
    output: str = option("tokens.png", "picture to write")
    smoothing: int = option(9, "log entries that each point is the mean of")


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "experiments.tokens", __doc__, TokensArgs)
    if args.runs is None or args.smoothing < 1:
        raise UserError("name the --runs to compare, folders separated by commas, and a --smoothing of at least 1")
    courses = {Path(name).name: course(Path(name)) for name in args.runs.split(",")}
    for name, found in courses.items():
        costs = ", ".join(f"{found[key][-1]:,.4g} {key}" for key in PANELS)
        print(f"{name}: loss {smooth(found['loss'].tolist(), args.smoothing)[-1]:.3f} after {costs}")
    draw(courses, args.smoothing).savefig(args.output, dpi=110)
    print(args.output)


def course(folder: Path) -> dict[str, np.ndarray]:
    """What a run had cost at each log entry, its loss, and the side of the patches it learned from."""
    steps, settings = read_steps(folder), read_yaml(folder / "config.yaml")["args"]
    images_a_step = settings["batch_size"] * settings["accum_steps"] * _num_ranks(folder)
    images = np.array([step["step"] for step in steps], float) * images_a_step
    share = np.array([step.get("tokens_share", 1.0) for step in steps])
    pauses = np.diff([step["time"] for step in steps], prepend=steps[0]["time"])
    return {
        "images seen": images,
        "tokens computed": images * share * _tokens_an_image(folder),
        "minutes": np.cumsum(np.where(pauses < LONGEST_STEP, pauses, 0)) / 60,
        "loss": np.array([step["loss"] for step in steps]),
        "side": np.array([step.get("patch_side", 1.0) for step in steps]),
    }


def _num_ranks(folder: Path) -> int:
    """Ranks that the run began with; a run that goes on with others has as many images a step."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return next((json.loads(line)["ranks"] for line in lines if '"ranks"' in line), 1)


def _tokens_an_image(folder: Path) -> int:
    """Codes of all scales of the run's model."""
    from models.loading.autoencoder import load_autoencoder
    from models.loading.checkpoint import CHECKPOINT_NAME, read_model_config

    config = read_model_config(folder / CHECKPOINT_NAME)
    stride = load_autoencoder(config.autoenc, folder).config.stride
    return sum(side * side for side in config.scale_sizes(stride))


def draw(courses: dict[str, dict[str, np.ndarray]], smoothing: int) -> Any:
    """A panel for each cost, a colour for each run."""
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(4.2 * len(PANELS), 4), layout="constrained")
    for axes, cost in zip(figure.subplots(1, len(PANELS), sharey=True), PANELS, strict=True):
        for number, (name, found) in enumerate(courses.items()):
            for side in dict.fromkeys(found["side"].tolist()):
                chosen = found["side"] == side
                xs, ys = (smooth(found[key][chosen].tolist(), smoothing) for key in (cost, "loss"))
                label = name if side == 1 else f"{name}, patches of {side:g} x {side:g}"
                axes.plot(xs, ys, color=f"C{number}", linestyle="-" if side == 1 else "--", label=label)
        axes.set_xlabel(cost)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("training loss (nats a token)")
    figure.axes[-1].legend(fontsize=8)
    return figure


if __name__ == "__main__":
    run(main)
