"""Photographs of your own: a tokenizer for them, a model, drawn images, and a page that shows what came of it.

    python -m experiments.own_images --data_path path/to/images

Each class is a folder of images. The tokenizer and the model go on from weights that ship with the project (at 256 px
from the released ones), so that a few hundred photographs and a quarter of an hour of two cores do. Its steps are
commands of the project, which it prints; what is finished is skipped, and what was stopped goes on.
"""

import math
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.tasks import Task, carry_out
from runtime.command import run
from runtime.config import option, parse_flags, read_yaml
from runtime.errors import UserError, check_at_least
from runtime.files import PROJECT, read_json, same_settings, write_json
from runtime.lock import lock_folder

TOKENIZER, MODEL, CODES, SAMPLES = "tokenizer", "model", "codes", "samples"  # folders within the output folder
RECORD = "own.json"  # what the folder is of, and the minutes of each step
STEPS = {32: (250, 1200), 256: (2000, 4000)}  # of the tokenizer and of the model, by pixels


@dataclass(frozen=True)
class OwnArgs:
    """What to learn from, and for how long."""

    data_path: str | None = option(None, "root of the photographs, CLASS/IMAGE or train/CLASS/IMAGE")
    output_dir: str = option("output/own", "folder of all that is made")
    img_size: int = option(32, "side of the images in pixels: 32, or 256 for a GPU and the released weights")
    tokenizer_steps: int | None = option(None, "steps of the tokenizer; default 250 at 32 px, 2,000 at 256")
    model_steps: int | None = option(None, "steps of the model; default 1,200 at 32 px, 4,000 at 256")
    samples_per_class: int = option(20, "images to draw of each class")

    def __post_init__(self) -> None:
        if self.data_path is None:
            raise UserError(
                "name your photographs by --data_path, a folder that has one folder of images for each class"
            )
        if self.img_size not in STEPS:
            raise UserError(
                f"img_size is {self.img_size}; there are recipes for {' and '.join(map(str, STEPS))} pixels"
            )
        check_at_least(1, self, "tokenizer_steps", "model_steps", "samples_per_class")


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "experiments.own_images", __doc__, OwnArgs)
    from data.images import open_dataset  # takes seconds to import
    from experiments.own_page import write_page

    images, folder = open_dataset("folder", args.data_path, args.img_size), Path(args.output_dir)
    if len(images.class_keys) < 2:
        raise UserError(f"{args.data_path} has one class; put your photographs into a folder for each of two or more")
    sizes = {"data_path": str(Path(args.data_path).absolute()), "img_size": args.img_size, "images": len(images)}
    tasks = list(own_tasks(args, len(images), len(images.class_keys)))
    settings = sizes | {"commands": [shlex.join(("python", *task.arguments)) for task in tasks]}
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):
        record = read_json(folder / RECORD) or settings | {"minutes": {}}
        if not same_settings(record, settings, ["minutes"]):
            raise UserError(f"{folder} is of other photographs or settings; name another --output_dir")
        for number, task in enumerate(tasks, start=1):
            if task.label not in record["minutes"]:
                start = time.monotonic()
                carry_out(task, f"{number} of {len(tasks)}, {task.label}: {shlex.join(('python', *task.arguments))}")
                record["minutes"][task.label] = (time.monotonic() - start) / 60
                write_json(folder / RECORD, record)
        print(write_page(folder, images, record))


def own_tasks(args: OwnArgs, num_images: int, num_classes: int) -> Iterator[Task]:
    """The commands, in order."""
    folder, size = Path(args.output_dir), args.img_size
    steps = [given or usual for given, usual in zip((args.tokenizer_steps, args.model_steps), STEPS[size], strict=True)]
    of_data = ("--data_path", str(args.data_path))

    def training(program: str, config: str, steps: int, output: Path) -> tuple[str, ...]:
        batch_size = read_yaml(PROJECT / config)["args"]["batch_size"]
        steps_an_epoch = max(1, num_images // batch_size)
        flags = ("--batch_size", str(min(batch_size, num_images)), "--epochs", str(math.ceil(steps / steps_an_epoch)))
        return (_program(program), "--config", _program(config), *of_data, "--output_dir", str(output), *flags)

    tokenizer, model, samples = folder / TOKENIZER, folder / MODEL, folder / SAMPLES
    config = f"train_ae_codebook/config_own_{size}.yaml"
    yield Task("tokenizer", training("train_ae_codebook/main.py", config, steps[0], tokenizer), tokenizer)
    train = training("main.py", f"configs/own_{size}.yaml", steps[1], model)
    yield Task("model", (*train, "--autoenc", str(tokenizer), "--cached_path", str(folder / CODES)), model)
    draw = (_program("main_sample.py"), "--checkpoint", str(model), "--output_dir", str(samples))
    yield Task("samples", (*draw, "--num_samples", str(args.samples_per_class * num_classes)), samples)


def _program(name: str) -> str:
    """A file of the project, from any working directory."""
    return name if Path(name).exists() else str(PROJECT / name)


def command() -> None:
    """``checkerboard-own-images``."""
    run(main)


if __name__ == "__main__":
    command()
