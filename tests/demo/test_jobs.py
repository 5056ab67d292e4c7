"""One drawing at a time, in turn; who waits may leave at any time."""

import threading

import pytest

from demo.jobs import CancelledError, Job, JobQueue

pytestmark = pytest.mark.quick
PATIENCE = 20  # seconds


def wait_for(job: Job) -> Job:
    assert job.done.wait(PATIENCE)
    return job


class Held:
    """Work that goes on, step by step, until it is let go."""

    def __init__(self) -> None:
        self.begun, self.let_go, self.steps = threading.Event(), threading.Event(), 0

    def __call__(self, job: Job) -> str:
        self.begun.set()
        while not self.let_go.wait(0.001):
            job.check()
            self.steps += 1
        return "done"


def test_jobs_are_done_in_turn_and_one_at_a_time() -> None:
    queue, held, order = JobQueue(), Held(), []
    first = queue.submit("a", held)
    others = [queue.submit(owner, lambda job: order.append(job.owner)) for owner in ("b", "c")]
    assert held.begun.wait(PATIENCE)
    assert [queue.ahead(job) for job in (first, *others)] == [0, 1, 2]
    assert queue.is_awaited()
    assert order == []
    held.let_go.set()
    for job in (first, *others):
        wait_for(job)
    assert first.result == "done"
    assert order == ["b", "c"]


def test_one_that_is_cancelled_ends_between_steps_and_the_next_begins() -> None:
    queue, held = JobQueue(), Held()
    first, second = queue.submit("a", held), queue.submit("b", lambda job: "next")
    assert held.begun.wait(PATIENCE)
    queue.cancel("a")
    assert isinstance(wait_for(first).error, CancelledError)
    assert wait_for(second).result == "next"
    assert not held.let_go.is_set()


def test_one_that_waits_is_cancelled_at_once_and_never_begins() -> None:
    queue, held, begun = JobQueue(), Held(), []
    first = queue.submit("a", held)
    second, third = (queue.submit(owner, lambda job: begun.append(job.owner)) for owner in ("b", "c"))
    assert held.begun.wait(PATIENCE)
    queue.cancel("b")
    assert second.done.is_set()
    assert queue.ahead(third) == 1
    assert not first.done.is_set()
    held.let_go.set()
    wait_for(third)
    assert begun == ["c"]


def test_an_error_is_kept_and_the_next_job_is_done() -> None:
    queue = JobQueue()
    first, second = queue.submit("a", lambda job: 1 // 0), queue.submit("a", lambda job: 2)
    assert isinstance(wait_for(first).error, ZeroDivisionError)
    assert wait_for(second).result == 2


def test_what_lasts_is_not_cancelled_with_the_visitors_others() -> None:
    queue, held = JobQueue(), Held()
    drawing = queue.submit("a", held)
    load = queue.submit("a", lambda job: "model", lasts=True)
    assert held.begun.wait(PATIENCE)
    queue.cancel("a")
    assert isinstance(wait_for(drawing).error, CancelledError)
    assert wait_for(load).result == "model"
    held = Held()
    queue.submit("b", held)
    load = queue.submit("a", lambda job: "model", lasts=True)
    queue.cancel("a", leaves=True)
    assert isinstance(wait_for(load).error, CancelledError)
    held.let_go.set()
