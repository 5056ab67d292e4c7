"""A model of any family as a folder of its own: weights, configuration and autoencoder, as load_checkpoint reads it."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.config import AutoencoderPaths
from models.family import Generator
from models.loading.autoencoder import (
    AUTOENCODER_CONFIG_NAME,
    AUTOENCODER_NAMES,
    open_autoencoder,
    save_autoencoder,
)
from models.loading.checkpoint import CONFIG_NAME, plain_settings
from models.loading.hub import is_hub_name, snapshot_of
from models.loading.state import write_weights
from runtime import strict_yaml
from runtime.config import JSON, plain, read_yaml, write_yaml
from runtime.errors import UserError
from runtime.files import PROJECT, new_folder, write_text

MODEL_NAME = "model.safetensors"
AUTOENCODER_FOLDER = "autoenc"


def save_model(
    model: Generator,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    autoencoder: str | None = None,
) -> None:
    """Write ``model.safetensors``, its configuration and ``autoenc/`` into a new or empty folder.

    Args:
        dtype: of the stored weights; they are computed with in float32 again.
        autoencoder: a folder within the project, or a name of the hub, that holds the same autoencoder, to be named
            instead of copied.
    """
    with new_folder(folder) as partial:
        write_model(model, partial, dtype, autoencoder, CONFIG_NAME)


def write_model(
    model: Generator, folder: Path, dtype: torch.dtype, autoencoder: str | None, config_name: str = CONFIG_NAME
) -> None:
    """As ``save_model``, into a folder that is there. ``config_name`` is config.yaml, or config.json as on the hub."""
    paths = _autoencoder_paths(model, autoencoder)
    own = {name: weight.to(dtype) for name, weight in model.state_dict().items()}
    check_saved(own)
    write_weights(own, folder / MODEL_NAME, model.class_names)
    if model.autoencoder is not None and autoencoder is None:
        check_saved(model.autoencoder.state_dict())
        save_autoencoder(model.autoencoder, folder / AUTOENCODER_FOLDER, _stored_dtype(model.autoencoder))
    settings = {"model": plain(replace(model.config, autoenc=paths)), "sampling": plain_settings(model.recommended)}
    write_yaml(folder / config_name, {name: section for name, section in settings.items() if section})


def check_recommends(place: Path) -> None:
    """Refuse a checkpoint's configuration that cannot be written to."""
    if not place.is_file():
        raise UserError(f"there is no {place} that could recommend settings; pass them to main_sample.py instead")
    if snapshot_of(place.parent) is not None:
        raise UserError(
            f"{place} is the hub's cache's, for all programs; write a copy of the model by training.export first"
        )


def write_recommended(place: Path, settings: Mapping[str, Any]) -> None:
    """Make these settings of a drawing the ``sampling:`` section of a checkpoint's configuration; the rest stays."""
    check_recommends(place)
    section, text = {"sampling": plain_settings(settings)}, place.read_text(encoding="utf-8")
    if place.suffix == JSON:
        return write_yaml(place, read_yaml(place) | section)
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
    return write_text(place, text)


def _autoencoder_paths(model: Generator, autoencoder: str | None) -> AutoencoderPaths:
    """What the saved configuration names: the copy, or what holds the same autoencoder; UserError if it does not."""
    if autoencoder is None:
        return AutoencoderPaths() if model.autoencoder is None else _paths_in(AUTOENCODER_FOLDER)
    folder, shared = Path(autoencoder).absolute(), is_hub_name(autoencoder)
    if not shared and not folder.is_relative_to(PROJECT):
        raise UserError(
            f"autoencoder is {autoencoder}, neither in the project nor on the hub; leave it out to copy the model's"
        )
    theirs = open_autoencoder(autoencoder).state_dict()
    ours = {} if model.autoencoder is None else model.autoencoder.state_dict()
    if theirs.keys() != ours.keys() or not all(torch.equal(theirs[name], ours[name]) for name in ours):
        raise UserError(f"{autoencoder} holds another autoencoder than the model's; leave it out to copy that one")
    if shared:
        return AutoencoderPaths(None, autoencoder)
    name = folder.relative_to(PROJECT).as_posix()
    published, ours = ((folder / one).is_file() for one in AUTOENCODER_NAMES)
    return _paths_in(name) if ours and not published else AutoencoderPaths(None, name)


def _paths_in(folder: str) -> AutoencoderPaths:
    return AutoencoderPaths(f"{folder}/{AUTOENCODER_CONFIG_NAME}", f"{folder}/{AUTOENCODER_NAMES[1]}")


def check_saved(weights: Mapping[str, Tensor]) -> None:
    """Refuse weights that nobody could load again."""
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise UserError(
                f"{name} holds numbers that are not finite in {weight.dtype}; save float32, or an earlier checkpoint"
            )


def _stored_dtype(autoencoder: nn.Module) -> torch.dtype:
    """float16 if it holds all weights as they are, as those do that were stored so."""
    floats = [weight for weight in autoencoder.state_dict().values() if weight.is_floating_point()]
    exact = all(torch.equal(weight.half().to(weight.dtype), weight) for weight in floats)
    return torch.float16 if exact else torch.float32
