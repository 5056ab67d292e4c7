"""The training loop: what main.py and train_ae_codebook share. What is trained is a ``Task``.

A *step* is one update of the weights, from ``accum_steps`` batches on every rank. All randomness of a step follows from
the run's seed, the step and the rank, so that a run that was stopped anywhere goes on as if it had not been.
"""

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tensorboardX import SummaryWriter
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset
from tqdm import tqdm

from data.batches import EpochBatches
from data.loading import load_batches
from models.loading.checkpoint import CHECKPOINT_NAME, CONFIG_NAME
from runtime import distributed
from runtime.command import explain
from runtime.config import read_yaml, write_yaml
from runtime.device import allow_tf32, autocast, pick_dtype, send
from runtime.errors import UserError
from runtime.files import move_aside, same_settings, whole
from runtime.progress import Progress
from runtime.stopping import GRACE, Stopped, StopSignals, waiting
from training.options import LoopArgs
from training.sharded import ShardedState
from training.state import TrainState, images_a_step, whole_tensor
from training.task import LossModule, Task, step_context

SYNC_STEPS = 10  # between agreements of several ranks on whether to stop or save
SLOW_STEP = 0.5  # seconds from which they agree at every step: torchrun kills 30 s after it has asked to stop
STILL_USED = ("epochs", "export_dir", "export_dtype")  # settings that a finished run has a use for
UNFINISHED = ".unfinished-"  # begins the name of a file beside the samples until those of an epoch are there


