"""Autoregressive image generation from codes: load a checkpoint, tokenize, score, sample."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.loading.checkpoint import load_checkpoint
    from models.sampling import sample

__all__ = ["load_checkpoint", "sample"]


def __getattr__(name: str) -> Any:
    """Import torch when it is needed: options and --help are read before."""
    if name == "load_checkpoint":
        from models.loading.checkpoint import load_checkpoint as found
    elif name == "sample":
        from models.sampling import sample as found
    else:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return found
