"""The record of a run: JSON lines and TensorBoard, side by side in the run's folder."""

import json
import time
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

LOG_NAME = "log.jsonl"


class RunLog:
    """Appends to ``log.jsonl`` and to TensorBoard's event files. A run that goes on adds to the same files."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOG_NAME
        if self.path.exists() and self.path.read_bytes()[-1:] not in (b"", b"\n"):  # a full disk cut the last line
            with self.path.open("a") as file:
                file.write("\n")
        self.writer = SummaryWriter(str(folder))

    def event(self, name: str, **values: Any) -> None:
        """Record something that happened once, such as a start."""
        self._append({"event": name, **values})

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Record figures of a step (optimizer updates since the start of training)."""
        self._append({"step": step, **values})
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()

    def _append(self, entry: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({**entry, "time": round(time.time(), 1)}) + "\n")
