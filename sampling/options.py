"""The options of every program that draws."""

from dataclasses import dataclass, replace
from typing import Literal

from models.config import CHECKPOINT_HELP, FAMILIES, check_seed
from runtime.config import Option, option, options_of
from runtime.errors import UserError, check_at_least

Format = Literal["png", "npz"]


@dataclass(frozen=True)
class ModelArgs:
    """Which model draws, where and in which precision."""

    checkpoint: str | None = option(None, CHECKPOINT_HELP)
    use_ema: bool = option(False, "take the averaged weights of the checkpoint")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "precision of the transformer's weights: auto (bfloat16 where the GPU has it, else float32), or a name"
    )
    decoder_dtype: Literal["float32", "bfloat16", "float16"] = option(
        "float32", "precision that codes are decoded in; bfloat16 is about twice as fast where the machine has it"
    )
    device: str = option("auto", "auto, cuda, mps or cpu")


@dataclass(frozen=True)
class SamplingArgs(ModelArgs):
    """How to draw, but for what a family of models decides: see ``drawing_options``."""

    seed: int = option(
        0, "start of all random numbers; the same seed and number of the image give the same image in any batch"
    )
    batch_size: int | None = option(
        None,
        "images drawn at once, on each rank; default 16, on CUDA what fits into 60 % of free memory, up to 256",
    )
    resize_to: int | None = option(
        None, "side in pixels that drawn images are resized to before they are stored (bicubic); default the model's"
    )

    def __post_init__(self) -> None:
        check_at_least(1, self, "batch_size", "resize_to")
        check_seed(self.seed, "seed")


@dataclass(frozen=True)
class SampleArgs(SamplingArgs):
    """What to draw."""

    config: str | None = option(None, "a training configuration instead of a checkpoint: random weights, for a trial")
    labels: str | None = option(
        None,
        "classes to draw, by index or name, separated by commas; default all in turn, or a choice of 16 if there are "
        "more of them than num_samples",
    )
    list_classes: bool = option(False, "print the index and name of each class of the checkpoint, and stop")
    label_file: str | None = option(None, "text file of the classes to draw instead of labels, one on a line")
    num_samples: int | None = option(None, "number of images, the classes in turn; default one of each label")
    compile: bool = option(False, "compile the steps, for many images on a GPU; on a CPU it gains nothing")
    output_dir: str | None = option(
        None,
        "folder to write to; default samples/ and the time. A run of another model or other settings there is moved "
        "aside.",
    )
    format: Format = option(
        "png", "png writes single images, npz one samples.npz (arr_0 images, arr_1 labels), for many images"
    )
    edit: str | None = option(None, "image to edit: what --mask leaves black stays, the rest is drawn by the labels")
    mask: str | None = option(None, "image of the same size, white where --edit is drawn anew")
    blend: int = option(0, "pixels beside the white within which what --edit draws fades into the original; 0 for none")
    save_codes: bool = option(False, "also write codes.npz: labels, and codes_S of each scale")
    maps: bool = option(
        False,
        "also write, for each image and scale, which step drew each location, its probability and entropy; figures of "
        "the first 100 images",
    )
    animation: bool = option(False, "also write animation.gif: the first 16 images appearing step by step")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.checkpoint is None) == (self.config is None):
            raise UserError("name either a --checkpoint, or a --config for random weights")
        if self.config is not None and self.use_ema:
            raise UserError("--use_ema means nothing with the random weights of --config; leave it out")
        if self.labels is not None and self.label_file is not None:
            raise UserError("give --labels or --label_file, not both")
        check_at_least(1, self, "num_samples")
        check_at_least(0, self, "blend")
        if self.blend and self.edit is None:
            raise UserError("--blend means nothing without --edit; leave it out")
        if (self.edit is None) != (self.mask is None):
            raise UserError("give both an image to --edit and its --mask, white where it is drawn anew")
        if self.edit is not None and self.resize_to is not None:
            raise UserError("--resize_to means nothing with --edit, which keeps the original's pixels; leave it out")


def drawing_options() -> dict[str, list[Option]]:
    """Options of a drawing, under a heading: those of all families, then those that some have and others refuse."""
    of_family = {name: {o.name: o for o in options_of(family.load("drawing"))} for name, family in FAMILIES.items()}
    headed: dict[str, dict[str, Option]] = {}
    for known in of_family.values():
        for name in known:
            found = {family: others[name] for family, others in of_family.items() if name in others}
            whose = "" if len(found) == len(of_family) else f", {' and '.join(found)} only"
            headed.setdefault(f"how each image is drawn{whose}", {}).setdefault(name, _of_families(found))
    return {heading: list(options.values()) for heading, options in headed.items()}


def _of_families(found: dict[str, Option]) -> Option:
    """One option for all families that have it; where their defaults differ, ``--help`` shows all."""
    one, *others = found.values()
    if all(other.default == one.default for other in others):
        return one
    defaults = ", ".join(f"{family} {option.default}" for family, option in found.items())
    return replace(one, default=f"the checkpoint's, or {defaults}")
