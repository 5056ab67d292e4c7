"""How far long work is: a bar on a terminal, elsewhere plain lines, few enough for a log."""

import sys
import time
from typing import Any

from tqdm import tqdm

OFTEN, SELDOM = 5.0, 30.0  # seconds between lines: after another tenth of all, and in any case
TENTHS = 10
MIN_REFRESH = 0.5  # seconds
LINE = "{n_fmt} of {total_fmt} {unit}, {percentage:.0f} %, {elapsed} so far, {remaining} left{postfix}"
LINE_WITHOUT_TOTAL = "{n_fmt} {unit}, {elapsed} so far{postfix}"


class Progress(tqdm):
    """tqdm's bar, but where stderr is no terminal a line now and then, and one at the end.

    A bar within another writes its lines only where it takes long.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        stream = kwargs.get("file") or sys.stderr
        self.plain = not getattr(stream, "isatty", bool)()
        self.said, self.said_tenth = time.perf_counter(), 0
        self.refreshed = self.said
        super().__init__(*args, **kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        if not self.plain:
            return super().display(msg, pos)
        tenth = int(TENTHS * self.n / self.total) if self.total else 0
        waited = time.perf_counter() - self.said
        if waited >= SELDOM or (tenth > self.said_tenth and waited >= OFTEN and not self.is_inner):
            self.said_tenth = tenth
            self.say()
        return True

    def say(self) -> None:
        """Write a line."""
        self.said = time.perf_counter()
        name = self.desc.removesuffix(": ")
        units = self.unit + ("es" if self.unit.endswith("ch") else "s")
        line = LINE if self.total else LINE_WITHOUT_TOTAL
        text = self.format_meter(**self.format_dict | {"bar_format": line, "unit": units, "prefix": "", "ncols": None})
        self.fp.write(f"{name}: {text}\n" if name else f"{text}\n")
        self.fp.flush()

    def refresh_at_times(self) -> None:
        """Show what has changed beside the count, but not more often than twice a second."""
        if time.perf_counter() - self.refreshed >= MIN_REFRESH:
            self.refreshed = time.perf_counter()
            self.refresh()

    @property
    def is_inner(self) -> bool:
        return abs(self.pos) > 0

    def clear(self, *args: Any, **kwargs: Any) -> None:
        if not self.plain:
            super().clear(*args, **kwargs)

    def close(self) -> None:
        if not self.plain or self.disable:
            super().close()
            return
        last = not self.is_inner and self.leave is not False
        self.disable = True
        self._decr_instances(self)
        if last:
            self.say()
