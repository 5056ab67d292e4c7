"""The training loop: what main.py and train_ae_codebook share. What is trained is a ``Task``.

A *step* is one update of the weights, from ``accum_steps`` batches on every rank. All randomness of a step follows from
the run's seed, the step and the rank, so that a run that was stopped anywhere goes on as if it had not been.
"""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data.batches import EpochBatches, mix_seed
from models.family import Loss, StepContext
from models.loading.checkpoint import CHECKPOINT_NAME, CONFIG_NAME, find_checkpoint
from models.loading.state import read_torch_file
from runtime import distributed
from runtime.command import Stopped
from runtime.config import write_yaml
from runtime.device import autocast, pick_dtype
from runtime.errors import UserError
from runtime.files import whole
from training.log import RunLog
from training.options import LoopArgs
from training.state import keep_copy, random_states, restore_random_states

SYNC_STEPS = 10  # between agreements of several ranks on whether to stop or save


class Task(Protocol):
    """Something to train.

    Attributes:
        module: whose parameters are trained and saved.
    """

    module: nn.Module

    def loss(self, batch: Any, context: StepContext) -> Loss:
        """The loss of a batch, and what else is logged of it."""

    def precision(self) -> torch.dtype | None:
        """A precision that the task insists on, or None."""

    def show(self, module: nn.Module, folder: Path, name: str) -> dict[str, float]:
        """Write pictures ``folder / name...`` of what a (possibly averaged) module does; figures of it are logged.

        Called on every rank; rank 0 writes.
        """

    def describe(self) -> dict[str, Any]:
        """Plain entries for the checkpoint, such as the configuration."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold, beside the module, for a run to go on exactly: of most tasks nothing."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what ``state`` gave to the checkpoint that a run goes on from."""


class _LossModule(nn.Module):
    """A task's loss as a forward pass, which DistributedDataParallel needs to see."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.module = task.module
        self.loss = task.loss

    def forward(self, batch: Any, context: StepContext) -> Loss:
        return self.loss(batch, context)


def step_context(seed: int, step: int, batch: int, device: torch.device, epoch: float = 0.0) -> StepContext:
    """Where a batch of this rank stands, and the random generators that follow from that and the run's seed."""
    rank_rng = torch.Generator(device).manual_seed(mix_seed(seed, step, batch, distributed.rank()))
    return StepContext(step, epoch, batch, random.Random(mix_seed(seed, step)), rank_rng)


def count_steps(num_images: int, args: LoopArgs) -> int:
    """Steps of an epoch; the images left over wait for another epoch's order."""
    images_a_step = args.batch_size * args.accum_steps * distributed.num_ranks()
    if num_images < images_a_step:
        raise UserError(f"{num_images} images do not fill one step of {images_a_step}; lower batch_size or accum_steps")
    return num_images // images_a_step


