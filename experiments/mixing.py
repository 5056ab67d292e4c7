"""Draw what a model has learned to mix into its keys' rotations, layer by head (paper Sec. 4.4, Table 2b).

    python -m experiments.mixing --checkpoint output/quickstart --output mixing.png

A coefficient above 0 favours the location that a token predicts, one below 0 the location whose code it is told.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from models.config import CHECKPOINT_HELP
from runtime.command import run
from runtime.config import option, parse_flags
from runtime.errors import UserError
from runtime.pictures import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class MixingArgs:
    """What to draw."""

    checkpoint: str | None = option(None, CHECKPOINT_HELP)
    use_ema: bool = option(False, "take the averaged weights of the checkpoint")
    output: str = option("output/mixing.png", "picture to write")


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "experiments.mixing", __doc__, MixingArgs)
    if args.checkpoint is None:
        raise UserError("name the --checkpoint whose mixing to draw")
    from models.checkerboard.model import Checkerboard  # takes seconds to import
    from models.loading.checkpoint import load_checkpoint

    model = load_checkpoint(args.checkpoint, use_ema=args.use_ema)
    coeffs = model.rope.mixing_coeffs if isinstance(model, Checkerboard) else None
    if coeffs is None:
        raise UserError(f"{args.checkpoint} mixes no rotations (num_mixing_layers 0); there is nothing to draw")
    for layer, values in enumerate(coeffs):
        share = values.sigmoid().mean()
        print(f"layer {layer}: {share:.1%} of the location that a token predicts, mean over {len(values)} heads")
    save_figure(draw(coeffs.detach().float().numpy()), args.output)
    print(args.output)


def draw(coeffs: np.ndarray) -> "Figure":
    """A picture of coefficients (layers, heads), before the sigmoid; blue below 0, red above."""
    from matplotlib.figure import Figure

    layers, heads = coeffs.shape
    figure = Figure(figsize=(2 + 0.25 * heads, 1.5 + 0.25 * layers), layout="constrained")
    axes = figure.add_subplot(xlabel="head", ylabel="layer")
    limit = float(np.abs(coeffs).max()) or 1.0
    shown = axes.imshow(coeffs, cmap="bwr", vmin=-limit, vmax=limit)
    axes.locator_params(integer=True)
    figure.colorbar(shown, ax=axes, label="coefficient before the sigmoid")
    return figure


if __name__ == "__main__":
    run(main)
