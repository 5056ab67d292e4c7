"""Train a VQ autoencoder, from scratch or from given weights, or a new codebook for one that is kept.

    python train_ae_codebook/main.py --config train_ae_codebook/config_digits.yaml
    python train_ae_codebook/main.py --config train_ae_codebook/config_requantize.yaml

The same command again goes on where the run stopped. A configuration with a section requantize: trains a codebook;
--help after it lists the options of that, and otherwise those of training all of it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, the project is not on the path

from data.images import CroppedImages, LabelledImages, open_dataset
from models.autoencoder import Autoencoder
from models.config import AutoencoderConfig
from models.loading.autoencoder import open_autoencoder
from models.loading.checkpoint import CONFIG_NAME
from runtime import distributed
from runtime.command import run
from runtime.config import config_path, parse_config, plain, read_yaml
from runtime.device import pick_device
from runtime.errors import UserError
from runtime.lock import lock_folder
from train_ae_codebook.codebook import PyramidArgs
from train_ae_codebook.requantize import RequantizeArgs, RequantizeTask
from train_ae_codebook.vqvae import AutoencoderArgs, VQVAETask, start_from
from training.run_folder import holds_run
from training.state import count_steps
from training.trainer import Trainer

WHOLE = {"model": AutoencoderConfig, "args": AutoencoderArgs}
REQUANTIZE = {"requantize": RequantizeArgs}


def main(argv: Sequence[str]) -> None:
    path = config_path(argv)
    sections = REQUANTIZE if path is not None and "requantize" in read_yaml(Path(path)) else WHOLE
    settings, name = parse_config(argv, "train_ae_codebook/main.py", __doc__, sections)
    args: PyramidArgs = settings[list(sections)[-1]]
    torch.manual_seed(args.seed)
    train, validation = _open_data(args)
    data = CroppedImages(train, args.img_size, args.crop)
    device = distributed.set_up(pick_device(args.device))
    folder = Path(args.output_dir or f"output/autoencoders/{name}")
    task = _make_task(settings, data, CroppedImages(validation, args.img_size, "center"), device)
    with lock_folder(folder):
        if distributed.is_main():
            _check_same_images(folder, list(sections)[-1], args)
            print(f"{sum(p.numel() for p in task.module.parameters()):,} parameters; run folder {folder}")
        trainer = Trainer(task, data, args, folder, device, {key: plain(value) for key, value in settings.items()})
        trainer.fit()
        if distributed.is_main():
            export = Path(args.export_dir or folder / "autoencoder")
            task.export(trainer.trained, export)
            print(f"autoencoder: {export}; reconstructions: {folder / 'samples'}")
    distributed.tear_down()


def _check_same_images(folder: Path, section: str, args: PyramidArgs) -> None:
    """Refuse to go on with a run of other images, whose autoencoder would pass for one of these."""
    if not holds_run(folder):
        return
    saved = read_yaml(folder / CONFIG_NAME).get(section) or {}
    ours, theirs = (tuple(values.get(name) for name in ("dataset", "data_path")) for values in (plain(args), saved))
    if ours != theirs:
        raise UserError(
            f"{folder} holds a run on {' '.join(map(str, theirs))}; name another --output_dir, or if the same images "
            f"were moved, write where they are now into its {CONFIG_NAME}"
        )


def _make_task(
    settings: dict[str, PyramidArgs | AutoencoderConfig], train: Dataset, validation: Dataset, device: torch.device
) -> VQVAETask | RequantizeTask:
    args = settings["requantize" if "requantize" in settings else "args"]
    args.check_steps(args.epochs * count_steps(len(train), args))
    if "requantize" not in settings:
        autoencoder = Autoencoder(settings["model"])
        if args.start is not None:
            start_from(autoencoder, args.start)
        return VQVAETask(autoencoder, args, validation, device)
    return RequantizeTask(open_autoencoder(args.start), args, validation, device)


def _open_data(args: PyramidArgs) -> tuple[LabelledImages, LabelledImages]:
    """Images to train on, and to measure on: held-out ones if the data has any."""
    train = open_dataset(args.dataset, args.data_path, args.img_size)
    try:
        return train, open_dataset(args.dataset, args.data_path, args.img_size, "val")
    except UserError as error:
        print(f"measuring on training images: {error}")
        return train, train


if __name__ == "__main__":
    run(main)
