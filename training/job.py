"""What main.py does once its arguments are understood."""

import math
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from data.report import check_data
from models.autoencoder import Autoencoder
from models.config import Drawing, GeneratorConfig
from models.family import Generator
from models.loading.autoencoder import autoencoder_hash, beside, load_autoencoder
from models.loading.checkpoint import CHECKPOINT_NAME, initialize_from, model_class, recommended_settings
from models.loading.state import without_memory
from runtime import distributed
from runtime.device import describe_size, dtype_name, pick_device
from runtime.files import write_text
from runtime.lock import lock_folder
from training.generator import GeneratorTask, check_patches, check_task
from training.options import TrainArgs
from training.order import FIRST_STEPS
from training.preview import score_digits
from training.run_folder import begin_run, check_same, holds_run, run_settings, sampling_settings
from training.source import Source, open_source, with_num_classes
from training.state import count_steps
from training.trainer import Trainer

NUM_SCORED_DIGITS = 500
NEAR_CHANCE = 0.25  # nats: a model that has learned little more than how frequent each code is


def prepare_and_train(
    config: GeneratorConfig, args: TrainArgs, drawing: Drawing, name: str, configuration: Path | None
) -> None:
    """Look at the data, make or open a cache, and train, as ``args`` of the configuration ``name`` say.

    ``drawing`` is that of the previews; the file of the ``configuration`` may recommend another.
    """
    if configuration is not None:
        recommended_settings(configuration, type(drawing))  # a mistake there is an error now, not after the cache
        config = replace(config, autoenc=beside(config.autoenc, configuration))
    source = open_source(config, args)
    if args.check_data:
        check_data(source.images, args.num_workers, config.num_classes if config.class_cond else 0)
        return
    config = with_num_classes(config, source)
    device = distributed.set_up(pick_device(args.device))
    for remark in source.remarks:
        distributed.say(remark)
    folder = Path(args.output_dir or f"output/{name}")
    trains = not args.verify_cache and (args.use_cache or not args.create_cache)
    if trains:
        count_steps(source.num_images, args)  # too few images are an error now
    autoencoder = load_autoencoder(config.autoenc).to(device)
    autoencoder_sha256 = autoencoder_hash(autoencoder)
    if trains:
        _check_before_cache(config, args, drawing, source, autoencoder, folder)
        if distributed.is_main():
            check_same(folder, config, autoencoder_sha256, args.resume)
    dataset = source.dataset(config, args, autoencoder, autoencoder_sha256)
    if trains:
        torch.manual_seed(args.seed)
        model = _new_model(config, autoencoder, source).to(device)
        with lock_folder(folder):
            if distributed.is_main():
                begin_run(folder, autoencoder)
            distributed.barrier()
            if args.weights_init and args.resume and not holds_run(folder):
                distributed.say(f"{args.weights_init} is left out: the run goes on from {args.resume}")
            if starts_from_weights(args, folder):
                for remark in initialize_from(model, args.weights_init):
                    distributed.say(remark)
            task = GeneratorTask(model, args, drawing, list(source.class_keys))
            settings = run_settings(config, task.settings)
            settings["sampling"] = sampling_settings(folder, task.drawing, configuration)
            train(Trainer(task, dataset, args, folder, device, settings))
    distributed.tear_down()


def _new_model(config: GeneratorConfig, autoencoder: Autoencoder, source: Source) -> Generator:
    model = model_class(config)(config, autoencoder)
    model.class_names = source.class_names and list(source.class_names)
    return model


def _check_before_cache(
    config: GeneratorConfig,
    args: TrainArgs,
    drawing: Drawing,
    source: Source,
    autoencoder: Autoencoder,
    folder: Path,
) -> None:
    """Refuse what would otherwise fail only once the cache is made, which may take hours.

    That is patches that do not fit, an autoencoder of another kind, settings of previews, and weights to start from.
    """
    check_patches(config, model_class(config), autoencoder.config.stride, args)
    with without_memory():
        trial = _new_model(config, autoencoder, source)
    check_task(trial, args, drawing)
    if starts_from_weights(args, folder):
        with warnings.catch_warnings(action="ignore"):  # nothing is copied to meta tensors, which torch warns of
            initialize_from(trial, args.weights_init)


def starts_from_weights(args: TrainArgs, folder: Path) -> bool:
    """Whether a run begins with given weights, and does not go on from a checkpoint."""
    return args.weights_init is not None and args.resume is None and not holds_run(folder)


def train(trainer: Trainer) -> None:
    """Train in a folder that is locked and holds no other run, and say what came of it."""
    task, args, folder, model = trainer.task, trainer.args, trainer.folder, trainer.task.module
    ranks = "1 rank" if distributed.num_ranks() == 1 else f"{distributed.num_ranks()} ranks"
    distributed.say(
        f"{describe_size(model)}; scales {' '.join(map(str, model.scale_sizes))}; {len(trainer.dataset)} images of "
        f"{model.config.num_classes} classes; {trainer.state.steps_per_epoch} steps an epoch on {ranks}; "
        f"{dtype_name(trainer.dtype)} on {trainer.device.type}; attention {args.attention}; "
        f"run folder {folder}"
    )
    num_steps = args.epochs * trainer.state.steps_per_epoch
    if args.adaptive_order and num_steps <= FIRST_STEPS:
        distributed.say(f"warning: adaptive_order has no effect in {num_steps} steps; it begins after {FIRST_STEPS}")
    if trained := trainer.fit():
        if trainer.logged_loss is not None:  # steps were taken, and not only a last preview made up for
            warn_if_near_chance(trainer.logged_loss, model.num_codes)
        distributed.say(f"samples: {folder / 'samples'}; checkpoint: {folder / CHECKPOINT_NAME}")
    score = folder / f"samples/digits_{trainer.state.epoch:04d}.txt"
    wants_score = args.dataset == "digits" and model.config.class_cond and not args.shard
    if distributed.from_main(wants_score and (trained or not score.exists())):
        lines = score_digits(trainer.trained.eval(), NUM_SCORED_DIGITS, task.drawing, folder / "samples/.digits")
        distributed.say("\n".join(["drawn digits, by the classifier in pretrained_models/classifiers:", *lines]))
        if distributed.is_main():
            write_text(score, "\n".join(lines) + "\n")  # a run that was killed before makes up for it


def warn_if_near_chance(loss: float, num_codes: int) -> None:
    """Warn of a run whose loss ended near that of guessing."""
    chance = math.log(num_codes)
    if loss > chance - NEAR_CHANCE:
        distributed.say(
            f"warning: the loss ended at {loss:.2f}, and guessing has ln {num_codes} = {chance:.2f}: images will be "
            "little more than noise. Train longer (--epochs), or start from trained weights (--weights_init)"
        )
