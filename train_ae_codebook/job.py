"""What main.py of this folder does once its arguments are understood."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from data.images import CroppedImages, open_dataset
from models.llamagen_vq import LlamaGenVQ
from models.loading.autoencoder import AUTOENCODER_NAMES, open_autoencoder
from models.loading.checkpoint import CONFIG_NAME
from models.vqvae import VQVAE
from runtime import distributed
from runtime.config import plain, read_yaml
from runtime.device import pick_device
from runtime.errors import UserError
from runtime.lock import lock_folder
from train_ae_codebook.options import ImageArgs, RequantizeArgs
from train_ae_codebook.tasks import AutoencoderTask, LlamaGenVQTask, RequantizeTask
from train_ae_codebook.vqvae import VQVAETask
from training.run_folder import begun_in, exports_to
from training.state import count_steps
from training.trainer import Trainer


def train_autoencoder(settings: dict[str, Any], name: str) -> None:
    """Train and export an autoencoder, or a codebook alone (``requantize``); ``name`` is the configuration's."""
    section = "requantize" if "requantize" in settings else "args"
    args: ImageArgs = settings[section]
    torch.manual_seed(args.seed)
    device = distributed.set_up(pick_device(args.device))
    train = validation = open_dataset(args.dataset, args.data_path, args.img_size)
    try:
        validation = open_dataset(args.dataset, args.data_path, args.img_size, "val")
    except UserError as error:
        distributed.say(f"measuring on training images: {error}")
    for remark in dict.fromkeys([*train.remarks, *validation.remarks]):
        distributed.say(remark)
    args.check_steps(args.epochs * count_steps(len(train), args))
    folder = Path(args.output_dir or f"output/autoencoders/{name}")
    usual, begun = folder / "autoencoder", begun_in(folder, args.resume)
    export = Path(args.export_dir or usual)
    _check_export(export, args, own=exports_to(folder, section, export, usual))
    held_out = CroppedImages(validation, args.img_size, "center")
    task = _make_task(settings, args, held_out, device)
    task.measured = "training images" if validation is train else task.measured
    with lock_folder(folder):
        if distributed.is_main() and begun is not None:
            _check_same(begun / CONFIG_NAME, section, args)
        distributed.say(
            f"{sum(p.numel() for p in task.module.parameters()):,} parameters; {len(train)} images, measured on "
            f"{len(validation)}; run folder {folder}"
        )
        kept = {key: plain(value) for key, value in settings.items()}
        trainer = Trainer(task, CroppedImages(train, args.img_size, args.crop), args, folder, device, kept)
        trainer.fit()
        if distributed.is_main():
            task.export(trainer.trained, export)
            print(f"autoencoder: {export}; reconstructions: {folder / 'samples'}")
    distributed.tear_down()


def _check_export(folder: Path, args: ImageArgs, own: bool) -> None:
    """Find out before the training whether the autoencoder can be written there, and would be found.

    One that is there is replaced if it is the run's ``own``.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"export_dir {folder} is a file; name a folder")
    published, ours = (folder / name for name in AUTOENCODER_NAMES)
    written, other = (published, ours) if isinstance(args, RequantizeArgs) else (ours, published)
    if other.exists():
        raise UserError(f"{other} is another autoencoder than the one to be written beside it; name another export_dir")
    if written.exists() and not own:
        raise UserError(f"{written} is there already, of another run; move it away, or name another export_dir")


def _make_task(
    settings: dict[str, Any], args: ImageArgs, held_out: CroppedImages, device: torch.device
) -> AutoencoderTask:
    if "requantize" in settings:
        return RequantizeTask(open_autoencoder(args.start), args, held_out, device)
    if "vqvae" in settings:
        return VQVAETask(VQVAE(settings["vqvae"]), args, held_out)
    autoencoder = LlamaGenVQ(settings["model"])
    if args.start is not None:
        _start_from(autoencoder, args.start)
    return LlamaGenVQTask(autoencoder, args, held_out, device)


def _start_from(module: LlamaGenVQ, path: str) -> None:
    """Take over the weights of another autoencoder of this architecture; its codes too if there are as many."""
    start = open_autoencoder(path)
    if not isinstance(start, LlamaGenVQ):
        raise UserError(f"{path} is an autoencoder of the kind {start.kind}; name one of LlamaGen's as start")
    state, theirs = start.state_dict(), asdict(start.config)
    for key, ours in asdict(module.config).items():
        if key != "n_embed" and ours != theirs[key]:
            raise UserError(f"{path} has {key} {theirs[key]}, not {ours}; put that into the configuration's model:")
    if start.config.n_embed != module.config.n_embed:
        state = {key: value for key, value in state.items() if not key.startswith(("quantize", "cluster_usage"))}
    module.load_state_dict(state, strict=False)


def _check_same(path: Path, section: str, args: ImageArgs) -> None:
    """Refuse to go on with a run, by its configuration, of other images, or whose codes have another start."""
    saved = read_yaml(path).get(section) or {}
    for name in ("moment_steps", "scale_sizes") if isinstance(args, RequantizeArgs) else ():
        ours = plain(args)[name]
        if saved.get(name, ours) != ours:
            raise UserError(
                f"{path.parent} holds a run with {name} {saved[name]}, not {ours}; keep it so, or name another "
                "--output_dir"
            )
    theirs = [saved.get(name) for name in ("dataset", "data_path")]
    if theirs != [args.dataset, args.data_path]:
        raise UserError(
            f"{path.parent} holds a run on {' '.join(map(str, theirs))}; name another --output_dir, or if the same "
            f"images were moved, write where they are now into its {path.name}"
        )
