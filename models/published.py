"""Checkpoint files <-> models: ours, the published release's, LlamaGen's (method.md Sec. 3, 4).

The only module of this package that touches files. Reading runs no code of the file: tensors, plain containers and an
``argparse.Namespace`` of those are let through, nothing else. Nothing is loaded in part: missing, unexpected or
misshapen keys are an error that lists them.
"""

import argparse
import difflib
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.autoencoder import Autoencoder, AutoencoderConfig
from models.checkerboard import AutoencoderPaths, Checkerboard, ModelConfig
from models.errors import UserError

CHECKPOINT_NAME = "checkpoint-last.pth"
CONFIG_NAME = "config.yaml"
AUTOENCODER_PREFIX = "autoenc."
AUTOENCODER_CONFIG_NAME = "autoencoder_config.yaml"
AUTOENCODER_NAMES = ("checkpoint.pth", "autoencoder.safetensors")  # the published one's, ours

# Parts of our names and of the published ones, replaced in this order.
_NAMES = (
    ("rope.table", "llama.rotary_emb.position_embeddings.parametrizations.weight.original"),
    ("rope.mixing_coeffs", "llama.rotary_emb.mixing_coeffs"),
    ("transformer.", "llama."),
    ("modulation.linear.", "modulation.adaLN_modulation.1."),
    ("quantize.embedding", "quantize.embedding.parametrizations.weight.original"),
)
_LLAMAGEN_CODEBOOK = "quantize.embedding.weight"
_WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
# Bookkeeping that files may hold or lack without being another model.
_OPTIONAL_KEYS = ("quantize.initialized", "cluster_usage_train")
_IGNORED_KEYS = ("quantize.codebook_used",)
# How torch's restricted reader names what it will not load.
_REFUSED = re.compile(
    r"(?:unsupported global: global|unsupported global|trying to instantiate a class) ([\w.]+)", flags=re.IGNORECASE
)
# Settings of ours that the published schema does not know.
_OUR_SETTINGS = ("label_drop", "scan_order")


def load_checkpoint(path: str | Path, use_ema: bool = False) -> Checkerboard:
    """A model in eval mode on the CPU, float32, from a checkpoint of ours or of the published release.

    Args:
        path: the file, or the folder holding ``checkpoint-last.pth``; ``config.yaml`` lies beside it.
        use_ema: take the averaged weights.

    Raises:
        UserError: the file is missing, damaged, unsafe, or not such a model; or ``use_ema`` and it has no EMA weights.
    """
    path = find_checkpoint(path)
    checkpoint = read_torch_file(path)
    states = _model_states(checkpoint, path)
    if use_ema and states["model_ema"] is None:
        raise UserError(f"{path} holds no EMA weights; leave out use_ema")
    model = build_model(states["model_ema" if use_ema else "model"], read_model_config(path), path)
    model.class_names = checkpoint.get("class_names")
    return model


def initialize_from(model: Checkerboard, path: str | Path) -> list[str]:
    """Copy what fits of a checkpoint's weights into a model; return a remark on each tensor that does not.

    For another image size, pyramid or class count: tables whose rows change keep their fresh values (method.md Sec. 5).
    """
    path = find_checkpoint(path)
    saved = _model_states(read_torch_file(path), path)["model"]
    saved = {key: value for key, value in saved.items() if not key.startswith(AUTOENCODER_PREFIX)}
    own = model.state_dict()
    fits = {key: value for key, value in saved.items() if key in own and value.shape == own[key].shape}
    if not any(key.startswith("transformer.") for key in fits):
        raise UserError(f"{path} has no weights that fit this model; name a checkpoint of a like one")
    model.load_state_dict(fits, strict=False)
    remarks = [f"{len(fits)} of {len(own)} tensors start from {path}"]
    if "src_latents_proj.weight" in own and "src_latents_proj.weight" not in saved:  # absent means identity
        nn.init.eye_(model.src_latents_proj.weight)
        nn.init.zeros_(model.src_latents_proj.bias)
        remarks.append("src_latents_proj starts as the identity, which its absence there means")
        own = {key: value for key, value in own.items() if not key.startswith("src_latents_proj.")}
    for key in own:
        if key in saved and key not in fits:
            shapes = f"{tuple(saved[key].shape)} there, {tuple(own[key].shape)} here"
            remarks.append(f"not loaded, freshly initialized: {key} ({shapes})")
        elif key not in saved:
            remarks.append(f"not loaded, freshly initialized: {key} (not there)")
    return remarks + [f"not loaded: {key} (this model has none)" for key in saved if key not in own]


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint file at a path or in a folder."""
    path = Path(path)
    file = path / CHECKPOINT_NAME if path.is_dir() else path
    if not file.is_file():
        hint = "train one with main.py, or fetch the released ones with bash pretrained_models/download.sh"
        raise UserError(f"no checkpoint at {file}; {hint}")
    return file


def read_model_config(checkpoint_path: Path) -> ModelConfig:
    """The ``model:`` section of the configuration beside a checkpoint."""
    path = checkpoint_path.parent / CONFIG_NAME
    section = read_yaml(path).get("model")
    if not isinstance(section, dict):
        raise UserError(f"{path} has no model: section; put back the {CONFIG_NAME} that came with the checkpoint")
    return dataclass_from_dict(ModelConfig, section, str(path))


def build_model(state: Mapping[str, Tensor], config: ModelConfig, path: Path) -> Checkerboard:
    """A model from one state dict of the file at ``path``, whose own autoencoder weights win over the autoencoder's."""
    autoencoder_state = {
        key.removeprefix(AUTOENCODER_PREFIX): value
        for key, value in state.items()
        if key.startswith(AUTOENCODER_PREFIX)
    }
    own_state = {key: value for key, value in state.items() if not key.startswith(AUTOENCODER_PREFIX)}
    paths = config.autoenc
    config_path = _resolve(paths.config_path, path.parent)
    if autoencoder_state:
        autoencoder = build_autoencoder(autoencoder_state, config_path, paths.params, path)
    else:
        autoencoder = load_autoencoder(paths, path.parent)
    with torch.device("meta"):
        model = Checkerboard(config, autoencoder, project_source="src_latents_proj.weight" in own_state)
    if model.rope.mixing_coeffs is None:
        own_state.pop("rope.mixing_coeffs", None)  # published files may hold the empty (0, heads) table
    load_exactly(model, own_state, path)
    return model.eval()


