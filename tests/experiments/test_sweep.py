"""Sweeps: every combination as the single commands measure it, once each, whatever happens in between."""

import csv
import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from PIL import Image

import evaluator
import main_sample
from evaluation.features.shipped import statistics_file
from evaluation.measure import find_result
from experiments import sweep
from experiments.sweep import draw_figure, parse_values, table_of
from models.config import FAMILIES, Drawing
from runtime.command import run
from runtime.errors import UserError
from tests.command_factory import ROOT, Outcome, call, save_run
from tests.factory import tiny_model
from tests.tiny_family import FAMILY
from tests.training_factory import exit_codes, start_process, start_ranks

REFERENCE = str(statistics_file("digits", "train"))
INCEPTION = ROOT / "tests/fixtures/evaluator"
COUNT = 12
SCHEDULE = get_type_hints(Drawing)["cfg"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("sweep") / "tiny", tiny_model())


def flags(checkpoint: Path, folder: Path, *more: str) -> list[str]:
    return [
        "--checkpoint", str(checkpoint), "--output_dir", str(folder), "--reference", REFERENCE, "--features", "digits",
        "--cfg", "0,1.5", "--steps_per_scale", "1,2", "--num_samples", str(COUNT), "--cfg_start_step", "1", *more,
    ]  # fmt: skip


def start_sweep(*argv: Any) -> Outcome:
    outcome = call(sweep.main, *flags(*argv))
    assert outcome.code == 0, outcome.err
    return outcome


def sweep_command(argv: list[str]) -> None:
    """``python -m experiments.sweep ARGV``, for ``start_process``."""
    sys.argv = ["sweep", *argv]
    run(sweep.main)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "sweep"
    outcome = start_sweep(checkpoint, folder)
    assert f"4 combinations of {COUNT} images, 4 to do" in outcome.out
    assert "sweep: 22 of 22 steps, 100 %" in outcome.err
    return folder


# Values


@pytest.mark.parametrize(
    ("text", "hint", "values"),
    [
        ("1.0:2.0:0.1", float, [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0]),
        ("2,4,8", int, [2, 4, 8]),
        ("2:6:2,3", int, [2, 4, 6, 3]),
        ("0:3:0.5,1.25", float, [0, 0.5, 1, 1.5, 2, 2.5, 3, 1.25]),
        ("2:1:-0.5,1", float, [2, 1.5, 1]),
        ("4", SCHEDULE, [4]),
        ("1,[1,2],[1.5,2]", SCHEDULE, [1, (1, 2), (1.5, 2)]),
        ("separate,fold", str, ["separate", "fold"]),
    ],
)
def test_values(text: str, hint: Any, values: list[Any]) -> None:
    found = parse_values("cfg", text, hint)
    assert found == values
    assert all(type(value) is hint for value in found if hint in (int, float))


@pytest.mark.parametrize("text", ["", "a", "1:2", "1:2:0", "1:2:3:4", "2:1:0.5", "1:2:0.3", "1:inf:1", "[1,2", "1,,2"])
def test_values_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="cfg"):
        parse_values("cfg", text, SCHEDULE)


def test_what_is_wrong_with_values_is_said() -> None:
    with pytest.raises(UserError, match=r"cfg 1:2:0\.3 does not reach its end"):
        parse_values("cfg", "1:2:0.3", float)
    for text in ("1.5", "1:2:0.5"):
        with pytest.raises(UserError, match=r"steps_per_scale is 1\.5; it must be a whole number"):
            parse_values("steps_per_scale", text, int)


