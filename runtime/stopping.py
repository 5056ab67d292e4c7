"""SIGINT and SIGTERM while there is something to save: work goes on to where it can be saved, waits end soon."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from tqdm import tqdm

GRACE = 4.0  # seconds that a wait may go on after a signal: what is waited for may still come, and all can be saved
REPEAT = 2.0  # seconds in which a SIGTERM is no second wish: whoever stops a group of processes may reach us twice
_CHECK = 0.5  # seconds between looks at the waits, once a signal came
_waits: list[tuple[float, float]] = []  # those under way: since when, and seconds that a signal leaves them


class Stopped(BaseException):
    """A signal asked a long run to stop. As KeyboardInterrupt is, it is no Exception that a library may catch."""

    def __init__(self, signal_number: int, saved: bool = False) -> None:
        super().__init__()
        self.signal_number, self.saved = signal_number, saved  # whether nothing is lost


@contextmanager
def waiting(grace: float = GRACE) -> Iterator[None]:
    """Work that a signal may end anywhere, by Stopped, after so many seconds; all other work goes on."""
    wait = (time.monotonic(), grace)
    _waits.append(wait)
    try:
        yield
    finally:
        _waits.remove(wait)


class StopSignals:
    """While entered, the first SIGINT or SIGTERM is kept as ``number`` and ends waits alone; a second ends all work.

    The main thread enters it.
    """

    def __init__(self) -> None:
        self.number, self.since = 0, 0.0

    def __enter__(self) -> None:
        handlers = {signal.SIGINT: self._on_signal, signal.SIGTERM: self._on_signal, signal.SIGALRM: self._on_alarm}
        self.before = {number: signal.signal(number, handler) for number, handler in handlers.items()}

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            if number == signal.SIGTERM and time.monotonic() - self.since < REPEAT:
                return
            raise KeyboardInterrupt
        self.number, self.since = number, time.monotonic()
        tqdm.write("stopping after this step; once more to stop at once, without saving")
        signal.setitimer(signal.ITIMER_REAL, _CHECK, _CHECK)  # of what is waited for in C, only a signal wakes us
        self._end_waits()

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        self._end_waits()

    def _end_waits(self) -> None:
        now = time.monotonic()
        if any(now - max(start, self.since) >= grace for start, grace in _waits):
            raise Stopped(self.number)