class Trainer:
    """Trains a task on a dataset in a run folder, going on from the folder's last checkpoint if there is one.

    Args:
        task: what is trained.
        dataset: gives the batches.
        args: how to train.
        folder: of the run.
        device: of this rank.
        settings: written to the folder's ``config.yaml`` when steps are taken.
    """

    def __init__(
        self,
        task: Task,
        dataset: Dataset,
        args: LoopArgs,
        folder: Path,
        device: torch.device,
        settings: Mapping[str, Any],
    ) -> None:
        self.task, self.dataset, self.args, self.folder, self.device = task, dataset, args, folder, device
        self.settings = settings
        self.module = task.module.to(device).train()
        self.optimizer = torch.optim.AdamW(
            param_groups_weight_decay(self.module, args.weight_decay), lr=args.lr, betas=tuple(args.betas)
        )
        self.ema = ModelEmaV3(self.module, decay=args.ema_decay, use_warmup=True) if args.ema else None
        self.dtype = task.precision() or pick_dtype(args.dtype, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.steps_per_epoch = count_steps(len(dataset), args)
        self.step, self.epoch, self.step_in_epoch, self.logged_step = 0, 0, 0, 0
        self.stop_signal = 0
        self.needs_workers = multiprocessing.RawValue("b", 0)  # seen by the loader's workers
        self.loss_sum = torch.zeros((), device=device)
        self.first_bad_step = torch.full((), -1, device=device)

    @property
    def progress(self) -> float:
        """Epochs done, with the fraction of the one that is under way."""
        return self.epoch + self.step_in_epoch / self.steps_per_epoch

    @property
    def learning_rate(self) -> float:
        """Of the next step: linear warm-up, then the drops passed so far (method.md Sec. 5)."""
        rate = self.args.lr
        if self.progress < self.args.warmup_epochs:
            rate *= self.progress / self.args.warmup_epochs
        for start, factor in self.args.lr_drops.items():
            rate *= factor if self.progress >= start else 1.0
        return rate

    @property
    def trained(self) -> nn.Module:
        """What to use of the run: the averaged weights if there are any."""
        return self.module if self.ema is None else self.ema.module

    def fit(self) -> bool:
        """Train to the last epoch; return whether there was anything left to train. A lock keeps other programs out.

        Raises:
            UserError: the loss is not finite, or a checkpoint cannot be read or written.
            Stopped: SIGINT or SIGTERM; a checkpoint has been written.
        """
        self._resume()
        if len(set(distributed.everyones((self.step, self.epoch, self.step_in_epoch)))) > 1:
            raise UserError(
                f"ranks found different checkpoints in {self.folder}; it must be a folder that all of them share"
            )
        if self.epoch >= self.args.epochs:
            return False
        if distributed.is_main():
            write_yaml(self.folder / CONFIG_NAME, self.settings)
        self.forward = _LossModule(self.task)
        if distributed.num_ranks() > 1:
            self.forward = DistributedDataParallel(self.forward, broadcast_buffers=False)
        total = self.step + (self.args.epochs - self.epoch) * self.steps_per_epoch - self.step_in_epoch
        self.log = RunLog(self.folder) if distributed.is_main() else None
        self._event("start", step=self.step, ranks=distributed.num_ranks(), dtype=str(self.dtype))
        handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        self.last_save = time.monotonic()
        self.needs_workers.value = 1
        try:
            with tqdm(
                total=total, initial=self.step, unit="step", mininterval=1.0, smoothing=0.05, disable=self.log is None
            ) as bar:
                while self.epoch < self.args.epochs:
                    self._train_epoch(bar)
                    self._end_epoch()
        finally:
            self.needs_workers.value = 0
            for number, handler in handlers.items():
                signal.signal(number, handler)
            if self.log is not None:
                self.log.close()
        return True

    def _train_epoch(self, bar: tqdm) -> None:
        batches = self._batches()
        while group := list(islice(batches, self.args.accum_steps)):
            last = (self.epoch + 1, self.step_in_epoch + 1) == (self.args.epochs, self.steps_per_epoch)
            logs = last or (self.step + 1) % self.args.log_freq == 0
            self._train_step(group, bar if logs else None)
            bar.update()
            stop, save = self._agree()
            if stop or save:
                self.save()
            if stop:
                raise Stopped(stop)

    def _agree(self) -> tuple[int, bool]:
        """The signal to stop for, or 0, and whether to save; the same on all ranks."""
        save = time.monotonic() - self.last_save > 60 * self.args.save_minutes
        if distributed.num_ranks() == 1:
            return self.stop_signal, save
        if self.step % SYNC_STEPS:
            return 0, False
        signals, saves = zip(*distributed.everyones((self.stop_signal, save)), strict=True)
        return max(signals), any(saves)

    def _batches(self) -> Iterator[Any]:
        sampler = EpochBatches(
            num_images=len(self.dataset),
            num_crops=self.dataset.num_crops,
            batch_size=self.args.batch_size,
            seed=self.args.seed,
            epoch=self.epoch,
            start=self.step_in_epoch * self.args.accum_steps,
            rank=distributed.rank(),
            num_ranks=distributed.num_ranks(),
        )
        loader = DataLoader(
            self.dataset,
            batch_sampler=sampler,
            num_workers=self.args.num_workers,
            collate_fn=self.dataset.collate,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=partial(_leave_signals_to_main, self.needs_workers),
        )
        return islice(iter(loader), (self.steps_per_epoch - self.step_in_epoch) * self.args.accum_steps)

    def _train_step(self, group: list[Any], bar: tqdm | None) -> None:
        """One update from the batches of ``group``; with a progress bar it logs too."""
        rate = self.learning_rate
        for param_group in self.optimizer.param_groups:
            param_group["lr"] = rate
        for index, batch in enumerate(group):
            context = step_context(self.args.seed, self.step, index, self.device, self.progress)
            with self._last_batch_syncs(index == len(group) - 1):
                with autocast(self.device, self.dtype):
                    loss = self.forward(_to_device(batch, self.device), context)
                self.scaler.scale(loss.value / len(group)).backward()
            self.loss_sum += loss.value.detach() / len(group)
            self._note(~loss.value.detach().isfinite(), self.step)
        norm = self._gradient_norm(needed=bar is not None)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.module, step=self.step)
        self.step, self.step_in_epoch = self.step + 1, self.step_in_epoch + 1
        if bar is not None:
            with torch.no_grad():
                self._log(bar, {"lr": rate, "grad_norm": norm, **loss.metrics()})

    def _last_batch_syncs(self, last: bool) -> Any:
        """Gradients of several ranks are averaged once a step, with its last batch."""
        spare = isinstance(self.forward, DistributedDataParallel) and not last
        return self.forward.no_sync() if spare else nullcontext()

    def _gradient_norm(self, needed: bool) -> Tensor | None:
        """Norm before clipping, if it is clipped or asked for."""
        if not needed and not self.args.clip_grad:
            return None
        self.scaler.unscale_(self.optimizer)
        return nn.utils.clip_grad_norm_(self.module.parameters(), self.args.clip_grad or torch.inf)

    def _log(self, bar: tqdm, figures: dict[str, Tensor | float]) -> None:
        """Write figures, each the mean over ranks."""
        self._check_finite()
        figures = {"loss": self.loss_sum / (self.step - self.logged_step), **figures}
        values = torch.stack([torch.as_tensor(v, dtype=torch.float32, device=self.device) for v in figures.values()])
        values = distributed.add_up(values) / distributed.num_ranks()
        self.loss_sum.zero_()
        self.logged_step = self.step
        figures = {"epoch": self.progress, **dict(zip(figures, values.tolist(), strict=True))}
        if self.log is not None:
            self.log.scalars(self.step, figures)
        bar.set_postfix_str(f"epoch {self.progress:.1f}, loss {figures['loss']:.3f}, lr {figures['lr']:.1e}")

    def _note(self, bad: Tensor, step: int) -> None:
        """Remember the first step whose loss or weights are bad, without waiting for the device."""
        self.first_bad_step = torch.where(bad & (self.first_bad_step < 0), step, self.first_bad_step)

    def _check_weights(self) -> None:
        """As ``_check_finite``, of the weights too."""
        self._note(~torch.stack([p.isfinite().all() for p in self.module.parameters()]).all(), self.step - 1)
        self._check_finite()

    def _check_finite(self) -> None:
        """Stop every rank, before anything bad is saved, if any noted something since the last check."""
        bad = [(step, rank) for rank, step in enumerate(distributed.everyones(int(self.first_bad_step))) if step >= 0]
        if bad:
            step, rank = min(bad)
            raise UserError(
                f"the loss or a weight is not finite at step {step} (rank {rank}, learning rate "
                f"{self.learning_rate:.2e}); the checkpoint in {self.folder} is from before: lower lr, set clip_grad 1 "
                "or dtype float32, and run again"
            )

    def _end_epoch(self) -> None:
        """Draw, then save: what is killed in between is drawn again."""
        self._check_weights()
        self.epoch, self.step_in_epoch = self.epoch + 1, 0
        last = self.epoch == self.args.epochs
        if last or (self.args.eval_freq and self.epoch % self.args.eval_freq == 0):
            self.show(f"epoch_{self.epoch:04d}")
        self.save()
        if self.args.keep_freq and self.epoch % self.args.keep_freq == 0 and distributed.is_main():
            keep_copy(self.folder / CHECKPOINT_NAME, self.folder / f"checkpoint-{self.epoch:04d}.pth")

    def show(self, name: str) -> None:
        """Let the task draw with the averaged weights, if there are any."""
        self.trained.eval()
        folder = self.folder / "samples"
        folder.mkdir(exist_ok=True)
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # a few shapes once: not worth compiling
            figures = self.task.show(self.trained, folder, name)
        self.module.train()
        if figures and self.log is not None:
            self.log.scalars(self.step, figures)

    def save(self) -> None:
        """Write ``checkpoint-last.pth``; called on all ranks, rank 0 writes."""
        self._check_weights()
        self.loss_sum = distributed.add_up(self.loss_sum) / distributed.num_ranks()  # the file holds one for all ranks
        self.last_save = time.monotonic()
        if distributed.is_main():
            with whole(self.folder / CHECKPOINT_NAME) as temporary:
                torch.save(self._state(), temporary)

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.module.state_dict(),
            "model_ema": None if self.ema is None else self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "data_order": self._data_order(),
            "loss_sum": self.loss_sum,
            "logged_step": self.logged_step,
            "random_states": random_states(),
            "task": self.task.state(),
            **self.task.describe(),
        }

    def _resume(self) -> None:
        path = self.folder / CHECKPOINT_NAME
        if not path.exists():
            if self.args.resume is None:
                return
            path = find_checkpoint(self.args.resume)
        saved = read_torch_file(path)
        self._check_saved(saved, path)
        self.module.load_state_dict(saved["model"])
        groups = self.optimizer.state_dict()["param_groups"]  # betas and weight decay of now, not of then
        self.optimizer.load_state_dict(saved["optimizer"] | {"param_groups": groups})
        if saved["scaler"]:  # empty but after float16
            self.scaler.load_state_dict(saved["scaler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(saved["model_ema"])
        self.task.restore(saved.get("task", {}))
        self.step, self.epoch, self.step_in_epoch = saved["step"], saved["epoch"], saved["step_in_epoch"]
        self.loss_sum.copy_(saved["loss_sum"])
        self.logged_step = saved.get("logged_step", self.step - self.step % self.args.log_freq)  # earlier files lack it
        if distributed.is_main():
            print(f"going on from {path}: epoch {self.epoch}, step {self.step}")
        restore_random_states(saved["random_states"])

    def _check_saved(self, saved: dict[str, Any], path: Path) -> None:
        """Refuse a checkpoint that this run cannot go on from."""
        shapes = {name: tensor.shape for name, tensor in self.module.state_dict().items()}
        if "data_order" not in saved or {name: t.shape for name, t in saved["model"].items()} != shapes:
            raise UserError(f"{path} is of no run of this model; name one, or start from its weights by weights_init")
        if saved["step_in_epoch"] and saved["data_order"] != self._data_order():
            raise UserError(
                f"{path} stopped inside an epoch with {saved['data_order']}, which is now {self._data_order()}; go on "
                "with the same, or name another output_dir"
            )
        described = self.task.describe()
        for key, other in (("class_keys", "on other classes than the data's"), ("start_hash", "from another start")):
            if saved.get(key) != described.get(key):
                raise UserError(f"{path} was trained {other}; put them back, or name another output_dir")
        if (saved["model_ema"] is None) != (self.ema is None):
            kind = "without" if self.ema else "with"
            raise UserError(f"{path} was trained {kind} ema; keep it so, or name another output_dir")

    def _data_order(self) -> dict[str, int]:
        """What decides which images a step of an epoch sees."""
        images_a_step = self.args.batch_size * self.args.accum_steps * distributed.num_ranks()
        return {"images": len(self.dataset), "images_a_step": images_a_step, "seed": self.args.seed}

    def _event(self, name: str, **values: Any) -> None:
        if self.log is not None:
            self.log.event(name, **values)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stop_signal:
            raise KeyboardInterrupt
        self.stop_signal = number
        tqdm.write("stopping after this step; once more to stop at once, without saving")


def _leave_signals_to_main(needed: Any, worker: int) -> None:
    """A signal to the whole process group must not end the workers before the step is done and saved.

    Once they are needed no more, SIGTERM ends them: an interpreter that exits sends it, and then waits for them.
    """

    def on_terminate(number: int, frame: FrameType | None) -> None:
        if not needed.value:
            os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, on_terminate)


def _to_device(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    return [_to_device(part, device) for part in batch]
