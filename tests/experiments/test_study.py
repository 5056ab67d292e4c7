"""The study trains and measures what its plan says, once, and draws what was measured."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiments import study, study_facts, study_figures, study_plan, study_tables, study_times
from experiments.study_plan import MODELS, StudyArgs, StudyModel, measuring_tasks, training_task
from experiments.tokens import course
from runtime.config import read_yaml
from runtime.errors import UserError
from runtime.files import PROJECT
from tests.command_factory import PATIENCE, call, carry_out_here
from tests.experiments.test_tokens import write_run
from tests.factory import CIFAR_CLASSES
from training.run_folder import holds_run

SMALL = StudyModel("raster_2x", (2,))

# The plan


@pytest.mark.quick
def test_all_configurations_are_of_one_size_one_cache_and_one_budget() -> None:
    contents = {path.stem: read_yaml(path) for path in (PROJECT / "configs/study").glob("*.yaml")}
    assert contents.keys() == {model.config for model in MODELS}
    usual = contents["checkerboard_2x"]
    for name, content in contents.items():
        assert content["model"]["llama_config"] == usual["model"]["llama_config"]
        assert content["model"]["autoenc"] == usual["model"]["autoenc"]
        assert content["args"]["output_dir"] == f"output/study/{name}"
        args = {key: value for key, value in content["args"].items() if key not in ("output_dir", *PATCHES)}
        if name == "npp":  # a patch of 2 x 2 codes costs a quarter of them
            assert args.pop("epochs") * (1 - 0.5 * 0.75) == usual["args"]["epochs"]
            args["epochs"] = usual["args"]["epochs"]
        assert args == {key: value for key, value in usual["args"].items() if key != "output_dir"}


PATCHES = ("patch_level", "epoch_rate")


@pytest.mark.quick
def test_the_main_claim_rests_on_two_seeds_and_the_best_goes_on() -> None:
    names = [model.name for model in MODELS]
    assert len(set(names)) == len(names)
    assert {"checkerboard_2x", "checkerboard_2x_seed1", "random_2x", "random_2x_seed1"} < set(names)
    longest = MODELS[names.index("checkerboard_4x_30epochs")]
    assert training_task(longest, StudyArgs()).arguments[-2:] == ("--epochs", "30")


@pytest.mark.quick
def test_models_that_draw_code_by_code_are_scored_once() -> None:
    labels = {model.name: [task.label for task in measuring_tasks(model, StudyArgs())] for model in MODELS}
    assert labels["llamagen"] == ["likelihood", "time of a training step", "grid of guidances"]
    assert len(labels["npp"]) == len(labels["llamagen"]) + 1  # a step on patches of codes, too
    assert len(labels["checkerboard_2x"]) == len(study_plan.LIKELIHOOD_STEPS) + 1 + 5


@pytest.mark.quick
def test_scales_of_at_most_four_codes_are_not_guided() -> None:
    """Which are 5 steps where each scale has 4, as in the paper."""
    starts = {}
    for model in MODELS:
        for task in measuring_tasks(model, StudyArgs()):
            if task.label.startswith("grid"):
                flags = dict(zip(task.arguments, task.arguments[1:], strict=False))
                starts[model.name, flags.get("--steps_per_scale")] = flags.get("--cfg_start_step")
    assert [starts["checkerboard_2x", steps] for steps in ("1", "2", "4", "8", "16")] == ["2", "3", "5", "5", "5"]
    assert starts["checkerboard_4x", "8"] == "5"
    assert starts["checkerboard_single", "8"] == "0"
    assert starts["llamagen", None] is None


@pytest.mark.quick
def test_an_unknown_model_is_refused(tmp_path: Path) -> None:
    error = call(study.main, "--models", "checkerboard_9x", "--output_dir", str(tmp_path)).error()
    assert error.startswith("no model of the study is called checkerboard_9x; there are checkerboard_2x, ")


# The study


def make_images(root: Path) -> Path:
    """A data set of ten classes, 7 images of each to train on and 2 held out."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 7), ("test", 2)):
        for name in CIFAR_CLASSES:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def test_a_study_is_done_once_and_goes_on_from_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_plan, "MODELS", (SMALL,))
    monkeypatch.setattr(study_plan, "LIKELIHOOD_STEPS", (2,))
    monkeypatch.setattr(study_plan, "CFG_GRID", (0, 1))
    monkeypatch.setattr(study_plan, "BATCH", 4)
    monkeypatch.setattr(study_times, "MODELS", (SMALL,))
    monkeypatch.setattr(study_times, "TIMED", {4: 1, 1: 1})
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(
        study, "carry_out", lambda task, title: commands.append(task.arguments) or carry_out_here(task, title)
    )
    root, data = tmp_path / "study", make_images(tmp_path / "data")
    flags = ["--data_path", str(data), "--output_dir", str(root), "--grid_samples", "4", "--num_samples", "5"]
    outcome = call(study.main, *flags, "--epochs", "1")
    assert outcome.code == 0, outcome.err
    assert len(commands) == 7
    lines = [json.loads(line) for line in (root / "results.jsonl").read_text().splitlines()]
    kinds = ["training", "course", "step", "likelihood", "grid", "grid", "samples", "pictures", "time", "time"]
    assert [line["kind"] for line in lines] == kinds
    training, course, step, likelihood, *grid, samples, shown, timing, alone = lines
    assert (timing["batch_size"], alone["batch_size"]) == (4, 1)
    assert (training["images_seen"], training["tokens_computed"]) == (64, 64 * 85)
    assert (course["images_seen"], course["tokens_computed"], course["side"]) == ([64], [64 * 85], [1])
    assert course["loss"] == [pytest.approx(training["loss"], rel=1e-5)]
    assert (step["patch_side"], step["batch_size"]) == (1, 4)
    assert 0 < step["seconds"] < 60
    assert likelihood["finest_scale"]["nats_per_token"] == pytest.approx(math.log(4096), abs=0.5)
    assert timing["steps"] == samples["steps"] == 7
    distances = {line["cfg"]: line["distance"] for line in grid}
    assert distances[samples["cfg"]] == min(distances.values())
    assert (shown["steps"], shown["cfg"]) == (7, samples["cfg"])
    assert len(list((root / "raster_2x").glob("pictures-2steps-cfg*/[0-9]*.png"))) == 20

    commands.clear()
    assert call(study.main, *flags, "--epochs", "1").code == 0
    assert commands == []
    begun = f"{root / 'raster_2x'} was begun for 1 epochs of batches of 64, not for "
    for more, of in ((("--epochs", "2"), "2 of 64"), (("--epochs", "1", "--batch_size", "5"), "1 of 5")):
        error = call(study.main, *flags, *more).error()
        assert error == f"{begun}{of}; name another --output_dir"
    assert commands == []
    os.utime(root / "raster_2x/trained.json", (1000, 1000))
    assert call(study.main, *flags[:-1], "6", "--epochs", "1").code == 0  # more images are drawn anew
    assert [command[1] for command in commands] == ["experiments.sweep"]
    commands.clear()
    others = [line for line in lines if line["kind"] != "time"]
    (root / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in others))
    assert call(study.main, *flags, "--epochs", "1").code == 0
    assert [command[1] for command in commands] == ["experiments.study_times"]
    again = study_facts.read_lines(root / "results.jsonl")
    assert again[:-2] == others
    assert [line["batch_size"] for line in again[-2:]] == [4, 1]
    with Image.open(root / "results_pictures/raster_2x_seed0_1epochs.png") as joined:
        assert joined.size == (20 * 32, 32)
        first = np.asarray(Image.open(next((root / "raster_2x").glob("pictures-*/000000.png"))))
        assert np.array_equal(np.asarray(joined)[:, :32], first)
    real, rebuilt = (Image.open(root / f"results_pictures/{name}.png") for name in ("real", "reconstructed"))
    assert np.array_equal(np.asarray(real)[:, 320:352], np.asarray(Image.open(data / "test/airplane/1.png")))
    assert rebuilt.size == (20 * 32, 32)
    drawn = tmp_path / "drawn"
    names = ["--results", str(root / "results.jsonl"), "--output_dir", str(drawn)]
    assert call(study_figures.main, *names).code == 0
    assert {path.name for path in drawn.iterdir()} == {
        f"study_{name}.png" for name in ("loss", "nll", "samples", "seconds", "steps")
    }


