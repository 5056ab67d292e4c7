"""Commands of the project that an experiment runs one after the other, each in a process of its own.

A *task* is one command line of the project and the file that it leaves.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
    command = subprocess.Popen([sys.executable, *task.arguments], env=environment)
    with _stopped_by_signals(command):
        code = command.wait()
    if code:
        sys.exit(code if code > 0 else 128 - code)


@contextmanager
def _stopped_by_signals(command: subprocess.Popen[bytes]) -> Iterator[None]:
    """Leave it to a command how it stops, for it may have something to save: wait for its end, however long.

    A terminal's Ctrl-C reaches it as it reaches us; SIGTERM, which may reach us alone, is passed on.
    """
    handlers = {signal.SIGINT: lambda *_: None, signal.SIGTERM: lambda *_: command.terminate()}
    asked = {number: handler for number, handler in handlers.items() if signal.getsignal(number) != signal.SIG_IGN}
    before = {number: signal.signal(number, handler) for number, handler in asked.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
