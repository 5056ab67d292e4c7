"""Files of autoencoders: ours, the published release's, LlamaGen's (method.md Sec. 3).

Files that are missing, damaged or of another architecture than their YAML says are a UserError.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from models.autoencoder import Autoencoder
from models.config import AutoencoderConfig, AutoencoderPaths
from models.loading.state import load_exactly, our_names, published_name, read_torch_file
from runtime.config import dataclass_from_dict, plain, read_yaml, write_yaml
from runtime.errors import UserError
from runtime.files import whole

PROJECT = Path(__file__).resolve().parents[2]
AUTOENCODER_CONFIG_NAME = "autoencoder_config.yaml"
AUTOENCODER_NAMES = ("checkpoint.pth", "autoencoder.safetensors")  # the published one's, ours
PUBLISHED_PATHS = AutoencoderPaths(f"autoenc/{AUTOENCODER_CONFIG_NAME}", f"autoenc/{AUTOENCODER_NAMES[0]}")
# Bookkeeping that files may hold or lack without being another model.
_OPTIONAL_KEYS = ("quantize.initialized", "cluster_usage_train")
_IGNORED_KEYS = ("quantize.codebook_used",)


def load_autoencoder(paths: AutoencoderPaths, folder: Path | None = None) -> Autoencoder:
    """The frozen autoencoder of a configuration; beside a checkpoint, in that ``folder`` (see ``places_of``)."""
    if paths.checkpoint_path is None:
        raise UserError("no autoencoder: set model.autoenc.checkpoint_path to its weights")
    tried = places_of(paths.checkpoint_path, folder)
    checkpoint_path = first_file(tried)
    if checkpoint_path is None:
        raise UserError(
            f"no autoencoder weights at {' nor at '.join(map(str, tried))}; mend autoenc.checkpoint_path, or fetch the "
            "released ones with bash pretrained_models/download.sh autoenc"
        )
    return build_autoencoder(read_autoencoder_state(checkpoint_path), paths, folder, checkpoint_path)


def open_autoencoder(path: str | Path) -> Autoencoder:
    """An autoencoder in eval mode on the CPU, from its weights or the folder of them (and of its configuration)."""
    path = expanded(path)
    if not path.exists():
        raise UserError(
            f"no autoencoder weights at {path}; name a file or folder of them (LlamaGen's: bash "
            "pretrained_models/download.sh llamagen)"
        )
    if not path.is_dir():
        return build_autoencoder(read_autoencoder_state(path), AutoencoderPaths(), None, path)
    names = [name for name in AUTOENCODER_NAMES if (path / name).is_file()]
    if not names:
        raise UserError(f"{path} holds neither {' nor '.join(AUTOENCODER_NAMES)}; name an autoencoder's folder or file")
    return load_autoencoder(AutoencoderPaths(AUTOENCODER_CONFIG_NAME, names[0]), path)


def places_of(path: str, folder: Path | None) -> list[Path]:
    """Where a file that a configuration names may lie, in the order to try.

    Without ``folder`` the configuration is the user's own: from the working directory, then from the project's root.
    Beside a checkpoint it may be anyone's: from the checkpoint's ``folder``, then from the project's root, and a path
    that leads out of both is a UserError. Links in them may lead anywhere.
    """
    if folder is None:
        return list(dict.fromkeys(root / expanded(path) for root in (Path.cwd(), PROJECT)))
    roots = [Path(os.path.normpath(folder.absolute())), PROJECT]
    tried = dict.fromkeys(Path(os.path.normpath(root / path)) for root in roots)
    inside = [place for place in tried if any(place.is_relative_to(root) for root in (*roots, Path.cwd()))]
    if not inside:
        raise UserError(
            f"the configuration in {folder} names {path}, which is neither in that folder nor in the project; copy it "
            "there and mend the path"
        )
    return inside


def first_file(places: Iterable[Path]) -> Path | None:
    return next((place for place in places if place.is_file()), None)


def expanded(path: str | Path) -> Path:
    """A user's path, ``~`` replaced by the home folder if there is one."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (that of Path is an error where there is none)


def read_autoencoder_state(path: Path) -> dict[str, Tensor]:
    """An autoencoder's weights under our names: safetensors, ``state_dict`` (published) or ``model`` (LlamaGen)."""
    if path.suffix == ".safetensors":
        try:
            return our_names(load_file(path))
        except SafetensorError as error:
            raise UserError(f"{path} is damaged or no safetensors file ({error}); get it again") from error
    checkpoint = read_torch_file(path)
    for key in ("state_dict", "model"):
        if isinstance(checkpoint.get(key), dict):
            return our_names(checkpoint[key])
    raise UserError(f"{path} holds neither state_dict nor model; it is no autoencoder checkpoint")


