"""What may happen to a run at any moment: signals while it waits or draws, previews that fail, kills."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.checkerboard.model import Checkerboard
from models.loading.state import read_torch_file
from runtime import distributed
from runtime.command import run
from runtime.errors import UserError
from runtime.stopping import Stopped
from tests.training_factory import (
    DigitCodes,
    QuietTask,
    assert_same_training,
    exit_codes,
    losses,
    read_events,
    read_log,
    start_process,
    start_ranks,
    tiny_trainer,
)
from training.trainer import Trainer

LAST = "checkpoint-last.pth"
HANG = 600  # seconds


class PreviewTask(QuietTask):
    """Does ``preview`` instead of drawing, then writes a file in place of a picture."""

    preview: Callable[[str], None] = staticmethod(lambda name: None)

    def show(self, module: Checkerboard, folder: Path, name: str) -> Iterator[dict[str, float]]:
        yield {"val_loss": 2.0}
        self.preview(name)
        (folder / f"{name}.png").touch()
        yield {"FID": 1.0}


def trainer_of(folder: Path, preview: Callable[[str], None] = lambda name: None, **args: Any) -> Trainer:
    """A run of 2 epochs, 5 steps each, with a preview after each."""
    settings = {"num_images": 40, "epochs": 2, "eval_freq": 1, **args}
    trainer = tiny_trainer(folder, task=PreviewTask, **settings)
    trainer.task.preview = preview
    return trainer


def samples_of(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "samples").iterdir())


def saved_step(folder: Path) -> int:
    return read_torch_file(folder / LAST)["step"]


# Previews


@pytest.mark.quick
@pytest.mark.parametrize(
    "error",
    [UserError("cfg is too high"), OSError(5, "Input/output error"), RuntimeError("matmul failed"), MemoryError()],
    ids=["user", "disk", "torch", "memory"],
)
def test_a_preview_that_fails_is_a_warning(
    error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps: list[int] = []

    def fail(name: str) -> None:
        steps.append(saved_step(tmp_path))
        if name == "epoch_0001":
            raise error

    trainer = trainer_of(tmp_path, fail)
    trainer.fit()
    assert steps == [5, 10]  # each checkpoint is written before
    assert samples_of(tmp_path) == ["epoch_0002.png"]
    # What was measured before the error is logged.
    assert [entry.get("FID") for entry in read_events(tmp_path) if "val_loss" in entry] == [None, 1.0]
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("warning:")]
    assert line.startswith("warning: no samples of epoch_0001: ")
    assert (getattr(error, "strerror", None) or str(error)) in line
    tiny_trainer(tmp_path / "whole", num_images=40, epochs=2).fit()
    assert_same_training(tmp_path, tmp_path / "whole")
    assert trainer.state.module.training
    assert not trainer_of(tmp_path).fit()  # finished


@pytest.mark.quick
def test_a_bug_in_a_preview_is_none(tmp_path: Path) -> None:
    def fail(name: str) -> None:
        raise KeyError(name)

    with pytest.raises(KeyError):
        trainer_of(tmp_path, fail).fit()
    assert saved_step(tmp_path) == 5


def die(name: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train_until_killed(folder: Path, preview: Callable[[str], None], epochs: int) -> None:
    trainer_of(folder, preview, epochs=epochs).fit()


@pytest.mark.processes
@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_killed_while_it_draws_does_so_when_it_goes_on(epochs: int, tmp_path: Path) -> None:
    """Also one that had taken its last step."""
    process = start_process(tmp_path / "output.txt", train_until_killed, tmp_path / "run", die, epochs)
    assert exit_codes([process]) == [-signal.SIGKILL]
    assert saved_step(tmp_path / "run") == 5
    drawn: list[str] = []
    assert trainer_of(tmp_path / "run", drawn.append, epochs=epochs).fit()
    names = [f"epoch_{epoch:04d}" for epoch in range(1, epochs + 1)]
    assert drawn == names
    assert samples_of(tmp_path / "run") == [f"{name}.png" for name in names]
    assert not trainer_of(tmp_path / "run", drawn.append, epochs=epochs).fit()
    tiny_trainer(tmp_path / "whole", num_images=40, epochs=epochs).fit()
    assert_same_training(tmp_path / "run", tmp_path / "whole")


@pytest.mark.quick
def test_a_run_killed_before_it_saved_draws_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps since the last checkpoint are taken again, and nothing is drawn of earlier weights."""
    trainer_of(tmp_path, epochs=1).fit()

    def killed(trainer: Trainer) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "save", killed)
        trainer_of(tmp_path).fit()
    drawn: list[str] = []
    trainer_of(tmp_path, drawn.append).fit()
    assert drawn == ["epoch_0002"]
    assert samples_of(tmp_path) == ["epoch_0001.png", "epoch_0002.png"]


@pytest.mark.quick
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_preview_at_once(number: signal.Signals, tmp_path: Path) -> None:
    def hang(name: str) -> None:
        threading.Timer(0.2, os.kill, [os.getpid(), number]).start()
        time.sleep(HANG)

    start = time.monotonic()
    with pytest.raises(Stopped) as stop:
        trainer_of(tmp_path, hang).fit()
    assert time.monotonic() - start < 10
    assert (stop.value.signal_number, stop.value.saved) == (number, True)
    assert saved_step(tmp_path) == 5
    drawn: list[str] = []
    trainer_of(tmp_path, drawn.append).fit()
    assert drawn == ["epoch_0001", "epoch_0002"]


