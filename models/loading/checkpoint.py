"""Checkpoint files <-> models of any family: ours, and the published release's (method.md Sec. 3, 4).

Reading runs no code of the file: tensors, plain containers, paths and an ``argparse.Namespace`` of those are let
through, nothing else. Nothing is loaded in part: missing, unexpected or misshapen keys are an error that lists them.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.autoencoder import Autoencoder
from models.config import FAMILIES, AutoencoderConfig, GeneratorConfig, family_of
from models.family import Generator
from models.loading.autoencoder import (
    PUBLISHED_PATHS,
    build_autoencoder,
    expanded,
    export_autoencoder,
    first_file,
    load_autoencoder,
    places_of,
)
from models.loading.state import Names, check_finite, load_exactly, our_names, published_name, read_torch_file
from runtime.config import dataclass_from_dict, read_yaml, write_yaml
from runtime.errors import UserError

CHECKPOINT_NAME = "checkpoint-last.pth"
CONFIG_NAME = "config.yaml"
AUTOENCODER_PREFIX = "autoenc."


def load_checkpoint(path: str | Path, use_ema: bool = False) -> Generator:
    """A model in eval mode on the CPU, float32, from a checkpoint of ours or of the published release.

    ``path`` is the file, with ``config.yaml`` beside it, or its folder; ``use_ema`` takes the averaged weights. A
    UserError: it is missing, damaged, unsafe, not such a model, or without those weights.
    """
    path = find_checkpoint(path)
    config = read_model_config(path)
    checkpoint = read_torch_file(path)
    states = model_states(checkpoint, config, path)
    if use_ema and states["model_ema"] is None:
        raise UserError(f"{path} holds no EMA weights; leave out use_ema")
    model = build_model(states["model_ema" if use_ema else "model"], config, path)
    model.class_names = checkpoint.get("class_names")
    return model


def initialize_from(model: Generator, path: str | Path) -> list[str]:
    """Copy what fits of a checkpoint's weights into a model; return a remark on each tensor that does not."""
    path = find_checkpoint(path)
    saved, _ = split_off_autoencoder(model_states(read_torch_file(path), model.config, path)["model"])
    check_finite(saved, path, names_of(model.config))
    return model.initialize_from(saved, str(path))


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint file at a path or in a folder."""
    path = expanded(path)
    file = path / CHECKPOINT_NAME if path.is_dir() else path
    if file.suffix in (".yaml", ".yml"):
        raise UserError(f"{file} is a configuration; name the folder that it is in, or the file of weights beside it")
    if not file.is_file():
        hint = "train one with main.py, or fetch the released ones with bash pretrained_models/download.sh"
        raise UserError(f"no checkpoint at {file}; {hint}")
    return file


def read_model_config(checkpoint_path: Path) -> GeneratorConfig:
    """The ``model:`` section of the configuration beside a checkpoint."""
    path = checkpoint_path.parent / CONFIG_NAME
    section = read_yaml(path).get("model")
    if not isinstance(section, dict):
        raise UserError(f"{path} has no model: section; put back the {CONFIG_NAME} that came with the checkpoint")
    return dataclass_from_dict(family_of(section).load("config"), section, str(path))


def build_model(state: Mapping[str, Tensor], config: GeneratorConfig, path: Path) -> Generator:
    """A model from one state dict of the file at ``path``, whose own autoencoder weights win over the autoencoder's."""
    own, frozen = split_off_autoencoder(state)
    if frozen:
        autoencoder = build_autoencoder(frozen, config.autoenc, path.parent, path)
    else:
        autoencoder = load_autoencoder(config.autoenc, path.parent)
    with torch.device("meta"):
        model = model_class(config).from_state(config, autoencoder, own)
    load_exactly(model, own, path, names_of(config))
    return model.eval()


def split_off_autoencoder(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A model's own weights, and those of the autoencoder among them."""
    parts: dict[bool, dict[str, Tensor]] = {False: {}, True: {}}
    for key, value in state.items():
        parts[key.startswith(AUTOENCODER_PREFIX)][key.removeprefix(AUTOENCODER_PREFIX)] = value
    return parts[False], parts[True]


def random_model(path: Path) -> tuple[Generator, bool]:
    """The model of a configuration in eval mode, of random weights; and whether its autoencoder was there.

    Where it is missing, one of LlamaGen's size and of random weights takes its place.
    """
    section = read_yaml(path).get("model") or {}
    config = dataclass_from_dict(family_of(section).load("config"), section, str(path))
    weights = config.autoenc.checkpoint_path
    there = weights is not None and first_file(places_of(weights, None)) is not None
    autoencoder = load_autoencoder(config.autoenc) if there else Autoencoder(AutoencoderConfig())
    return model_class(config)(config, autoencoder).eval(), there


def model_class(config: GeneratorConfig) -> type[Generator]:
    """The family that a configuration is of."""
    return FAMILIES[config.architecture].load("generator")


def names_of(config: GeneratorConfig) -> Names:
    """Our names of weights and the published ones."""
    layout = FAMILIES[config.architecture].load("published")
    return () if layout is None else layout.names


def model_states(
    checkpoint: Mapping[str, Any], config: GeneratorConfig, path: Path
) -> dict[str, dict[str, Tensor] | None]:
    """Weights under our names, ``model`` and, if there are any, ``model_ema``, of the contents of a file."""
    if not isinstance(checkpoint.get("model"), dict):
        raise UserError(f"{path} has no model entry; it is no checkpoint of this model")
    ema, names = checkpoint.get("model_ema"), names_of(config)
    model = our_names(checkpoint["model"], names)
    frozen = {key: value for key, value in model.items() if key.startswith(AUTOENCODER_PREFIX)}
    return {"model": model, "model_ema": None if ema is None else frozen | our_names(ema, names)}


def export_published(path: str | Path, folder: str | Path) -> None:
    """Write a checkpoint of ours as a new folder that the published code reads; optimizer state is left behind."""
    path, folder = find_checkpoint(path), Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name a new folder to export to")
    config = read_model_config(path)
    layout = FAMILIES[config.architecture].load("published")
    if layout is None:
        raise UserError(f"{path} is a model of {config.architecture}, which has no published layout")
    section = layout.section(config, PUBLISHED_PATHS, path)
    checkpoint = read_torch_file(path)
    states = model_states(checkpoint, config, path)
    models = {key: None if state is None else build_model(state, config, path) for key, state in states.items()}
    content = {key: None if model is None else published_state(model) for key, model in models.items()}
    content |= {"optimizer": None, "scaler": None, "epoch": checkpoint.get("epoch", 0), "args": argparse.Namespace()}
    if checkpoint.get("class_names") is not None:
        content["class_names"] = checkpoint["class_names"]
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    torch.save(content, partial / CHECKPOINT_NAME)
    export_autoencoder(models["model"].autoencoder, partial / "autoenc")
    write_yaml(partial / CONFIG_NAME, {"model": section, "args": {}})
    if folder.exists():
        folder.rmdir()  # empty, as checked above
    partial.rename(folder)


def published_state(model: Generator) -> dict[str, Tensor]:
    """A model's weights, its autoencoder's among them, under the published names."""
    autoencoder = {AUTOENCODER_PREFIX + key: value for key, value in model.autoencoder.state_dict().items()}
    names = names_of(model.config)
    return {published_name(key, names): value for key, value in (model.state_dict() | autoencoder).items()}
