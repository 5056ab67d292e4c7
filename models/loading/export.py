"""A checkpoint of ours in the published layout."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.config import FAMILIES, AutoencoderPaths
from models.family import Generator
from models.loading.autoencoder import AUTOENCODER_CONFIG_NAME, AUTOENCODER_NAMES, export_autoencoder
from models.loading.checkpoint import (
    AUTOENCODER_PREFIX,
    CHECKPOINT_NAME,
    CONFIG_NAME,
    build_model,
    find_checkpoint,
    model_states,
    names_of,
    read_model_config,
)
from models.loading.state import published_name, read_torch_file
from runtime.config import write_yaml
from runtime.errors import UserError

AUTOENCODER_PATHS = AutoencoderPaths(f"autoenc/{AUTOENCODER_CONFIG_NAME}", f"autoenc/{AUTOENCODER_NAMES[0]}")


def export_published(path: str | Path, folder: str | Path) -> None:
    """Write a checkpoint of ours as a folder that the published code reads; optimizer state is left behind.

    Raises:
        UserError: ``folder`` already holds files, the checkpoint cannot be read, or its family has no such layout.
    """
    path, folder = find_checkpoint(path), Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name a new folder to export to")
    config = read_model_config(path)
    layout = FAMILIES[config.architecture].load("published")
    if layout is None:
        raise UserError(f"{path} is a model of {config.architecture}, which has no published layout")
    section = layout.section(config, AUTOENCODER_PATHS, path)
    checkpoint = read_torch_file(path)
    states = model_states(checkpoint, config, path)
    models = {key: build_model(state, config, path) for key, state in states.items() if state is not None}
    partial = folder.with_name(folder.name + ".partial")
    _write_published(partial, models, section, checkpoint.get("epoch", 0), checkpoint.get("class_names"))
    if folder.exists():
        folder.rmdir()  # empty, as checked above
    partial.rename(folder)


def published_state(model: Generator) -> dict[str, Tensor]:
    """A model's weights, its autoencoder's among them, under the published names."""
    autoencoder = {AUTOENCODER_PREFIX + key: value for key, value in model.autoencoder.state_dict().items()}
    names = names_of(model.config)
    return {published_name(key, names): value for key, value in (model.state_dict() | autoencoder).items()}


def _write_published(
    folder: Path, models: Mapping[str, Generator], section: Mapping[str, Any], epoch: int, names: list[str] | None
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(
        {key: published_state(models[key]) if key in models else None for key in ("model", "model_ema")}
        | {"optimizer": None, "scaler": None, "epoch": epoch, "args": argparse.Namespace()}
        | ({} if names is None else {"class_names": names}),
        folder / CHECKPOINT_NAME,
    )
    export_autoencoder(models["model"].autoencoder, folder / "autoenc")
    write_yaml(folder / CONFIG_NAME, {"model": section, "args": {}})
