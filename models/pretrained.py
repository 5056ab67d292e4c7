"""What every model and autoencoder offers for sharing it: the names that users of the Hugging Face hub know."""

from importlib import import_module
from pathlib import Path
from typing import Any, Self

from runtime.errors import UserError


class Pretrained:
    """A module that is loaded and saved as a folder, or a repository of the hub.

    What is above the modules, as files and pictures, is looked up by name when it is needed.
    """

    @classmethod
    def from_pretrained(cls, path: str | Path, **how: Any) -> Self:
        """From a folder, file or name of the hub, as ``load_checkpoint``; UserError if another kind lies there."""
        module = _sharing().load_pretrained(path, cls, **how)
        if not isinstance(module, cls):
            raise UserError(f"{path} is a {type(module).__name__}, not a {cls.__name__}; load it as that")
        return module

    def save_pretrained(self, folder: str | Path, **details: Any) -> None:
        """Write a new folder: weights, configuration, model card; ``details`` as of ``save_pretrained`` in sharing."""
        _sharing().save_pretrained(self, Path(folder), **details)

    def push_to_hub(self, name: str, **details: Any) -> str:
        """Upload what ``save_pretrained`` writes to ``owner/name``; its address. As ``push_to_hub`` in sharing."""
        return _sharing().push_to_hub(self, name, **details)


def _sharing() -> Any:
    return import_module("sampling.sharing")