@pytest.mark.parametrize("content", ['{"run"', "{}", "[]", '{"run": 3}'])
def test_a_damaged_result_is_none(content: str, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text(content)
    assert find_result(file, {"cfg": 1}) is None
    file.write_text('{"run": {"cfg": 1, "seed": 0}}')
    assert find_result(file, {"cfg": 1}) is not None
    assert find_result(file, {"cfg": 2}) is None


def test_a_metric_of_some_rows_alone_has_a_column() -> None:
    """As the shuffled Inception Score, of images that come by class."""
    score = "Inception Score (shuffled)"
    rows = [{"cfg": 1.0, "FID": 2.0}, {"cfg": 2.0, score: 3.0, "FID": 4.0}, {"cfg": 3.0, "FID": 5.0}]
    text = table_of(rows)
    found = list(csv.DictReader(text.splitlines()))
    assert [row[score] for row in found] == ["", "3.0", ""]
    assert [row["FID"] for row in found] == ["2.0", "4.0", "5.0"]


# A sweep


def test_a_row_a_combination(finished: Path) -> None:
    rows = rows_of(finished)
    assert [(row["cfg"], row["steps_per_scale"], row["steps"]) for row in rows] == [
        ("0.0", "1", "4"), ("1.5", "1", "4"), ("0.0", "2", "7"), ("1.5", "2", "7")
    ]  # fmt: skip
    assert len({row[f"FD-digits-{COUNT}"] for row in rows}) == 4
    for row in rows:
        assert 0 <= float(row["Class accuracy"]) <= 1
        assert (row["num_samples"], row["seed"], row["dtype"]) == (str(COUNT), "0", "float32")
        assert all(len(row[f"{name}_sha256"]) == 64 for name in ("model", "reference", "classifier"))
        assert "FID" not in ",".join(row)
    with Image.open(finished / "sweep.png") as picture:
        assert min(picture.size) > 300


def test_a_combination_is_what_the_single_commands_give(finished: Path, checkpoint: Path, tmp_path: Path) -> None:
    settings = ("--cfg", "1.5", "--steps_per_scale", "2", "--cfg_start_step", "1", "--num_samples", str(COUNT))
    drawn = call(main_sample.main, "--checkpoint", str(checkpoint), *settings, "--output_dir", str(tmp_path / "drawn"))
    assert drawn.code == 0, drawn.err
    result = tmp_path / "result.json"
    measured = call(
        evaluator.main, REFERENCE, str(tmp_path / "drawn"), "--features", "digits", "--output_file", str(result)
    )
    assert measured.code == 0, measured.err
    expected = json.loads(result.read_text())
    for name in (f"FD-digits-{COUNT}", "Class accuracy"):
        assert float(rows_of(finished)[3][name]) == pytest.approx(expected[name], rel=1e-6)


def test_what_is_finished_is_not_done_again(finished: Path, checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    shutil.copytree(finished, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")}
    shutil.rmtree(folder / "cfg1.5-1steps-start1")
    (folder / "sweep.csv").unlink()
    outcome = start_sweep(checkpoint, folder)
    assert "4 combinations of 12 images, 1 to do" in outcome.out
    changed = [path for path, when in before.items() if path.stat().st_mtime_ns != when]
    assert [path.parent.name for path in changed] == ["cfg1.5-1steps-start1"]
    assert (folder / "sweep.csv").read_text() == (finished / "sweep.csv").read_text()
    assert "cfg1.5-2steps" not in outcome.err


def test_the_best_is_recommended_to_those_who_draw(finished: Path, checkpoint: Path, tmp_path: Path) -> None:
    run, folder = tmp_path / "run", tmp_path / "sweep"
    shutil.copytree(checkpoint, run)
    shutil.copytree(finished, folder)
    assert "0 to do" in start_sweep(run, folder, "--recommend").out
    best = min(rows_of(folder), key=lambda row: float(row[f"FD-digits-{COUNT}"]))
    wanted = {"cfg": float(best["cfg"]), "steps_per_scale": int(best["steps_per_scale"]), "cfg_start_step": 1}
    drawn = call(main_sample.main, "--checkpoint", str(run), "--labels", "3", "--output_dir", str(tmp_path / "one"))
    for name, value in wanted.items():
        assert f"--{name} {value}" in drawn.out.split("as the checkpoint recommends: ")[1].split("\n")[0]
    drawn = call(
        main_sample.main,
        "--checkpoint",
        str(run),
        "--labels",
        "3",
        "--output_dir",
        str(tmp_path / "other"),
        "--cfg",
        "9",
    )
    assert "--cfg " not in drawn.out
    settings = json.loads((tmp_path / "other/samples.json").read_text())
    assert {**wanted, "cfg": 9} == {name: settings[name] for name in wanted}


def test_other_settings_keep_the_earlier_result(finished: Path, checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    shutil.copytree(finished, folder)
    start_sweep(checkpoint, folder, "--cfg", "1.5", "--steps_per_scale", "2", "--seed", "5", "--delete_samples")
    assert {path.name for path in (folder / "cfg1.5-2steps-start1").iterdir()} == {
        "result.json",
        "result.1.json",
        "samples.1",
    }
    (row,) = rows_of(folder)
    assert row["seed"] == "5"
    assert row[f"FD-digits-{COUNT}"] != rows_of(finished)[3][f"FD-digits-{COUNT}"]


def test_samples_of_what_was_finished_before_are_deleted_too(finished: Path, checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    shutil.copytree(finished, folder)
    assert list(folder.glob("cfg*/samples"))
    start_sweep(checkpoint, folder, "--delete_samples")
    assert not list(folder.glob("cfg*/samples"))
    assert rows_of(folder) == rows_of(finished)


def test_killed_it_goes_on_to_the_same_table(finished: Path, checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    argv = flags(checkpoint, folder, "--batch_size", "1")
    for wanted in ("cfg0-1steps-start1/samples/.progress", "cfg0-2steps-start1/samples/.progress"):
        process = start_process(tmp_path / "out.txt", sweep_command, argv)
        while process.is_alive() and not (folder / wanted).exists():
            process.join(0.002)
        process.kill()
        assert exit_codes([process]) == [-signal.SIGKILL]
    assert len(rows_of(folder)) == 2
    outcome = start_sweep(checkpoint, folder)
    assert "4 combinations of 12 images, 2 to do" in outcome.out
    for found, expected in zip(rows_of(folder), rows_of(finished), strict=True):
        assert float(found[f"FD-digits-{COUNT}"]) == pytest.approx(float(expected[f"FD-digits-{COUNT}"]), rel=1e-6)


def test_two_ranks_come_to_the_same_table(finished: Path, checkpoint: Path, tmp_path: Path) -> None:
    argv = flags(checkpoint, tmp_path / "sweep")
    assert exit_codes(start_ranks(tmp_path, 2, sweep_command, argv)) == [0, 0], (tmp_path / "rank0.txt").read_text()
    for found, expected in zip(rows_of(tmp_path / "sweep"), rows_of(finished), strict=True):
        assert float(found[f"FD-digits-{COUNT}"]) == pytest.approx(float(expected[f"FD-digits-{COUNT}"]), rel=1e-4)


def test_inceptions_metrics(checkpoint: Path, tmp_path: Path) -> None:
    reference = shutil.copyfile(INCEPTION / "reference.npz", tmp_path / "reference.npz")
    graph = str(INCEPTION / "classify_image_graph_def.pb")
    argv = [
        word for word in flags(checkpoint, tmp_path / "sweep", "--cfg", "1") if word not in ("--features", "digits")
    ]
    outcome = call(sweep.main, *argv, "--reference", str(reference), "--inception_graph", graph)
    assert outcome.code == 0, outcome.err
    for row in rows_of(tmp_path / "sweep"):
        named = (f"FID-{COUNT}", f"sFID-{COUNT}", "Inception Score", "Precision", "Recall")
        assert all(np.isfinite(float(row[name])) for name in named)
        assert (row["features"], row["backend"], len(row["inception_sha256"])) == ("inception", "tensorflow", 64)


def test_the_folder_of_a_drawing_tells_it_from_all_others() -> None:
    checkerboard, tiny = FAMILIES["checkerboard"].load("drawing"), FAMILY.load("drawing")
    assert checkerboard().label == "cfg1.5-4steps"
    assert checkerboard(cfg=2.0, steps_per_scale=8, cfg_start_step=0).label == "cfg2-8steps-start0"
    changes = ({"cfg": (1.0, 2.5)}, {"temperature": 0.9}, {"top_k": 5}, {"top_p": 0.5})
    for family, own in ((checkerboard, {"remainder": "fold"}), (tiny, {"direction": "columns"})):
        drawings = [family(**change) for change in ({}, own, *changes)]
        assert len({drawing.label for drawing in drawings}) == len(drawings)
        assert not any(character in drawing.label for drawing in drawings for character in " /()'")


def test_any_setting_of_the_drawing_is_swept(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    start_sweep(checkpoint, folder, "--cfg", "1", "--steps_per_scale", "2", "--temperature", "0.5,1", "--top_k", "0,5")
    rows = rows_of(folder)
    assert list(rows[0])[:5] == ["cfg", "steps_per_scale", "temperature", "top_k", "steps"]
    assert [(row["temperature"], row["top_k"]) for row in rows] == [
        ("0.5", "0"),
        ("0.5", "5"),
        ("1.0", "0"),
        ("1.0", "5"),
    ]
    assert len({row[f"FD-digits-{COUNT}"] for row in rows}) == 4
    assert (folder / "cfg1-temperature0.5-top_k5-2steps-start1/result.json").exists()
    curves = [
        line.get_label() for line in draw_figure([dict(row, cfg=1.0, **numbers(row)) for row in rows]).axes[0].lines
    ]
    settings = [f"temperature {temperature}, top k {k}" for temperature in (0.5, 1.0) for k in (0, 5)]
    assert curves == [*settings, "real images"]


def test_a_model_without_classes_is_swept_without_guidance(tmp_path: Path) -> None:
    run = save_run(tmp_path / "tiny", tiny_model(class_cond=False))
    argv = flags(run, tmp_path / "sweep")
    del argv[argv.index("--cfg") : argv.index("--cfg") + 2]
    assert call(sweep.main, *argv).code == 0
    assert [row["cfg"] for row in rows_of(tmp_path / "sweep")] == ["0.0", "0.0"]  # of one and of two steps per scale


def numbers(row: dict[str, str]) -> dict[str, float]:
    return {name: float(row[name]) for name in (f"FD-digits-{COUNT}", "Class accuracy", "steps")}


@pytest.mark.parametrize("own", [True, False], ids=["steps per scale", "steps of the image"])
def test_the_figure_has_a_curve_for_each_number_of_steps(own: bool) -> None:
    rows = [
        {
            "cfg": cfg,
            **({"steps_per_scale": steps, "steps": 4 * steps} if own else {"steps": steps}),
            "FID-9": 10 + abs(cfg - steps),
            "Inception Score": cfg,
            "FID-5000 of real test images": 4.0,
        }
        for steps in (2, 4)
        for cfg in (3.0, 1.0, 2.0)
    ]
    panels = draw_figure(rows).axes
    curves = {line.get_label(): line.get_xydata().tolist() for line in panels[0].lines}
    assert curves.pop("real images") == [[0, 4], [1, 4]]
    name = "steps per scale" if own else "steps"
    assert curves == {f"{name} 2": [[1, 11], [2, 10], [3, 11]], f"{name} 4": [[1, 13], [2, 12], [3, 11]]}
    scores = {line.get_label(): line.get_xydata().tolist() for line in panels[2].lines}
    assert scores == {steps: [[1, 1], [2, 2], [3, 3]] for steps in (f"{name} 2", f"{name} 4")}
    first, second = (8, 16) if own else (2, 4)
    assert panels[1].lines[0].get_xydata().tolist() == [[first, 10], [second, 11]]
    assert panels[3].lines[0].get_xydata().tolist() == [[first, 2], [second, 3]]


def test_what_was_not_measured_leaves_a_gap() -> None:
    rows = [
        {"cfg": cfg, "steps": 13, "FID-9": fid, "Inception Score": 2.0}
        for cfg, fid in ((0.0, None), (1.0, np.nan), (2.0, 5.0))
    ]
    line = draw_figure(rows).axes[0].lines[0]
    np.testing.assert_array_equal(line.get_ydata(), [np.nan, np.nan, 5.0])
    assert draw_figure(rows[:2]).axes[0].lines


def test_mistakes(checkpoint: Path, tmp_path: Path) -> None:
    def refusal(*more: str) -> str:
        return call(sweep.main, *flags(checkpoint, tmp_path / "sweep", *more)).error()

    assert "steps_per_scale is 1.5; it must be a whole number" in refusal("--steps_per_scale", "1.5")
    assert "cfg is 1:2" in refusal("--cfg", "1:2")
    assert "cfg is inf" in refusal("--cfg", "inf")
    assert "top_k is -1" in refusal("--top_k", "0,-1")
    assert "steps_per_scale" in refusal("--steps_per_scale", "0")
    assert "no checkpoint at" in refusal("--checkpoint", "nowhere")
    assert "nowhere does not exist" in refusal("--reference", "nowhere")
    assert "at least 4" in refusal("--num_samples", "3")
    assert "--backend means nothing with --features digits" in refusal("--backend", "torch")
    assert "name the --checkpoint" in call(sweep.main).error()
    assert not (tmp_path / "sweep").exists()
    assert "cfg is x" in refusal("--cfg", "x")


def test_settings_that_are_lists_are_curves_of_their_own() -> None:
    rows = [
        {"cfg": cfg, "temperature": temperature, "steps": 13, "FID-9": fid, "Inception Score": 2.0}
        for cfg, temperature, fid in ((1.0, [1, 1], 5.0), (2.0, [1, 1], 4.0), (1.0, [1, 0.9], 3.0))
    ]
    curves = {line.get_label(): line.get_xydata().tolist() for line in draw_figure(rows).axes[0].lines}
    assert curves == {"temperature [1, 1]": [[1, 5], [2, 4]], "temperature [1, 0.9]": [[1, 3]]}
