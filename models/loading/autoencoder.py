"""Files of autoencoders: ours, and the published ones of every kind (formats.md M3, R3, R7).

The names of the weights tell the kind, their shapes the sizes. Files that are missing, damaged or of another
architecture than their YAML says are a UserError.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from models.autoencoder import Autoencoder
from models.config import NORM_GROUPS, AutoencoderConfig, AutoencoderPaths
from models.llamagen_vq import LlamaGenVQ
from models.loading.autoencoder_kinds import KINDS, kind_of
from models.loading.hub import WEIGHTS_SUFFIXES, here, is_hub_name, snapshot_of
from models.loading.state import (
    load_exactly,
    our_names,
    published_name,
    read_safetensors,
    read_torch_file,
    write_weights,
)
from runtime.config import dataclass_from_dict, plain, read_yaml, write_yaml
from runtime.errors import UserError
from runtime.files import PROJECT, did_you_mean, located, read_json, whole

AUTOENCODER_CONFIG_NAME = "autoencoder_config.yaml"
AUTOENCODER_NAMES = ("checkpoint.pth", "autoencoder.safetensors")  # the published one's, ours
IN_RUN = ("autoencoder", "autoenc")  # where a run has the one that it trained, or a copy of the one that it uses
PUBLISHED_PATHS = AutoencoderPaths(f"autoenc/{AUTOENCODER_CONFIG_NAME}", f"autoenc/{AUTOENCODER_NAMES[0]}")
CONFIG_NAME = "config.yaml"  # a model's configuration
HUB_CONFIG_NAME = "config.json"  # the configuration of what was saved for the hub, which counts downloads by it


def load_autoencoder(paths: AutoencoderPaths, folder: Path | None = None) -> Autoencoder:
    """The frozen autoencoder of a configuration; beside a checkpoint, in that ``folder`` (see ``places_of``)."""
    if paths.checkpoint_path is None:
        raise UserError("no autoencoder: set model.autoenc.checkpoint_path to its weights")
    tried = places_of(paths.checkpoint_path, folder)
    within = next((place for place in tried if place.is_dir()), None)
    if within is not None:
        found = _files_in(within)
        return load_autoencoder(replace(found, params={**found.params, **paths.params}), within)
    checkpoint_path = first_file(tried)
    if checkpoint_path is None and is_hub_name(paths.checkpoint_path):
        return open_autoencoder(paths.checkpoint_path)
    if checkpoint_path is None:
        raise UserError(
            f"no autoencoder weights at {' nor at '.join(map(str, tried))}; mend autoenc.checkpoint_path, or fetch the "
            "released ones with bash pretrained_models/download.sh autoenc"
        )
    config_path = paths.config_path
    if folder is None and config_path is not None and first_file(places_of(config_path, None)) is None:
        near = did_you_mean(Path(config_path))
        raise UserError(f"no such file: {config_path}{near}; mend autoenc.config_path, or set it to null")
    return build_autoencoder(read_autoencoder_state(checkpoint_path), paths, folder, checkpoint_path)


def open_autoencoder(path: str | Path) -> Autoencoder:
    """An autoencoder in eval mode on the CPU, from its weights, the folder of them, that of a run, or the hub."""
    path = here(path)
    if not path.exists():
        raise UserError(
            f"no autoencoder weights at {path}; name a file or folder of them (LlamaGen's: bash "
            "pretrained_models/download.sh llamagen)"
        )
    if not path.is_dir():
        return build_autoencoder(read_autoencoder_state(path), AutoencoderPaths(), None, path)
    return load_autoencoder(_files_in(path), path)


def _files_in(folder: Path) -> AutoencoderPaths:
    """The files of an autoencoder's folder, of a run that trained one, or of a run that uses one."""
    for within in ("", *IN_RUN):
        names = [name for name in AUTOENCODER_NAMES if (folder / within / name).is_file()]
        if names:
            return AutoencoderPaths(*(str(Path(within) / name) for name in (AUTOENCODER_CONFIG_NAME, names[0])))
    section = _section_in(folder)
    if section is not None:
        return section
    names = sorted(file.name for file in folder.iterdir() if file.suffix in WEIGHTS_SUFFIXES)
    if not names:
        wanted = " nor ".join(AUTOENCODER_NAMES)
        raise UserError(
            f"{folder} holds neither {wanted}; name the folder or file of an autoencoder, or a run's folder"
        )
    if len(names) > 1:
        raise UserError(f"{folder} holds {', '.join(names)}; name one of these files")
    shared = has_section(folder / HUB_CONFIG_NAME, "model")
    return AutoencoderPaths(HUB_CONFIG_NAME if shared else AUTOENCODER_CONFIG_NAME, names[0])


