"""The options of every program that draws, and what samples.json says of images before they are drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from engine.labels import class_names
from engine.metrics.files import hash_file
from engine.sample_folder import image_name
from models.checkerboard import Checkerboard
from models.errors import UserError
from models.sampling import NUM_SEEDS
from models.scan_order import Remainder


@dataclass(frozen=True)
class SamplingArgs:
    """How to draw, but for guidance and steps.

    Attributes:
        checkpoint: checkpoint file, or the folder holding checkpoint-last.pth.
        use_ema: take the averaged weights of the checkpoint.
        cfg_start_step: first step, counted over all scales from 0, that is guided.
        remainder: what equal blocks leave over is a step of its own (separate) or joins the last full block (fold).
        temperature: divides the logits; 0 takes the likeliest code. A list has one value for each scale.
        top_k: codes kept at each draw; 0 keeps all.
        top_p: probability mass kept at each draw; 1 keeps all.
        seed: of the first image; image i has seed + i, whatever its batch.
        batch_size: images drawn at once, on each rank.
        dtype: precision of the transformer's weights: auto (bfloat16 where the GPU has it, else float32), or a name.
        device: auto, cuda, mps or cpu.
    """

    checkpoint: str | None = None
    use_ema: bool = False
    cfg_start_step: int = 5
    remainder: Remainder = "separate"
    temperature: float | tuple[float, ...] = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 16
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size}; it must be at least 1")
        if not 0 <= self.seed < NUM_SEEDS // 2:  # image i has seed + i
            raise UserError(f"seed is {self.seed}; it must lie between 0 and 2**31 - 1")


def sample_settings(
    args: Mapping[str, Any], model: Checkerboard, labels: Sequence[int], files: Mapping[str, Path | str | None]
) -> dict[str, Any]:
    """All settings, as JSON takes them.

    Args:
        args: options by name; ``seed`` and ``format`` among them.
        model: draws.
        labels: class of each image.
        files: that are read, by name; their hashes are recorded.
    """
    names = class_names(model)
    return {
        **args,
        **{f"{name}_sha256": None if path is None else hash_file(Path(path)) for name, path in files.items()},
        "resolved_dtype": str(model.lm_head.weight.dtype).removeprefix("torch."),
        "resolved_device": str(model.device),
        "torch": version("torch"),
        "images": [
            {
                "file": image_name(i) if args["format"] == "png" else None,
                "label": label,
                "class": names[label] if names is not None and label < len(names) else None,
                "seed": args["seed"] + i,
            }
            for i, label in enumerate(labels)
        ],
    }