def load_autoencoder(paths: AutoencoderPaths, folder: Path = Path()) -> Autoencoder:
    """The frozen autoencoder of a configuration; relative paths are tried from ``folder``, then from here.

    Raises:
        UserError: a file is missing or damaged, or holds another architecture than the YAML says.
    """
    if paths.checkpoint_path is None:
        raise UserError("no autoencoder: set model.autoenc.checkpoint_path to its weights")
    checkpoint_path = _resolve(paths.checkpoint_path, folder)
    config_path = _resolve(paths.config_path, folder)
    if checkpoint_path is None:
        raise UserError(
            f"no autoencoder weights at {paths.checkpoint_path}; mend autoenc.checkpoint_path, or fetch the released "
            "ones with bash pretrained_models/download.sh autoenc"
        )
    return build_autoencoder(read_autoencoder_state(checkpoint_path), config_path, paths.params, checkpoint_path)


def open_autoencoder(path: str | Path) -> Autoencoder:
    """An autoencoder in eval mode on the CPU, from its weights or the folder of them (and of its configuration).

    Raises:
        UserError: there is none, or it is damaged or of another layout.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(
            f"no autoencoder weights at {path}; name a file or folder of them (LlamaGen's: bash "
            "pretrained_models/download.sh llamagen)"
        )
    if not path.is_dir():
        return load_autoencoder(AutoencoderPaths(checkpoint_path=str(path)))
    names = [name for name in AUTOENCODER_NAMES if (path / name).is_file()]
    if not names:
        raise UserError(f"{path} holds neither {' nor '.join(AUTOENCODER_NAMES)}; name an autoencoder's folder or file")
    return load_autoencoder(AutoencoderPaths(AUTOENCODER_CONFIG_NAME, names[0]), path)


def read_autoencoder_state(path: Path) -> dict[str, Tensor]:
    """An autoencoder's weights under our names: safetensors, ``state_dict`` (published) or ``model`` (LlamaGen)."""
    if path.suffix == ".safetensors":
        try:
            return _our_names(load_file(path))
        except SafetensorError as error:
            raise UserError(f"{path} is damaged or no safetensors file ({error}); get it again") from error
    checkpoint = read_torch_file(path)
    for key in ("state_dict", "model"):
        if isinstance(checkpoint.get(key), dict):
            return _our_names(checkpoint[key])
    raise UserError(f"{path} holds neither state_dict nor model; it is no autoencoder checkpoint")


def build_autoencoder(
    state: Mapping[str, Tensor], config_path: Path | None, params: Mapping[str, Any], path: Path
) -> Autoencoder:
    """An autoencoder from its weights; its architecture is the YAML's, or read off the weights without one."""
    try:
        config = infer_autoencoder_config(state)
    except KeyError as error:
        raise UserError(f"{path} lacks {error.args[0]}; it is no autoencoder of LlamaGen's layout") from error
    except (IndexError, ValueError) as error:
        raise UserError(f"{path} is no autoencoder of LlamaGen's layout ({error})") from error
    if config_path is not None:
        config = read_autoencoder_config(config_path, params)
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
    known = {field.name for field in fields(AutoencoderConfig)}
    settings = {key: value for key, value in {**section, **section.get("ddconfig", {})}.items() if key in known}
    return dataclass_from_dict(AutoencoderConfig, settings, str(path))