def _section_in(folder: Path) -> AutoencoderPaths | None:
    """The autoencoder that the configuration of a model in this folder names."""
    for place in (folder / CONFIG_NAME, folder / HUB_CONFIG_NAME):
        model = read_yaml(place).get("model") if place.is_file() else None
        section = model.get("autoenc") if isinstance(model, dict) else None
        section = AutoencoderPaths.of_text(section) if isinstance(section, str) else section
        if isinstance(section, dict) and section.get("checkpoint_path"):
            return dataclass_from_dict(AutoencoderPaths, section, f"{place}: autoenc")
    return None


def has_section(place: Path, name: str) -> bool:
    """Whether a JSON file, if there is one, is a configuration of ours: other programs call theirs so too."""
    return isinstance((read_json(place) or {}).get(name), dict)


def places_of(path: str, folder: Path | None) -> list[Path]:
    """Where a file that a configuration names may lie, in the order to try.

    Without ``folder`` the configuration is the user's own: from the working directory, then from the project's root.
    Beside a checkpoint it may be anyone's: from the checkpoint's ``folder``, the project's root, then the working
    directory, and a path that leads out of all is a UserError. Links in them may lead anywhere. A model of the hub has
    its repository instead of the working directory.
    """
    if folder is None:
        return list(dict.fromkeys(root / located(path) for root in (Path.cwd(), PROJECT)))
    snapshot = snapshot_of(folder)  # of a repository of the hub: its autoencoder may be beside the model's folder
    roots = [
        Path(os.path.normpath(folder.absolute())),
        *([PROJECT, Path.cwd()] if snapshot is None else [snapshot, PROJECT]),
    ]
    tried = dict.fromkeys(Path(os.path.normpath(root / path)) for root in roots)
    inside = [place for place in tried if any(place.is_relative_to(root) for root in roots)]
    if not inside:
        raise UserError(
            f"the configuration in {folder} names {path}, which is neither in that folder nor in the project; copy it "
            "there and mend the path"
        )
    return inside


def beside(paths: AutoencoderPaths, configuration: Path) -> AutoencoderPaths:
    """The same files of a user's ``configuration``; what lies in its folder, as a run's does, by that folder."""
    found = {}
    for name in ("config_path", "checkpoint_path"):
        path = getattr(paths, name)
        place = None if path is None else configuration.parent / path
        if place is not None and place.exists():
            found[name] = str(place)
    return replace(paths, **found)


def first_file(places: Iterable[Path]) -> Path | None:
    return next((place for place in places if place.is_file()), None)


def read_autoencoder_state(path: Path) -> dict[str, Tensor]:
    """An autoencoder's weights under our names: safetensors, ``state_dict``, ``model`` (LlamaGen), or bare."""
    if path.suffix == ".safetensors":
        return _our_names(read_safetensors(path))
    checkpoint = read_torch_file(path)
    if "data_order" in checkpoint:  # its weights may be half trained, and are not the averaged ones that it exports
        raise UserError(
            f"{path} is the checkpoint of a training, which has exported no autoencoder there; let it end, or name the "
            "folder that it exports to (export_dir)"
        )
    for key in ("state_dict", "model"):
        if isinstance(checkpoint.get(key), dict):
            return _our_names(checkpoint[key])
    if not checkpoint or not all(isinstance(value, Tensor) for value in checkpoint.values()):
        raise UserError(f"{path} holds neither state_dict nor model nor bare weights; it is no autoencoder checkpoint")
    return _our_names(checkpoint)


def _our_names(state: Any) -> dict[str, Tensor]:
    state = our_names(state)
    kind = kind_of(state)
    return state if kind is None else {kind.renamed.get(key, key): value for key, value in state.items()}


def build_autoencoder(
    state: Mapping[str, Tensor], paths: AutoencoderPaths, folder: Path | None, path: Path
) -> Autoencoder:
    """An autoencoder from weights read from ``path``; its architecture is the YAML's, or read off them without one."""
    config = infer_autoencoder_config(state, path)
    kind = kind_of(state)
    config_path = None if paths.config_path is None else first_file(places_of(paths.config_path, folder))
    if config_path is not None:
        config = read_autoencoder_config(config_path, paths.params)
        if not isinstance(config, kind.config):
            raise UserError(
                f"{path} is an autoencoder of {kind.whose} kind, but {config_path} describes another; name its own "
                "YAML as autoenc.config_path, or null"
            )
    autoencoder = kind.module(config)
    state = {key: value for key, value in state.items() if key not in kind.ignored}
    for key in kind.optional:
        state.setdefault(key, autoencoder.state_dict()[key])
    load_exactly(autoencoder, state, path)
    return autoencoder.eval()