@pytest.mark.quick
def test_a_signal_while_saving_keeps_the_preview_for_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    trainer = trainer_of(tmp_path, drawn.append)
    save = trainer.save
    monkeypatch.setattr(trainer, "save", lambda: (signal.raise_signal(signal.SIGTERM), save()))
    with pytest.raises(Stopped) as stop:
        trainer.fit()
    assert stop.value.saved
    assert drawn == []
    assert saved_step(tmp_path) == 5
    trainer_of(tmp_path, drawn.append).fit()
    assert drawn == ["epoch_0001", "epoch_0002"]


# Waits for data


def wait_for_steps(folder: Path, count: int) -> None:
    while not (folder / "log.jsonl").exists() or len(losses(folder)) < count:
        time.sleep(0.1)


class StuckDigits(DigitCodes):
    """Its third batch is never read. Once the run in ``folder`` has taken two steps, processes get SIGTERM."""

    def __init__(self, trainer: Trainer, processes: list[int]) -> None:
        super().__init__(len(trainer.dataset), trainer.state.module.scale_sizes)
        self.folder, self.processes, self.num_read = trainer.folder, processes, 0

    def __getitems__(self, items: list[tuple[int, int]]) -> tuple[list[Tensor], Tensor]:
        self.num_read += 1
        if self.num_read > 2:
            wait_for_steps(self.folder, 2)
            for process in self.processes:
                os.kill(process, signal.SIGTERM)
            time.sleep(HANG)
        return super().__getitems__(items)


@pytest.mark.processes
def test_a_signal_ends_the_wait_for_data_and_saves(tmp_path: Path) -> None:
    """Of a reader that hangs in the third batch."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    tiny_trainer(whole, num_images=40, epochs=1).fit()
    trainer = tiny_trainer(stopped, num_images=40, epochs=1, num_workers=1)
    trainer.dataset = StuckDigits(trainer, [os.getpid()])
    start = time.monotonic()
    with pytest.raises(Stopped) as stop:
        trainer.fit()
    assert time.monotonic() - start < 60
    assert (stop.value.signal_number, stop.value.saved) == (signal.SIGTERM, True)
    assert saved_step(stopped) == 2
    tiny_trainer(stopped, num_images=40, epochs=1).fit()
    assert_same_training(whole, stopped)
    assert read_log(whole) == read_log(stopped)


def train_with_a_stuck_rank(folder: Path) -> None:
    """Rank 1's reader hangs at the third batch, and all ranks are asked to stop; for ``start_ranks``."""

    def train(argv: list[str]) -> None:
        distributed.set_up(torch.device("cpu"))
        trainer = tiny_trainer(folder, num_images=80, epochs=1, batch_size=4, num_workers=1)
        processes = distributed.everyones(os.getpid())
        if distributed.rank() == 1:
            trainer.dataset = StuckDigits(trainer, processes)
        trainer.fit()

    sys.argv = ["main.py"]
    run(train)


@pytest.mark.ranks
def test_a_signal_ends_all_ranks_though_one_has_no_data(tmp_path: Path) -> None:
    processes = start_ranks(tmp_path, 2, train_with_a_stuck_rank, tmp_path / "run")
    wait_for_steps(tmp_path / "run", 2)
    start = time.monotonic()
    assert exit_codes(processes) == [1, 128 + signal.SIGTERM]
    assert time.monotonic() - start < 15
    lines = [(tmp_path / f"rank{rank}.txt").read_text().splitlines()[-1] for rank in (0, 1)]
    assert lines[0].startswith("error: another rank ended or cannot be reached")
    assert lines[1] == "stopped without saving; the same command goes on from the last checkpoint"


# Previews of several ranks


class LatePreview(QuietTask):
    """On rank 0 a preview takes long, or fails; the other ranks have nothing to do in it."""

    def show(self, module: Checkerboard, folder: Path, name: str) -> Iterator[dict[str, float]]:
        if distributed.is_main():
            time.sleep(1)
            if self.args.clip_grad:
                raise OSError(5, "Input/output error", "samples")
            (folder / f"{name}.png").touch()
        yield {}


def train_with_previews(folder: Path, fails: bool) -> None:
    def train(argv: list[str]) -> None:
        distributed.set_up(torch.device("cpu"))
        settings = {"num_images": 40, "epochs": 2, "batch_size": 4, "eval_freq": 1, "clip_grad": 1.0 * fails}
        tiny_trainer(folder, task=LatePreview, **settings).fit()
        distributed.tear_down()

    sys.argv = ["main.py"]
    run(train)


@pytest.mark.ranks
@pytest.mark.parametrize("fails", [False, True])
def test_a_preview_that_fails_ends_several_ranks_after_the_checkpoint(fails: bool, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    codes = exit_codes(start_ranks(tmp_path, 2, train_with_previews, folder, fails))
    assert codes == ([2, 1] if fails else [0, 0]), (tmp_path / "rank1.txt").read_text()
    assert saved_step(folder) == (5 if fails else 10)
    left = [".unfinished-epoch_0001"] if fails else ["epoch_0001.png", "epoch_0002.png"]
    assert samples_of(folder) == left
    if fails:
        said = (tmp_path / "rank0.txt").read_text().splitlines()[-1]
        assert said.startswith("error: samples: Input/output error; ")
        assert exit_codes(start_ranks(tmp_path, 2, train_with_previews, folder, False)) == [0, 0]
        assert samples_of(folder) == ["epoch_0001.png", "epoch_0002.png"]
