"""Signals during a long run: work goes on, waits end, a second signal ends all."""

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from runtime import stopping
from runtime.stopping import Stopped, StopSignals, waiting

pytestmark = pytest.mark.quick
NUMBERS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_CHECK", 0.05)


def seconds_until_stopped(work: Callable[[], object]) -> float:
    start = time.monotonic()
    with pytest.raises(Stopped):
        work()
    return time.monotonic() - start


@pytest.mark.parametrize("number", NUMBERS)
def test_work_goes_on_after_a_signal(number: signal.Signals) -> None:
    stop = StopSignals()
    with stop:
        assert stop.number == 0
        signal.raise_signal(number)
        time.sleep(0.2)
        assert stop.number == number
    time.sleep(0.1)  # no timer is left


def test_handlers_are_those_of_before_again() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    with pytest.raises(Stopped), StopSignals(), waiting(0):
        signal.raise_signal(signal.SIGTERM)
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_wait_ends_at_once(number: signal.Signals) -> None:
    def work() -> None:
        with StopSignals(), waiting(0):
            threading.Timer(0.1, os.kill, [os.getpid(), number]).start()
            time.sleep(30)

    assert seconds_until_stopped(work) < 5


def test_a_wait_that_may_still_come_ends_after_its_grace() -> None:
    """Counted from the signal, or from the wait if that began later; a wait around it may be shorter."""

    def before() -> None:
        with StopSignals():
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.5)
            with waiting(0.4):
                time.sleep(30)

    def within() -> None:
        with StopSignals(), waiting(0.4):
            time.sleep(0.5)
            signal.raise_signal(signal.SIGTERM)
            time.sleep(30)

    def nested() -> None:
        with StopSignals(), waiting(0), waiting(20):
            signal.raise_signal(signal.SIGTERM)
            time.sleep(30)

    assert 0.85 < seconds_until_stopped(before) < 5
    assert 0.85 < seconds_until_stopped(within) < 5
    assert seconds_until_stopped(nested) < 5


def test_what_came_in_time_stays() -> None:
    with StopSignals(), waiting(5):
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.2)


def test_no_library_takes_it_for_an_error_of_its_own() -> None:
    with pytest.raises(Stopped), StopSignals(), waiting(0):
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception:
            pytest.fail("an image decoder would call this image damaged")


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_all(second: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "REPEAT", 0.1)
    with pytest.raises(KeyboardInterrupt), StopSignals():
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.2)
        signal.raise_signal(second)


def test_one_wish_may_arrive_twice() -> None:
    """From whoever stops a group of processes, and from torchrun, which passes on what reaches it."""
    stop = StopSignals()
    with stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.number == signal.SIGTERM
