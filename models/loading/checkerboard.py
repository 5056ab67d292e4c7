"""The published layout of the checkerboard: names of its weights, and what its ``config.yaml`` can say."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from models.checkerboard.config import CheckerboardConfig
from models.config import AutoencoderPaths
from models.loading.state import PublishedLayout
from runtime.errors import UserError

# Parts of our names and of the published ones, replaced in this order.
NAMES = (
    ("rope.table", "llama.rotary_emb.position_embeddings.parametrizations.weight.original"),
    ("rope.mixing_coeffs", "llama.rotary_emb.mixing_coeffs"),
    ("transformer.", "llama."),
    ("modulation.linear.", "modulation.adaLN_modulation.1."),
)
OUR_SETTINGS = ("architecture", "label_drop", "scan_order")  # the published schema does not know them


def published_section(config: CheckerboardConfig, autoenc: AutoencoderPaths, path: Path) -> dict[str, Any]:
    """The ``model:`` section in the published schema; a UserError if it cannot say what the model is."""
    if config.scan_order != "checkerboard":
        raise UserError(f"{path} has scan_order {config.scan_order}, which the published layout cannot say")
    section = asdict(replace(config.canonical(), autoenc=autoenc))
    return {key: value for key, value in section.items() if key not in OUR_SETTINGS}


LAYOUT = PublishedLayout(NAMES, published_section)
