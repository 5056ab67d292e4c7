"""A model with its autoencoder as one object that draws PIL images, its words those of diffusers where they fit.

    from sampling import Pipeline

    pipe = Pipeline.from_pretrained("output/quickstart")
    images = pipe(class_labels=["3", 5], num_images=4, guidance=0.5, generator=0).images

Letters: N images, H, W sides of images in pixels, S side of a scale.
"""

import operator
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.checks import as_labels
from models.class_names import ClassNames
from models.config import NUM_SEEDS, Drawing, check_seed
from models.draw import image_seed
from models.family import Generator, Samples
from models.loading.checkpoint import load_checkpoint
from models.sampler import Sampler
from models.sampling import checked_drawing, warnings_of
from models.scales import split_scales
from runtime.command import short_reason
from runtime.device import DTYPES
from runtime.errors import UserError
from sampling.bulk import Request, draw_many, sampler_of
from sampling.editing import Edit, make_edit
from sampling.maps import step_images

Labels = int | str | Sequence[int | str] | np.ndarray | Tensor
OutputType = Literal["pil", "np", "pt"]


@dataclass(frozen=True)
class PipelineOutput:
    """What a call draws."""

    images: Any  # N PIL images; or of output_type np (N, H, W, 3), of pt (N, 3, H, W), both floats in 0..1
    labels: list[int]
    seeds: list[int]  # ``models.sample`` draws each image by its seed too
    samples: list[Samples] = field(
        repr=False
    )  # codes, entropy, step and probability of every location, a batch each, on the CPU


@dataclass(frozen=True)
class StepProgress:
    """Where a drawing stands, for a callback."""

    step: int  # of its batch, from 0
    num_steps: int  # of a batch
    first_image: int  # of the batch, among all
    sampler: Sampler

    def so_far(self) -> Samples | None:
        """Copies of the codes of the batch, and the step that draws each location; None where ``images`` has none."""
        sampler = self.sampler
        steps = sampler.step_of_location().expand(sampler.batch, -1)
        if not (steps == self.step).any():
            return None
        codes, step = (split_scales(values.clone(), sampler.scale_sizes) for values in (sampler.sequence, steps))
        return Samples(None, codes, [], step, [])

    def images(self) -> list[Image.Image]:
        """The batch so far: what is drawn, and the scale before, pale, where nothing is drawn yet.

        Empty while a drawing of twice the side makes the small images that it starts from.
        """
        samples = self.so_far()
        return [] if samples is None else to_pil(step_images(samples, self.sampler.model, self.step))


