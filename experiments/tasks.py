"""Commands of the project that an experiment runs one after the other, each in a process of its own.

A *task* is one command line of the project and the file that it leaves.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from runtime.files import PROJECT


@dataclass(frozen=True)
class Task:
    """One command, of Python's arguments, and the file that is there when it is through."""

    label: str
    arguments: tuple[str, ...]
    product: Path


def carry_out(task: Task, title: str) -> None:
    """Run its command, whose errors are its own; they end this program with its exit code."""
    print(f"\n{title}", flush=True)
    paths = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    code = subprocess.run([sys.executable, *task.arguments], env=environment).returncode
    if code:
        sys.exit(code if code > 0 else 128 - code)