def infer_autoencoder_config(state: Mapping[str, Tensor]) -> AutoencoderConfig:
    """The architecture that a state dict under our names has the shapes of. Raises KeyError for one that has none."""
    blocks = sorted(
        {match for key in state for match in re.findall(r"^encoder\.conv_blocks\.(\d+)\.res\.(\d+)\.", key)}
    )
    num_levels = 1 + max((int(level) for level, _ in blocks), default=0)
    num_res_blocks = 1 + max((int(block) for _, block in blocks), default=0)
    ch = state["encoder.conv_in.weight"].shape[0]
    widths = [state[f"encoder.conv_blocks.{level}.res.0.conv2.weight"].shape[0] for level in range(num_levels)]
    embed_dim, z_channels = state["quant_conv.weight"].shape[:2]
    return AutoencoderConfig(
        ch=ch,
        ch_mult=tuple(width // ch for width in widths),
        num_res_blocks=num_res_blocks,
        z_channels=z_channels,
        embed_dim=embed_dim,
        n_embed=state["quantize.embedding"].shape[0],
    )


def published_state(model: Checkerboard) -> dict[str, Tensor]:
    """A model's weights, its autoencoder's among them, under the published names."""
    autoencoder = {AUTOENCODER_PREFIX + key: value for key, value in model.autoencoder.state_dict().items()}
    return {_published_name(key): value for key, value in (model.state_dict() | autoencoder).items()}


def export_published(path: str | Path, folder: str | Path) -> None:
    """Write a checkpoint of ours as a folder that the published code reads; optimizer state is left behind.

    Raises:
        UserError: ``folder`` already holds files, or the checkpoint cannot be read.
    """
    path, folder = find_checkpoint(path), Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name a new folder to export to")
    config = read_model_config(path)
    if config.scan_order != "checkerboard":
        raise UserError(f"{path} has scan_order {config.scan_order}, which the published layout cannot say")
    checkpoint = read_torch_file(path)
    states = _model_states(checkpoint, path)
    models = {key: build_model(state, config, path) for key, state in states.items() if state is not None}
    partial = folder.with_name(folder.name + ".partial")
    _write_published(partial, models, config, checkpoint.get("epoch", 0), checkpoint.get("class_names"))
    if folder.exists():
        folder.rmdir()  # empty, as checked above
    partial.rename(folder)


def _write_published(
    folder: Path, models: Mapping[str, Checkerboard], config: ModelConfig, epoch: int, names: list[str] | None
) -> None:
    autoencoder = models["model"].autoencoder
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(
        {key: published_state(models[key]) if key in models else None for key in ("model", "model_ema")}
        | {"optimizer": None, "scaler": None, "epoch": epoch, "args": argparse.Namespace()}
        | ({} if names is None else {"class_names": names}),
        folder / CHECKPOINT_NAME,
    )
    export_autoencoder(autoencoder, folder / "autoenc")
    paths = AutoencoderPaths(f"autoenc/{AUTOENCODER_CONFIG_NAME}", f"autoenc/{AUTOENCODER_NAMES[0]}")
    section = asdict(replace(config, autoenc=paths, num_mixing_layers=config.mixing_layers))
    section = {key: value for key, value in section.items() if key not in _OUR_SETTINGS}
    write_yaml(folder / CONFIG_NAME, {"model": section, "args": {}})


def export_autoencoder(autoencoder: Autoencoder, folder: Path) -> None:
    """Write an autoencoder as the published release has it: ``checkpoint.pth`` and ``autoencoder_config.yaml``."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / AUTOENCODER_NAMES[0]
    temporary = file.with_name(file.name + ".tmp")
    torch.save({"state_dict": {_published_name(k): value for k, value in autoencoder.state_dict().items()}}, temporary)
    temporary.replace(file)
    write_yaml(folder / AUTOENCODER_CONFIG_NAME, autoencoder_config_dict(autoencoder.config))


def autoencoder_config_dict(config: AutoencoderConfig) -> dict[str, Any]:
    """An autoencoder's YAML content in the published schema."""
    ddconfig = {key: getattr(config, key) for key in ("ch", "ch_mult", "num_res_blocks", "z_channels")}
    ddconfig["ch_mult"] = list(config.ch_mult)
    params = {"embed_dim": config.embed_dim, "n_embed": config.n_embed, "normalize": True, "ddconfig": ddconfig}
    return {"model": {"params": params}}


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load float32 copies of a state dict; every key and shape must match."""
    expected = module.state_dict()
    problems = [f"missing {_both_names(key)}" for key in expected if key not in state]
    problems += [f"unexpected {_both_names(key)}" for key in state if key not in expected]
    problems += [
        f"{_both_names(key)} has shape {tuple(state[key].shape)}, not {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    if problems:
        hint = "the file and its configuration are of different models"
        raise UserError(f"{path} does not fit the model ({hint}): {'; '.join(problems)}")
    state = {key: value.to(expected[key].dtype, copy=True) for key, value in state.items()}
    module.load_state_dict(state, assign=True)


def read_torch_file(path: Path) -> dict[str, Any]:
    """A ``torch.save`` dictionary, read without running any code of the file.

    Raises:
        UserError: no such file, a damaged one, or one that holds more than tensors and plain values.
    """
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    _check_whole(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError:
        raise
    except Exception as error:  # of a damaged or foreign file, the restricted reader raises anything
        refused = _REFUSED.search(str(error))
        if refused is None:
            raise UserError(f"{path} is truncated or no checkpoint; get it again") from error
        raise UserError(
            f"{path} was refused: it holds {refused[1]}; only tensors and plain values can load without running code"
        ) from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint's dictionary")
    return checkpoint


def _check_whole(path: Path) -> None:
    """Refuse a damaged file; torch itself does not compare the checksums that its files hold."""
    if not zipfile.is_zipfile(path):
        return  # of torch before 1.6, or no checkpoint: the reader tells
    try:
        with zipfile.ZipFile(path) as records:
            damaged = records.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        damaged = str(error)
    if damaged is not None:
        raise UserError(f"{path} is damaged ({damaged}); get it again, or put a kept checkpoint-EPOCH.pth in its place")


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a mapping that names a key twice: YAML would keep the last and drop the first silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice[0]} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the YAML file in it")
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    try:
        content = yaml.load(path.read_text(), Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings")
    return content


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(yaml.safe_dump(dict(content), sort_keys=False))
    temporary.replace(path)


def dataclass_from_dict(kind: type, values: Any, where: str) -> Any:
    """A (nested) configuration dataclass from a plain mapping, refusing unknown keys and values of another type."""
    if not isinstance(values, Mapping):
        raise UserError(f"{where} must hold settings, not {values!r}")
    hints = get_type_hints(kind)
    check_keys(values, hints, where)
    settings = {}
    for key, value in values.items():
        if is_dataclass(hints[key]):
            settings[key] = dataclass_from_dict(hints[key], value, f"{where}: {key}")
        elif _is_of_type(value, hints[key]):
            settings[key] = tuple(value) if get_origin(hints[key]) is tuple else value
        else:
            expected = getattr(hints[key], "__name__", str(hints[key]))
            raise UserError(f"{where}: {key} is {value!r}, but must be of type {expected}")
    return kind(**settings)


def _is_of_type(value: Any, hint: Any) -> bool:
    """Whether a value of a YAML is of a field's type; whole numbers pass for floats."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return value in inner
    if origin in (Union, UnionType):
        return any(_is_of_type(value, option) for option in inner)
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_is_of_type(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            _is_of_type(key, inner[0]) and _is_of_type(item, inner[1]) for key, item in value.items()
        )
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float) if hint is float else isinstance(value, hint)


