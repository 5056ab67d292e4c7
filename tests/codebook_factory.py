"""Tiny trainings of codebooks for tests: 8 px digits, scales 1 2 4."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from data.images import CroppedImages, open_dataset
from data.labelled_images import ImageArrays
from models.config import VQVAEConfig
from models.family import StepContext
from models.vqvae import VQVAE
from runtime import distributed
from runtime.command import run
from tests.factory import randomize, tiny_autoencoder
from train_ae_codebook.options import AutoencoderArgs, RequantizeArgs, VQVAEArgs
from train_ae_codebook.tasks import LlamaGenVQTask, RequantizeTask
from train_ae_codebook.vqvae import VQVAETask
from training.task import step_context
from training.trainer import Trainer

CPU = torch.device("cpu")
ADVERSARIAL = {"discriminator": 0.5, "discriminator_start": 2, "discriminator_lr": 1e-3, "revive_freq": 0}


@cache
def digits(split: str, count: int) -> CroppedImages:
    """The first ``count`` scans as they are, 8 px."""
    data = open_dataset("digits", "", 8, split)
    return CroppedImages(ImageArrays("digits", data.pixels[:count], data.labels[:count], data.class_keys), 8, "center")


def step(number: int, seed: int = 0) -> StepContext:
    return step_context(seed, number, 0, CPU)


def ae_args(**overrides: Any) -> AutoencoderArgs:
    """Batches of 50; ``overrides`` are fields of AutoencoderArgs."""
    tiny = {"dataset": "digits", "crop": "center", "img_size": 8, "scale_sizes": (1, 2, 4), "device": "cpu"}
    tiny |= {"epochs": 1, "batch_size": 50, "lr": 3e-3, "warmup_epochs": 0.0, "num_workers": 0, "log_freq": 1}
    return AutoencoderArgs(**(tiny | overrides))


def ae_task(**overrides: Any) -> LlamaGenVQTask:
    return LlamaGenVQTask(tiny_autoencoder(ch_mult=(1, 1)).train(), ae_args(**overrides), digits("val", 64), CPU)


def ae_trainer(folder: Path, **overrides: Any) -> Trainer:
    """6 steps an epoch, of 50 images on one rank."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    task = ae_task(**overrides)
    return Trainer(task, digits("train", 300), task.args, folder, CPU, {})


def ae_rank(folder: Path, overrides: dict[str, Any]) -> None:
    """One rank of a run, for ``start_ranks``."""
    _train_rank(lambda: ae_trainer(folder, **overrides))


def vqvae_task(**overrides: Any) -> VQVAETask:
    """32 codes, batches of 50; ``overrides`` are fields of VQVAEArgs."""
    tiny = {"dataset": "digits", "img_size": 8, "device": "cpu", "epochs": 1, "batch_size": 50, "lr": 3e-3}
    tiny |= {"num_workers": 0, "log_freq": 1, "codebook_decay": 0.9}
    module = VQVAE(VQVAEConfig(embed_dim=8, n_embed=32, channels=16, residual_channels=4))
    return VQVAETask(module, VQVAEArgs(**(tiny | overrides)), digits("val", 64))


def vqvae_trainer(folder: Path, **overrides: Any) -> Trainer:
    """6 steps an epoch, of 50 images on one rank."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    task = vqvae_task(**overrides)
    return Trainer(task, digits("train", 300), task.args, folder, CPU, {})


def vqvae_rank(folder: Path, overrides: dict[str, Any]) -> None:
    """One rank of a run, for ``start_ranks``."""
    _train_rank(lambda: vqvae_trainer(folder, **overrides))


def requantize_args(**overrides: Any) -> RequantizeArgs:
    """32 codes, 4 steps of moments, revivals at steps 8, 12, ...; ``overrides`` are fields of RequantizeArgs."""
    tiny = {"dataset": "digits", "crop": "center", "img_size": 8, "scale_sizes": (1, 2, 4), "device": "cpu"}
    tiny |= {"n_embed": 32, "moment_steps": 4, "revive_after": 6, "revive_freq": 4, "full_size_share": 0.5}
    tiny |= {"epochs": 1, "batch_size": 20, "lr": 1e-2, "num_workers": 0, "log_freq": 1, "eval_freq": 0}
    return RequantizeArgs(**(tiny | overrides))


def requantize_task(**overrides: Any) -> RequantizeTask:
    start = tiny_autoencoder(ch_mult=(1, 1))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        randomize(start, std=0.1)
    return RequantizeTask(start, requantize_args(**overrides), digits("val", 32), CPU)


def requantize_trainer(folder: Path, **overrides: Any) -> Trainer:
    """15 steps an epoch, of 20 images on one rank."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    task = requantize_task(**overrides)
    return Trainer(task, digits("train", 300), task.args, folder, CPU, {})


def requantize_rank(folder: Path, overrides: dict[str, Any]) -> None:
    """One rank of a run, for ``start_ranks``."""
    _train_rank(lambda: requantize_trainer(folder, **overrides))


def _train_rank(make: Callable[[], Trainer]) -> None:
    def train(argv: Any) -> None:
        distributed.set_up(CPU)
        make().fit()
        distributed.tear_down()

    run(train)
