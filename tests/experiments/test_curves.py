"""The picture of a run's course."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import curves
from experiments.curves import read_held_out, read_steps, smooth
from runtime.errors import UserError
from tests.command_factory import call

pytestmark = pytest.mark.quick


def write_run(folder: Path, steps: list[int]) -> None:
    entries = [{"event": "start", "step": 0}]
    for step in steps:
        scales = {f"{kind}_scale_{side}": step / side for kind in ("loss", "accuracy") for side in (1, 2)}
        entries.append({"step": step, "epoch": step / 10, "loss": 1.0, "lr": 0.1, **scales})
    entries.append({"step": steps[-1] if steps else 0, "psnr": 3.0})
    folder.mkdir(exist_ok=True)
    (folder / "log.jsonl").write_text("\n".join(['{"step": 5, "los', *map(json.dumps, entries)]))


def test_steps_come_in_order_and_a_step_logged_twice_once(tmp_path: Path) -> None:
    write_run(tmp_path, [5, 10, 15, 10, 15, 20])
    assert [entry["step"] for entry in read_steps(tmp_path)] == [5, 10, 15, 20]


def test_what_a_run_lost_or_another_left_before_does_not_count(tmp_path: Path) -> None:
    """It started again from step 12, and was begun anew with other steps."""
    write_run(tmp_path, [5, 10, 15, 20])
    with (tmp_path / "log.jsonl").open("a") as file:
        for entry in ({"event": "start", "step": 12}, {"step": 13, "epoch": 1.3, "loss": 1.0, "lr": 0.1}):
            file.write("\n" + json.dumps(entry))
    assert [entry["step"] for entry in read_steps(tmp_path)] == [5, 10, 13]
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"event": "start", "step": 0}))
        file.write("\n" + json.dumps({"step": 4, "epoch": 0.4, "loss": 1.0, "lr": 0.1}))
    assert [entry["step"] for entry in read_steps(tmp_path)] == [4]


def test_smoothing_takes_means() -> None:
    np.testing.assert_allclose(smooth([1.0, 2.0, 6.0, 4.0, 2.0], 3), [1.0, 3.0, 4.0, 4.0, 2.0])
    np.testing.assert_allclose(smooth([1.0, 2.0, 6.0, 4.0, 2.0], 9), [1.0, 3.0, 3.0, 4.0, 2.0])
    np.testing.assert_allclose(smooth([1.0, 3.0], 1), [1.0, 3.0])
    np.testing.assert_allclose(smooth([1.0, np.nan, 3.0, 5.0, 7.0], 3), [1.0, np.nan, 4.0, 5.0, 7.0])


@pytest.mark.parametrize("with_grid", [False, True])
def test_the_command_writes_a_picture(with_grid: bool, tmp_path: Path) -> None:
    write_run(tmp_path / "run", list(range(0, 200, 10)))
    if with_grid:
        (tmp_path / "run/samples").mkdir()
        Image.new("RGB", (64, 64), "red").save(tmp_path / "run/samples/epoch_0001.png")
    outcome = call(curves.main, "--run", str(tmp_path / "run"), "--output", str(tmp_path / "a.png"))
    assert outcome.code == 0, outcome.err
    with Image.open(tmp_path / "a.png") as picture:
        red = (np.asarray(picture.convert("RGB")) == (255, 0, 0)).all(-1).mean()
    assert (red > 0.05) == with_grid


def test_a_model_of_one_scale_has_a_line(tmp_path: Path) -> None:
    """LlamaGen, NPP and RandAR log no scales."""
    (tmp_path / "log.jsonl").write_text(
        "".join(
            json.dumps({"step": i, "epoch": i / 10, "loss": 9.0 - i, "accuracy": i / 9, "lr": 1.0}) + "\n"
            for i in range(3)
        )
    )
    figure = curves.draw(read_steps(tmp_path), [], None, 1)
    losses, accuracies = (axes.lines[0].get_ydata().tolist() for axes in figure.axes)
    assert losses == [9, 8, 7]
    assert accuracies == pytest.approx([0, 1 / 9, 2 / 9])


def test_the_mean_is_a_line_too_where_no_scale_is_of_one_code(tmp_path: Path) -> None:
    entries = [{"step": 1, "epoch": 1, "loss": 3.0, "lr": 0.1, "loss_scale_2": 2.0, "loss_scale_4": 4.0}]
    figure = curves.draw(entries, [{"epoch": 1, "val_loss": 3.5}], None, 1)
    assert [line.get_ydata().tolist() for line in figure.axes[0].lines] == [[2.0], [4.0], [3.0], [3.5]]


def test_held_out_loss_is_a_line_beside_the_mean_of_all_scales(tmp_path: Path) -> None:
    write_run(tmp_path, [1, 2, 3])
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write("\n")
        for epoch, loss in ((1.0, 8.5), (2.0, 8.0), (2.0, 7.5)):  # the last epoch was measured twice
            file.write(json.dumps({"step": 10 * epoch, "epoch": epoch, "val_loss": loss}) + "\n")
    figure = curves.draw(read_steps(tmp_path), read_held_out(tmp_path), None, 1)
    lines = [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in figure.axes[0].lines]
    assert lines[-2:] == [([0.1, 0.2, 0.3], [1, 1, 1]), ([1, 2], [8.5, 7.5])]


def test_a_folder_without_metrics_is_refused(tmp_path: Path) -> None:
    assert "no such file" in call(curves.main, "--run", str(tmp_path)).error()
    write_run(tmp_path, [])
    with pytest.raises(UserError, match="holds no metrics; train longer"):
        read_steps(tmp_path)


def test_a_name_of_no_kind_of_picture_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, [1, 2])
    error = call(curves.main, "--run", str(tmp_path), "--output", str(tmp_path / "curves.xyz")).error()
    assert error == f"{tmp_path}/curves.xyz names no kind of picture; let it end in .png, .svg or .pdf"
