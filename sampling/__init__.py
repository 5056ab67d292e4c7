"""Drawing images: options, batches, the sample folder, editing, pictures; ``Pipeline`` for use in Python."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sampling.pipeline import Pipeline

__all__ = ["Pipeline"]


def __getattr__(name: str) -> Any:
    """Import torch when it is needed: options and --help are read before."""
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from sampling.pipeline import Pipeline

    return Pipeline
