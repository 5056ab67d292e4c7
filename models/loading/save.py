"""A model of any family as a folder of its own: weights, configuration and autoencoder, as load_checkpoint reads it."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.config import AutoencoderPaths
from models.family import Generator
from models.loading.autoencoder import (
    AUTOENCODER_CONFIG_NAME,
    AUTOENCODER_NAMES,
    open_autoencoder,
    save_autoencoder,
)
from models.loading.checkpoint import CONFIG_NAME, plain_settings
from models.loading.state import write_weights
from runtime import strict_yaml
from runtime.config import plain, read_yaml, write_yaml
from runtime.errors import UserError
from runtime.files import PROJECT, new_folder, write_text

MODEL_NAME = "model.safetensors"
AUTOENCODER_FOLDER = "autoenc"


def save_model(
    model: Generator, folder: Path, dtype: torch.dtype = torch.float32, autoencoder: str | None = None
) -> None:
    """Write ``model.safetensors``, ``config.yaml`` and ``autoenc/`` into a new or empty folder.

    Args:
        dtype: of the stored weights; they are computed with in float32 again.
        autoencoder: a folder within the project that holds the same autoencoder, to be named instead of copied.
    """
    with new_folder(folder) as partial:
        place = AUTOENCODER_FOLDER if autoencoder is None else _place_in_project(model, autoencoder)
        own = {name: weight.to(dtype) for name, weight in model.state_dict().items()}
        write_weights(own, partial / MODEL_NAME, model.class_names)
        paths = AutoencoderPaths()
        if model.autoencoder is not None:
            if autoencoder is None:
                save_autoencoder(model.autoencoder, partial / place, _stored_dtype(model.autoencoder))
            paths = AutoencoderPaths(f"{place}/{AUTOENCODER_CONFIG_NAME}", f"{place}/{AUTOENCODER_NAMES[1]}")
        settings = {"model": plain(replace(model.config, autoenc=paths)), "sampling": plain_settings(model.recommended)}
        write_yaml(partial / CONFIG_NAME, {name: section for name, section in settings.items() if section})


def write_recommended(place: Path, settings: Mapping[str, Any]) -> None:
    """Make these settings of a drawing the ``sampling:`` section of a checkpoint's configuration; the rest stays."""
    if not place.is_file():
        raise UserError(f"there is no {place} that could recommend settings; pass them to main_sample.py instead")
    section, text = {"sampling": plain_settings(settings)}, place.read_text(encoding="utf-8")
    kept = re.sub(r"^sampling:.*\n?(?:[ \t].*\n?)*", "", text, flags=re.MULTILINE)
    text = kept.rstrip("\n") + "\n" + strict_yaml.dump(section)
    try:
        wanted = read_yaml(place) | section
        fits = strict_yaml.load(text) == wanted
    except ValueError:
        fits = False
    if not fits:
        line = " ".join(strict_yaml.dump(section).split())
        raise UserError(f"{place} is written in a way that nothing can be added to; put {line} into it by hand")
    write_text(place, text)


def _place_in_project(model: Generator, autoencoder: str) -> str:
    """The folder as a configuration names it, from the project's root; UserError if it holds another autoencoder."""
    folder = Path(autoencoder).absolute()
    if not folder.is_relative_to(PROJECT):
        raise UserError(f"autoencoder is {autoencoder}, which is not in the project; leave it out to copy the model's")
    theirs = open_autoencoder(folder).state_dict()
    ours = {} if model.autoencoder is None else model.autoencoder.state_dict()
    if theirs.keys() != ours.keys() or not all(torch.equal(theirs[name], ours[name]) for name in ours):
        raise UserError(f"{autoencoder} holds another autoencoder than the model's; leave it out to copy that one")
    return folder.relative_to(PROJECT).as_posix()


def _stored_dtype(autoencoder: nn.Module) -> torch.dtype:
    """float16 if it holds all weights as they are, as those do that were stored so."""
    floats = [weight for weight in autoencoder.state_dict().values() if weight.is_floating_point()]
    exact = all(torch.equal(weight.half().to(weight.dtype), weight) for weight in floats)
    return torch.float16 if exact else torch.float32
