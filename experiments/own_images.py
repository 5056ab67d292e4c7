"""Photographs of your own: a tokenizer for them, a model, drawn images, and a page that shows what came of it.

    python -m experiments.own_images --data_path path/to/images

Each class is a folder of images. The tokenizer and the model go on from weights that ship with the project (at 256 px
from the released ones), so that a few hundred photographs and a quarter of an hour of two cores do. Its steps are
commands of the project, which it prints; what is finished is skipped, and what was stopped goes on.
"""

import hashlib
import math
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.tasks import Task, carry_out
from runtime.command import run
from runtime.config import option, parse_flags, read_yaml
from runtime.errors import UserError, check_at_least
from runtime.files import PROJECT, located, read_json, same_settings, write_json
from runtime.lock import lock_folder

if TYPE_CHECKING:
    from data.labelled_images import StoredImages

ORDER = TOKENIZER, MODEL, SAMPLES = "tokenizer", "model", "samples"  # steps, and folders within the output folder
CODES = "codes"  # another folder
RECORD = "own.json"  # what the folder is of, and the minutes of each step
OUTPUT, PROGRAMS = "{output_dir}", "{project}"  # stand for their paths there, since folders are moved
STEPS = {32: (250, 1200), 256: (2000, 4000)}  # of the tokenizer and of the model, by pixels


@dataclass(frozen=True)
class OwnArgs:
    """What to learn from, and for how long."""

    data_path: str | None = option(
        None, "the photographs: CLASS/IMAGE, train/CLASS/IMAGE, or parquet, tar, .zip or .csv"
    )
    output_dir: str = option("output/own", "folder of all that is made")
    img_size: int = option(32, "side of the images in pixels: 32, or 256 for a GPU and the released weights")
    tokenizer_steps: int | None = option(
        None, "steps of the tokenizer, in whole epochs; default 250 at 32 px, 2,000 at 256"
    )
    model_steps: int | None = option(None, "steps of the model, in whole epochs; default 1,200 at 32 px, 4,000 at 256")
    samples_per_class: int = option(20, "images to draw of each class")

    def __post_init__(self) -> None:
        if self.data_path is None:
            raise UserError(
                "name your photographs by --data_path, as a folder that has one folder of images for each class"
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

    args = replace(args, data_path=str(located(args.data_path)))
    images, folder = open_dataset("folder", args.data_path, args.img_size), Path(args.output_dir)
    if len(images.class_keys) < 2:
        raise UserError(f"{args.data_path} has one class; put your photographs into a folder for each of two or more")
    check_weights(args.img_size)
    if folder.resolve().is_relative_to(Path(args.data_path).resolve()):
        raise UserError(f"{folder} lies among the photographs and would pass for a class; name another --output_dir")
    photographs = {"data_path": str(Path(args.data_path).resolve()), "img_size": args.img_size}
    photographs |= {"images": len(images), "classes": images.class_keys, "files_sha256": listing_sha256(images)}
    tasks = list(own_tasks(args, len(images), len(images.class_keys)))
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):
        record = read_json(folder / RECORD)
        if record is None:
            if any(not path.name.startswith(".") for path in folder.iterdir()):
                raise UserError(f"{folder} holds files of something else; name another --output_dir")
            record = photographs | {"commands": {}, "minutes": {}}
            write_json(folder / RECORD, record)
        if not same_settings(record, photographs, ["commands", "minutes"]):
            raise UserError(f"{folder} is of other photographs, or of another size; name another --output_dir")
        for number, task in enumerate(tasks, start=1):
            command, done = command_of(task), record["commands"]
            portable = command.replace(str(folder.absolute()), OUTPUT).replace(str(PROJECT), PROGRAMS)
            if done.get(task.label) == portable and task.product.exists():
                continue
            if task.label == TOKENIZER and done.get(TOKENIZER, portable) != portable:
                raise UserError(f"{folder} has a tokenizer of other --tokenizer_steps; name another --output_dir")
            # What follows is of an earlier one, and to be done again.
            record["commands"] = {name: text for name, text in done.items() if name in ORDER[: number - 1]}
            start, spent = time.monotonic(), record["minutes"].get(task.label, 0)
            try:
                carry_out(task, f"{number} of {len(tasks)}, {task.label}: {command}")
            finally:  # what a stop ends counts too
                record["minutes"][task.label] = spent + (time.monotonic() - start) / 60
                write_json(folder / RECORD, record)
            if not task.product.exists():
                raise UserError(f"{task.product} is missing although its command has ended; run this once more")
            record["commands"][task.label] = portable
            write_json(folder / RECORD, record)
        print(write_page(folder, images, record, [command_of(task) for task in tasks]))


