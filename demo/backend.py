"""What happens behind the page's fields and buttons: from values of fields to drawings, one after another."""

import asyncio
import sys
import traceback
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from data.crops import center_crop
from data.files import UnreadableImageError, read_image
from demo.checkpoints import Loaded, LoadedModels
from demo.drawing import DrawingRequest, Drawn, Frame, draw
from demo.jobs import CancelledError, Job, JobQueue
from demo.options import DemoArgs
from demo.pictures import say
from demo.settings import read_settings
from models.class_names import ClassNames
from models.config import Drawing
from models.family import Generator
from models.sampling import checked_drawing
from runtime.command import explain
from runtime.config import Option, typed
from runtime.errors import UserError
from runtime.files import as_text
from sampling.labels import labels_text
from sampling.options import ModelArgs, SampleArgs

PACE = 0.09  # seconds that a picture of a step stays, at least
LOOK = 0.02  # seconds between looks at a drawing under way
EDITOR_SIDE = 512  # pixels, at most, that a small image is enlarged to for painting
PAINTED = 128  # of 255: a pixel counts as painted if half of it is


@dataclass(frozen=True)
class Choice:
    """What the fields hold."""

    checkpoint: str
    classes: list[int]
    count: Any
    seed: Any
    settings: Sequence[Any]  # of all families, as ``Backend.options``


class Backend:
    """Draws for visitors. ``options`` are those of the settings' fields, each with its family."""

    def __init__(self, args: DemoArgs, names: Sequence[str]) -> None:
        self.args, self.queue, self.models = args, JobQueue(), LoadedModels(args, names)
        self.options: list[tuple[str, Option]] = []

    def request(self, loaded: Loaded, choice: Choice) -> DrawingRequest:
        """What main_sample.py would be asked for; a UserError of a field that holds something wrong."""
        family, with_classes = loaded.model.config.architecture, loaded.model.config.class_cond
        own = [
            (option, value)
            for (whose, option), value in zip(self.options, choice.settings, strict=True)
            if whose == family
        ]
        model_args = {name: getattr(self.args, name) for name in ModelArgs.__dataclass_fields__}
        args = SampleArgs(
            **model_args | {"checkpoint": loaded.checkpoint},
            labels=labels_text(choice.classes, loaded.model) if choice.classes and with_classes else None,
            num_samples=typed(choice.count, int, "the number of images"),
            seed=0 if choice.seed is None else typed(choice.seed, int, "seed"),
        )
        return DrawingRequest(args, read_settings(own))

    async def loaded(self, owner: str, name: str) -> Loaded:
        """A model, once it is its turn to be loaded."""
        return await self.result(self.queue.submit(owner, lambda job: self.models.get(name), lasts=True))

    async def result(self, job: Job) -> Any:
        """What a job returns, once it is done; or its error."""
        async for _ in self.follow(job):
            pass
        if job.error is not None:
            raise job.error
        return job.result

    def drawing(
        self, owner: str, choice: Choice, image: Image.Image | None = None, mask: Image.Image | None = None
    ) -> Job:
        """Put a drawing, or an edit, in line."""

        def work(job: Job) -> Drawn:
            loaded = self.models.get(choice.checkpoint)
            request = self.request(loaded, choice)
            if image is not None:
                request = replace(request, image=image, mask=mask)
            return draw(loaded, request, Path(self.args.output_dir), job, self.queue)

        return self.queue.submit(owner, work)

    async def follow(self, job: Job) -> AsyncIterator[str | Frame]:
        """What a visitor sees until a job is done: lines of text, and pictures, each for a moment at least.

        A job that is not followed to its end is cancelled.
        """
        said = ""
        try:
            while True:
                if (frame := job.next_frame()) is not None:
                    yield frame
                    await asyncio.sleep(PACE)
                elif job.done.is_set():
                    return
                elif (now := self._stands(job)) != said:
                    said = now
                    yield now
                await asyncio.sleep(LOOK)
        finally:
            job.cancel()

    def _stands(self, job: Job) -> str:
        ahead, (step, num_steps) = self.queue.ahead(job), job.progress
        if ahead:
            return say(f"Waiting: {ahead} drawing{'s' if ahead > 1 else ''} before yours.")
        return say(f"Step {step} of {num_steps}", step / num_steps) if num_steps else say("Drawing …")


def class_choices(model: Generator) -> list[tuple[str, int]]:
    """Name and index of each class."""
    names = ClassNames(model).names or [f"class {label}" for label in range(model.config.num_classes)]
    return [(as_text(name), label) for label, name in enumerate(names)]


def usual_drawing(model: Generator) -> Drawing:
    """What a model draws with if nothing else is said."""
    return checked_drawing(model, {})


def picture_to_edit(path: str, model: Generator) -> Image.Image:
    """An image from a file, cropped to the model's square as editing crops it; a UserError if it cannot be read."""
    try:
        return center_crop(read_image(Path(path))[0], model.config.img_size)
    except UnreadableImageError as error:
        raise UserError(str(error).replace(path, Path(path).name)) from error  # where it lies here is nobody's matter


def enlarged(picture: Image.Image) -> Image.Image:
    """A small picture large enough to paint on, pixel by pixel."""
    factor = max(1, EDITOR_SIDE // picture.width)
    return picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.NEAREST)


def mask_of(painted: Mapping[str, Any] | None, picture: Image.Image | None) -> Image.Image:
    """White where anything is painted, by what the canvas holds, on a picture that was enlarged for it."""
    if picture is None:
        raise UserError("there is no image yet; upload one, or take one that was drawn")
    mask = Image.new("L", picture.size)
    for layer in (painted or {}).get("layers", ()):
        painted_on = layer.convert("RGBA").getchannel("A").point(lambda alpha: 255 * (alpha > 0))
        share = painted_on.resize(picture.size, Image.Resampling.BOX)
        mask.paste(255, mask=share.point(lambda value: 255 * (value >= PAINTED)))
    if not mask.getbbox():
        raise UserError("nothing is painted; paint over what is to be drawn anew")
    return mask


def sentence(error: BaseException) -> str:
    """What a visitor is told of an error. A bug of ours is a matter for the terminal."""
    if isinstance(error, CancelledError):
        return "cancelled"
    told = explain(error)
    if told is None:
        traceback.print_exception(error, file=sys.stderr)
        return "Something went wrong; the terminal that the page was started from says what."
    return told[0].removeprefix("error: ")