@pytest.mark.processes
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_what_a_signal_stops_saves_first(tmp_path: Path, how: signal.Signals) -> None:
    """To the whole group, as a terminal's Ctrl-C; or to the study alone."""
    late = "import signal, sys, time, pathlib\n"
    late += "def save(number, _):\n time.sleep(1); pathlib.Path('saved').touch(); sys.exit(128 + number)\n"
    late += "signal.signal(signal.SIGINT, save); signal.signal(signal.SIGTERM, save)\n"
    late += "pathlib.Path('begun').touch()\nfor _ in range(600): time.sleep(0.1)\n"
    outer = "from pathlib import Path; from experiments.tasks import Task, carry_out\n"
    outer += f"carry_out(Task('late', ('-c', {late!r}), Path('saved')), 'late')"
    process = subprocess.Popen(
        [sys.executable, "-c", outer], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(PROJECT)}, process_group=0
    )
    end = time.monotonic() + 60
    while not (tmp_path / "begun").exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    if how == signal.SIGINT:
        os.killpg(process.pid, how)
    else:
        process.send_signal(how)
    assert process.wait(timeout=PATIENCE) == 128 + how
    assert (tmp_path / "saved").exists()


@pytest.mark.processes
def test_the_error_of_a_command_is_that_of_the_study(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    outcome = call(study.main, "--data_path", str(tmp_path / "none"), "--output_dir", str(tmp_path / "study"))
    assert outcome.code == 2
    assert "error: " in capfd.readouterr().err
    assert not (tmp_path / "study/results.jsonl").exists()


@pytest.mark.quick
def test_measures_of_another_training_are_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(study, "carry_out", lambda task, title: called.append(title))
    task = next(iter(measuring_tasks(SMALL, StudyArgs(output_dir=str(tmp_path)))))
    (tmp_path / "raster_2x").mkdir()
    (tmp_path / "raster_2x/trained.json").touch()
    task.product.touch()
    os.utime(tmp_path / "raster_2x/trained.json", (1000, 1000))
    study._carry_out(task, "here")
    assert called == []
    os.utime(task.product, (999, 999))
    study._carry_out(task, "here")
    assert called == ["here: likelihood --steps_per_scale 1"]


@pytest.mark.quick
def test_a_longer_training_goes_on_from_the_shorter_one(tmp_path: Path) -> None:
    longer = StudyModel("raster_2x", epochs=3)
    ended = write_run(tmp_path / "raster_2x", 1)
    with pytest.raises(UserError, match="raster_2x_3epochs goes on from raster_2x, which is not trained yet"):
        study._begin_where_ended(longer.shorter, tmp_path / longer.name)
    (ended / "trained.json").write_text("{}")
    study._begin_where_ended(longer.shorter, tmp_path / longer.name)
    begun = tmp_path / longer.name
    assert holds_run(begun)
    assert not (begun / "trained.json").exists()
    assert {key: value.tolist() for key, value in course(begun).items()} == {
        key: value.tolist() for key, value in course(ended).items()
    }
    (begun / "checkpoint-last.pth").write_bytes(b"further")
    study._begin_where_ended(longer.shorter, begun)
    assert (begun / "checkpoint-last.pth").read_bytes() == b"further"


@pytest.mark.quick
def test_a_course_keeps_a_point_for_some_entries_of_one_stage(tmp_path: Path) -> None:
    found = study._thinned(course(write_run(tmp_path / "npp", 2)), entries=6)
    assert found["side"] == [2, 2, 1, 1]
    assert found["images_seen"] == [60, 100, 160, 200]
    assert found["tokens_computed"] == pytest.approx([60 * 4, 100 * 4, 100 * 4 + 60 * 16, 100 * 4 + 100 * 16])
    losses = [np.mean([5 - step / 10 for step in steps]) for steps in (range(1, 7), range(7, 11), range(11, 17))]
    assert found["loss"][:3] == pytest.approx(losses)


# The figures


def fact(kind: str, model: str, **values: Any) -> dict[str, Any]:
    return {"kind": kind, "model": model, "seed": 0, "epochs": study_plan.usual_epochs(model)} | values


FACTS = [
    *(fact("likelihood", "random_2x", steps_per_scale=n, finest_scale={"nats_per_token": 7 - n}) for n in (1, 4, 2)),
    fact("likelihood", "llamagen", steps_per_scale=None, finest_scale={"nats_per_token": 4.0}),
    fact("time", "random_2x", steps=7, seconds=0.01, batch_size=64, machine="M"),
    fact("time", "random_2x", steps=7, seconds=0.02, batch_size=1, machine="M"),
    fact("time", "random_2x", steps=4, seconds=0.005, batch_size=64, machine="M"),
    fact("samples", "random_2x", steps=7, distance=20.0, num_samples=10_000, cfg=1.5, accuracy=0.75),
    fact("samples", "random_2x", steps=4, distance=30.0, num_samples=10_000, cfg=2.0, accuracy=0.5),
    fact("samples", "llamagen", steps=64, distance=10.0, num_samples=10_000, cfg=3.0, accuracy=None),
    fact("step", "npp", patch_side=2, batch_size=10, seconds=30.0, machine="M"),
    fact("step", "npp", patch_side=1, batch_size=10, seconds=60.0, machine="M"),
    fact("course", "npp", images_seen=[20, 30], tokens_computed=[80, 240], side=[2, 1], loss=[6.0, 5.0]),
    fact("samples", "npp", steps=64, distance=9.0, num_samples=10_000, cfg=1.0, accuracy=1.0),
]


@pytest.mark.quick
def test_figures_show_the_facts() -> None:
    (likelihood,), (steps,), (seconds, alone) = (
        drawn(FACTS).axes
        for drawn in (study_figures.draw_likelihood, study_figures.draw_steps, study_figures.draw_seconds)
    )
    (orders,) = likelihood.lines  # LlamaGen has no blocks
    assert orders.get_xydata().tolist() == [[1, 6], [2, 5], [4, 3]]
    assert [line.get_xydata().tolist() for line in steps.lines] == [[[4, 30], [7, 20]], [[64, 10]], [[64, 9]]]
    assert seconds.lines[0].get_xydata().tolist() == [[5, 30], [10, 20]]
    assert alone.lines[0].get_xydata().tolist()[1] == [20, 20]
    assert [(text.get_text(), text.xy) for text in alone.texts] == [("7", (20, 20))]  # the others were not timed
    assert "FD-cifar10-10000" in steps.get_ylabel()
    images, tokens, minutes = study_figures.draw_losses(FACTS).axes
    assert [line.get_xydata().tolist() for line in images.lines] == [[[20, 6]], [[30, 5]]]
    assert [line.get_xydata().tolist() for line in tokens.lines] == [[[80, 6]], [[240, 5]]]
    assert [line.get_xydata().tolist() for line in minutes.lines] == [[[1, 6]], [[2, 5]]]  # at each stage's pace


@pytest.mark.quick
def test_a_row_of_pictures_says_what_it_shows(tmp_path: Path) -> None:
    lines = [fact("pictures", "random_2x", steps=21, cfg=3.0), fact("course", "llamagen"), fact("course", "npp")]
    rows = study_figures.picture_rows(tmp_path / "facts.jsonl", lines)
    labels = ["real test images", "reconstructed", "random order 2x\n21 steps, guidance 3", "LlamaGen", "NPP"]
    assert list(rows) == labels
    (tmp_path / "facts_pictures").mkdir()
    for file in list(rows.values())[:-1]:  # NPP is not drawn yet
        Image.new("RGB", (640, 32)).save(file)
    assert [axes.get_ylabel() for axes in study_figures.draw_pictures(rows).axes] == labels[:-1]


@pytest.mark.quick
def test_tables_have_the_facts(tmp_path: Path) -> None:
    path = tmp_path / "study.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in FACTS))
    outcome = call(study_tables.main, "--results", str(path))
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in outcome.out.splitlines() if line]
    assert (
        "random order 2x",
        "-",
        "-",
        "-",
        "7",
        "1.5",
        "20.00",
        "0.750",
        "10.0",
        "20.0",
    ) in rows
    assert ("LlamaGen", "-", "-", "-", "64", "3", "10.00", "-", "-", "-") in rows
    assert ("NPP", "8", "0.0", "2", "64", "1", "9.00", "1.000", "-", "-") in rows
    assert ("random order 2x", "4: 30.00, 7: 20.00") in rows
    assert ("random order 2x", "-", "6.000", "5.000", "3.000") in rows  # code by code, 1, 2 and 4 steps
    assert ("LlamaGen", "4.000", "-", "-", "-") in rows


