"""The published layout of the checkerboard: names of its weights, and what its ``config.yaml`` can say."""

import argparse
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from models.checkerboard.config import CheckerboardConfig
from models.config import AutoencoderPaths
from models.family import Generator
from models.loading.state import AUTOENCODER_PREFIX, CLASS_NAMES, PublishedLayout, published_name
from runtime.errors import UserError

# Parts of our names and of the published ones, replaced in this order.
NAMES = (
    ("rope.table", "llama.rotary_emb.position_embeddings.parametrizations.weight.original"),
    ("rope.mixing_coeffs", "llama.rotary_emb.mixing_coeffs"),
    ("transformer.", "llama."),
    ("modulation.linear.", "modulation.adaLN_modulation.1."),
)
OUR_SETTINGS = ("architecture", "label_drop", "scan_order")  # the published schema does not know them


def published_config(model: Generator, autoenc: AutoencoderPaths, path: Path) -> dict[str, Any]:
    """A configuration in the published schema; a UserError if it cannot say what the model is."""
    config: CheckerboardConfig = model.config
    if config.scan_order != "checkerboard":
        raise UserError(f"{path} has scan_order {config.scan_order}, which the published layout cannot say")
    section = asdict(replace(config.canonical(), autoenc=autoenc))
    return {"model": {key: value for key, value in section.items() if key not in OUR_SETTINGS}, "args": {}}


def published_file(models: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Weights with the autoencoder's among them, under the published names."""
    content = {key: None if model is None else published_state(model) for key, model in models.items()}
    content |= {"optimizer": None, "scaler": None, "epoch": checkpoint.get("epoch", 0), "args": argparse.Namespace()}
    if checkpoint.get(CLASS_NAMES) is not None:
        content[CLASS_NAMES] = checkpoint[CLASS_NAMES]
    return "checkpoint-last.pth", content


def published_state(model: Generator) -> dict[str, Tensor]:
    """Weights and the autoencoder's, under the published names."""
    autoencoder = {AUTOENCODER_PREFIX + key: value for key, value in model.autoencoder.state_dict().items()}
    return {published_name(key, NAMES): value for key, value in (model.state_dict() | autoencoder).items()}


LAYOUT = PublishedLayout(NAMES, published_config, published_file)
