"""Sample images from a checkpoint, a grid of a few or 50,000.

    python main_sample.py --checkpoint pretrained_models/checkerboard-L-2x --cfg 1.5 --steps_per_scale 4

writes single images (or one npz), a grid and samples.json (every setting) to --output_dir. The same command again goes
on where it was killed. Several GPUs: torchrun --nproc_per_node=N main_sample.py ...
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from engine import distributed
from engine.bulk import Request, draw_into, draw_many
from engine.command import run
from engine.config import parse_flags
from engine.device import describe_size, pick_device, pick_dtype
from engine.edit import Edit, load_edit
from engine.folder_lock import lock_folder
from engine.images import save_grid
from engine.labels import balanced_labels, parse_labels, read_labels, shown_labels
from engine.random_model import random_model
from engine.sample_folder import CODES_NAME, MAPS, Format, SampleFolder, prepare_folder
from engine.sample_settings import SamplingArgs, sample_settings
from engine.visualize import MAX_ANIMATED, save_animation, save_entropy_by_step, save_maps
from models.checkerboard import Checkerboard
from models.errors import UserError
from models.published import find_checkpoint, load_checkpoint
from models.sampling import Drawing
from models.scan_order import sampling_blocks

NUM_SHOWN = 16
MAX_IN_GRID = 100


@dataclass(frozen=True)
class SampleArgs(SamplingArgs):
    """What to draw.

    Attributes:
        config: a training configuration instead of a checkpoint: random weights, to try size and speed.
        labels: classes to draw, by index or name, separated by commas; default all in turn, but 16 if there are more
            classes than num_samples.
        label_file: text file of them instead, one on a line.
        num_samples: number of images, the classes in turn; default one of each label.
        cfg: guidance, cond + cfg * (cond - uncond); 0 is off. A list has one value for each scale.
        steps_per_scale: steps that each scale is drawn in; 4 at ratio 2 and 8 at ratio 4 make 17 steps.
        compile: compile the steps; pays off for many images only.
        output_dir: folder to write to; default samples/ and the time. A run of other settings there is moved aside.
        format: png writes single images, npz one samples.npz (arr_0 images, arr_1 labels), for many images.
        edit: image to edit: what --mask leaves black stays, the rest is drawn as the labels say.
        mask: image of the same size, white where --edit is drawn anew.
        save_codes: also write codes.npz: labels, and codes_S of each scale.
        maps: also write, for each image and scale, which step drew each location, its probability and entropy; figures
            of the first 100 images.
        animation: also write animation.gif: the first 16 images appearing step by step.
    """

    config: str | None = None
    labels: str | None = None
    label_file: str | None = None
    num_samples: int | None = None
    cfg: float | tuple[float, ...] = 1.5
    steps_per_scale: int = 4
    compile: bool = False
    output_dir: str | None = None
    format: Format = "png"
    edit: str | None = None
    mask: str | None = None
    save_codes: bool = False
    maps: bool = False
    animation: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.checkpoint is None) == (self.config is None):
            raise UserError("name either a --checkpoint, or a --config for random weights")
        if self.config is not None and self.use_ema:
            raise UserError("--use_ema means nothing with the random weights of --config; leave it out")
        if self.labels is not None and self.label_file is not None:
            raise UserError("give --labels or --label_file, not both")
        if self.num_samples is not None and self.num_samples < 1:
            raise UserError(f"num_samples is {self.num_samples}; it must be at least 1")
        if (self.edit is None) != (self.mask is None):
            raise UserError("give both an image to --edit and its --mask, white where it is drawn anew")

    @property
    def drawing(self) -> Drawing:
        return Drawing(**{f.name: getattr(self, f.name) for f in fields(Drawing)})


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "main_sample.py", __doc__, SampleArgs)
    device = distributed.set_up(pick_device(args.device))
    model = _load_model(args)
    if not model.config.class_cond and args.cfg == SampleArgs.cfg:
        args = replace(args, cfg=0.0)  # the default is for models that have classes
    labels = _choose_labels(model, args)
    args.drawing.check(model, torch.tensor(labels))
    if lost := args.drawing.unguided_scales(model.scale_sizes):
        _say(
            f"warning: cfg has no effect at the scales {', '.join(map(str, lost))}, whose steps all come before "
            f"--cfg_start_step {args.cfg_start_step}"
        )
    dtype = pick_dtype(args.dtype, device)
    model.to(device=device, dtype=dtype)
    edit = None if args.edit is None else load_edit(args.edit, args.mask, model)
    request = Request(
        labels, args.drawing, args.seed, args.batch_size, args.compile, None if edit is None else edit.kept
    )
    num_steps = sum(map(len, sampling_blocks(model.scale_sizes, args.steps_per_scale, args.remainder)))
    folder = distributed.from_main(Path(args.output_dir or Path("samples") / datetime.now().strftime("%Y%m%d-%H%M%S")))
    with lock_folder(folder):
        if _prepare(folder, model, labels, args):
            _say(
                f"{describe_size(model)}; {len(labels)} images of {model.config.img_size} px in {num_steps} steps; "
                f"{str(dtype).removeprefix('torch.')} on {device}"
            )
            draw_and_finish(folder, model, request, args, edit)
    distributed.tear_down()


def draw_and_finish(folder: Path, model: Checkerboard, request: Request, args: SampleArgs, edit: Edit | None) -> None:
    """Draw the images that a prepared folder lacks, on all ranks, and finish it."""
    if request.compiled:
        start = time.perf_counter()
        next(draw_many(model, request, [0]))
        _say(f"compiled in {time.perf_counter() - start:.0f} s")
    start = time.perf_counter()
    images = draw_into(folder, model, request) if edit is None else draw_into(folder, model, request, edit.paste_back)
    seconds = time.perf_counter() - start
    if distributed.is_main():
        _finish(images, model, request.labels, args, edit)
        rate = f"{seconds / len(images.todo):.2f} s an image; " if len(images.todo) else ""
        place = "samples.npz" if args.format == "npz" else "grid.png"
        print(f"{rate}{folder}/{place}")


def _load_model(args: SampleArgs) -> Checkerboard:
    if args.checkpoint is not None:
        return load_checkpoint(args.checkpoint, use_ema=args.use_ema)
    torch.manual_seed(args.seed)
    model, has_autoencoder = random_model(Path(args.config))
    autoencoder = "" if has_autoencoder else ", with a random autoencoder"
    _say(f"random weights of {args.config}{autoencoder}: expect noise")
    return model


def _choose_labels(model: Checkerboard, args: SampleArgs) -> list[int]:
    if args.labels is None and args.label_file is None and (args.num_samples or 0) >= model.config.num_classes:
        return balanced_labels(model, args.num_samples)
    if args.label_file is not None:
        labels = read_labels(args.label_file, model)
    else:
        labels = shown_labels(model, NUM_SHOWN) if args.labels is None else parse_labels(args.labels, model)
    return labels if args.num_samples is None else [labels[i % len(labels)] for i in range(args.num_samples)]


def _prepare(folder: Path, model: Checkerboard, labels: list[int], args: SampleArgs) -> bool:
    """Make the folder ready to write to; whether anything is to be drawn, the same on every rank."""
    missing = False
    if distributed.is_main():
        side, length = model.config.img_size, model.num_locations
        maps = MAPS if args.maps or args.animation else ("codes",) if args.save_codes else ()
        missing = prepare_folder(
            folder,
            _settings(model, labels, args),
            (len(labels), side, side, 3),
            args.format,
            dict.fromkeys(maps, length),
            _names_made(args),
        )
        if not missing:
            print(f"{folder} holds these samples already; name another --output_dir, or change a setting")
    return distributed.from_main(missing)


def _names_made(args: SampleArgs) -> list[str]:
    """Files that ``_finish`` makes."""
    asked = {
        CODES_NAME: args.save_codes,
        "maps.npz": args.maps,
        "entropy_by_step.png": args.maps,
        "animation.gif": args.animation,
    }
    return ["grid.png", *(name for name, wanted in asked.items() if wanted)]


def _finish(
    images: SampleFolder, model: Checkerboard, labels: Sequence[int], args: SampleArgs, edit: Edit | None
) -> None:
    """Write what is made of all images, and report doubles; the grid of an edit begins with what was edited."""
    shown = images.first_images(MAX_IN_GRID)
    columns = _columns(labels[: len(shown)])
    if edit is not None:
        shown = torch.cat([edit.pictures(), shown])
        columns = math.ceil(math.sqrt(len(shown)))
    save_grid(shown, images.folder / "grid.png", columns)
    if args.save_codes:
        images.save_codes(model.scale_sizes, labels)
    if args.maps or args.animation:
        samples = images.samples(model.scale_sizes, (images.first_images(MAX_ANIMATED) + 0.5) / 127.5 - 1)
        if args.maps:
            save_maps(samples, model, images.folder)
            save_entropy_by_step(samples, images.folder / "entropy_by_step.png")
        if args.animation:
            save_animation(samples, model, images.folder / "animation.gif")
    duplicates = images.duplicates()
    if duplicates and args.edit is None:
        first = ", ".join(map(str, duplicates[0][:5]))
        print(f"warning: {sum(map(len, duplicates))} images have a double, as {first} (all in samples.json)")
    images.finish(labels, duplicates)


def _columns(labels: Sequence[int]) -> int:
    """A column a class where classes come in turn and in several rows, else a square grid."""
    period = len(set(labels))
    in_turn = all(label == labels[i % period] for i, label in enumerate(labels))
    return period if in_turn and 1 < period <= min(NUM_SHOWN, len(labels) - 1) else math.ceil(math.sqrt(len(labels)))


def _settings(model: Checkerboard, labels: Sequence[int], args: SampleArgs) -> dict[str, Any]:
    """Everything that decides the images, and what each of them is."""
    checkpoint = None if args.checkpoint is None else find_checkpoint(args.checkpoint)
    return sample_settings(
        asdict(args), model, labels, {"checkpoint": checkpoint, "edit": args.edit, "mask": args.mask}
    )


def _say(text: str) -> None:
    if distributed.is_main():
        print(text, flush=True)


if __name__ == "__main__":
    run(main)
