"""The training loop: what main.py and train_ae_codebook share. What is trained is a ``Task``.

A *step* is one update of the weights, from ``accum_steps`` batches on every rank. All randomness of a step follows from
the run's seed, the step and the rank, so that a run that was stopped anywhere goes on as if it had not been.
"""

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tensorboardX import SummaryWriter
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data.batches import EpochBatches
from models.loading.checkpoint import CHECKPOINT_NAME, CONFIG_NAME, find_checkpoint
from runtime import distributed
from runtime.command import Stopped
from runtime.config import write_yaml
from runtime.device import autocast, pick_dtype
from runtime.errors import UserError
from runtime.files import whole
from training.options import LoopArgs
from training.state import TrainState
from training.task import LossModule, Task, step_context

SYNC_STEPS = 10  # between agreements of several ranks on whether to stop or save


class RunLog:
    """Appends to ``log.jsonl`` and to TensorBoard's event files. A run that goes on adds to the same files."""

    def __init__(self, folder: Path) -> None:
        self.path, self.writer = folder / "log.jsonl", SummaryWriter(str(folder))
        if self.path.exists() and self.path.read_bytes()[-1:] not in (b"", b"\n"):  # a full disk cut the last line
            with self.path.open("a") as file:
                file.write("\n")

    def write(self, **entry: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({**entry, "time": round(time.time(), 1)}) + "\n")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Record metrics after so many steps."""
        self.write(step=step, **values)
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)


class Trainer:
    """Trains a task on a dataset in a run folder, going on from the folder's last checkpoint if there is one.

    ``settings`` are written to the folder's ``config.yaml`` when steps are taken.
    """

    def __init__(
        self, task: Task, dataset: Dataset, args: LoopArgs, folder: Path, device: torch.device, settings: dict[str, Any]
    ) -> None:
        self.task, self.dataset, self.args, self.folder, self.device = task, dataset, args, folder, device
        self.settings = settings
        self.dtype = task.precision or pick_dtype(args.dtype, device)
        self.state = TrainState(task, args, len(dataset), device, self.dtype)
        self.stop_signal = 0
        self.needs_workers = multiprocessing.RawValue("b", 0)  # seen by the loader's workers

    def fit(self) -> bool:
        """Train to the last epoch; return whether there was anything left to train. A lock keeps other programs out.

        Raises:
            UserError: the loss is not finite, or a checkpoint cannot be read or written.
            Stopped: SIGINT or SIGTERM; a checkpoint has been written.
        """
        self._resume()
        state = self.state
        if state.epoch >= self.args.epochs:
            distributed.say(
                f"the run in {self.folder} is finished with {state.epoch} epochs; a higher --epochs goes on with it"
            )
            return False
        self.forward = LossModule(self.task)
        if distributed.num_ranks() > 1:
            self.forward = DistributedDataParallel(self.forward, broadcast_buffers=False)
        total = state.step + (self.args.epochs - state.epoch) * state.steps_per_epoch - state.step_in_epoch
        self.log = None
        if distributed.is_main():
            write_yaml(self.folder / CONFIG_NAME, self.settings)
            self.log = RunLog(self.folder)
            self.log.write(event="start", step=state.step, ranks=distributed.num_ranks(), dtype=str(self.dtype))
        self.last_save = time.monotonic()
        bar = tqdm(total=total, initial=state.step, unit="step", mininterval=1.0, smoothing=0.05, disable=not self.log)
        with self._signals_wait(), bar:
            while state.epoch < self.args.epochs:
                self._train_epoch(bar)
                self._end_epoch()
        return True

    @property
    def trained(self) -> nn.Module:
        """What to use of the run: the averaged weights if there are any."""
        return self.state.module if self.state.ema is None else self.state.ema.module

    def save(self) -> None:
        """Write ``checkpoint-last.pth``; called on all ranks, rank 0 writes."""
        self.last_save = time.monotonic()
        self.state.save(self.folder / CHECKPOINT_NAME)

    def show(self, name: str) -> None:
        """Let the task draw with the averaged weights, if there are any."""
        self.trained.eval()
        folder = self.folder / "samples"
        folder.mkdir(exist_ok=True)
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # a few shapes once: not worth compiling
            metrics = self.task.show(self.trained, folder, name)
        self.state.module.train()
        if metrics and self.log is not None:
            self.log.scalars(self.state.step, metrics)

    def _resume(self) -> None:
        state, folder = self.state, self.folder
        path = folder / CHECKPOINT_NAME
        if not path.exists() and self.args.resume is not None:
            path = find_checkpoint(self.args.resume)
        if path.exists():
            state.load(path)
            distributed.say(f"going on from {path}: epoch {state.epoch}, step {state.step}")
        if len(set(distributed.everyones((state.step, state.epoch, state.step_in_epoch)))) > 1:
            raise UserError(
                f"ranks found different checkpoints in {folder}; it must be a folder that all of them share"
            )

    def _train_epoch(self, bar: tqdm) -> None:
        batches, state = self._batches(), self.state
        while group := list(islice(batches, self.args.accum_steps)):
            last = (state.epoch + 1, state.step_in_epoch + 1) == (self.args.epochs, state.steps_per_epoch)
            self._train_step(group, bar if last or (state.step + 1) % self.args.log_freq == 0 else None)
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
        if self.state.step % SYNC_STEPS:
            return 0, False
        signals, saves = zip(*distributed.everyones((self.stop_signal, save)), strict=True)
        return max(signals), any(saves)

    def _batches(self) -> Iterator[Any]:
        state, args, data = self.state, self.args, self.dataset
        place = (state.epoch, state.step_in_epoch * args.accum_steps, distributed.rank(), distributed.num_ranks())
        loader = DataLoader(
            data,
            batch_sampler=EpochBatches(len(data), data.num_crops, args.batch_size, args.seed, *place),
            num_workers=args.num_workers,
            collate_fn=data.collate,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=partial(_leave_signals_to_main, self.needs_workers),
        )
        return islice(iter(loader), (state.steps_per_epoch - state.step_in_epoch) * args.accum_steps)

    def _train_step(self, group: list[Any], bar: tqdm | None) -> None:
        """One update from the batches of ``group``; with a progress bar it logs too."""
        state, rate = self.state, self.state.learning_rate
        for index, batch in enumerate(group):
            context = step_context(self.args.seed, state.step, index, self.device, state.progress)
            # Gradients of several ranks are averaged once a step, with its last batch.
            spare = index < len(group) - 1 and isinstance(self.forward, DistributedDataParallel)
            with self.forward.no_sync() if spare else nullcontext():
                with autocast(self.device, self.dtype):
                    loss = self.forward(_to_device(batch, self.device), context)
                state.scaler.scale(loss.value / len(group)).backward()
            state.loss_sum += loss.value.detach() / len(group)
            state.note_bad(~loss.value.detach().isfinite(), state.step)
        if self.args.clip_grad or bar is not None:
            state.scaler.unscale_(state.optimizer)
            norm = nn.utils.clip_grad_norm_(state.module.parameters(), self.args.clip_grad or torch.inf)
        state.update(rate)
        if bar is not None:
            with torch.no_grad():
                self._log(bar, {"lr": rate, "grad_norm": norm, **loss.metrics()})

    def _log(self, bar: tqdm, metrics: dict[str, Tensor | float]) -> None:
        """Write metrics, each the mean over ranks."""
        state = self.state
        state.check_finite()
        metrics = {"loss": state.mean_loss(), **metrics}
        values = torch.stack([torch.as_tensor(v, dtype=torch.float32, device=self.device) for v in metrics.values()])
        values = distributed.add_up(values) / distributed.num_ranks()
        metrics = {"epoch": state.progress, **dict(zip(metrics, values.tolist(), strict=True))}
        if self.log is not None:
            self.log.scalars(state.step, metrics)
        bar.set_postfix_str(f"epoch {state.progress:.1f}, loss {metrics['loss']:.3f}, lr {metrics['lr']:.1e}")

    def _end_epoch(self) -> None:
        """Draw, then save: what is killed in between is drawn again."""
        state = self.state
        state.check_finite(weights=True)
        state.epoch, state.step_in_epoch = state.epoch + 1, 0
        if state.epoch == self.args.epochs or (self.args.eval_freq and state.epoch % self.args.eval_freq == 0):
            self.show(f"epoch_{state.epoch:04d}")
        self.save()
        if self.args.keep_freq and state.epoch % self.args.keep_freq == 0 and distributed.is_main():
            with whole(self.folder / f"checkpoint-{state.epoch:04d}.pth") as kept:
                try:
                    kept.hardlink_to(self.folder / CHECKPOINT_NAME)
                except OSError:  # a file system without links
                    shutil.copyfile(self.folder / CHECKPOINT_NAME, kept)

    @contextmanager
    def _signals_wait(self) -> Iterator[None]:
        """SIGINT and SIGTERM wait for the end of a step and its checkpoint; a second one does not."""
        handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        self.needs_workers.value = 1
        try:
            yield
        finally:
            self.needs_workers.value = 0
            for number, handler in handlers.items():
                signal.signal(number, handler)
            if self.log is not None:
                self.log.writer.close()

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
