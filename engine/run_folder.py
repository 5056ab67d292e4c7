"""The folder of a run: its configuration and its own copy of the autoencoder, so that it can be moved as it is."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from data.token_cache import autoencoder_hash
from engine.config import LoopArgs, plain
from models.autoencoder import Autoencoder
from models.checkerboard import AutoencoderPaths, ModelConfig
from models.errors import UserError
from models.published import (
    CHECKPOINT_NAME,
    CONFIG_NAME,
    autoencoder_config_dict,
    load_autoencoder,
    read_model_config,
    write_yaml,
)

AUTOENCODER_PATHS = AutoencoderPaths("autoenc/autoencoder_config.yaml", "autoenc/autoencoder.safetensors")


def run_settings(config: ModelConfig, args: LoopArgs) -> dict[str, Any]:
    """What ``config.yaml`` of a run folder holds; its autoencoder is the folder's own copy."""
    return {"model": plain(replace(config, autoenc=AUTOENCODER_PATHS)), "args": plain(args)}


def open_run_folder(folder: Path, config: ModelConfig, args: LoopArgs, autoencoder: Autoencoder) -> Path:
    """Begin a run's folder, or check that the one there is of the same model; a lock keeps other programs out.

    Raises:
        UserError: the folder holds a run of another model or autoencoder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_same(folder, config, autoencoder)
    if not holds_run(folder):
        save_autoencoder(autoencoder, folder / "autoenc")
        write_yaml(folder / CONFIG_NAME, run_settings(config, args))
    return folder


def save_autoencoder(autoencoder: Autoencoder, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write ``autoencoder.safetensors``, its floats in ``dtype``, and ``autoencoder_config.yaml``."""
    folder.mkdir(parents=True, exist_ok=True)
    state = autoencoder.state_dict()
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    temporary = folder / "autoencoder.safetensors.tmp"
    try:
        temporary.write_bytes(save(state))
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"could not write {temporary} ({error}); free some space and run the command again") from error
    temporary.replace(folder / "autoencoder.safetensors")
    write_yaml(folder / "autoencoder_config.yaml", autoencoder_config_dict(autoencoder.config))


def holds_run(folder: Path) -> bool:
    """Whether there is a run to go on with."""
    return (folder / CHECKPOINT_NAME).exists() and (folder / CONFIG_NAME).exists()


def check_same(folder: Path, config: ModelConfig, autoencoder: Autoencoder) -> None:
    """Refuse to go on with a run of another model, if the folder holds one.

    Raises:
        UserError: the folder holds a run of another model or autoencoder.
    """
    if not holds_run(folder):
        return
    config = replace(config, autoenc=AUTOENCODER_PATHS)
    saved = read_model_config(folder / CHECKPOINT_NAME)
    ours, theirs = (asdict(replace(c, num_mixing_layers=c.mixing_layers)) for c in (config, saved))
    other = [key for key in ("llama_config", *ours) if ours[key] != theirs[key]]
    if other:
        key = other[0]
        raise UserError(
            f"{folder} holds a run with {key} {theirs[key]}, not {ours[key]}; "
            "go on with the same model, or name another output_dir"
        )
    if autoencoder_hash(load_autoencoder(AUTOENCODER_PATHS, folder)) != autoencoder_hash(autoencoder):
        raise UserError(
            f"{folder} holds a run with another autoencoder; go on with that one, or name another output_dir"
        )
