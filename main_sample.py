"""Sample images from a checkpoint.

    python main_sample.py --checkpoint pretrained_models/checkerboard-L-2x --cfg 1.5 --steps_per_scale 4

writes single images, a grid and samples.json (every setting) to --output_dir.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from hashlib import file_digest
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from engine.command import run
from engine.config import parse_flags
from engine.device import describe_size, pick_device, pick_dtype
from engine.images import save_grid, save_png, to_uint8
from engine.labels import class_names, parse_labels, shown_labels
from engine.visualize import save_animation, save_entropy_by_step, save_maps
from models.autoencoder import Autoencoder, AutoencoderConfig
from models.checkerboard import Checkerboard, ModelConfig
from models.errors import UserError
from models.published import dataclass_from_dict, find_checkpoint, load_autoencoder, load_checkpoint, read_yaml
from models.sampling import Samples, check_settings, sample
from models.scan_order import Remainder, sampling_blocks

NUM_SHOWN = 16
SETTINGS_NAME = "samples.json"
NUMBER = 6 * "[0-9]"
OUR_FILES = (
    f"{NUMBER}.png",
    f"maps_{NUMBER}.png",
    "maps.npz",
    "grid.png",
    "codes.npz",
    "entropy_by_step.png",
    "animation.gif",
    SETTINGS_NAME,
)


@dataclass(frozen=True)
class SampleArgs:
    """Sampling settings.

    Attributes:
        checkpoint: checkpoint file, or the folder holding checkpoint-last.pth.
        config: a training configuration instead of a checkpoint: random weights, to try size and speed.
        use_ema: take the averaged weights of the checkpoint.
        labels: classes to draw, by index or name, separated by commas; default all, or 16 if there are more.
        num_samples: number of images, the classes in turn; default one of each.
        cfg: guidance, cond + cfg * (cond - uncond); 0 is off.
        cfg_start_step: first step, counted over all scales from 0, that is guided.
        steps_per_scale: steps that each scale is drawn in; 4 at ratio 2 and 8 at ratio 4 make 17 steps.
        remainder: what equal blocks leave over is a step of its own (separate) or joins the last full block (fold).
        temperature: divides the logits; 0 takes the likeliest code.
        top_k: codes kept at each draw; 0 keeps all.
        top_p: probability mass kept at each draw; 1 keeps all.
        seed: of the first image; image i has seed + i, whatever its batch.
        batch_size: images drawn at once.
        dtype: precision of the transformer's weights: auto (bfloat16 where the GPU has it, else float32), or a name.
        compile: compile the transformer; pays off for many images only.
        device: auto, cuda, mps or cpu.
        output_dir: folder to write to; default samples/ and the time. An earlier run there is moved aside.
        save_codes: also write codes.npz: labels, and codes_S of each scale.
        maps: also write, for each image and scale, which step drew each location, its probability and entropy.
        animation: also write animation.gif: the first 16 images appearing step by step.
    """

    checkpoint: str | None = None
    config: str | None = None
    use_ema: bool = False
    labels: str | None = None
    num_samples: int | None = None
    cfg: float = 1.5
    cfg_start_step: int = 5
    steps_per_scale: int = 4
    remainder: Remainder = "separate"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 16
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: bool = False
    device: str = "auto"
    output_dir: str | None = None
    save_codes: bool = False
    maps: bool = False
    animation: bool = False

    def __post_init__(self) -> None:
        if (self.checkpoint is None) == (self.config is None):
            raise UserError("name either a --checkpoint, or a --config for random weights")
        if (self.num_samples is not None and self.num_samples < 1) or self.batch_size < 1:
            raise UserError("num_samples and batch_size must be at least 1")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed is {self.seed}; it must lie between 0 and 2**63 - 1")


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "main_sample.py", __doc__, SampleArgs)
    device = pick_device(args.device)
    model = _load_model(args)
    if not model.config.class_cond and args.cfg == SampleArgs.cfg:
        args = replace(args, cfg=0.0)  # the default is for models that have classes
    labels = _choose_labels(model, args)
    dtype = pick_dtype(args.dtype, device)
    model.to(device=device, dtype=dtype)
    if args.compile:
        model.transformer.compile()
    check_settings(model, torch.tensor(labels), **_drawing(args))
    folder = _open_output(args)
    num_steps = sum(map(len, sampling_blocks(model.scale_sizes, args.steps_per_scale, args.remainder)))
    print(
        f"{describe_size(model)}; {len(labels)} images of {model.config.img_size} px in {num_steps} steps; "
        f"{str(dtype).removeprefix('torch.')} on {device}"
    )
    start = time.perf_counter()
    samples = _draw(model, labels, args)
    seconds = time.perf_counter() - start
    _write(samples, model, labels, args, folder)
    print(f"{seconds / len(labels):.2f} s an image; {folder}/grid.png")


def _load_model(args: SampleArgs) -> Checkerboard:
    if args.checkpoint is not None:
        return load_checkpoint(args.checkpoint, use_ema=args.use_ema)
    section = read_yaml(Path(args.config)).get("model") or {}
    config = dataclass_from_dict(ModelConfig, section, args.config)
    weights = config.autoenc.checkpoint_path
    there = weights is not None and Path(weights).is_file()
    torch.manual_seed(args.seed)
    autoencoder = load_autoencoder(config.autoenc) if there else Autoencoder(AutoencoderConfig())
    print(f"random weights of {args.config}" + ("" if there else ", with a random autoencoder") + ": expect noise")
    return Checkerboard(config, autoencoder).eval()


def _choose_labels(model: Checkerboard, args: SampleArgs) -> list[int]:
    labels = shown_labels(model, NUM_SHOWN) if args.labels is None else parse_labels(args.labels, model)
    return labels if args.num_samples is None else [labels[i % len(labels)] for i in range(args.num_samples)]


def _open_output(args: SampleArgs) -> Path:
    """The output folder, writable and without an earlier run's files, which are moved to a folder beside it."""
    folder = Path(args.output_dir or Path("samples") / datetime.now().strftime("%Y%m%d-%H%M%S")).absolute()
    if (folder / SETTINGS_NAME).exists():
        aside = next(p for i in range(1, 10**6) if not (p := folder.with_name(f"{folder.name}.{i}")).exists())
        aside.mkdir()
        for pattern in OUR_FILES:
            for path in folder.glob(pattern):
                path.rename(aside / path.name)
        print(f"the earlier samples in {folder} are now in {aside}")
    elif folder.exists() and any(folder.glob("*.png")):
        raise UserError(f"{folder} holds images that are not samples of ours; name another --output_dir")
    folder.mkdir(parents=True, exist_ok=True)
    TemporaryFile(dir=folder).close()  # a folder that cannot be written to is an error now, not after the drawing
    return folder


