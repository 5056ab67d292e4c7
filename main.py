"""Train a progressive-checkerboard model from a YAML configuration.

    python main.py --config configs/quickstart.yaml

The same command again goes on where the run stopped. Several GPUs or machines: torchrun --nproc_per_node=N main.py ...
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import Dataset

from data.datasets import CroppedImages, LabelledImages, check_num_classes, open_dataset
from data.token_cache import TokenCache, check_images, describe
from engine import distributed
from engine.autoregressor import AutoregressorTask
from engine.cache import PAPER_SCALE_SIZES, CacheMaker
from engine.check_data import check_data
from engine.command import run
from engine.config import TrainArgs, parse_config
from engine.device import describe_size, pick_device
from engine.digits_score import score_digits
from engine.folder_lock import lock_folder
from engine.metrics.evaluate import figure_lines
from engine.run_folder import check_same, open_run_folder, run_settings
from engine.trainer import Trainer, count_steps
from models.autoencoder import Autoencoder
from models.checkerboard import Checkerboard, ModelConfig
from models.errors import UserError
from models.published import CHECKPOINT_NAME, initialize_from, load_autoencoder
from models.scan_order import compute_scale_sizes

NUM_SCORED_DIGITS = 500
MAX_DIFFERENT_SHARE = 0.01  # of codes; rounding flips far fewer


def main(argv: Sequence[str]) -> None:
    if not argv:
        raise UserError("name a configuration, as in main.py --config configs/quickstart.yaml; README.md lists them")
    settings, name = parse_config(argv, "main.py", __doc__, {"model": ModelConfig, "args": TrainArgs})
    config, args = settings["model"], settings["args"]
    images = open_dataset(args.dataset, args.data_path, config.img_size)
    if args.check_data:
        if check_data(images, args.num_workers):
            raise UserError("mend or move the files above")
        return
    if config.class_cond:
        check_num_classes(images, config.num_classes)
    device = distributed.set_up(pick_device(args.device))
    trains = not args.verify_cache and (args.use_cache or not args.create_cache)
    if trains:
        count_steps(len(images), args)  # too few images are an error now, not after hours of making a cache
    autoencoder = load_autoencoder(config.autoenc)
    folder = Path(args.output_dir or f"output/{name}")
    if trains and distributed.is_main():
        check_same(folder, config, autoencoder)  # likewise
    dataset = open_training_data(images, config, args, autoencoder, device)
    if dataset is not None:
        with lock_folder(folder):
            train(config, args, autoencoder, dataset, images, folder, device)
    distributed.tear_down()


def open_training_data(
    images: LabelledImages, config: ModelConfig, args: TrainArgs, autoencoder: Autoencoder, device: torch.device
) -> Dataset | None:
    """What to train from, images or a cache, after making the cache if asked; None if that was all."""
    if not (args.create_cache or args.use_cache or args.verify_cache):
        return CroppedImages(images, config.img_size, args.crop)
    levels = len(autoencoder.config.ch_mult)
    own = compute_scale_sizes(config.img_size, levels, config.scale_ratio, config.scale_min_size, config.single_scale)
    paper = [side for side in PAPER_SCALE_SIZES if side <= own[-1]]
    cached = sorted({*own, *paper}) if args.cache_scales == "paper" else own
    manifest = describe(images, config.img_size, args.crop, cached, autoencoder)
    maker = CacheMaker(images, autoencoder, manifest, args.batch_size, args.num_workers, device)
    root = Path(args.cached_path)
    folder = root / manifest.folder_name
    if args.create_cache:
        maker.create(root)
    if args.verify_cache:
        verify_cache(maker, folder, args)
        return None
    if not args.use_cache:
        return None
    cache = TokenCache(folder, describe(images, config.img_size, args.crop, own, autoencoder), own)
    if distributed.is_main():
        check_images(folder, images)
    return cache


def verify_cache(maker: CacheMaker, folder: Path, args: TrainArgs) -> None:
    """Encode some images again; more differences than rounding explains are an error."""
    different, compared = maker.verify(folder, args.verify_cache, args.seed)
    _say(f"{different} of {compared} codes differ from those in {folder}")
    if different > MAX_DIFFERENT_SHARE * compared:
        raise UserError(f"{folder} does not hold the codes of these images; move it away and make it again")


def train(
    config: ModelConfig,
    args: TrainArgs,
    autoencoder: Autoencoder,
    dataset: Dataset,
    images: LabelledImages,
    folder: Path,
    device: torch.device,
) -> None:
    """Build the model, train it in ``folder``, and say what came of it."""
    torch.manual_seed(args.seed)
    model = Checkerboard(config, autoencoder)
    model.class_names = images.class_names
    if distributed.is_main():
        open_run_folder(folder, config, args, autoencoder)
    distributed.barrier()
    if args.weights_init is not None and not (folder / CHECKPOINT_NAME).exists():
        for remark in initialize_from(model, args.weights_init):
            _say(remark)
    task = AutoregressorTask(model, args, images.class_keys, device)
    trainer = Trainer(task, dataset, args, folder, device, run_settings(config, args))
    ranks = "1 rank" if distributed.num_ranks() == 1 else f"{distributed.num_ranks()} ranks"
    _say(
        f"{describe_size(model)}; scales {' '.join(map(str, model.scale_sizes))}; {len(dataset)} images of "
        f"{config.num_classes} classes; {trainer.steps_per_epoch} steps an epoch on {ranks}; "
        f"{str(trainer.dtype).removeprefix('torch.')} on {device.type}; attention {args.attention}; run folder {folder}"
    )
    if not trainer.fit():
        _say(f"the run in {folder} is finished with {trainer.epoch} epochs; a higher --epochs goes on with it")
        return
    _say(f"samples: {folder / 'samples'}; checkpoint: {folder / CHECKPOINT_NAME}")
    if args.dataset == "digits" and config.class_cond and distributed.is_main():
        figures = score_digits(trainer.trained.eval(), NUM_SCORED_DIGITS, args)
        print("drawn digits, by the classifier in pretrained_models/classifiers:")
        print("\n".join(figure_lines(figures.labelled(NUM_SCORED_DIGITS), figures.of_real_images())))


def _say(text: str) -> None:
    if distributed.is_main():
        print(text, flush=True)


if __name__ == "__main__":
    run(main)
