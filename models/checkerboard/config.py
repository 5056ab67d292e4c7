"""Settings of the checkerboard: of the model, and of a drawing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

from models.checkerboard.order import Blocks, Remainder, ScanOrder, sampling_blocks
from models.config import Drawing, GeneratorConfig, TransformerConfig, at_scale
from runtime.config import option
from runtime.errors import UserError, check_probabilities


@dataclass(frozen=True)
class CheckerboardConfig(GeneratorConfig):
    """The ``model:`` section of a configuration, the published schema."""

    architecture: Literal["checkerboard"] = "checkerboard"
    scale_ratio: float = option(2.0, "side of a scale over the side of the one before it")
    scale_min_size: int = option(1, "a scale of this side is there, and at most one smaller")
    single_scale: bool = option(False, "predict the largest scale alone")
    random_block_size: bool = option(True, "draw block sizes in training; false trains with 8 steps a scale")
    random_replace: float = option(0.1, "probability, in training, that an input code is replaced by a random one")
    random_replace_sampled: bool = option(False, "replace codes of the previous block instead of the previous scale")
    label_drop: float = option(0.1, "probability, in training, that a label is dropped to unconditional")
    use_head_mlp: bool = option(False, "add an MLP of the codebook to the output weights")
    scan_order: ScanOrder = option(
        "checkerboard", "checkerboard, raster, or random: a fresh permutation for each image and scale"
    )
    num_mixing_layers: int | Literal["all"] | None = option(
        None, "layers whose keys mix two positions: a number from the first on; null or all for every layer"
    )
    llama_config: TransformerConfig = option(TransformerConfig, "size of the transformer")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_probabilities(self, "random_replace", "label_drop")
        layers = self.num_mixing_layers
        if isinstance(layers, int) and not 0 <= layers <= self.llama_config.num_hidden_layers:
            raise UserError(f"num_mixing_layers {layers} must lie between 0 and the number of layers")

    def scale_sizes(self, stride: int) -> tuple[int, ...]:
        (largest,) = super().scale_sizes(stride)
        if self.scale_ratio <= 1:
            raise UserError(f"scale_ratio {self.scale_ratio} makes no pyramid; it must be above 1")
        if not 1 <= self.scale_min_size <= largest:
            raise UserError(f"scale_min_size {self.scale_min_size} must lie between 1 and the largest scale, {largest}")
        if self.single_scale:
            return (largest,)
        sides = [float(largest)]
        while sides[-1] > self.scale_min_size:
            sides.append(sides[-1] / self.scale_ratio)
        sides.append(self.scale_min_size)
        return tuple(sorted({round(side) for side in sides} - {0}))

    def canonical(self) -> Self:
        return replace(self, num_mixing_layers=self.mixing_layers)

    @property
    def order_share(self) -> int:
        """Rotations of queries and keys take twice as much, and their copy as much again while it is made."""
        return 3 if self.scan_order == "random" else 0

    @property
    def mixing_layers(self) -> int:
        """Number of layers, from the first on, whose keys mix two positions."""
        every = self.num_mixing_layers is None or self.num_mixing_layers == "all"
        return self.llama_config.num_hidden_layers if every else int(self.num_mixing_layers)


@dataclass(frozen=True)
class CheckerboardDrawing(Drawing):
    """What decides a drawing."""

    steps_per_scale: int = option(4, "steps of each scale; 4 at ratio 2 and 8 at ratio 4 make 17 steps at 256 px")
    cfg_start_step: int = option(5, "first step, counted over all scales from 0, that is guided")
    remainder: Remainder = option(
        "separate", "codes that are left after equal blocks: a step of their own (separate), or part of the last (fold)"
    )

    def blocks(self, scale_sizes: Sequence[int]) -> Blocks:
        return sampling_blocks(scale_sizes, self.steps_per_scale, self.remainder)

    def check(self, scale_sizes: Sequence[int]) -> None:
        self.blocks(scale_sizes)
        super().check(scale_sizes)
        if self.cfg_start_step < 0:
            raise UserError(f"cfg_start_step is {self.cfg_start_step}; steps count from 0")

    def warnings(self, scale_sizes: Sequence[int]) -> list[str]:
        """Warn of scales whose steps all come before ``cfg_start_step``, so that they are never guided.

        Where cfg is one number that is usual for the first scales, and a warning only if it is so for all of them.
        """
        lost, first = [], 0
        for scale, lengths in enumerate(self.blocks(scale_sizes)):
            first += len(lengths)
            if at_scale(self.cfg, scale) and first <= self.cfg_start_step:
                lost.append(str(scale_sizes[scale]))
        if not lost or not (isinstance(self.cfg, Sequence) or len(lost) == len(scale_sizes)):
            return []
        return [
            f"cfg has no effect at the scales {', '.join(lost)}, whose steps all come before --cfg_start_step "
            f"{self.cfg_start_step}"
        ]

    @property
    def label(self) -> str:
        start = "" if self.cfg_start_step == CheckerboardDrawing.cfg_start_step else f"-start{self.cfg_start_step}"
        return f"{self.label_without('steps_per_scale', 'cfg_start_step')}-{self.steps_per_scale}steps{start}"