def _drawing(args: SampleArgs) -> dict[str, Any]:
    """The settings that decide what is drawn, as ``sample`` and ``check_settings`` take them."""
    names = ("steps_per_scale", "cfg", "cfg_start_step", "temperature", "top_k", "top_p")
    return {name: getattr(args, name) for name in names}


def _draw(model: Checkerboard, labels: list[int], args: SampleArgs) -> Samples:
    batches = []
    for first in tqdm(range(0, len(labels), args.batch_size), unit="batch", desc="sampling"):
        batch = labels[first : first + args.batch_size]
        out = sample(
            model,
            batch,
            **_drawing(args),
            seeds=range(args.seed + first, args.seed + first + len(batch)),
            remainder=args.remainder,
        )
        batches.append(out)
    return join_samples(batches)


def join_samples(batches: Sequence[Samples]) -> Samples:
    """Several batches as one, on the CPU."""
    images = torch.cat([batch.images.cpu() for batch in batches])
    maps = {
        f.name: [
            torch.cat([m.cpu() for m in scale]) for scale in zip(*(getattr(b, f.name) for b in batches), strict=True)
        ]
        for f in fields(Samples)
        if f.name != "images"
    }
    return Samples(images=images, **maps)


def _write(samples: Samples, model: Checkerboard, labels: list[int], args: SampleArgs, folder: Path) -> None:
    # First, so that a run that breaks off is known as ours, and running it again moves it aside.
    (folder / SETTINGS_NAME).write_text(json.dumps(_settings(model, labels, args), indent=1))
    images = to_uint8(samples.images)
    for i, image in enumerate(images):
        save_png(image, folder / f"{i:06d}.png")
    save_grid(images, folder / "grid.png", _columns(labels))
    if args.save_codes:
        codes = {f"codes_{c.shape[-1]}": c.numpy() for c in samples.codes}
        np.savez(folder / "codes.npz", labels=np.array(labels), **codes)
    if args.maps:
        save_maps(samples, model, folder)
        save_entropy_by_step(samples, folder / "entropy_by_step.png")
    if args.animation:
        save_animation(samples, model, folder / "animation.gif")


def _columns(labels: list[int]) -> int:
    """A column a class where classes come in turn and in several rows, else a square grid."""
    period = len(set(labels))
    in_turn = all(label == labels[i % period] for i, label in enumerate(labels))
    return period if in_turn and 1 < period <= min(NUM_SHOWN, len(labels) - 1) else math.ceil(math.sqrt(len(labels)))


def _settings(model: Checkerboard, labels: list[int], args: SampleArgs) -> dict[str, Any]:
    names = class_names(model)
    checkpoint_hash = None
    if args.checkpoint is not None:
        with find_checkpoint(args.checkpoint).open("rb") as file:
            checkpoint_hash = file_digest(file, "sha256").hexdigest()
    return {
        **asdict(args),
        "checkpoint_sha256": checkpoint_hash,
        "resolved_dtype": str(model.lm_head.weight.dtype).removeprefix("torch."),
        "resolved_device": str(model.device),
        "torch": version("torch"),
        "images": [
            {
                "file": f"{i:06d}.png",
                "label": label,
                "class": names[label] if names is not None and label < len(names) else None,
                "seed": args.seed + i,
            }
            for i, label in enumerate(labels)
        ],
    }


if __name__ == "__main__":
    run(main)
