"""Tiny training runs for tests: real digits as codes, tasks that misbehave, processes to be killed or joined.

Letters: B batch, S side of a scale.
"""

import json
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.distributed import TCPStore
from torch.utils.data import Dataset

import main
from models.checkerboard.config import CheckerboardConfig, CheckerboardDrawing
from models.checkerboard.layout import Layout
from models.checkerboard.model import Checkerboard
from models.family import Loss, StepContext
from models.loading.autoencoder import save_autoencoder
from runtime import distributed
from runtime.command import run
from runtime.config import parse_config, plain
from tests.factory import TINY_TRANSFORMER, tiny_autoencoder
from training import job
from training.generator import GeneratorTask
from training.options import TrainArgs
from training.run_folder import run_settings
from training.trainer import Trainer

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden" / "quickstart_loss.json"
GOLDEN_FLAGS = (
    *("--llama_config.hidden_size", "64", "--llama_config.num_hidden_layers", "2"),
    *("--batch_size", "25", "--epochs", "2", "--lr_drops", "{1: 0.3162278}", "--log_freq", "5", "--eval_freq", "0"),
    *("--device", "cpu", "--dtype", "float32"),
)
FEW_DIGITS = 10
PATIENCE = 300  # seconds that a process may take before it counts as hanging
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.training_factory"])  # imported once, so that a process starts quickly