class Pipeline:
    """Draws and edits images by a model of any family."""

    def __init__(self, model: Generator) -> None:
        if model.autoencoder is None:
            raise UserError("this model has no autoencoder, so it draws no images; use models.sample for its codes")
        self.model = model.eval()

    @classmethod
    def from_pretrained(cls, path: str | Path, use_ema: bool = False) -> Self:
        """From what ``models.load_checkpoint`` takes; on the CPU, in float32."""
        return cls(load_checkpoint(path, use_ema))

    def save_pretrained(self, folder: str | Path, **details: Any) -> None:
        """The model's, which a pipeline is all of."""
        self.model.save_pretrained(folder, **details)

    def push_to_hub(self, name: str, **details: Any) -> str:
        """The model's."""
        return self.model.push_to_hub(name, **details)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Bring the model to a device, and to a precision if one is given; its decoder stays in float32."""
        if dtype is not None and dtype not in DTYPES.values():
            raise UserError(f"dtype is {dtype}; it must be one of {', '.join(map(str, DTYPES.values()))}")
        try:
            self.model.to(device=torch.device(device), dtype=dtype)
        except (RuntimeError, TypeError, AssertionError) as error:
            raise UserError(f"the model cannot go to {device} ({short_reason(error)}); name another device") from error
        return self

    @property
    def class_names(self) -> list[str] | None:
        """The name of each class, several separated by commas; None if they have none."""
        return ClassNames(self.model).names or None

    def __call__(
        self,
        class_labels: Labels,
        num_images: int | None = None,
        guidance: float | Sequence[float] | None = None,
        generator: int | torch.Generator | None = None,
        batch_size: int = 16,
        callback: Callable[[StepProgress], None] | None = None,
        output_type: OutputType = "pil",
        change: Edit | None = None,
        **settings: Any,
    ) -> PipelineOutput:
        """Draw images.

        Args:
            class_labels: classes by index or name, one or several.
            num_images: how many in all, the classes in turn; default one of each label.
            guidance: ``cond + guidance * (cond - uncond)``, one number or one for each scale; 0 is off. Diffusers'
                guidance_scale less 1. Default what the checkpoint recommends.
            generator: a number, as ``main_sample.py --seed``, or a torch.Generator to draw one from; default torch's.
            batch_size: images at once.
            callback: called after each step; ``progress.images()`` decodes what is there so far. An exception in it
                ends the drawing.
            output_type: pil, np or pt.
            change: what stays of an image, as ``edit`` has it.
            settings: others of a drawing, as of ``models.sample``.

        Raises:
            UserError: a label or setting is out of range.
        """
        labels = self._labels(class_labels, num_images)
        if output_type not in ("pil", "np", "pt"):
            raise UserError(f"output_type is {output_type}; it must be pil, np or pt")
        drawing = self._drawing(guidance, settings, keeps=change is not None)
        self.model.check_labels(as_labels(labels))
        seed = _seed_of(generator)
        if whole_number(batch_size, "batch_size") < 1:
            raise UserError(f"batch_size is {batch_size}; it must be at least 1")
        request = Request(labels, drawing, seed, batch_size, constraint=change and change.constraint)
        request = replace(request, sampler=sampler_of(self.model, request))
        num_steps = request.num_steps(self.model)
        first, pixels, samples = 0, [], []

        def on_step(step: int) -> None:
            if callback is not None:
                callback(StepProgress(step, num_steps, first, request.sampler))

        for indices, out in draw_many(self.model, request, on_step=on_step):
            images = self.model.to_uint8(out.images)
            pixels.append((images if change is None else change.paste_back(images)).cpu())
            samples.append(replace(out, images=None).first(len(indices)))
            first += len(indices)
        return PipelineOutput(
            _as_type(torch.cat(pixels), output_type), labels, [image_seed(seed, i) for i in range(len(labels))], samples
        )

    def _drawing(self, guidance: float | Sequence[float] | None, settings: dict[str, Any], keeps: bool) -> Drawing:
        """Checked settings of a drawing; what has no effect is a warning."""
        if "guidance_scale" in settings:
            raise UserError("guidance_scale is guidance + 1 here; give guidance instead, which is 0 for none")
        if guidance is not None and "cfg" in settings:
            raise UserError("guidance and cfg are the same setting; give one of them")
        settings = settings if guidance is None else settings | {"cfg": guidance}
        drawing = checked_drawing(self.model, settings, keeps)
        for warning in warnings_of(self.model, drawing):
            warnings.warn(warning, stacklevel=3)
        return drawing

    def edit(
        self,
        image: Image.Image | str | Path,
        mask: Image.Image | str | Path,
        class_labels: Labels,
        *arguments: Any,
        blend: int = 0,
        **settings: Any,
    ) -> PipelineOutput:
        """As a call, but an image is kept where its mask is black, and drawn anew where that is white.

        What is drawn fades into the original within ``blend`` pixels beside the white.
        """
        return self(class_labels, *arguments, change=make_edit(image, mask, self.model, blend), **settings)

    def _labels(self, class_labels: Labels, num_images: int | None) -> list[int]:
        """Class indices, one an image."""
        given = class_labels
        given = given.tolist() if isinstance(given, Tensor | np.ndarray | np.generic) else given
        given = list(given) if isinstance(given, Sequence) and not isinstance(given, str | bytes) else [given]
        names = ClassNames(self.model) if any(isinstance(x, str) for x in given) else None
        labels = [names.label(x) if isinstance(x, str) else whole_number(x, "a label") for x in given]
        if not labels or (num_images is not None and whole_number(num_images, "num_images") < 1):
            raise UserError("there is nothing to draw; give at least one label, and num_images of at least 1")
        return labels if num_images is None else [labels[i % len(labels)] for i in range(num_images)]


def _seed_of(generator: int | torch.Generator | None) -> int:
    """The number that decides all images of a call."""
    if generator is None or isinstance(generator, torch.Generator):
        device = "cpu" if generator is None else generator.device
        return int(torch.randint(NUM_SEEDS, (), generator=generator, device=device))
    seed = whole_number(generator, "generator")
    check_seed(seed, "generator")
    return seed


def whole_number(value: Any, name: str) -> int:
    """A whole number of any kind but a truth value; UserError for another value."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        return operator.index(value)
    except TypeError as error:
        raise UserError(f"{name} is {value!r}; give a whole number") from error


def to_pil(images: Tensor) -> list[Image.Image]:
    """Of uint8 images (N, 3, H, W)."""
    return [Image.fromarray(image) for image in np.ascontiguousarray(images.permute(0, 2, 3, 1).cpu().numpy())]


def _as_type(images: Tensor, output_type: OutputType) -> list[Image.Image] | np.ndarray | Tensor:
    """uint8 images (N, 3, H, W) as a call returns them."""
    if output_type == "pil":
        return to_pil(images)
    floats = images.float() / 255
    return floats if output_type == "pt" else floats.permute(0, 2, 3, 1).numpy()