def read_autoencoder_config(path: Path, params: Mapping[str, Any] | None = None) -> AutoencoderConfig:
    """Architecture in an autoencoder's YAML (``model.params``), overridden by ``params``; training keys are skipped.

    ``model.kind`` names the kind; without it, it is LlamaGen's.
    """
    model = read_yaml(path).get("model")
    section = model.get("params") if isinstance(model, dict) else None
    if not isinstance(section, dict) or not isinstance(section.get("ddconfig", {}), dict):
        raise UserError(f"{path} has no model.params section; it is no autoencoder configuration")
    name = model.get("kind", LlamaGenVQ.kind)
    if name not in list(KINDS):
        raise UserError(f"{path} names the kind {name}; known are {', '.join(KINDS)}")
    section = {**section, **(params or {})}
    if name == LlamaGenVQ.kind and not section.get("normalize", True):
        raise UserError(
            f"{path} sets normalize: false, but codes of this model have unit norm; use another autoencoder"
        )
    section |= section.get("ddconfig", {})
    settings = {f.name: section[f.name] for f in fields(KINDS[name].config) if f.name in section}
    try:
        return dataclass_from_dict(KINDS[name].config, settings, str(path))
    except UserError as error:
        named = str(error).startswith(str(path))
        raise error if named else UserError(f"{path}: {error}") from None


def infer_autoencoder_config(state: Mapping[str, Tensor], path: Path) -> AutoencoderConfig:
    """The architecture that a state dict under our names, read from ``path``, has the shapes of."""
    kind = kind_of(state)
    if kind is None:
        whose = ", ".join(known.whose for known in KINDS.values())
        raise UserError(f"{path} is no autoencoder of a known kind ({whose}); name another file")
    try:
        return kind.infer(state)
    except KeyError as error:
        raise UserError(f"{path} lacks {error.args[0]}; it is no autoencoder of {kind.whose} layout") from error
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{path} is no autoencoder of {kind.whose} layout ({error})") from error


def export_autoencoder(autoencoder: Autoencoder, folder: Path, llamagens_names: bool = False) -> None:
    """Write ``checkpoint.pth``, as the release of its kind has it, and ``autoencoder_config.yaml``.

    With ``llamagens_names`` one of LlamaGen's kind is written as in LlamaGen's own vq_ds16_c2i.pt (formats.md M3).
    """
    folder.mkdir(parents=True, exist_ok=True)
    kind, state = KINDS[autoencoder.kind], autoencoder.state_dict()
    if llamagens_names and autoencoder.kind == LlamaGenVQ.kind:
        names = {ours: theirs for theirs, ours in kind.renamed.items()}
        entry, state = "model", {names.get(key, key): v for key, v in state.items() if key not in kind.optional}
    else:
        entry, state = kind.entry, {published_name(key): value for key, value in state.items()}
    with whole(folder / AUTOENCODER_NAMES[0]) as temporary:
        torch.save(state if entry is None else {entry: state}, temporary)
    write_yaml(folder / AUTOENCODER_CONFIG_NAME, autoencoder_config_dict(autoencoder))


def autoencoder_config_dict(autoencoder: Autoencoder) -> dict[str, Any]:
    """An autoencoder's YAML content; LlamaGen's kind has the published schema."""
    if autoencoder.kind != LlamaGenVQ.kind:
        return {"model": {"kind": autoencoder.kind, "params": plain(autoencoder.config)}}
    ddconfig = plain(autoencoder.config)
    sizes = {key: ddconfig.pop(key) for key in ("embed_dim", "n_embed")}
    if ddconfig["norm_groups"] == NORM_GROUPS:
        del ddconfig["norm_groups"]
    return {"model": {"params": {**sizes, "normalize": True, "ddconfig": ddconfig}}}


def save_autoencoder(autoencoder: Autoencoder, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write ``autoencoder.safetensors``, its floats in ``dtype``, and ``autoencoder_config.yaml``."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        key: (value.to(dtype) if value.is_floating_point() else value).contiguous()
        for key, value in autoencoder.state_dict().items()
    }
    with whole(folder / AUTOENCODER_NAMES[1]) as temporary:
        temporary.write_bytes(save(state))
    write_yaml(folder / AUTOENCODER_CONFIG_NAME, autoencoder_config_dict(autoencoder))


def save_shared_autoencoder(autoencoder: Autoencoder, folder: Path, name: str) -> None:
    """Write its weights as they are, in a file of this name, and ``config.json``: what the hub expects of a model."""
    write_weights(autoencoder.state_dict(), folder / name, None)
    write_yaml(folder / HUB_CONFIG_NAME, autoencoder_config_dict(autoencoder))


def autoencoder_hash(autoencoder: Autoencoder) -> str:
    """SHA-256 of the weights that decide which codes an image gets."""
    digest = hashlib.sha256()
    for name, tensor in sorted(autoencoder.state_dict().items()):
        if name.startswith(autoencoder.decides_codes):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
