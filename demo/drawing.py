"""One drawing of the page: steps as they come, and what is kept of it in a folder of its own.

What is asked for becomes the options of main_sample.py, so that the page draws what that program draws.
Letters: N images, H, W sides of images in pixels.
"""

import shlex
import time
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from demo.checkpoints import Loaded
from demo.jobs import Job, JobQueue
from demo.pictures import grid_html, scales_html
from models.config import Drawing
from models.family import Generator, Samples
from models.sampling import checked_drawing, warnings_of
from runtime.config import as_flags
from runtime.errors import UserError
from runtime.files import as_text, whole, write_json
from runtime.pictures import save_image
from sampling.editing import Edit, make_edit
from sampling.folder import GRID_NAME, SETTINGS_NAME, image_name, sample_settings
from sampling.job import EDITED, choose_labels, folder_of_now, save_overview
from sampling.labels import class_captions
from sampling.maps import num_steps, step_images
from sampling.options import SampleArgs
from sampling.pictures import save_png
from sampling.pipeline import StepProgress

MAX_IMAGES = 16
IMAGE_NAME, MASK_NAME, ZIP_NAME = "image.png", "mask.png", "images.zip"
FIRST_PICTURE, NEXT_PICTURE = 1.0, 0.25  # seconds, at least, until the steps of a slow drawing are shown
SHARE = 0.1  # of the time of a drawing that pictures of its steps may take
REPLAYED, REPLAY = 10, 1.0  # steps that are shown once a drawing is done, at most, and seconds that this may take


@dataclass(frozen=True)
class DrawingRequest:
    """What a visitor asks for."""

    args: SampleArgs
    settings: Mapping[str, Any]  # of the drawing, those that were given
    image: Image.Image | None = None  # to edit, of the model's size
    mask: Image.Image | None = None  # white where it is drawn anew


@dataclass(frozen=True)
class Frame:
    """A moment of a drawing, as HTML."""

    pictures: str
    scales: str


@dataclass(frozen=True)
class Drawn:
    """A finished drawing."""

    loaded: Loaded
    images: Tensor  # (N, 3, H, W) uint8
    captions: list[str]
    samples: Samples  # on the CPU
    edit: Edit | None
    folder: Path
    command: str
    steps: int
    seconds: float
    warnings: list[str]
    first_scales: str  # as ``scales`` of image 0

    def scales(self, index: int) -> str:
        """How one of the images came about."""
        model = self.loaded.model
        return scales_html(part_of(self.samples, index).first(1, model.device), model, num_steps(self.samples) - 1)

    @property
    def before(self) -> dict[str, Tensor]:
        """What was edited, by what it is called."""
        return {} if self.edit is None else dict(zip(EDITED, self.edit.pictures(), strict=True))


