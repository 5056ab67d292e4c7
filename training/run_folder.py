"""The folder of a run: its configuration and its own copy of the autoencoder, so that it can be moved as it is."""

from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from models.autoencoder import Autoencoder
from models.config import AutoencoderPaths, Drawing, GeneratorConfig
from models.loading.autoencoder import autoencoder_hash, open_autoencoder, save_autoencoder
from models.loading.checkpoint import (
    CHECKPOINT_NAME,
    CONFIG_NAME,
    plain_settings,
    read_model_config,
    recommended_settings,
)
from runtime.config import plain, read_yaml
from runtime.errors import UserError
from runtime.files import move_aside
from training.state import find_shares, run_checkpoint

AUTOENCODER_PATHS = AutoencoderPaths("autoenc/autoencoder_config.yaml", "autoenc/autoencoder.safetensors")


def run_settings(config: GeneratorConfig, args: Any) -> dict[str, Any]:
    """What ``config.yaml`` of a run folder holds; its autoencoder is the folder's own copy."""
    return {"model": plain(replace(config, autoenc=AUTOENCODER_PATHS)), "args": plain(args)}


def sampling_settings(folder: Path, drawing: Drawing, configuration: Path | None) -> dict[str, Any]:
    """The ``sampling:`` section for a run: that of its previews, unless something else was written there since.

    For a new run, unless something else was written into the ``configuration`` that it begins from.
    """
    own, place = plain_settings(drawing.changed), folder / CONFIG_NAME if holds_run(folder) else configuration
    if place is None or not place.exists():
        return own
    found, before = plain_settings(recommended_settings(place, type(drawing))), read_yaml(place).get("args") or {}
    usual = plain(type(drawing)())
    of_previews = {name: before[name] for name in usual if before.get(name, usual[name]) != usual[name]}
    return own if found in ({}, of_previews) else found  # what differs was written there by a sweep or by hand


def begin_run(folder: Path, autoencoder: Autoencoder) -> None:
    """Give a folder its copy of the autoencoder, unless it holds a run already; a lock keeps other programs out.

    A folder ``autoenc`` of another one, which is not of a run, gets another name.
    """
    place = folder / "autoenc"
    if holds_run(folder):
        return
    if place.exists():
        with suppress(UserError):  # of one that is damaged
            if autoencoder_hash(open_autoencoder(place)) == autoencoder_hash(autoencoder):
                return
        move_aside(place)
    save_autoencoder(autoencoder, place)


def holds_run(folder: Path) -> bool:
    """Whether there is a run to go on with."""
    path = folder / CHECKPOINT_NAME
    return (path.exists() or find_shares(path) is not None) and (folder / CONFIG_NAME).exists()


def exports_to(folder: Path, section: str, target: Path, usual: Path) -> bool:
    """Whether the run in a folder exports to ``target``, by a section of its configuration or as ``usual``.

    What is there is its own then; else it may be of another run.
    """
    if not holds_run(folder):
        return False
    named = (read_yaml(folder / CONFIG_NAME).get(section) or {}).get("export_dir")
    return Path(named or usual).resolve() == target.resolve()


def begun_in(folder: Path, resume: str | None) -> Path | None:
    """The folder of the run that a training goes on from, if its configuration is there: its own comes first."""
    if holds_run(folder):
        return folder
    if resume is None:
        return None
    place = run_checkpoint(resume).parent
    return place if (place / CONFIG_NAME).exists() else None


def check_same(folder: Path, config: GeneratorConfig, autoencoder_sha256: str, resume: str | None = None) -> None:
    """Refuse to go on with a run of another model or autoencoder: the folder's, or else the one of ``resume``."""
    mend = "resume one of the same, or start from its weights by --weights_init"
    if holds_run(folder):
        mend = "go on with the same, or name another output_dir"
    folder = begun_in(folder, resume)
    if folder is None:
        return
    saved = read_model_config(folder / CHECKPOINT_NAME)
    ours, theirs = (asdict(replace(c, autoenc=AUTOENCODER_PATHS).canonical()) for c in (config, saved))
    other = [key for key in ours if ours[key] != theirs.get(key)]
    if other:
        # A change of family explains all others, one of size most.
        key = max(other, key=lambda name: (name == "architecture", isinstance(ours[name], dict)))
        raise UserError(f"{folder} holds a run with {key} {theirs.get(key)}, not {ours[key]}; {mend}")
    own = folder / "autoenc"
    if own.exists() and autoencoder_hash(open_autoencoder(own)) != autoencoder_sha256:
        raise UserError(f"{folder} holds a run with another autoencoder; {mend}")
