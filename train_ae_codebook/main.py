"""Train a VQ autoencoder from scratch.

    python train_ae_codebook/main.py --config train_ae_codebook/config_digits.yaml

The same command again goes on where the run stopped. ``--help`` lists every option.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, the project is not on the path

from data.datasets import CroppedImages, LabelledImages, open_dataset
from engine import distributed
from engine.command import run
from engine.config import parse_config, plain
from engine.device import DTYPES, pick_device
from engine.run_folder import save_autoencoder
from engine.trainer import Trainer
from models.autoencoder import Autoencoder, AutoencoderConfig
from models.errors import UserError
from train_ae_codebook.vqvae import AutoencoderArgs, VQVAETask


def main(argv: Sequence[str]) -> None:
    sections = {"model": AutoencoderConfig, "args": AutoencoderArgs}
    settings, name = parse_config(argv, "train_ae_codebook/main.py", __doc__, sections)
    config, args = settings["model"], settings["args"]
    torch.manual_seed(args.seed)
    train, validation = _open_data(args)
    device = distributed.set_up(pick_device(args.device))
    folder = Path(args.output_dir or f"output/autoencoders/{name}")
    autoencoder = Autoencoder(config)
    task = VQVAETask(autoencoder, args, CroppedImages(validation, args.img_size, "center"))
    if distributed.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{sum(p.numel() for p in autoencoder.parameters()) / 1e6:.2f}M parameters; run folder {folder}")
    distributed.barrier()
    settings = {"model": plain(config), "args": plain(args)}
    trainer = Trainer(task, CroppedImages(train, args.img_size, args.crop), args, folder, device, settings)
    trainer.fit()
    if distributed.is_main():
        export = Path(args.export_dir or folder / "autoencoder")
        save_autoencoder(trainer.trained.cpu(), export, DTYPES[args.export_dtype])
        print(f"autoencoder: {export}; reconstructions: {folder / 'samples'}")
    distributed.tear_down()


def _open_data(args: AutoencoderArgs) -> tuple[LabelledImages, LabelledImages]:
    """Images to train on, and to measure on: held-out ones if the data has any."""
    train = open_dataset(args.dataset, args.data_path, args.img_size)
    try:
        return train, open_dataset(args.dataset, args.data_path, args.img_size, "val")
    except UserError as error:
        print(f"measuring on training images: {error}")
        return train, train


if __name__ == "__main__":
    run(main)
