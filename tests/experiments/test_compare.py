"""Sweeps beside each other."""

import math
from pathlib import Path

import pytest
from PIL import Image

from experiments import compare
from experiments.compare import Point, best_points, draw_comparison, read_table
from tests.command_factory import call

FID, SCORE = "FID-500", "Inception Score"


def write_sweep(folder: Path, rows: list[str], header: str = f"cfg,steps_per_scale,steps,{FID},{SCORE}") -> Path:
    folder.mkdir(parents=True)
    (folder / "sweep.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


ROWS = ["1,4,17,10.1,200", "1.1,4,17,10,210", "1.2,4,17,10.2,220", "1.3,4,17,10.21,230", "1,2,9,12,", "1.1,2,9,13,190"]


def test_a_point_is_the_lowest_distance_with_the_scores_near_it(tmp_path: Path) -> None:
    points = best_points(read_table(write_sweep(tmp_path / "a", ROWS)), FID, SCORE)
    assert points == [Point(9, 2, 12.0, (math.nan,)), Point(17, 4, 10.0, (200.0, 210.0, 220.0))]


def test_the_command_draws_a_line_a_sweep(tmp_path: Path) -> None:
    folders = [write_sweep(tmp_path / name / "sweep", ROWS) for name in ("a", "b")]
    words = ("--sweeps", ",".join(map(str, folders)), "--output", str(tmp_path / "a.png"))
    outcome = call(compare.main, *words)
    assert outcome.code == 0, outcome.err
    assert f"{folders[1]}, 17 steps: FID-500 10, Inception Score 210\n" in outcome.out
    assert outcome.out.count("\n") == 5
    with Image.open(tmp_path / "a.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20


def test_models_without_steps_per_scale_are_compared_over_all_steps(tmp_path: Path) -> None:
    other = write_sweep(tmp_path / "b", ["1,256,12,150", "2,256,11,160"], f"cfg,steps,{FID},{SCORE}")
    tables = {name: read_table(folder) for name, folder in (("a", write_sweep(tmp_path / "a", ROWS)), ("b", other))}
    points = {name: best_points(rows, FID, SCORE) for name, rows in tables.items()}
    assert points["b"] == [Point(256, None, 11.0, (160.0,))]
    above, below = draw_comparison(points, FID, SCORE).axes
    assert [line.get_xydata().tolist() for line in above.lines] == [[[9, 12], [17, 10]], [[256, 11]]]
    assert below.get_xlabel() == "steps in all"


def test_sweeps_by_other_references_are_warned_of(tmp_path: Path) -> None:
    header = f"cfg,steps_per_scale,steps,{FID},{SCORE},reference_sha256"
    folders = [write_sweep(tmp_path / name, [f"1,4,17,10,200,{name}"], header) for name in ("aaa", "bbb")]
    said = rf"differ in reference_sha256 \(aaa in {folders[0]}, bbb in {folders[1]}\)"
    with pytest.warns(UserWarning, match=said):
        outcome = call(compare.main, "--sweeps", ",".join(map(str, folders)), "--output", str(tmp_path / "a.png"))
    assert outcome.code == 0


@pytest.mark.parametrize(
    ("header", "answer"),
    [
        ("cfg,steps_per_scale,steps,FD-digits-500,Class accuracy", "different things, FD-digits-500 and FID-500"),
        (f"cfg,steps_per_scale,steps,FID-100,{SCORE}", "different things, FID-100 and FID-500"),
    ],
)
def test_other_measures_are_not_compared(header: str, answer: str, tmp_path: Path) -> None:
    folders = [write_sweep(tmp_path / "a", ROWS), write_sweep(tmp_path / "b", ROWS, header)]
    assert answer in call(compare.main, "--sweeps", ",".join(map(str, folders))).error()


def test_what_is_no_sweep_is_refused(tmp_path: Path) -> None:
    assert "name the --sweeps" in call(compare.main).error()
    assert "no such file" in call(compare.main, "--sweeps", str(tmp_path)).error()
    empty, other = write_sweep(tmp_path / "a", []), write_sweep(tmp_path / "b", ["1"], "x")
    assert "is empty; run its sweep again" in call(compare.main, "--sweeps", str(empty)).error()
    assert "is no table of experiments.sweep" in call(compare.main, "--sweeps", str(other)).error()