def check_keys(values: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuse keys that are not known, naming the nearest one that is."""
    known = list(known)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            suggestion = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
            raise UserError(f"unknown key {key} in {where}{suggestion}")


def _model_states(checkpoint: Mapping[str, Any], path: Path) -> dict[str, dict[str, Tensor] | None]:
    if not isinstance(checkpoint.get("model"), dict):
        raise UserError(f"{path} has no model entry; it is no checkpoint of this model")
    ema = checkpoint.get("model_ema")
    model = _our_names(checkpoint["model"])
    frozen = {key: value for key, value in model.items() if key.startswith(AUTOENCODER_PREFIX)}
    return {"model": model, "model_ema": None if ema is None else frozen | _our_names(ema)}


def _our_names(state: Any) -> dict[str, Tensor]:
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise UserError("the file's weights are not tensors by name; it is no checkpoint of this model")
    renamed = {}
    for key, value in state.items():
        while key.startswith(_WRAPPERS):
            key = key.split(".", 1)[1]
        for ours, published in _NAMES:
            key = key.replace(published, ours)
        renamed["quantize.embedding" if key == _LLAMAGEN_CODEBOOK else key] = value
    return renamed


def _published_name(key: str) -> str:
    for ours, published in _NAMES:
        key = key.replace(ours, published)
    return key


def _both_names(key: str) -> str:
    published = _published_name(key)
    return key if published == key else f"{key} (published: {published})"


def _resolve(path: str | None, folder: Path) -> Path | None:
    """The first existing one of ``folder / path`` and ``path``."""
    candidates = [] if path is None else [folder / path, Path(path)]
    return next((candidate for candidate in candidates if candidate.is_file()), None)
