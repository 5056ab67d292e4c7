"""Saving a model or an autoencoder with its model card, and uploading it to the Hugging Face hub."""

import tempfile
from dataclasses import fields
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models.autoencoder import Autoencoder, to_uint8
from models.family import Generator
from models.loading.autoencoder import (
    AUTOENCODER_CONFIG_NAME,
    HUB_CONFIG_NAME,
    open_autoencoder,
    save_shared_autoencoder,
)
from models.loading.checkpoint import CONFIG_NAME, load_checkpoint
from models.loading.hub import NAME, WEIGHTS_SUFFIXES, explained
from models.loading.save import MODEL_NAME, check_saved, write_model
from models.sampling import checked_drawing
from runtime import distributed
from runtime.config import check_keys
from runtime.device import DTYPES
from runtime.errors import UserError
from runtime.files import new_folder, read_json, write_text
from sampling.bulk import Request, draw_many
from sampling.card import CARD_NAME, SAMPLES_NAME, About, card_of_autoencoder, card_of_model
from sampling.labels import class_captions, shown_labels
from sampling.pictures import save_grid, save_labelled_grid
from sampling.pipeline import whole_number

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SHOWN_CLASSES, SHOWN_OF_EACH = 16, 4  # in the card of a model; of more classes one image each
ABOUT = tuple(field.name for field in fields(About))
OF_MODEL, OF_AUTOENCODER = ("dtype", "autoencoder", "num_samples"), ("images",)  # details beside those
Shared = Generator | Autoencoder


def load_pretrained(path: str | Path, kind: type[Shared], **how: Any) -> Shared:
    """A model or an autoencoder, by the kind that is wanted, from a folder, a file or a name of the hub."""
    return (load_checkpoint if issubclass(kind, Generator) else open_autoencoder)(path, **how)


def save_pretrained(module: Shared, folder: str | Path, *, name: str | None = None, **details: Any) -> None:
    """Write a new or empty folder: ``model.safetensors``, ``config.json``, ``README.md`` and ``samples.png``.

    Args:
        name: what the card's example loads; default the folder.
        details: of both kinds ``license`` (an identifier of the hub, as mit), ``data`` (what it was trained on),
            ``results`` (metrics by name, or an evaluation's result.json), ``text`` (what else the card should say).
            Of a model ``dtype`` (of the stored weights), ``autoencoder`` (a folder of the project or a name of the hub
            that holds the same one, to be named; else it is copied to ``autoenc/``), ``num_samples`` (in the card; by
            default four of each class, or of many classes one of 16; 0 for none). Of an autoencoder ``images``
            (B, 3, H, W) in [-1, 1] to show with what is kept of them.

    Raises:
        UserError: the folder is not empty, or a detail makes no sense.
    """
    write, own = (_write_model, OF_MODEL) if isinstance(module, Generator) else (_write_autoencoder, OF_AUTOENCODER)
    check_keys(details, (*ABOUT, *own), "what to save")
    about = {key: details.pop(key) for key in ABOUT if key in details}
    if about.get("license") is None:
        distributed.say("the model card names no licence, so others may not know what they may do; give license='mit'")
    with new_folder(Path(folder).expanduser()) as partial:
        write(module, partial, str(folder) if name is None else name, About(**about), **details)


def push_to_hub(
    module: Shared,
    name: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload weights, configuration and model card",
    token: str | None = None,
    **details: Any,
) -> str:
    """Upload what ``save_pretrained`` writes as one commit to ``owner/name``, made if it is not there; its address.

    ``private``, ``revision``, ``create_pr`` and ``token`` are those of huggingface_hub; the token is by default that of
    ``hf auth login``. A UserError: the hub refuses, or the repository has other weights, which would be read instead.
    """
    from huggingface_hub import HfApi

    match = NAME.fullmatch(name)
    if match is None or match["revision"] or match["inside"]:
        raise UserError(f"{name} is no name of a repository; give owner/name, and the revision by itself")
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(module, Path(folder) / "saved", name=name, **details)
        try:
            api.create_repo(name, private=private, exist_ok=True)
            _check_repository(api, name, revision, module)
            done = api.upload_folder(
                repo_id=name,
                folder_path=Path(folder) / "saved",
                revision=revision,
                create_pr=create_pr,
                commit_message=commit_message,
            )
            return done.pr_url or f"{api.endpoint}/{name}"
        except UserError:
            raise
        except Exception as error:  # as of ``fetched``: whatever the client and the libraries below it raise
            raise UserError(explained(name, name, error, uploads=True)) from error


