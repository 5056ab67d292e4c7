"""Times of drawing are those of every setting asked for."""

import json
from pathlib import Path

import pytest

from experiments import timing
from tests.command_factory import call, save_run
from tests.factory import tiny_model

pytestmark = pytest.mark.quick


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return save_run(tmp_path / "run", tiny_model())


def test_each_combination_is_a_row(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "timing.json"
    flags = ("--batch_size", "2", "--repeats", "2", "--device", "cpu", "--output_file", str(file))
    outcome = call(timing.main, "--checkpoint", str(run), "--steps_per_scale", "1,2", "--cfg", "0,1.5", *flags)
    assert outcome.code == 0, outcome.err
    found = json.loads(file.read_text())
    drawings = [row["drawing"] for row in found["rows"]]
    assert {(drawing["cfg"], drawing["steps_per_scale"]) for drawing in drawings} == {
        (0, 1),
        (0, 2),
        (1.5, 1),
        (1.5, 2),
    }
    assert all(row["steps"] == 1 + 3 * row["drawing"]["steps_per_scale"] for row in found["rows"])
    assert all(0 < row["seconds"] < 60 and row["batch_size"] == 2 for row in found["rows"])
    assert " thread" in found["machine"]
    assert len(outcome.out.splitlines()) == 4


def test_without_settings_the_default_drawing_is_timed(run: Path) -> None:
    outcome = call(timing.main, "--checkpoint", str(run), "--batch_size", "1", "--repeats", "1", "--device", "cpu")
    assert outcome.code == 0, outcome.err
    assert "as it is drawn by default: 13 steps, " in outcome.out


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        ((), "name the --checkpoint to time"),
        (("--checkpoint", "RUN", "--resize_to", "64"), "leave out resize_to"),
        (("--checkpoint", "RUN", "--repeats", "0"), "repeats is 0; it must be at least 1"),
        (("--checkpoint", "RUN", "--steps_per_scale", "x"), "steps_per_scale"),
        (("--checkpoint", "RUN", "--steps", "8"), "steps means nothing to checkerboard"),
    ],
)
def test_mistakes(run: Path, flags: tuple[str, ...], answer: str) -> None:
    error = call(timing.main, *(str(run) if flag == "RUN" else flag for flag in flags)).error()
    assert answer in error