def build_autoencoder(
    state: Mapping[str, Tensor], paths: AutoencoderPaths, folder: Path | None, path: Path
) -> Autoencoder:
    """An autoencoder from weights read from ``path``; its architecture is the YAML's, or read off them without one."""
    try:
        config = infer_autoencoder_config(state)
    except KeyError as error:
        raise UserError(f"{path} lacks {error.args[0]}; it is no autoencoder of LlamaGen's layout") from error
    except (IndexError, ValueError) as error:
        raise UserError(f"{path} is no autoencoder of LlamaGen's layout ({error})") from error
    config_path = None if paths.config_path is None else first_file(places_of(paths.config_path, folder))
    if config_path is not None:
        config = read_autoencoder_config(config_path, paths.params)
    autoencoder = Autoencoder(config)
    state = {key: value for key, value in state.items() if key not in _IGNORED_KEYS}
    for key in _OPTIONAL_KEYS:
        state.setdefault(key, autoencoder.state_dict()[key])
    load_exactly(autoencoder, state, path)
    return autoencoder.eval()


def read_autoencoder_config(path: Path, params: Mapping[str, Any] | None = None) -> AutoencoderConfig:
    """Architecture in an autoencoder's YAML (``model.params``), overridden by ``params``; training keys are skipped."""
    model = read_yaml(path).get("model")
    section = model.get("params") if isinstance(model, dict) else None
    if not isinstance(section, dict) or not isinstance(section.get("ddconfig", {}), dict):
        raise UserError(f"{path} has no model.params section; it is no autoencoder configuration")
    section = {**section, **(params or {})}
    if not section.get("normalize", True):
        raise UserError(
            f"{path} sets normalize: false, but codes of this model have unit norm; use another autoencoder"
        )
    section |= section.get("ddconfig", {})
    settings = {f.name: section[f.name] for f in fields(AutoencoderConfig) if f.name in section}
    return dataclass_from_dict(AutoencoderConfig, settings, str(path))


def infer_autoencoder_config(state: Mapping[str, Tensor]) -> AutoencoderConfig:
    """The architecture that a state dict under our names has the shapes of. Raises KeyError for one that has none."""
    matches = (re.match(r"encoder\.conv_blocks\.(\d+)\.res\.(\d+)\.", key) for key in state)
    blocks = [(int(match[1]), int(match[2])) for match in matches if match] or [(0, 0)]
    num_levels, num_res_blocks = (1 + max(indices) for indices in zip(*blocks, strict=True))
    ch = state["encoder.conv_in.weight"].shape[0]
    widths = [state[f"encoder.conv_blocks.{level}.res.0.conv2.weight"].shape[0] for level in range(num_levels)]
    embed_dim, z_channels = state["quant_conv.weight"].shape[:2]
    ch_mult, n_embed = tuple(width // ch for width in widths), state["quantize.embedding"].shape[0]
    return AutoencoderConfig(ch, ch_mult, num_res_blocks, z_channels, embed_dim, n_embed)


def export_autoencoder(autoencoder: Autoencoder, folder: Path) -> None:
    """Write an autoencoder as the published release has it: ``checkpoint.pth`` and ``autoencoder_config.yaml``."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {published_name(key): value for key, value in autoencoder.state_dict().items()}
    with whole(folder / AUTOENCODER_NAMES[0]) as temporary:
        torch.save({"state_dict": state}, temporary)
    write_yaml(folder / AUTOENCODER_CONFIG_NAME, autoencoder_config_dict(autoencoder.config))


def autoencoder_config_dict(config: AutoencoderConfig) -> dict[str, Any]:
    """An autoencoder's YAML content in the published schema."""
    ddconfig = plain(config)
    sizes = {key: ddconfig.pop(key) for key in ("embed_dim", "n_embed")}
    return {"model": {"params": {**sizes, "normalize": True, "ddconfig": ddconfig}}}


def save_autoencoder(autoencoder: Autoencoder, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write ``autoencoder.safetensors``, its floats in ``dtype``, and ``autoencoder_config.yaml``."""
    folder.mkdir(parents=True, exist_ok=True)
    state = autoencoder.state_dict()
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    with whole(folder / AUTOENCODER_NAMES[1]) as temporary:
        temporary.write_bytes(save(state))
    write_yaml(folder / AUTOENCODER_CONFIG_NAME, autoencoder_config_dict(autoencoder.config))


def autoencoder_hash(autoencoder: Autoencoder) -> str:
    """SHA-256 of the weights that decide which codes an image gets."""
    digest = hashlib.sha256()
    for name, tensor in sorted(autoencoder.state_dict().items()):
        if name.startswith(("encoder.", "quant_conv.", "quantize.embedding")):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
