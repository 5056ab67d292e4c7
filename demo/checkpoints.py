"""The models that the page can draw with, loaded when they are wanted."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.options import DemoArgs
from models.family import Generator
from models.loading.checkpoint import CHECKPOINT_NAME, find_checkpoint, load_checkpoint, read_model_config
from models.loading.identity import model_sha256
from pretrained_models.download import FAMILIES, TABLE
from runtime.device import pick_device
from runtime.errors import UserError
from runtime.files import PROJECT
from sampling.bulk import place_model
from sampling.pipeline import Pipeline

KEPT = 3  # models in memory at once


@dataclass(frozen=True)
class Loaded:
    """A model at its place, and what the command line calls it."""

    checkpoint: str
    pipeline: Pipeline
    sha256: str

    @property
    def model(self) -> Generator:
        return self.pipeline.model


class LoadedModels:
    """Loads the models of ``names``, and keeps those that were used last. One thread at a time may ask."""

    def __init__(self, args: DemoArgs, names: Sequence[str]) -> None:
        self.args, self.names = args, names
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()

    def get(self, name: str) -> Loaded:
        """UserError: it is none of them, or cannot be loaded."""
        if name not in self.names:
            raise UserError(f"{name} is not offered here; start the page with --checkpoint {name}")
        if name not in self._loaded:
            model = load_checkpoint(name, self.args.use_ema)
            loaded = Loaded(name, Pipeline(model), model_sha256(model))
            place_model(model, self.args, pick_device(self.args.device))
            self._loaded[name] = loaded
            while len(self._loaded) > KEPT:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(name)
        return self._loaded[name]


def offered() -> dict[str, str]:
    """The family of each checkpoint that ships or was downloaded, and of runs below output/; from the project or here.

    Some downloads have no configuration beside them.
    """
    pretrained = PROJECT / "pretrained_models"
    found = [path.parent for path in sorted(pretrained.glob("*/config.yaml"))]
    found.sort(key=lambda folder: folder.name != "cifar10-checkerboard")  # which is always there
    for depth in ("*", "*/*"):
        found += [path.parent for path in sorted(Path("output").glob(f"{depth}/{CHECKPOINT_NAME}"))]
    families = {_short(folder): _family_of(folder) for folder in found}
    for file in TABLE:
        name = file.path.split("/")[0]
        if name in FAMILIES and (pretrained / file.path).exists():
            families[_short(pretrained / name)] = FAMILIES[name]
    return {name: family for name, family in families.items() if family is not None}


def _family_of(folder: Path) -> str | None:
    """None if there is no generator: an autoencoder's run has files of the same names."""
    try:
        return read_model_config(find_checkpoint(folder)).architecture
    except UserError:
        return None


def _short(folder: Path) -> str:
    """As a user would type it: what is not here may be in the project."""
    return str(folder.relative_to(PROJECT) if folder.is_relative_to(PROJECT) else folder)
