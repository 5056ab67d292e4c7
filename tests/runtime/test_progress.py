"""Long work on a terminal has a bar, and in a log a line now and then."""

import io
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from runtime import progress
from runtime.progress import Progress

pytestmark = pytest.mark.quick


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(progress.time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def starts(text: str) -> list[str]:
    """The lines of a log, up to the first comma."""
    assert "\r" not in text
    return [line.split(",")[0] for line in text.splitlines()]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.1, ["reading: 100 of 100 images"]),  # quick work says its end alone
        (1, [f"reading: {n} of 100 images" for n in (10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 100)]),  # each tenth
        (20, [f"reading: {n} of 100 images" for n in [*range(2, 101, 2), 100]]),  # each half minute at least
    ],
)
def test_lines_come_at_tenths_or_when_time_has_passed(seconds: float, expected: list[str], clock: Clock) -> None:
    log = io.StringIO()
    with Progress(total=100, desc="reading", unit="image", file=log) as bar:
        for _ in range(100):
            clock.now += seconds
            bar.update()
            bar.refresh()
    assert starts(log.getvalue())[-len(expected) :] == expected
    assert len(starts(log.getvalue())) <= len(expected) + 10


def test_a_bar_within_another_is_silent_unless_it_takes_long(clock: Clock) -> None:
    log = io.StringIO()
    with Progress(total=2, desc="sweep", unit="step", file=log) as bar:
        for seconds in (1, 40):
            with Progress(total=2, desc="sampling", unit="batch", leave=None, file=log) as inner:
                for _ in range(2):
                    clock.now += seconds
                    inner.update()
                    inner.refresh()
            bar.update()
    found = starts(log.getvalue())
    assert found[:2] == ["sampling: 1 of 2 batches", "sampling: 2 of 2 batches"]
    assert found[-1] == "sweep: 2 of 2 steps"


def test_what_changes_beside_the_count_is_shown_at_times(clock: Clock) -> None:
    log = io.StringIO()
    with Progress(total=1, unit="image", file=log) as bar:
        for step in range(100):
            clock.now += 1
            bar.set_postfix_str(f"step {step + 1}", refresh=False)
            bar.refresh_at_times()
        bar.update()
    shown = [line.rpartition(", ")[2] for line in log.getvalue().splitlines()]
    assert shown == ["step 30", "step 60", "step 90", "step 100"]


def test_lines_of_others_stay_whole(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(total=1, unit="image") as bar:
        tqdm.write("a warning", file=sys.stderr)
        bar.update()
    assert starts(capsys.readouterr().err) == ["a warning", "1 of 1 images"]


def test_a_terminal_has_a_bar(tmp_path: Path) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    with Progress(total=3, desc="reading", unit="image", file=terminal) as bar:
        bar.update(3)
    assert "\rreading: 100%|" in terminal.getvalue()


def test_a_disabled_one_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(total=3, disable=True) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""


def test_work_of_unknown_length_and_iterators() -> None:
    log = io.StringIO()
    assert list(Progress(iter("abc"), unit="image", file=log)) == ["a", "b", "c"]
    assert starts(log.getvalue()) == ["3 images"]
