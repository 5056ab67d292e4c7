"""Tensors by name, read without running code, renamed, and loaded whole or not at all."""

import argparse
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models.config import AutoencoderPaths
from models.loading.omegaconf import STAND_INS, plain_values
from runtime.errors import UserError

Names = tuple[tuple[str, str], ...]  # parts of our names and of the published ones, replaced in this order
# The end of its name in LlamaGen's kind of autoencoder.
_CODEBOOK = ("quantize.embedding", "quantize.embedding.parametrizations.weight.original")
AUTOENCODER_PREFIX = "autoenc."
CLASS_NAMES = "class_names"  # entry of a checkpoint
_ENCODERS = ("encoder.", "_encoder.")  # begin names of an autoencoder's weights alone
_WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
# What a checkpoint may hold beside tensors and plain values. A path of any system is read as one that touches no files.
_PATHS = {"PosixPath": PurePosixPath, "WindowsPath": PureWindowsPath}
_PATHS |= {f"Pure{name}": kind for name, kind in _PATHS.items()}
_ALLOWED = [
    argparse.Namespace,
    torch.Tensor,  # with attributes, as LlamaGen's 3B has them
    torch._tensor._rebuild_from_type_v2,
    *((kind, f"{module}.{name}") for module in ("pathlib", "pathlib._local") for name, kind in _PATHS.items()),
    *STAND_INS,
]
# How torch's restricted reader names what it will not load.
_REFUSED = re.compile(r"(?:unsupported global(?:: global)?|trying to instantiate a class) ([\w.]+)", re.IGNORECASE)


class _Uninitialized(TorchFunctionMode):
    """Leaves out the functions of torch.nn.init."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs or {})


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules made within are on the meta device; torch would take seconds to import what draws numbers for it."""
    with torch.device("meta"), _Uninitialized():
        yield


@dataclass(frozen=True)
class PublishedLayout:
    """How a family's weights were published."""

    names: Names
    # What its configuration file says of a model, its autoencoder's files being these; the path is for messages.
    config: Callable[[Any, AutoencoderPaths, Path], dict[str, Any]]
    # Name and contents of the exported file, of ``model`` and ``model_ema`` and the checkpoint that they are of.
    file: Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[str, dict[str, Any]]]
    # ``model`` and ``model_ema`` of a file's contents; by default the entries that are called so.
    states: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda content: content
    # The ``model:`` section, completed by what the contents of the file at a path tell; as it is, or none, if they are
    # not of this layout.
    complete: Callable[[dict[str, Any] | None, Mapping[str, Any], Path], dict[str, Any] | None] = (
        lambda section, content, path: section
    )
    # The ``model:`` section that a configuration file of another schema, at a path, means; none, if it is another one.
    translate: Callable[[Mapping[str, Any], Path], dict[str, Any] | None] = lambda content, path: None
    llamagens_tokenizer: bool = False  # whether its code reads autoencoders as LlamaGen has them


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], path: Path, names: Names = ()) -> None:
    """Load float32 copies of a state dict; every key and shape must match, and every number be finite."""
    expected = module.state_dict()
    problems = [f"missing {_both_names(key, names)}" for key in expected if key not in state]
    problems += [f"unexpected {_both_names(key, names)}" for key in state if key not in expected]
    shapes = {key: (tuple(state[key].shape), tuple(expected[key].shape)) for key in expected if key in state}
    problems += [f"{_both_names(key, names)} has shape {a}, not {b}" for key, (a, b) in shapes.items() if a != b]
    if problems:
        hint = "the file and its configuration are of different models"
        raise UserError(f"{path} does not fit the model ({hint}): {'; '.join(problems)}")
    state = {key: value.to(expected[key].dtype, copy=True) for key, value in state.items()}
    check_finite(state, path, names)
    module.load_state_dict(state, assign=True)


def check_finite(state: Mapping[str, Tensor], path: Path, names: Names = ()) -> None:
    """Refuse weights with a number that is infinite or none."""
    for key, value in state.items():
        if value.numel() and not torch.stack(torch.aminmax(value.float())).isfinite().all():  # reads them once
            raise UserError(
                f"{path} holds numbers that are not finite, first in {_both_names(key, names)}; get it again, or take "
                "an earlier checkpoint of its training"
            )


def read_weights(path: Path) -> dict[str, Any]:
    """The contents of a file of weights: those of ``torch.save``, or as ``model`` those of a .safetensors file."""
    if path.suffix != ".safetensors":
        return read_torch_file(path)
    content: dict[str, Any] = {"model": read_safetensors(path)}
    with safe_open(path, "pt") as file, suppress(ValueError, RecursionError):
        names = json.loads((file.metadata() or {}).get(CLASS_NAMES, ""))
        content[CLASS_NAMES] = [str(name) for name in names] if isinstance(names, list) else None
    return content


def write_weights(content: dict[str, Any], path: Path, class_names: list[str] | None) -> None:
    """Write an exported file: tensors by name as .safetensors, with names of classes, or what ``torch.save`` takes."""
    if path.suffix == ".safetensors":
        path.touch()  # with the rights of a new file; safetensors alone would let nobody else read it
        rights = path.stat().st_mode
        content = {name: tensor.contiguous() for name, tensor in content.items()}  # as the format wants them
        save_file(content, path, {CLASS_NAMES: json.dumps(class_names)} if class_names else None)
        path.chmod(rights)
    else:
        torch.save(content, path)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name; a file that is damaged or none of this kind is refused."""
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or no safetensors file ({error}); get it again") from error


def holds_autoencoder(path: Path) -> bool:
    """Whether a .safetensors file, by the names in its head, is of an autoencoder."""
    if path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, "pt") as file:
            return any(key.startswith(_ENCODERS) for key in file.keys())  # noqa: SIM118 (it is no dictionary)
    except SafetensorError:
        return False  # what is wrong with it is said where it is read


def read_torch_file(path: Path) -> dict[str, Any]:
    """A ``torch.save`` dictionary; a file that is damaged, or holds more than tensors and plain values, is refused."""
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    _check_whole(path)
    try:
        with torch.serialization.safe_globals(_ALLOWED):
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
    return plain_values(checkpoint, str(path))


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


def our_names(state: Any, names: Names = ()) -> dict[str, Tensor]:
    """Weights under our names, whatever wraps them and whoever published them."""
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise UserError("the file's weights are not tensors by name; it is no checkpoint of this model")
    renamed = {}
    for key, value in state.items():
        if value.layout != torch.strided or value.is_meta:
            raise UserError(f"{key} of the file is sparse or has no numbers; it is no checkpoint of this model")
        while key.startswith(_WRAPPERS):
            key = key.split(".", 1)[1]
        for ours, published in (*names, _CODEBOOK):
            key = key.replace(published, ours)
        renamed[key] = value
    return renamed


def published_name(key: str, names: Names = ()) -> str:
    """What a published file calls a weight of ours."""
    for ours, published in names:
        key = key.replace(ours, published)
    return key.removesuffix(_CODEBOOK[0]) + _CODEBOOK[1] if key.endswith(_CODEBOOK[0]) else key


def _both_names(key: str, names: Names) -> str:
    published = published_name(key, names)
    return key if published == key else f"{key} (published: {published})"