def _check_repository(api: "HfApi", name: str, revision: str | None, module: Shared) -> None:
    """Refuse a repository that holds something else: it would be read instead of what is uploaded, or be replaced."""
    files = api.list_repo_files(name, revision=revision)
    others = [file for file in files if _would_be_read(file)]
    if HUB_CONFIG_NAME in files and not others:
        section = (read_json(Path(api.hf_hub_download(name, HUB_CONFIG_NAME, revision=revision))) or {}).get("model")
        of_autoencoder = isinstance(section, dict) and "params" in section
        others = [] if of_autoencoder == isinstance(module, Autoencoder) else [HUB_CONFIG_NAME]
    if others:
        raise UserError(f"{name} holds {', '.join(others)} of something else; name another repository")


def _would_be_read(file: str) -> bool:
    """Whether a file of a repository, at its root, is weights or a configuration that are none of ours."""
    path = PurePosixPath(file)
    names = (CONFIG_NAME, AUTOENCODER_CONFIG_NAME)
    ours = path.suffix not in WEIGHTS_SUFFIXES or path.name == MODEL_NAME
    return len(path.parts) == 1 and (not ours or path.name in names)


def _write_model(
    model: Generator,
    folder: Path,
    name: str,
    about: About,
    dtype: torch.dtype = torch.float32,
    autoencoder: str | None = None,
    num_samples: int | None = None,
) -> None:
    if dtype not in DTYPES.values():
        raise UserError(f"dtype is {dtype}; it must be one of {', '.join(map(str, DTYPES.values()))}")
    classes = shown_labels(model, SHOWN_CLASSES)
    if num_samples is not None and whole_number(num_samples, "num_samples") < 0:
        raise UserError(f"num_samples is {num_samples}; give 0 for none")
    if num_samples is None:
        num_samples = len(classes) * (SHOWN_OF_EACH if len(classes) == model.config.num_classes else 1)
    shown = model.autoencoder is not None and num_samples > 0
    write_text(folder / CARD_NAME, card_of_model(model, name, about, shown))  # first, since it may be refused
    write_model(model, folder, dtype, autoencoder, HUB_CONFIG_NAME)
    if shown:
        labels = [classes[i % len(classes)] for i in range(num_samples)]
        drawing = checked_drawing(model, {})
        parts = [out.images for _, out in draw_many(model, Request(labels, drawing, 0, min(num_samples, 16)))]
        images = model.to_uint8(torch.cat(parts)[:num_samples])
        save_labelled_grid(images, class_captions(model, labels), folder / SAMPLES_NAME)


def _write_autoencoder(
    autoencoder: Autoencoder, folder: Path, name: str, about: About, images: Tensor | None = None
) -> None:
    if images is not None:
        images = _checked_images(images, autoencoder)
    write_text(folder / CARD_NAME, card_of_autoencoder(autoencoder, name, about, images is not None))
    check_saved(autoencoder.state_dict())
    save_shared_autoencoder(autoencoder, folder, MODEL_NAME)
    if images is not None:
        side = images.shape[-1] // autoencoder.config.stride
        kept = autoencoder.decode(autoencoder.tokenize(images, (side,))[-1])
        save_grid(to_uint8(torch.cat([images, kept])), folder / SAMPLES_NAME, len(images))


def _checked_images(images: Tensor, autoencoder: Autoencoder) -> Tensor:
    """Images to show, where and in what the autoencoder computes."""
    stride = autoencoder.config.stride
    square = isinstance(images, Tensor) and images.is_floating_point() and images.ndim == 4 and images.shape[1] == 3
    if not square or not images.numel() or images.shape[2] != images.shape[3] or images.shape[3] % stride:
        raise UserError(f"images must be floats (B, 3, S, S) in [-1, 1], S a multiple of {stride}")
    return images.to(autoencoder.device, next(autoencoder.parameters()).dtype)
