"""Draw the scan orders: the step that draws each location of every scale (paper Fig. 3).

    python -m experiments.orders --scale_sizes '[1,2,4,8]' --steps_per_scale 4 --output output/orders.png

S is the side of a scale. A step draws one block of locations at once; steps count over all scales, from 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np

from models.checkerboard.order import ScanOrder, sampling_blocks
from models.config import check_seed
from runtime.command import run
from runtime.config import option, parse_flags
from runtime.errors import UserError
from runtime.pictures import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = 1.9  # inches
LARGEST_NUMBERED = 16  # side; the numbers of a larger one cannot be read


@dataclass(frozen=True)
class OrdersArgs:
    """What to draw."""

    scale_sizes: tuple[int, ...] = option((1, 2, 4, 8), "sides of the scales, from coarse to fine")
    steps_per_scale: int = option(4, "steps of each scale")
    seed: int = option(0, "of the random order, which differs from image to image")
    output: str = option("output/orders.png", "picture to write")

    def __post_init__(self) -> None:
        check_seed(self.seed, "seed")


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "experiments.orders", __doc__, OrdersArgs)
    sides = args.scale_sizes
    if not sides or sides[0] < 1 or list(sides) != sorted(set(sides)):
        raise UserError("--scale_sizes are the sides of the scales, from coarse to fine, such as '[1,2,4,8]'")
    orders = {order: step_maps(order, sides, args.steps_per_scale, args.seed) for order in get_args(ScanOrder)}
    save_figure(draw(orders), args.output)
    print(f"{args.output}: {1 + max(int(maps[-1].max()) for maps in orders.values())} steps")


def step_maps(order: ScanOrder, scale_sizes: Sequence[int], steps_per_scale: int, seed: int) -> list[np.ndarray]:
    """The step, counted over all scales from 0, of each location: a map (S, S) for each scale."""
    import torch  # takes seconds to import

    from models.checkerboard.layout import fixed_positions, make_layout, random_positions
    from models.scales import split_scales

    if order == "random":
        count = sum(side * side for side in scale_sizes)
        positions = random_positions(scale_sizes, torch.rand(1, count, generator=torch.Generator().manual_seed(seed)))
    else:
        positions = fixed_positions(scale_sizes, order)
    layout = make_layout(scale_sizes, sampling_blocks(scale_sizes, steps_per_scale), positions)
    return [steps[0].numpy() for steps in split_scales(layout.step_of_location(), scale_sizes)]


def draw(orders: dict[str, list[np.ndarray]]) -> "Figure":
    """A row for each order, a panel for each scale."""
    from matplotlib.figure import Figure  # takes a second to import

    rows, columns = len(orders), len(next(iter(orders.values())))
    figure = Figure(figsize=(PANEL * columns + 0.3, PANEL * rows + 0.3), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for row, (order, maps) in zip(panels, orders.items(), strict=True):
        row[0].set_ylabel(order, fontsize=11)
        for axes, steps in zip(row, maps, strict=True):
            draw_map(axes, steps)
    for axes, steps in zip(panels[0], next(iter(orders.values())), strict=True):
        axes.set_title(f"{len(steps)} x {len(steps)}", fontsize=11)
    return figure


def draw_map(axes: "Axes", steps: np.ndarray) -> None:
    """One scale: darker is later, and the number is the step."""
    first, last, side = steps.min(), steps.max(), len(steps)
    axes.imshow(steps, cmap="Blues", vmin=first - 0.3 * (last - first + 1), vmax=last + 0.3 * (last - first + 1))
    axes.set(xticks=np.arange(0.5, side - 1), yticks=np.arange(0.5, side - 1), xticklabels=[], yticklabels=[])
    axes.grid(color="white", linewidth=1)
    axes.tick_params(length=0)
    if side <= LARGEST_NUMBERED:
        for (y, x), step in np.ndenumerate(steps):
            dark = step > (first + last) / 2
            axes.text(x, y, str(step + 1), ha="center", va="center", size=min(11, 80 / side),
                      color="white" if dark else "black")  # fmt: skip


if __name__ == "__main__":
    run(main)