@pytest.mark.quick
def test_losses_are_compared_at_equal_tokens_and_minutes(tmp_path: Path) -> None:
    path, course = tmp_path / "study.jsonl", {"images_seen": [10, 20, 30], "side": [1, 1, 1]}
    step = {"patch_side": 1, "batch_size": 10, "machine": "M"}
    lines = [
        fact("step", "llamagen", seconds=60.0, **step),
        fact("course", "llamagen", **course, tokens_computed=[1e6, 2e6, 3e6], loss=[8.0, 7.0, 5.0]),
        fact("step", "randar_random", seconds=90.0, **step),
        fact("course", "randar_random", **course, tokens_computed=[2e6, 4e6, 6e6], loss=[9.0, 8.0, 7.0]),
        fact("course", "npp", **course | {"side": [2, 2, 1]}, tokens_computed=[1e6, 2e6, 6e6], loss=[5.0, 4.0, 6.0]),
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = call(study_tables.main, "--results", str(path)).out
    assert "| training loss | at the end | after 3.0 million tokens | after 3 minutes |" in out
    assert "| LlamaGen | 5.000 | 5.000 | 5.000 |" in out
    assert "| RandAR, random order | 7.000 | 8.500 | 8.000 |" in out
    assert "| NPP | 6.000 | - | - |" in out  # of patches until then, and no time of a step


@pytest.mark.quick
@pytest.mark.parametrize("text", ["{", '{"kind": "samples"}', '{"kind": "time", "model": "other"}'])
def test_other_files_are_no_results(tmp_path: Path, text: str) -> None:
    path = tmp_path / "study.jsonl"
    path.write_text(text)
    error = call(study_figures.main, "--results", str(path), "--output_dir", str(tmp_path)).error()
    assert error.endswith("name its results, or a new file")
    error = call(study.main, "--results", str(path), "--output_dir", str(tmp_path / "runs")).error()  # before it trains
    assert error.endswith("name its results, or a new file")
    error = call(study.main, "--results", str(tmp_path), "--output_dir", str(tmp_path / "runs")).error()
    assert error == f"{tmp_path} is a folder; name a file, of results of experiments.study"
    assert path.read_text() == text
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.quick
def test_what_does_not_compare_is_said(tmp_path: Path) -> None:
    path = tmp_path / "study.jsonl"
    other = fact("time", "llamagen", steps=64, seconds=0.1, batch_size=1, machine="N")
    fewer = fact("samples", "randar_random", steps=64, distance=9.0, num_samples=500, cfg=1.0, accuracy=1.0)
    study_facts.write_lines(path, [*FACTS, other, fewer])
    with (
        pytest.warns(UserWarning, match="^times of drawing are of several machines, and do not compare: M; N$"),
        pytest.warns(UserWarning, match="^distances are of 500 and 10000 images"),
    ):
        call(study_tables.main, "--results", str(path))


@pytest.mark.quick
def test_names_tell_trainings_of_another_length_apart() -> None:
    assert study_facts.name_of("npp", 0, 16) == "NPP"
    assert study_facts.name_of("npp", 0, 10) == "NPP, 10 epochs"
    assert study_facts.name_of("checkerboard_2x", 1, 1) == "checkerboard 2x, seed 1, 1 epoch"


@pytest.mark.quick
def test_a_given_length_leaves_out_the_longer_training() -> None:
    names = [model.name for model in study_plan.chosen_models(StudyArgs(epochs=30))]
    assert names == [model.name for model in MODELS if model.epochs is None]


@pytest.mark.quick
def test_facts_of_models_that_are_measured_elsewhere_stay(tmp_path: Path) -> None:
    path = tmp_path / "study.jsonl"
    study_facts.write_lines(path, FACTS)
    known = study_facts.read_lines(path)
    again = [fact("samples", "llamagen", steps=64, distance=11.0), fact("samples", "random_2x", steps=4) | {"seed": 1}]
    study_facts.write_lines(path, again)
    written = study_facts.read_lines(path)
    of_one = [line for line in written if line["model"] == "llamagen"]
    assert of_one == again[:1]  # its likelihood was of another training
    assert [line for line in written if line["seed"]] == again[1:]
    others = [line for line in written if line["model"] != "llamagen" and not line["seed"]]
    assert others == [line for line in known if line["model"] != "llamagen"]
    assert list(dict.fromkeys(line["model"] for line in written)) == ["random_2x", "llamagen", "npp"]


@pytest.mark.quick
def test_times_give_way_to_times_alone(tmp_path: Path) -> None:
    path = tmp_path / "study.jsonl"
    study_facts.write_lines(path, FACTS)
    new = [fact("time", "random_2x", steps=7, seconds=0.03, batch_size=64, machine="N")]
    study_facts.write_lines(path, new)
    written = study_facts.read_lines(path)
    assert [line for line in written if line["kind"] == "time"] == new
    assert len(written) == len(FACTS) - 3 + 1
    drawn_anew = [fact("samples", "random_2x", steps=7, distance=21.0)]
    study_facts.write_lines(path, drawn_anew)
    of_one = [line for line in study_facts.read_lines(path) if line["model"] == "random_2x"]
    assert sorted(of_one, key=lambda line: line["kind"]) == [*drawn_anew, *new]


@pytest.mark.quick
def test_times_hold_for_trainings_of_another_seed_and_length() -> None:
    longer = next(line for line in FACTS if line["kind"] == "samples") | {"distance": 15.0, "seed": 1, "epochs": 30}
    seconds, _ = study_figures.draw_seconds([*FACTS, longer]).axes
    assert [10, 15] in [line.get_xydata().tolist()[0] for line in seconds.lines]


@pytest.mark.quick
def test_a_wrong_name_or_file_is_told_before_anything_is_timed(tmp_path: Path) -> None:
    error = call(study_times.main, "--models", "checkerboard_2x_seed1").error()
    assert error.startswith("no model of the study is called checkerboard_2x_seed1; there are checkerboard_2x, ")
    (tmp_path / "study.jsonl").write_text("{")
    error = call(study_times.main, "--results", str(tmp_path / "study.jsonl")).error()
    assert error.endswith("name its results, or a new file")


@pytest.mark.quick
def test_what_was_not_measured_yet_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "study.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in FACTS if line["kind"] != "likelihood"))
    outcome = call(study_figures.main, "--results", str(path), "--output_dir", str(tmp_path))
    assert outcome.code == 0, outcome.err
    assert "there is nothing yet that study_nll.png shows" in outcome.out
    assert not outcome.err
    names = {"study_steps.png", "study_seconds.png", "study_loss.png"}
    assert {file.name for file in tmp_path.glob("*.png")} == names
