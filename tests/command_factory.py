"""Command lines run for tests, in this process or in one of their own, and checkpoint folders to give them."""

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

import main_sample
from experiments.tasks import Task
from models.checkerboard.model import Checkerboard
from models.loading.checkpoint import CONFIG_NAME
from runtime.command import run
from runtime.config import write_yaml
from tests.factory import randomize
from tests.training_factory import tiny_trainer
from training.run_folder import begin_run

ROOT = Path(__file__).parents[1]
PROGRESS = re.compile(r"([\w ,.-]*: )?[\d.k]+( of [\d.k]+)? \w+, (\d+ %, )?[\d:]+ so far")
PATIENCE = 300  # seconds that a process may take before it counts as hanging


@dataclass(frozen=True)
class Outcome:
    """What became of a command line."""

    code: int
    out: str
    err: str

    def error(self) -> str:
        """What follows ``error:`` on the one line of stderr, progress bars aside, of a user's mistake."""
        lines = [line for line in re.split(r"[\r\n]+", self.err) if line.strip() and not PROGRESS.match(line)]
        assert self.code == 2, self.err
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: "), self.err
        return lines[0].removeprefix("error: ")


def call(main: Callable[[Sequence[str]], None], *argv: str) -> Outcome:
    """Run a command line's ``main`` in this process, as ``python PROGRAM ARGV`` would."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with patch.object(sys, "argv", ["program", *argv]), redirect_stdout(out), redirect_stderr(err):
        try:
            run(main)
        except SystemExit as end:
            code = end.code
    return Outcome(code, out.getvalue(), err.getvalue())


def start(*command: str, folder: Path = ROOT, **environment: str) -> Outcome:
    """Run a command in a process of its own, with more in its environment."""
    environment = os.environ | environment
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    return Outcome(done.returncode, done.stdout, done.stderr)


def start_python(*argv: str, folder: Path = ROOT, **environment: str) -> Outcome:
    return start(sys.executable, *argv, folder=folder, **environment)


def carry_out_here(task: Task, title: str) -> None:
    """As ``carry_out``, but in this process, which has imported what another would take seconds to import."""
    print(title)
    first, *words = task.arguments
    if first == "-m":
        module = words.pop(0)
    else:  # a file of the project, or of the copy of it that we are in
        root = ROOT if Path(first).is_relative_to(ROOT) else Path.cwd()
        module = ".".join(Path(first).relative_to(root).with_suffix("").parts)
    import_module(module).main(words)


def save_run(folder: Path, model: Checkerboard, **args: Any) -> Path:
    """A run folder as main.py leaves it, ``model`` its last state; averages, if ``args`` ask for them, are others."""
    folder.mkdir(parents=True)
    begin_run(folder, model.autoencoder)
    trainer = tiny_trainer(folder, model, **args)
    write_yaml(folder / CONFIG_NAME, trainer.settings)
    if trainer.state.ema is not None:
        randomize(trainer.state.ema.module)
    trainer.save()
    model.eval()
    return folder


def draw_two(run: Path, folder: Path, *flags: str) -> Outcome:
    """Two images of a run, of labels 3 and 1, drawn into a folder by main_sample.py."""
    words = ("--checkpoint", str(run), "--labels", "3,1", "--device", "cpu", "--output_dir", str(folder))
    outcome = call(main_sample.main, *words, *flags)
    assert outcome.code == 0, outcome.err
    return outcome


def read_pixels(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 of a picture."""
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))