def command_of(task: Task) -> str:
    """As a user would type it."""
    return shlex.join(("python", *task.arguments))


def listing_sha256(images: "StoredImages") -> str:
    """Of names, labels and sizes of the files, or of the archives, of all photographs: what tells these from others.

    UserError: a name is no text.
    """
    digest = hashlib.sha256()
    for index, key in enumerate(images.keys):
        try:
            size = images.file_of(index).stat().st_size
            digest.update(f"{key}\t{images.labels[index]}\t{size}\n".encode())
        except UnicodeEncodeError as error:
            raise UserError(f"{key!r} is no name in UTF-8; rename the file or its folder") from error
    return digest.hexdigest()


def check_weights(img_size: int) -> None:
    """Find out at the start whether the weights to go on from are there."""
    tokenizer = read_yaml(PROJECT / f"train_ae_codebook/config_own_{img_size}.yaml")["args"]["start"]
    model = read_yaml(PROJECT / f"configs/own_{img_size}.yaml")["args"]["weights_init"]
    for path in (tokenizer, model):
        if not located(path).exists():
            raise UserError(f"there is no {path} to go on from; fetch it by bash pretrained_models/download.sh")


def own_tasks(args: OwnArgs, num_images: int, num_classes: int) -> Iterator[Task]:
    """The commands, in order."""
    folder, size = Path(args.output_dir).absolute(), args.img_size
    steps = [given or usual for given, usual in zip((args.tokenizer_steps, args.model_steps), STEPS[size], strict=True)]
    of_data = ("--data_path", str(Path(args.data_path).absolute()))

    def training(program: str, config: str, steps: int, output: Path) -> tuple[str, ...]:
        batch_size = read_yaml(PROJECT / config)["args"]["batch_size"]
        steps_an_epoch = max(1, num_images // batch_size)
        flags = ("--batch_size", str(min(batch_size, num_images)), "--epochs", str(math.ceil(steps / steps_an_epoch)))
        return (
            str(PROJECT / program),
            "--config",
            str(PROJECT / config),
            *of_data,
            "--output_dir",
            str(output),
            *flags,
        )

    tokenizer, model, samples = folder / TOKENIZER, folder / MODEL, folder / SAMPLES
    config = f"train_ae_codebook/config_own_{size}.yaml"
    made = tokenizer / "autoencoder/autoencoder.safetensors"
    yield Task(TOKENIZER, training("train_ae_codebook/main.py", config, steps[0], tokenizer), made)
    train = training("main.py", f"configs/own_{size}.yaml", steps[1], model)
    yield Task(
        MODEL,
        (*train, "--autoenc", str(tokenizer), "--cached_path", str(folder / CODES)),
        model / "checkpoint-last.pth",
    )
    draw = (str(PROJECT / "main_sample.py"), "--checkpoint", str(model), "--output_dir", str(samples))
    yield Task(SAMPLES, (*draw, "--num_samples", str(args.samples_per_class * num_classes)), samples / "grid.png")


def command() -> None:
    """``checkerboard-own-images``."""
    run(main)


if __name__ == "__main__":
    command()