class RunLog:
    """Appends to ``log.jsonl`` and to TensorBoard's event files. A run that goes on adds to the same files."""

    def __init__(self, folder: Path) -> None:
        self.path, self.writer = folder / "log.jsonl", SummaryWriter(str(folder))
        if self.path.exists() and self.path.read_bytes()[-1:] not in (b"", b"\n"):  # a full disk cut the last line
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n")

    def write(self, **entry: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
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
        self.logged_loss: float | None = None  # the last one
        self.dtype = task.precision or pick_dtype(args.dtype, device, trains=True)
        allow_tf32(args.tf32)
        kind = ShardedState if args.shard else TrainState
        self.state = kind(task, args, len(dataset), device, self.dtype)
        self.stop = StopSignals()
        self.agreed, self.sync_steps = time.monotonic(), 1  # when ranks last did, and after how many steps they will

    def fit(self) -> bool:
        """Train to the last epoch; return whether there was anything left to do. A lock keeps other programs out.

        Raises:
            UserError: the loss is not finite, or a checkpoint cannot be read or written.
            Stopped: SIGINT or SIGTERM; a checkpoint has been written, unless another rank did not answer.
        """
        self._resume()
        state = self.state
        undrawn = distributed.from_main(state.step_in_epoch == 0 and self._unfinished.exists())
        if state.epoch >= self.args.epochs and not undrawn:
            distributed.say(
                f"the run in {self.folder} is finished with {state.epoch} epochs; a higher --epochs goes on with it"
            )
            _say_ignored(self.folder / CONFIG_NAME, self.settings)
            if state.is_saved(self.folder / CHECKPOINT_NAME):
                state.join(self.folder / CHECKPOINT_NAME)  # which a kill may have cut off
            return False
        self.forward = LossModule(self.task)
        if distributed.num_ranks() > 1 and not self.args.shard:
            self.forward = DistributedDataParallel(
                self.forward, forward_sync_buffers=False, gradient_as_bucket_view=True
            )
        total = state.step + (self.args.epochs - state.epoch) * state.steps_per_epoch - state.step_in_epoch
        self.log = None
        if distributed.is_main():
            self._write_settings()
            self.log = RunLog(self.folder)
            kept = {"ranks": distributed.num_ranks(), "images_a_step": images_a_step(self.args)}
            self.log.write(event="start", step=state.step, dtype=str(self.dtype), **kept)
            self._keep(again=False)  # a kill may have come between the last checkpoint and its copy
        self.last_save = time.monotonic()
        bar = Progress(
            total=total, initial=state.step, unit="step", mininterval=1.0, smoothing=0.05, disable=not self.log
        )
        try:
            with self.stop, bar:
                if undrawn:
                    self.show()
                while state.epoch < self.args.epochs:
                    self._train_epoch(bar)
                    self._end_epoch()
        finally:
            if self.log is not None:
                self.log.writer.close()
        state.join(self.folder / CHECKPOINT_NAME)
        return True

    def _write_settings(self) -> None:
        """Into the folder; a file of that name that is of no run, but the user's, gets another name."""
        place = self.folder / CONFIG_NAME
        if not self.state.is_saved(self.folder / CHECKPOINT_NAME) and place.exists():
            with suppress(UserError):  # of one that is no YAML
                if same_settings(read_yaml(place), self.settings):
                    return
            move_aside(place)
        write_yaml(place, self.settings)

    @property
    def trained(self) -> nn.Module:
        """What to use of the run: the averaged weights if there are any."""
        return self.state.module if self.state.ema is None else self.state.ema.module

    def save(self) -> None:
        """Write ``checkpoint-last.pth``; called on all ranks, rank 0 writes."""
        self.last_save = time.monotonic()
        self.state.save(self.folder / CHECKPOINT_NAME)

    def _keep(self, again: bool = True) -> None:
        """Copy the checkpoint of an epoch that is to be kept; a link would change with what it names."""
        state, path = self.state, self.folder / CHECKPOINT_NAME
        kept = self.folder / f"checkpoint-{state.epoch:04d}.pth"
        due = self.args.keep_freq and state.step_in_epoch == 0 < state.epoch and state.epoch % self.args.keep_freq == 0
        if due and path.exists() and (again or not kept.exists()):
            with whole(kept) as copy:
                shutil.copyfile(path, copy)

    def show(self) -> None:
        """Let the task draw with the averaged weights, if there are any, and measure. A signal ends it at once.

        What fails on one rank is a warning; of several, others would wait for it.
        """
        metrics, (folder, name) = {}, (self._unfinished.parent, f"epoch_{self.state.epoch:04d}")
        self.trained.eval()
        try:
            # A few shapes once are not worth compiling.
            with waiting(0), torch.no_grad(), torch.compiler.set_stance("force_eager"):
                for found in self.task.show(self.trained, folder, name):
                    metrics |= found
                distributed.barrier(f"the samples of {name}")
        except Stopped as stop:
            raise Stopped(stop.signal_number, saved=True) from stop  # the checkpoint came first
        except (UserError, OSError, RuntimeError, MemoryError) as error:
            if distributed.num_ranks() > 1:
                raise
            line, _ = explain(error) or (f"{type(error).__name__}: {error}", 1)
            tqdm.write(f"warning: no samples of {name}: {line.removeprefix('error: ')}", file=sys.stderr)
        finally:
            self.state.module.train()
        if metrics and self.log is not None:
            self.log.scalars(self.state.step, {"epoch": float(self.state.epoch)} | metrics)
        if distributed.is_main():
            self._unfinished.unlink(missing_ok=True)

    @property
    def _unfinished(self) -> Path:
        """The file that stands for samples of this epoch while they are to be drawn."""
        return self.folder / "samples" / f"{UNFINISHED}epoch_{self.state.epoch:04d}"

    def _resume(self) -> None:
        state, folder = self.state, self.folder
        path = folder / CHECKPOINT_NAME
        if not state.is_saved(path) and self.args.resume is not None:
            path = state.find(self.args.resume)
        if state.is_saved(path):
            state.load(path)
            distributed.say(f"going on from {path}: epoch {state.epoch}, step {state.step}")
        if len(set(distributed.everyones((state.step, state.epoch, state.step_in_epoch)))) > 1:
            raise UserError(
                f"ranks found different checkpoints in {folder}; it must be a folder that all of them share"
            )

    def _train_epoch(self, bar: Progress) -> None:
        state = self.state
        with closing(self._batches()) as batches:
            while state.step_in_epoch < state.steps_per_epoch:
                group = self._next_group(batches)
                last = (state.epoch + 1, state.step_in_epoch + 1) == (self.args.epochs, state.steps_per_epoch)
                self._train_step(group, bar if last or (state.step + 1) % self.args.log_freq == 0 else None)
                bar.update()
                number, save = self._agree()
                if number or save:
                    self.save()
                if number:
                    raise Stopped(number, saved=True)
                if save:
                    distributed.barrier("the checkpoint")  # a sum of gradients would not wait for a slow disk

    def _next_group(self, batches: Iterator[Any]) -> list[Any]:
        """The batches of a step. A signal ends the wait for them: here one rank can save, but not several."""
        alone = distributed.num_ranks() == 1
        try:
            with waiting(0 if alone else GRACE):
                return list(islice(batches, self.args.accum_steps))
        except Stopped as stop:
            if alone:
                self.save()
            raise Stopped(stop.signal_number, saved=alone) from stop

    def _agree(self) -> tuple[int, bool]:
        """The signal to stop for, or 0, and whether to save; the same on all ranks."""
        save = time.monotonic() - self.last_save > 60 * self.args.save_minutes
        if distributed.num_ranks() == 1:
            return self.stop.number, save
        if self.state.step % self.sync_steps:
            return 0, False
        slow = time.monotonic() - self.agreed > SLOW_STEP * self.sync_steps
        told = distributed.everyones((self.stop.number, save, slow), "the end of a step")
        signals, saves, slows = zip(*told, strict=True)
        self.agreed, self.sync_steps = time.monotonic(), 1 if any(slows) else SYNC_STEPS
        return max(signals), any(saves)

    def _batches(self) -> Iterator[Any]:
        state, args, data = self.state, self.args, self.dataset
        place = (state.epoch, state.step_in_epoch * args.accum_steps, distributed.rank(), distributed.num_ranks())
        batches = EpochBatches(len(data), data.num_crops, args.batch_size, args.seed, *place)
        on_cuda = self.device.type == "cuda"
        return load_batches(data, batches, args.num_workers, data.collate, pin_memory=on_cuda, shielded=True)

    def _train_step(self, group: list[Any], bar: Progress | None) -> None:
        """One update from the batches of ``group``; with a progress bar it logs too."""
        state, rate = self.state, self.state.learning_rate
        for index, batch in enumerate(group):
            logs = bar is not None and index == len(group) - 1
            context = step_context(self.args.seed, state.step, index, self.device, state.progress, logs)
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
            weights = [weight for weight in state.module.parameters() if weight.grad is not None]
            norm = whole_tensor(nn.utils.get_total_norm([weight.grad for weight in weights]))
            if self.args.clip_grad:
                nn.utils.clip_grads_with_norm_(weights, self.args.clip_grad, norm)
        state.update(rate)
        if bar is not None:
            with torch.no_grad():
                self._log(bar, {"lr": rate, "grad_norm": norm, **loss.metrics()})

    def _log(self, bar: Progress, metrics: dict[str, Tensor | float]) -> None:
        """Write metrics, each the mean over ranks."""
        state = self.state
        state.check_finite()
        metrics = {"loss": state.mean_loss(), **metrics}
        values = torch.stack([torch.as_tensor(v, dtype=torch.float32, device=self.device) for v in metrics.values()])
        values = distributed.add_up(values) / distributed.num_ranks()
        metrics = {"epoch": state.progress, **dict(zip(metrics, values.tolist(), strict=True))}
        self.logged_loss = metrics["loss"]
        if self.log is not None:
            self.log.scalars(state.step, metrics)
        bar.set_postfix_str(f"epoch {state.progress:.1f}, loss {metrics['loss']:.3f}, lr {metrics['lr']:.1e}")

    def _end_epoch(self) -> None:
        """Save, then draw; a run that is killed while it draws does so when it goes on."""
        state = self.state
        state.epoch, state.step_in_epoch = state.epoch + 1, 0
        due = state.epoch == self.args.epochs or (self.args.eval_freq and state.epoch % self.args.eval_freq == 0)
        if due and distributed.is_main():
            self._unfinished.parent.mkdir(exist_ok=True)
            self._unfinished.touch()
        self.save()
        if distributed.is_main():
            self._keep()
        number = max(distributed.everyones(self.stop.number, "the end of an epoch"))
        if number:
            raise Stopped(number, saved=True)
        if due:
            self.show()


def _to_device(batch: Any, device: torch.device) -> Any:
    return send(batch, device) if isinstance(batch, Tensor) else [_to_device(part, device) for part in batch]


def _say_ignored(place: Path, settings: dict[str, Any]) -> None:
    """Name the settings that a finished run was not trained with."""
    saved, told = read_yaml(place) if place.exists() else {}, []
    for section in (name for name in settings if name in saved and name not in ("model", "sampling")):
        trained, now = saved[section] or {}, settings[section]
        other = [name for name, value in trained.items() if name not in STILL_USED and now.get(name, value) != value]
        told += [f"{name} {now[name]} (it has {trained[name]})" for name in other]
    if told:
        distributed.say(f"warning: no effect on a finished run: {', '.join(told)}")
