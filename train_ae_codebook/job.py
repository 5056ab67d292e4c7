"""What main.py of this folder does once its arguments are understood."""

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from data.images import CroppedImages, LabelledImages, open_dataset
from models.autoencoder import Autoencoder
from models.loading.autoencoder import open_autoencoder
from models.loading.checkpoint import CONFIG_NAME
from runtime import distributed
from runtime.config import plain, read_yaml
from runtime.device import pick_device
from runtime.errors import UserError
from runtime.lock import lock_folder
from train_ae_codebook.options import PyramidArgs
from train_ae_codebook.requantize import RequantizeTask
from train_ae_codebook.vqvae import VQVAETask, start_from
from training.run_folder import holds_run
from training.state import count_steps
from training.trainer import Trainer


def train_autoencoder(settings: dict[str, Any], name: str) -> None:
    """Train an autoencoder, or a codebook alone, and export it.

    Args:
        settings: of the sections ``model`` and ``args``, or of ``requantize`` for a codebook alone.
        name: of the configuration.
    """
    section = "requantize" if "requantize" in settings else "args"
    args: PyramidArgs = settings[section]
    torch.manual_seed(args.seed)
    device = distributed.set_up(pick_device(args.device))
    train, validation = _open_data(args)
    args.check_steps(args.epochs * count_steps(len(train), args))
    task = _make_task(settings, CroppedImages(validation, args.img_size, "center"), device)
    folder = Path(args.output_dir or f"output/autoencoders/{name}")
    with lock_folder(folder):
        if distributed.is_main():
            _check_same_images(folder, section, args)
        distributed.say(f"{sum(p.numel() for p in task.module.parameters()):,} parameters; run folder {folder}")
        kept = {key: plain(value) for key, value in settings.items()}
        trainer = Trainer(task, CroppedImages(train, args.img_size, args.crop), args, folder, device, kept)
        trainer.fit()
        if distributed.is_main():
            export = Path(args.export_dir or folder / "autoencoder")
            task.export(trainer.trained, export)
            print(f"autoencoder: {export}; reconstructions: {folder / 'samples'}")
    distributed.tear_down()


def _open_data(args: PyramidArgs) -> tuple[LabelledImages, LabelledImages]:
    """Images to train on, and to measure on: held-out ones if the data has any."""
    train = open_dataset(args.dataset, args.data_path, args.img_size)
    try:
        return train, open_dataset(args.dataset, args.data_path, args.img_size, "val")
    except UserError as error:
        distributed.say(f"measuring on training images: {error}")
        return train, train


def _make_task(settings: dict[str, Any], validation: Dataset, device: torch.device) -> VQVAETask | RequantizeTask:
    if "requantize" in settings:
        args = settings["requantize"]
        return RequantizeTask(open_autoencoder(args.start), args, validation, device)
    autoencoder, args = Autoencoder(settings["model"]), settings["args"]
    if args.start is not None:
        start_from(autoencoder, args.start)
    return VQVAETask(autoencoder, args, validation, device)


def _check_same_images(folder: Path, section: str, args: PyramidArgs) -> None:
    """Refuse to go on with a run of other images, whose autoencoder would pass for one of these."""
    if not holds_run(folder):
        return
    saved = read_yaml(folder / CONFIG_NAME).get(section) or {}
    theirs = [saved.get(name) for name in ("dataset", "data_path")]
    if theirs != [args.dataset, args.data_path]:
        raise UserError(
            f"{folder} holds a run on {' '.join(map(str, theirs))}; name another --output_dir, or if the same images "
            f"were moved, write where they are now into its {CONFIG_NAME}"
        )