class DigitCodes(Dataset):
    """Scikit-learn's scans as codes that need no autoencoder: a location's code is its mean grey level, 0 to 16.

    Args:
        num_images: the first of the 1,797 scans.
        scale_sizes: sides of the code maps, divisors of 8.

    The second of two crops is mirrored.
    """

    num_crops = 2

    def __init__(self, num_images: int, scale_sizes: Sequence[int]) -> None:
        scans, labels = load_digits(return_X_y=True)
        grey = scans[:num_images].astype(np.int64).reshape(-1, 8, 8)
        crops = np.stack([grey, grey[..., ::-1]], axis=1)  # (N, 2, 8, 8)
        self.labels = torch.from_numpy(labels[:num_images].astype(np.int64))
        self.codes = [
            torch.from_numpy(crops.reshape(-1, 2, side, 8 // side, side, 8 // side).mean((3, 5)).astype(np.int64))
            for side in scale_sizes
        ]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, items: list[tuple[int, int]]) -> tuple[list[Tensor], Tensor]:
        """((B, S, S) codes of each scale, (B,) labels)."""
        indices, crops = torch.tensor(items).unbind(1)
        return [scale[indices, crops] for scale in self.codes], self.labels[indices]

    def collate(self, batch: tuple[list[Tensor], Tensor]) -> tuple[list[Tensor], Tensor]:
        return batch


PREVIEW = CheckerboardDrawing(steps_per_scale=1)


class QuietTask(GeneratorTask):
    """Draws no grid of samples, which would take longer than the steps of a tiny run; measures if asked to."""

    def show(self, module: Checkerboard, folder: Path, name: str) -> Iterator[dict[str, float]]:
        return super().show(module, folder, name) if self.args.eval_samples or self.args.val_images else iter(())


def fresh_model(**overrides: Any) -> Checkerboard:
    """A model as a run begins with it, scales 1 2 4; ``overrides`` are fields of CheckerboardConfig."""
    tiny = {"img_size": 16, "num_classes": 10, "llama_config": TINY_TRANSFORMER}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Checkerboard(CheckerboardConfig(**(tiny | overrides)), tiny_autoencoder())


def without_noise() -> Checkerboard:
    """A fresh model whose loss does not depend on how a step is split into batches."""
    return fresh_model(label_drop=0.0, random_replace=0.0)


def tiny_args(**overrides: Any) -> TrainArgs:
    """2 epochs that log every step and save after an epoch alone; ``overrides`` are fields of TrainArgs."""
    tiny = {
        "epochs": 2,
        "batch_size": 8,
        "lr": 3e-3,
        "warmup_epochs": 0.5,
        "dtype": "float32",
        "device": "cpu",
        "num_workers": 0,
        "log_freq": 1,
        "eval_freq": 0,
    }
    return TrainArgs(**(tiny | overrides))


def tiny_trainer(
    folder: Path,
    model: Checkerboard | None = None,
    task: Callable[..., GeneratorTask] = QuietTask,
    num_images: int = 80,
    **args: Any,
) -> Trainer:
    """A trainer of a fresh model on digits, 10 steps an epoch unless ``args`` (fields of TrainArgs) say otherwise."""
    model, settings = model or fresh_model(), tiny_args(**args)
    folder.mkdir(parents=True, exist_ok=True)
    data = DigitCodes(num_images, model.scale_sizes)
    preview = PREVIEW if isinstance(PREVIEW, model.Drawing) else model.Drawing()
    written = run_settings(model.config, (settings, preview))
    return Trainer(task(model, settings, preview), data, settings, folder, torch.device("cpu"), written)


def tiny_command(root: Path, folder: Path, **settings: Any) -> list[str]:
    """Arguments of main.py for a run on 8 x 8 digits, scales 1 2 4, from a cache that is made first.

    Args:
        root: gets the autoencoder and the cache, for all runs.
        folder: of the run.
        settings: more flags, that win.
    """
    if not (root / "autoenc").exists():
        save_autoencoder(tiny_autoencoder(ch_mult=(1, 1)), root / "autoenc")
    flags = {
        "img_size": 8,
        "num_classes": 10,
        "autoenc.config_path": root / "autoenc" / "autoencoder_config.yaml",
        "autoenc.checkpoint_path": root / "autoenc" / "autoencoder.safetensors",
        "llama_config": asdict(TINY_TRANSFORMER),
        "dataset": "digits",
        "crop": "center",
        "create_cache": True,
        "use_cache": True,
        "cache_scales": "model",
        "cached_path": root / "cached",
        "output_dir": folder,
        "cfg": 0.0,
    }
    settings = plain((tiny_args(), PREVIEW)) | flags | settings
    return [
        word for name, value in settings.items() for word in (f"--{name}", json.dumps(value, default=str).strip('"'))
    ]


def golden_run(folder: Path) -> dict[str, float]:
    """Losses by step of the quickstart in small: its settings but for ``GOLDEN_FLAGS``, on codes of real digits."""
    argv = ("--config", str(ROOT / "configs" / "quickstart.yaml"), *GOLDEN_FLAGS)
    sections = {"model": CheckerboardConfig, "args": (TrainArgs, CheckerboardDrawing)}
    settings, _ = parse_config(argv, "golden", "", sections)
    args, drawing = settings["args"]
    torch.manual_seed(args.seed)
    model = Checkerboard(settings["model"], tiny_autoencoder())
    data, task = DigitCodes(750, model.scale_sizes), QuietTask(model, args, drawing)
    folder.mkdir(parents=True, exist_ok=True)
    Trainer(task, data, args, folder, torch.device("cpu"), {}).fit()
    return {str(step): metrics["loss"] for step, metrics in read_log(folder).items()}


class BlocksTask(QuietTask):
    """Keeps the block lengths of every step in ``blocks``."""

    def __init__(self, module: Checkerboard, args: TrainArgs, drawing: CheckerboardDrawing) -> None:
        super().__init__(module, args, drawing)
        self.blocks: list[tuple[tuple[int, ...], ...]] = []
        plain_layout = module.layout

        def layout(blocks: Any, order_uniforms: Tensor | None = None) -> Layout:
            self.blocks.append(blocks)
            return plain_layout(blocks, order_uniforms)

        module.layout = layout


class NaNTask(QuietTask):
    """The loss of step 7 is not a number, on the last rank."""

    def loss(self, batch: list[Any], context: StepContext) -> Loss:
        loss = super().loss(batch, context)
        bad = context.step == 7 and distributed.rank() == distributed.num_ranks() - 1
        return Loss(loss.value * torch.nan if bad else loss.value, loss.metrics)


class SignalTask(QuietTask):
    """The last rank gets SIGTERM within step 13."""

    sent = False

    def loss(self, batch: list[Any], context: StepContext) -> Loss:
        if context.step == 13 and distributed.rank() == distributed.num_ranks() - 1 and not self.sent:
            self.sent = True
            signal.raise_signal(signal.SIGTERM)
        return super().loss(batch, context)


def read_events(folder: Path) -> list[dict[str, Any]]:
    """Every line of a run's log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def read_log(folder: Path) -> dict[int, dict[str, float]]:
    """A run's metrics by step, all but the time; a step done twice must have logged the same."""
    by_step: dict[int, dict[str, float]] = {}
    for entry in read_events(folder):
        if "loss" in entry:
            metrics = {key: value for key, value in entry.items() if key != "time"}
            assert by_step.setdefault(entry["step"], metrics) == metrics
    return by_step


def losses(folder: Path) -> list[float]:
    return [metrics["loss"] for metrics in read_log(folder).values()]


def assert_same_state(one: Any, other: Any, where: str = "checkpoint") -> None:
    """Equal to the last bit, containers and all."""
    assert type(one) is type(other), where
    if isinstance(one, Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same_state(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_same_state(left, right, f"{where}[{i}]")
    else:
        assert one == other, where


def assert_same_training(one: Path, other: Path) -> None:
    """The last checkpoints of two runs hold the same weights, averages, optimizer state and place, bit by bit."""
    states = [torch.load(folder / "checkpoint-last.pth", weights_only=True) for folder in (one, other)]
    kept = ("model", "model_ema", "optimizer", "scaler", "step", "epoch", "step_in_epoch", "data_order")
    for key in (*kept, "loss_sum"):
        assert_same_state(states[0][key], states[1][key], key)


def start_process(output: Path, work: Callable[..., None], *args: Any, **environment: str) -> BaseProcess:
    """Run ``work(*args)`` in a process of its own; what it and its libraries print goes to ``output``."""
    environment = {"XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"]} | environment  # the server may know an earlier one
    process = _PROCESSES.Process(target=_process, args=(output, environment, work, args))
    process.start()
    return process


def start_ranks(folder: Path, count: int, work: Callable[..., None], *args: Any) -> list[BaseProcess]:
    """Run ``work(*args)`` on ``count`` ranks as torchrun would; output goes to ``rank0.txt ...`` in ``folder``."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # where they meet: at any free port
    where = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    where["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    processes = [
        start_process(folder / f"rank{rank}.txt", work, *args, RANK=str(rank), LOCAL_RANK=str(rank), **where)
        for rank in range(count)
    ]
    processes[0].store = store  # lives as long as they do
    return processes


def exit_codes(processes: Sequence[BaseProcess]) -> list[int | None]:
    """Exit codes, once all have ended; None for one that hangs, which is killed."""
    codes = []
    for process in processes:
        process.join(PATIENCE)
        codes.append(process.exitcode)
        process.kill()
    return codes


def main_command(argv: Sequence[str]) -> None:
    """``python main.py ARGV``, which scores few digits, for ``start_process``."""
    job.NUM_SCORED_DIGITS = FEW_DIGITS
    sys.argv = ["main.py", *argv]
    run(main.main)


def train_rank(folder: Path, task: type[GeneratorTask], args: dict[str, Any], model: dict[str, Any]) -> None:
    """One rank of a run, for ``start_ranks``."""

    def train(argv: Sequence[str]) -> None:
        distributed.set_up(torch.device("cpu"))
        trainer = tiny_trainer(folder, fresh_model(**model), task, **args)
        trainer.fit()
        if isinstance(trainer.task, BlocksTask):
            (folder / f"blocks{distributed.rank()}.json").write_text(json.dumps(trainer.task.blocks))
        distributed.tear_down()

    run(train)


def _process(output: Path, environment: dict[str, str], work: Callable[..., None], args: Sequence[Any]) -> None:
    with output.open("wb") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which whoever started the tests may ignore
    multiprocessing.set_start_method(None, force=True)  # a loader's workers start as they do for users
    torch.set_num_threads(1)
    work(*args)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        curve = golden_run(Path(temporary))
    remark = "Made by python -m tests.training_factory; make it anew only when training is meant to differ."
    GOLDEN.write_text(json.dumps({"remark": remark, "flags": GOLDEN_FLAGS, "loss_by_step": curve}, indent=1) + "\n")
