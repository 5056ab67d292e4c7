"""Autoregressive image generation from codes: load a checkpoint, tokenize, score, sample."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.loading.autoencoder import open_autoencoder
    from models.loading.checkpoint import load_checkpoint
    from models.randar.schedule import parallel_schedule
    from models.sampling import make_sampler, sample

__all__ = ["load_checkpoint", "make_sampler", "open_autoencoder", "parallel_schedule", "sample"]
_WHERE = {
    "load_checkpoint": "models.loading.checkpoint",
    "make_sampler": "models.sampling",
    "open_autoencoder": "models.loading.autoencoder",
    "parallel_schedule": "models.randar.schedule",
    "sample": "models.sampling",
}


def __getattr__(name: str) -> Any:
    """Import torch when it is needed: options and --help are read before."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(_WHERE[name]), name)
