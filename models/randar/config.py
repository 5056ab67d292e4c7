"""Settings of RandAR: of the model, and of a drawing. Without torch: --help answers before it is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

from models.config import CFG_HELP, MAX_CFG, Drawing, Schedule, at_scale
from models.llamagen.config import LlamaGenConfig
from models.randar.schedule import parallel_schedule
from runtime.config import option
from runtime.errors import UserError, check_probabilities

USUAL_STEPS = 88  # of the released models


@dataclass(frozen=True)
class RandARConfig(LlamaGenConfig):
    """The ``model:`` section of a configuration: LlamaGen's, and the order of training."""

    architecture: Literal["randar"] = "randar"
    scan_order: Literal["random", "raster"] = option(
        "random", "random: a fresh permutation for each image and step; or raster"
    )

    def sequence_length(self, stride: int | None) -> int:
        return 2 * super().sequence_length(stride)  # before each code a token says where it is


@dataclass(frozen=True)
class RandARDrawing(Drawing):
    """What decides a drawing."""

    cfg: Schedule = option(3.0, CFG_HELP)
    steps: int = option(
        0,
        f"steps of an image; 0 is {USUAL_STEPS}, or one code a step where there are fewer codes or with upscale 2; "
        "-1 is one code a step",
    )
    cfg_schedule: Literal["constant", "linear"] = option(
        "linear", "guidance is cfg at every step, or grows to it with the share of codes that are drawn"
    )
    draw_order: Literal["model", "raster", "random"] = option(
        "model", "order of the codes: that of the model's training, or another, in which it may draw worse"
    )
    upscale: int = option(1, "2 draws images of twice the side that the model was trained on")
    spatial_cfg: float = option(
        1.5, "of upscale 2: guidance away from an image that lacks some of the first codes; 0 is off"
    )
    spatial_ratio: float = option(0.5, "of upscale 2: share of the first codes that it lacks")

    def sampled_sizes(self, scale_sizes: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.upscale * side for side in scale_sizes)

    def schedule(self, num_locations: int, num_known: int = 0) -> tuple[int, ...]:
        """Codes of each step, for as many locations of which some are known."""
        usual = USUAL_STEPS if self.upscale == 1 else -1
        return parallel_schedule(num_locations, self.steps or usual, num_known)

    def first_stage(self) -> Self:
        """Of an image of twice the side, the drawing of its even locations, by the same number of steps."""
        return replace(self, upscale=1, steps=self.steps or -1)

    def warnings(self, scale_sizes: Sequence[int]) -> list[str]:
        usual = RandARDrawing
        idle = [name for name in ("spatial_cfg", "spatial_ratio") if getattr(self, name) != getattr(usual, name)]
        return [f"{name} has no effect without upscale 2" for name in idle if self.upscale == 1]

    def check(self, scale_sizes: Sequence[int]) -> None:
        super().check(scale_sizes)
        if at_scale(self.cfg, 0) < 0:
            raise UserError(f"cfg is {self.cfg}; it must not be negative, 0 for no guidance")
        if self.upscale not in (1, 2):
            raise UserError(f"upscale is {self.upscale}; it must be 1 or 2")
        if not 0 <= self.spatial_cfg <= MAX_CFG:
            raise UserError(f"spatial_cfg is {self.spatial_cfg}; it must lie between 0, for none, and {MAX_CFG}")
        check_probabilities(self, "spatial_ratio")
        num_codes = sum(side * side for side in self.sampled_sizes(scale_sizes))
        if not -1 <= self.steps <= num_codes:
            raise UserError(
                f"steps is {self.steps}, but an image has {num_codes} codes; set 1 to {num_codes}, or -1 for one code "
                "a step"
            )