class StepPictures:
    """Shows the steps of a drawing to whoever waits for it: a slow one's as they come, a fast one's once it is done.

    Pictures must be decoded, which takes the device from the drawing. So there are few of them until it is done.
    """

    def __init__(self, job: Job, model: Generator, captions: list[str], edit: Edit | None) -> None:
        self.job, self.model, self.captions, self.edit = job, model, captions, edit
        self.unseen: list[tuple[int, Samples]] = []
        self.due = time.perf_counter() + FIRST_PICTURE
        self.cost = 0.0  # seconds of the last picture

    def step(self, progress: StepProgress) -> None:
        """The callback of a drawing."""
        self.job.check()
        self.job.progress = (progress.step + 1, progress.num_steps)
        samples = progress.so_far()
        if samples is not None:
            self.unseen.append((progress.step, samples))
        if self.unseen and time.perf_counter() >= self.due:
            self._show(*self.unseen[-1])
            self.unseen.clear()
            self.due = time.perf_counter() + max(NEXT_PICTURE, self.cost / SHARE)

    def replay(self, queue: JobQueue) -> None:
        """Show steps that were not seen, evenly spaced; stop once others wait for the device, or it takes long."""
        count, end = min(REPLAYED, len(self.unseen)), time.perf_counter() + REPLAY
        for number in range(count):
            if queue.is_awaited() or time.perf_counter() + self.cost > end:
                return
            self.job.check()
            self._show(*self.unseen[(number + 1) * len(self.unseen) // count - 1])

    def _show(self, step: int, samples: Samples) -> None:
        start = time.perf_counter()
        images = step_images(samples, self.model, step)
        images = images if self.edit is None else self.edit.paste_back(images)
        pictures = grid_html(images, self.captions, passing=True)
        self.job.show(Frame(pictures, scales_html(part_of(samples, 0), self.model, step)))
        self.cost = time.perf_counter() - start


def part_of(samples: Samples, index: int) -> Samples:
    """One image of a batch, without its picture."""
    maps = {f.name: [scale[index : index + 1] for scale in getattr(samples, f.name)] for f in fields(samples)[1:]}
    return Samples(images=None, **maps)


def draw(loaded: Loaded, request: DrawingRequest, root: Path, job: Job, queue: JobQueue) -> Drawn:
    """Draw what is asked for and keep it in a new folder below ``root``; a UserError says what is wrong with it."""
    model, args = loaded.model, request.args
    if not 1 <= args.num_samples <= MAX_IMAGES:
        raise UserError(f"the number of images is {args.num_samples}; it must lie between 1 and {MAX_IMAGES}")
    edit = None if request.image is None else make_edit(request.image, request.mask, model)
    drawing = checked_drawing(model, dict(request.settings), keeps=edit is not None)
    labels = choose_labels(model, args)
    captions = [as_text(caption) for caption in class_captions(model, labels)]  # a browser takes no half characters
    steps_shown = StepPictures(job, model, captions, edit)
    start = time.perf_counter()
    out = loaded.pipeline(
        labels, generator=args.seed, batch_size=MAX_IMAGES, callback=steps_shown.step, change=edit, **asdict(drawing)
    )
    seconds = time.perf_counter() - start
    steps_shown.replay(queue)
    images = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in out.images])
    job.check()  # nothing is kept of what nobody waits for
    folder = folder_of_now(root)
    if edit is not None:
        save_image(request.image, folder / IMAGE_NAME)
        save_image(request.mask, folder / MASK_NAME)
        args = replace(args, edit=str(folder / IMAGE_NAME), mask=str(folder / MASK_NAME))
    _keep(folder, images, labels, loaded, args, drawing, edit)
    steps = num_steps(out.samples[0])
    command, warnings = as_text(command_of(args, drawing, model)), warnings_of(model, drawing)
    drawn = Drawn(loaded, images, captions, out.samples[0], edit, folder, command, steps, seconds, warnings, "")
    return replace(drawn, first_scales=drawn.scales(0))


def command_of(args: SampleArgs, drawing: Drawing, model: Generator) -> str:
    """The command line that draws the same, also once the checkpoint recommends other settings."""
    changed = {f.name: value for f in fields(args) if (value := getattr(args, f.name)) != f.default}
    recommended = {name: getattr(drawing, name) for name in model.recommended}
    settings = {"cfg": drawing.cfg} | recommended | drawing.changed
    return shlex.join(["python", "main_sample.py", *as_flags(changed | settings)])


def _keep(
    folder: Path,
    images: Tensor,
    labels: list[int],
    loaded: Loaded,
    args: SampleArgs,
    drawing: Drawing,
    edit: Edit | None,
) -> None:
    """Write a folder as main_sample.py does, and a zip of all."""
    model, names = loaded.model, [image_name(index) for index in range(len(images))]
    options = asdict(args) | asdict(drawing) | {"model_sha256": loaded.sha256, "batch_size": MAX_IMAGES}
    settings = sample_settings(options, model, labels, {"edit": args.edit, "mask": args.mask})
    for name, image in zip(names, images, strict=True):
        save_png(image, folder / name)
    save_overview(images, labels, model, edit, folder)
    write_json(folder / SETTINGS_NAME, settings)
    with whole(folder / ZIP_NAME) as path, zipfile.ZipFile(path, "w") as archive:
        for name in (*names, GRID_NAME, SETTINGS_NAME, *([] if edit is None else [IMAGE_NAME, MASK_NAME])):
            archive.write(folder / name, f"{folder.name}/{name}")
