"""One drawing at a time: a thread that does jobs in turn, and what those who wait for them see."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Any


class CancelledError(Exception):
    """A job is to end: nobody waits for it any more."""


class Job:
    """Some work in the queue's thread, whose pictures are seen as they come.

    ``owner`` is the visitor that it is for. ``work`` is called with the job: it calls ``check`` and ``show`` as often
    as it can, and what it returns, or the error that ends it, is there once ``done`` is set. One that ``lasts`` is not
    cancelled with the visitor's others, because the page shows what it was asked for.
    """

    def __init__(self, owner: str, work: Callable[["Job"], Any], lasts: bool = False) -> None:
        self.owner, self.work, self.lasts = owner, work, lasts
        self.done = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None
        self.progress = (0, 0)  # steps that are done, of all
        self._cancelled = threading.Event()
        self._shown: deque[Any] = deque()

    def check(self) -> None:
        """Raise CancelledError if nobody waits any more."""
        if self._cancelled.is_set():
            raise CancelledError

    def show(self, frame: Any) -> None:
        """Leave something for whoever waits."""
        self._shown.append(frame)

    def next_frame(self) -> Any:
        """The first thing shown that was not taken yet, or None."""
        return self._shown.popleft() if self._shown else None

    def cancel(self) -> None:
        self._cancelled.set()

    def do(self) -> None:
        """The work, in the queue's thread."""
        try:
            self.check()
            self.result = self.work(self)
        except BaseException as error:
            self.error = error
        finally:
            self.done.set()


class JobQueue:
    """Does jobs in the order they come, one at a time, in a thread of its own: torch's threads stay the same."""

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()  # the first one is under way
        self._changed = threading.Condition()
        threading.Thread(target=self._work, name="queue", daemon=True).start()

    def submit(self, owner: str, work: Callable[[Job], Any], lasts: bool = False) -> Job:
        job = Job(owner, work, lasts)
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()
        return job

    def ahead(self, job: Job) -> int:
        """How many jobs come before one."""
        with self._changed:
            return self._jobs.index(job) if job in self._jobs else 0

    def is_awaited(self) -> bool:
        """Whether anyone waits for the job under way to end."""
        with self._changed:
            return len(self._jobs) > 1

    def cancel(self, owner: str, leaves: bool = False) -> None:
        """End the jobs of a visitor: one under way after its step, one that waits at once.

        Those that last end only where the visitor ``leaves``.
        """
        with self._changed:
            for job in [job for job in self._jobs if job.owner == owner and (leaves or not job.lasts)]:
                job.cancel()
                if job is not self._jobs[0]:
                    self._jobs.remove(job)
                    job.do()  # which ends at once

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs)
                job = self._jobs[0]
            job.do()
            with self._changed:
                self._jobs.popleft()
