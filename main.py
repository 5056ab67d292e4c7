"""Train a progressive-checkerboard model from a YAML configuration.

    python main.py --config configs/quickstart.yaml

The same command again goes on where the run stopped. ``--help`` lists every option.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import Dataset

from data.datasets import CroppedImages, check_num_classes, open_dataset
from data.token_cache import TokenCache, describe
from engine.autoregressor import AutoregressorTask
from engine.cache import create_cache
from engine.command import run
from engine.config import TrainArgs, parse_config
from engine.device import describe_size, pick_device
from engine.digits_score import score_digits
from engine.run_folder import open_run_folder
from engine.trainer import Trainer
from models.checkerboard import Checkerboard, ModelConfig
from models.published import load_autoencoder

NUM_SCORED_DIGITS = 500


def main(argv: Sequence[str]) -> None:
    settings, name = parse_config(argv, "main.py", __doc__, {"model": ModelConfig, "args": TrainArgs})
    config, args = settings["model"], settings["args"]
    device = pick_device(args.device)
    autoencoder = load_autoencoder(config.autoenc)
    torch.manual_seed(args.seed)
    model = Checkerboard(config, autoencoder)
    dataset = _open_data(model, args, device)
    if dataset is None:
        return
    folder = open_run_folder(Path(args.output_dir or Path("output") / name), config, args, autoencoder)
    task = AutoregressorTask(model, args)
    trainer = Trainer(task, dataset, args, folder, device)
    print(
        f"{describe_size(model)}; scales {' '.join(map(str, model.scale_sizes))}; "
        f"{len(dataset)} images of {config.num_classes} classes; {trainer.steps_per_epoch} steps an epoch; "
        f"{str(trainer.dtype).removeprefix('torch.')} on {device}; run folder {folder}"
    )
    trainer.fit()
    print(f"samples: {folder / 'samples'}; checkpoint: {folder / 'checkpoint-last.pth'}")
    if args.dataset == "digits":
        module = trainer.module if trainer.ema is None else trainer.ema.module
        module.eval()
        print(score_digits(module, NUM_SCORED_DIGITS, args))


def _open_data(model: Checkerboard, args: TrainArgs, device: torch.device) -> Dataset | None:
    """What to train from; None if the cache was all that was asked for."""
    config = model.config
    images = open_dataset(args.dataset, args.data_path, config.img_size)
    if config.class_cond:
        check_num_classes(images, config.num_classes)
    model.class_names = images.class_names
    if not args.create_cache and not args.use_cache:
        return CroppedImages(images, config.img_size, args.crop)
    manifest = describe(images, config.img_size, args.crop, model.scale_sizes, model.autoencoder)
    root = Path(args.cached_path)
    if args.create_cache:
        create_cache(root, images, model.autoencoder, manifest, args.batch_size, args.num_workers, device)
    return TokenCache(root / manifest.folder_name, manifest, model.scale_sizes) if args.use_cache else None


if __name__ == "__main__":
    run(main)
