"""``sample``: images of labels, by a model of any family."""

import warnings
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, get_type_hints

import numpy as np
import torch
from torch import Tensor

from models.checks import as_labels
from models.class_names import ClassNames
from models.config import NUM_SEEDS, Drawing
from models.family import Generator, Samples
from models.sampler import Sampler
from runtime.config import typed
from runtime.errors import UserError


def sample(
    model: Generator,
    labels: Tensor | Sequence[int | str],
    *,
    seeds: Sequence[int] | None = None,
    keep: Sequence[Tensor] | None = None,
    keep_codes: Sequence[Tensor] | None = None,
    order: Tensor | None = None,
    compiled: bool = False,
    **drawing: Any,
) -> Samples:
    """Draw one image a label.

    Args:
        model: in eval mode or not; nothing is dropped here.
        labels: (B,) class indices or names; the index ``num_classes`` is unconditional.
        seeds: one an image, 0 to 2**32 - 1; without them they are drawn from torch's global generator. An image's
            randomness follows from its seed alone, on every device. Rounding may depend on the batch size and decide
            where two codes are within it: in float32 in less than one of a thousand images, in bfloat16 in many.
        keep: (B, S, S) of each scale, True where the code of ``keep_codes`` stays instead of a drawn one: editing.
        keep_codes: (B, S, S) codes of each scale, for instance ``model.tokenize`` of images to edit.
        order: (B, L) raster indices of the locations in the order to draw them, one permutation an image, for families
            that take one (randar).
        compiled: compile the drawing of a step; pays off for many images.
        drawing: settings of ``model.Drawing``; of the others, the checkpoint's recommended ones, then the defaults.
            There are cfg, temperature, top_k, top_p of every family; steps_per_scale, cfg_start_step and remainder of
            the checkerboard; cfg_interval of llamagen; steps, cfg_schedule and upscale of randar.

    Raises:
        UserError: a label or setting is out of range.
    """
    labels = as_labels(_indices(model, labels))
    settings = checked_drawing(model, drawing, keeps=keep is not None)
    model.check_labels(labels)
    for warning in warnings_of(model, settings):
        warnings.warn(warning, stacklevel=2)
    seeds = torch.randint(NUM_SEEDS, (len(labels),)).tolist() if seeds is None else seeds
    return model.sampler(len(labels), settings, compiled)(labels, seeds, keep, keep_codes, order)


def _indices(model: Generator, labels: Tensor | Sequence[int | str]) -> Tensor | Sequence[int]:
    """Labels by index; UserError for a name that is no class's or several classes'."""
    labels = [labels] if isinstance(labels, str) else labels
    if not isinstance(labels, Sequence) or not any(isinstance(label, str) for label in labels):
        return labels
    names = ClassNames(model)
    return [names.label(label) if isinstance(label, str) else label for label in labels]


def make_sampler(model: Generator, batch: int, compiled: bool = False, **drawing: Any) -> Sampler:
    """What draws ``batch`` images a call with settings as of ``sample``: to be made once and called often.

    It is called with labels (B,), seeds (B,) and what is kept, as ``sample`` is. It holds memory for its batch and
    copies of some weights: make another once they change. A UserError says what is out of range.
    """
    if isinstance(batch, bool) or not isinstance(batch, int | np.integer) or batch < 1:
        raise UserError(f"batch is {batch}; give the number of images that are drawn at once, 1 or more")
    return model.sampler(int(batch), checked_drawing(model, drawing), compiled)


def checked_drawing(model: Generator, settings: dict[str, Any], keeps: bool = False) -> Drawing:
    """A family's settings of a drawing, checked: those that are given, the recommended ones, or defaults.

    The default of a model without classes is no guidance. ``keeps`` says that some codes will stay: editing.
    """
    known = [f.name for f in fields(model.Drawing)]
    for name in settings:
        if name not in known:
            raise UserError(f"{name} means nothing to {model.config.architecture}, which has {', '.join(known)}")
    defaults = {} if model.config.class_cond else {"cfg": 0.0}
    hints, settings = get_type_hints(model.Drawing), defaults | model.recommended | settings
    values = {name: value.item() if isinstance(value, np.generic) else value for name, value in settings.items()}
    drawing = model.Drawing(**{name: typed(value, hints[name], name) for name, value in values.items()})
    model.check_drawing(drawing, keeps)
    return drawing


def warnings_of(model: Generator, drawing: Drawing) -> list[str]:
    """What of a drawing's settings has no effect, or another than one may think."""
    unguided = drawing.uses_cfg and not model.config.class_cond
    return drawing.warnings(model.scale_sizes) + (["cfg has no effect on a model without classes"] if unguided else [])
