"""run_evaluator.sh: sample and evaluate in one command, killed and started again, presets, mistakes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import evaluator
import main_sample
from evaluation import measure
from evaluation import run as program
from evaluation.features.shipped import statistics_file
from evaluation.options import PRESETS, REFERENCE, REFERENCE_URL, PresetName, RunArgs
from evaluation.run import default_folder, published_lines
from models.config import family_of
from pretrained_models.download import TABLE
from runtime.config import plain
from tests.command_factory import PATIENCE, ROOT, Outcome, call, save_run, start
from tests.factory import tiny_autoencoder, tiny_model
from tests.llamagen_factory import tiny_gpt

FIXTURE = ROOT / "tests/fixtures/evaluator"
CHECKPOINT = ROOT / "tests/fixtures/tiny-2x"
NUM_SAMPLES = 48
Drawing = family_of({}).load("drawing")


def command(folder: Path, *flags: str) -> list[str]:
    """By the classifier of digits, unless ``flags`` say otherwise."""
    return [
        "bash", str(ROOT / "run_evaluator.sh"), "--checkpoint", str(CHECKPOINT), "--num_samples", str(NUM_SAMPLES),
        "--output_dir", str(folder), "--batch_size", "1", "--features", "digits", *flags,
    ]  # fmt: skip


def by_inception() -> tuple[str, ...]:
    """Flags of the fixture's network and reference."""
    graph, reference = str(FIXTURE / "classify_image_graph_def.pb"), str(FIXTURE / "reference.npz")
    return ("--features", "inception", "--inception_graph", graph, "--reference", reference)


ENVIRONMENT = {"PYTHON": sys.executable}


def start_run(folder: Path, *flags: str, **variables: str) -> Outcome:
    """From another working directory, as anybody may call it."""
    return start(*command(folder, *flags), folder=folder.parent, **ENVIRONMENT, **variables)


def read_result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def num_drawn(folder: Path) -> int:
    """So many of the samples are done; 0 before there are any."""
    return sum(int(path.stem.rpartition("-")[2]) for path in folder.glob("samples/.progress/rank*/[!.]*.npz"))


def is_running(folder: Path) -> bool:
    """Whether any process still works on the folder."""
    return subprocess.run(["pgrep", "-f", f"output_dir {folder}"], stdout=subprocess.DEVNULL).returncode == 0


def kill_when_drawn(folder: Path, count: int, how: signal.Signals, *flags: str, **variables: str) -> None:
    """Start a run and kill it, not its children, when so many samples are done; those have to end by themselves."""
    process = subprocess.Popen(
        command(folder, *flags),
        env={**os.environ, **ENVIRONMENT, **variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + PATIENCE
    while num_drawn(folder) < count:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.002)
    process.send_signal(how)
    process.wait()
    while is_running(folder):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.processes
def test_killed_twice_it_goes_on_to_one_result(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    kill_when_drawn(folder, 3, signal.SIGTERM)
    first = num_drawn(folder)
    kill_when_drawn(folder, first + 3, signal.SIGKILL)
    assert first < num_drawn(folder) < NUM_SAMPLES
    assert not (folder / "result.json").exists()
    outcome = start_run(folder)
    assert outcome.code == 0, outcome.err
    assert sorted(path.name for path in folder.iterdir()) == ["result.json", "samples"]
    assert sorted(path.name for path in (folder / "samples").iterdir()) == ["grid.png", "samples.json", "samples.npz"]
    expected = main_sample_images(tmp_path)
    with np.load(folder / "samples/samples.npz") as file:
        np.testing.assert_array_equal(file["arr_0"], expected)


def main_sample_images(tmp_path: Path) -> np.ndarray:
    """The same samples drawn by main_sample.py without interruption."""
    words = ("--checkpoint", str(CHECKPOINT), "--num_samples", str(NUM_SAMPLES), "--format", "npz")
    outcome = call(main_sample.main, *words, "--batch_size", "1", "--output_dir", str(tmp_path / "plain"))
    assert outcome.code == 0, outcome.err
    with np.load(tmp_path / "plain/samples.npz") as file:
        return file["arr_0"]


def shadow_modules(folder: Path) -> None:
    """Modules of our names and of libraries' that must not be imported."""
    for name in ("models", "data", "evaluation", "sampling", "runtime"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise SystemExit('the wrong one')")
    for name in ("yaml", "numpy", "torch", "json"):
        (folder / f"{name}.py").write_text("raise SystemExit('the wrong one')")


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """The folder of a run of two ranks that was killed and went on, and what was said at its end.

    Modules in the working directory change nothing, though an empty entry of PYTHONPATH names it to further ranks.
    """
    folder = tmp_path_factory.mktemp("ranks") / "run"
    shadow_modules(folder.parent)
    flags = ("--seed", "5")
    ours = {"CHECKERBOARD_CFG": "1.25", "CHECKERBOARD_SEED": "4", "CHECKERBOARD_NPROC": "2"}
    others = {"CFG": "9", "NUM_SAMPLES": "7", "BACKEND": "torch", "DEVICE": "tpu", "CHECKERBOARD_DTYPE": ""}
    others["PYTHONPATH"] = ":/nowhere"
    kill_when_drawn(folder, 3, signal.SIGKILL, *flags, **ours, **others)
    assert 0 < num_drawn(folder) < NUM_SAMPLES
    outcome = start_run(folder, *flags, **ours, **others)
    assert outcome.code == 0, outcome.err
    return folder, outcome


@pytest.mark.ranks
def test_ranks_end_with_the_run_and_go_on_to_the_result_of_one(
    of_two_ranks: tuple[Path, Outcome], tmp_path: Path
) -> None:
    alone = call(program.main, *command(tmp_path / "alone", "--seed", "5", "--cfg", "1.25")[2:])
    assert alone.code == 0, alone.err
    first, second = read_result(of_two_ranks[0]), read_result(tmp_path / "alone")
    assert {name: first[name] for name in first["metrics"]} == {name: second[name] for name in second["metrics"]}
    assert first["samples"]["sha256"] == second["samples"]["sha256"]


@pytest.mark.ranks
def test_settings_by_variable_and_flag_are_recorded(of_two_ranks: tuple[Path, Outcome]) -> None:
    """Variables of other names, which others export for other programs, change nothing; those of ours are printed."""
    folder, outcome = of_two_ranks
    result = read_result(folder)
    assert (result["run"]["cfg"], result["run"]["seed"], result["run"]["nproc"]) == (1.25, 5, 2)
    assert (result["sampling"]["cfg"], result["sampling"]["seed"]) == (1.25, 5)
    assert result["run"]["model_sha256"] == result["sampling"]["model_sha256"]
    assert (result["num_samples"], result["published"]) == (NUM_SAMPLES, None)
    assert f"FD-digits-{NUM_SAMPLES}" in outcome.out
    assert "published" not in outcome.out
    (line,) = (line for line in outcome.out.splitlines() if line.startswith("from the environment: "))
    assert sorted(line.split()[3:]) == ["--cfg=1.25", "--nproc=2", "--seed=4"]


def test_a_variable_that_is_no_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHECKERBOARD_CGF", "1.5")
    message = call(program.main, *command(tmp_path / "run")[2:]).error()
    assert "CHECKERBOARD_CGF in the environment; did you mean CHECKERBOARD_CFG?" in message


@pytest.mark.processes
@pytest.mark.parametrize("path", [None, "/nowhere::"])
def test_a_working_directory_of_other_modules(path: str | None, tmp_path: Path) -> None:
    """Not even where an empty entry of the user's PYTHONPATH would name it."""
    shadow_modules(tmp_path)
    variables = {} if path is None else {"PYTHONPATH": path}
    outcome = start_run(tmp_path / "run", "--num_samples", "8", **variables)
    assert outcome.code == 0, outcome.err
    assert read_result(tmp_path / "run")["num_samples"] == 8


@pytest.mark.processes
def test_a_classifier_takes_the_place_of_inception(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ["bash", str(ROOT / "run_evaluator.sh"), "--features", "digits", "--checkpoint", str(CHECKPOINT)]
    words += ["--num_samples", str(NUM_SAMPLES), "--output_dir", str(folder), "--device", "cpu"]
    outcome = start(*words, folder=tmp_path, **ENVIRONMENT)
    assert outcome.code == 0, outcome.err
    result = read_result(folder)
    assert result["metrics"] == [f"FD-digits-{NUM_SAMPLES}", "Class accuracy"]
    measured = result[f"FD-digits-{NUM_SAMPLES}"]
    assert f"FD-digits-{NUM_SAMPLES}: {measured:.6g} (real test images: FD-digits-297 1.115" in outcome.out
    alone = call(evaluator.main, str(statistics_file("digits", "train")), str(folder / "samples"), *words[2:4])
    assert f"FD-digits-{NUM_SAMPLES}: {measured:.6g} (" in alone.out
    again = start(*words, "--delete_samples", folder=tmp_path, **ENVIRONMENT)  # the result is found again
    remark, *told = again.out.splitlines()
    assert "averaged weights" in remark
    assert (again.code, len(told)) == (0, 3)
    assert [path.name for path in folder.iterdir()] == ["result.json"]


def test_samples_of_other_settings_are_not_deleted(tmp_path: Path) -> None:
    """What another run has begun in the folder stays: the result's own samples alone are removed."""
    flags = ("--features", "digits", "--checkpoint", str(CHECKPOINT), "--num_samples", "8", "--device", "cpu")
    words = (*flags, "--output_dir", str(tmp_path))
    assert call(program.main, *words).code == 0
    record = tmp_path / "samples/samples.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"seed": 1}))
    again = call(program.main, *words, "--delete_samples")
    assert (again.code, "holds samples of other settings" in again.out) == (0, True)
    assert (tmp_path / "samples/samples.npz").exists()


def test_another_setting_keeps_the_earlier_result(tmp_path: Path) -> None:
    folder, written = tmp_path / "run", []
    for seed in ("0", "0", "1"):
        outcome = call(program.main, *command(folder, "--num_samples", "8", "--seed", seed)[2:])
        assert outcome.code == 0, outcome.err
        written.append((folder / "result.json").stat().st_mtime_ns)
    assert written[0] == written[1]  # the second run found its result
    assert json.loads((folder / "result.1.json").read_text())["run"]["seed"] == 0
    assert read_result(folder)["run"]["seed"] == 1


def test_another_autoencoder_is_measured_anew(tmp_path: Path) -> None:
    """Whose weights lie beside a checkpoint that stayed as it was; images and figures are new, as in a new folder."""
    run, found = save_run(tmp_path / "run", tiny_model()), []
    for folder in ("a", "a", "b"):
        words = command(tmp_path / folder, "--checkpoint", str(run), "--num_samples", "8")[2:]
        outcome = call(program.main, *words)
        assert outcome.code == 0, outcome.err
        result = read_result(tmp_path / folder)
        found.append((result["FD-digits-8"], result["samples"]["sha256"], result["run"]["model_sha256"]))
        if len(found) == 1:
            (weights,) = (run / "autoenc").glob("*.safetensors")
            state = load_file(weights)
            save_file({k: -v if "decoder.conv_out" in k else v.clone() for k, v in state.items()}, weights)
    assert found[1] == found[2]
    assert all(new != old for new, old in zip(found[1], found[0], strict=True))
    assert json.loads((tmp_path / "a/result.1.json").read_text())["FD-digits-8"] == found[0][0]


@pytest.mark.parametrize("constant", ["VERSION", "DRAWING_VERSION"])
def test_a_result_of_other_code_is_not_taken(constant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it says that the same settings gave other images or metrics."""
    words = command(tmp_path / "run", "--num_samples", "8")[2:]
    assert call(program.main, *words).code == 0
    monkeypatch.setattr(measure, constant, -1)
    assert call(program.main, *words).code == 0
    assert (tmp_path / "run/result.1.json").exists()


@pytest.mark.parametrize("preset", [name for name in PRESETS if name[0].isdigit()])
def test_presets_are_rows_of_the_papers_table(preset: PresetName) -> None:
    args, drawing = RunArgs(preset=preset).completed(), Drawing(**PRESETS[preset].drawing)
    ratio, cfg = preset.split("-cfg")
    assert drawing.cfg == float(cfg)
    assert args.checkpoint.endswith(f"pretrained_models/checkerboard-L-{ratio}")
    assert drawing.steps_per_scale == {"2x": 4, "4x": 8}[ratio]  # 17 steps either way
    assert (args.num_samples, drawing.cfg_start_step, args.nproc) == (50_000, 5, 1)
    assert default_folder(args, drawing).startswith(f"output/evaluation/{preset}-cfg{cfg}-")


def test_the_folder_is_called_by_the_checkpoints(tmp_path: Path) -> None:
    """Two runs hold files of one name, and a run several files."""
    for checkpoint in (CHECKPOINT, CHECKPOINT / "checkpoint-last.pth"):
        assert default_folder(RunArgs(checkpoint=str(checkpoint)), Drawing()).startswith(
            "output/evaluation/tiny-2x-cfg"
        )
    for name in ("checkpoint-last.pth", "checkpoint-0010.pth", "checkpoint-0020.pth"):
        (tmp_path / name).touch()
    names = {default_folder(RunArgs(checkpoint=str(file)), Drawing()) for file in (tmp_path, *tmp_path.iterdir())}
    assert len(names) == 3


# formats.md G7: folder, cfg_scale, FID, and side that images are resized to
LLAMAGEN = {
    "llamagen-b-256": ("llamagen-b", 2.0, 5.46, None),
    "llamagen-l-256": ("llamagen-l", 1.75, 3.80, None),
    "llamagen-b-384": ("llamagen-b-384", 2.0, 6.09, 256),
    "llamagen-l-384": ("llamagen-l-384", 2.0, 3.07, 256),
    "llamagen-xl-384": ("llamagen-xl-384", 1.75, 2.62, 256),
    "llamagen-xxl-384": ("llamagen-xxl-384", 1.75, 2.34, 256),
    "llamagen-3b-384": ("llamagen-3b-384", 1.65, 2.18, 256),
    "npp-b": ("npp-b", 2.0, 4.47, None),
    "npp-l": ("npp-l", 1.75, 2.76, None),
    "npp-xl": ("npp-xl", 1.7, 2.65, None),
    "npp-xxl": ("npp-xxl", 1.65, 2.55, None),
}


def test_presets_are_rows_of_llamagens_tables() -> None:
    """By the family's own drawing; each folder is one that download.sh fills."""
    assert {name for name in PRESETS if name.startswith(("llamagen", "npp"))} == set(LLAMAGEN)
    downloaded = {file.path.split("/")[0] for file in TABLE}
    for preset, (folder, cfg_scale, fid, side) in LLAMAGEN.items():
        args = RunArgs(preset=preset).completed()
        drawing = family_of({"architecture": "llamagen"}).load("drawing")(**PRESETS[preset].drawing)
        assert Path(args.checkpoint) == ROOT / "pretrained_models" / folder
        assert folder in downloaded
        assert drawing.cfg == pytest.approx(cfg_scale - 1)
        assert (drawing.temperature, drawing.top_k, drawing.top_p, drawing.cfg_interval) == (1, 0, 1, -1)
        assert (args.num_samples, args.resize_to, PRESETS[preset].published["FID"]) == (50_000, side, fid)
        size = "" if side is None else f"-{side}px"
        assert default_folder(args, drawing) == f"output/evaluation/{preset}-{drawing.label}-50000-seed0{size}"


@pytest.mark.parametrize(
    ("preset", "end_of_scale", "fid"),
    [("randar-l", 3.4, 2.65), ("randar-l-maskgit", 4.0, 2.47), ("randar-xl", 4.0, 2.27)],
)
def test_presets_of_randar_are_the_released_rows(preset: PresetName, end_of_scale: float, fid: float) -> None:
    """formats.md R1, R5."""
    drawing = family_of({"architecture": "randar"}).load("drawing")(**PRESETS[preset].drawing)
    assert drawing.cfg == pytest.approx(end_of_scale - 1)
    assert (len(drawing.schedule(256)), drawing.cfg_schedule, drawing.temperature) == (88, "linear", 1)
    assert PRESETS[preset].published["FID"] == fid


def test_a_preset_of_larger_images_is_measured_at_its_size(tmp_path: Path) -> None:
    """On a tiny model of 32 px in place of one of 384 px, at 16 px instead of 256: its own settings, but for that."""
    checkpoint = save_run(tmp_path / "tiny", tiny_gpt(autoencoder=tiny_autoencoder(), img_size=32))
    flags = ("--preset", "llamagen-l-384", "--checkpoint", str(checkpoint), "--resize_to", "16", "--num_samples", "8")
    folder = tmp_path / "run"
    outcome = call(program.main, *command(folder, *by_inception(), *flags, "--no_prec_recall")[2:])
    assert outcome.code == 0, outcome.err
    assert re.search(r"(?m)^FID-8 +\S+ +3\.07$", outcome.out)
    assert "not the published settings: checkpoint" in outcome.out
    assert "resize_to 16, num_samples 8" in outcome.out
    result = read_result(folder)
    assert result["published"] == {"FID": 3.07, "Inception Score": 256.1, "Precision": 0.83, "Recall": 0.52}
    assert result["Precision"] is result["Recall"] is None
    assert (result["run"]["cfg"], result["run"]["resize_to"], result["steps"]) == (1, 16, 64)
    with np.load(folder / "samples/samples.npz") as samples:
        assert samples["arr_0"].shape == (8, 16, 16, 3)


PRESET = "2x-cfg1.4"
PRESETS_DRAWING = Drawing(**PRESETS[PRESET].drawing)


def result_of(drawing: Any = PRESETS_DRAWING, **settings: Any) -> dict[str, Any]:
    args = RunArgs(preset=PRESET, **settings).completed()
    end = "" if args.num_samples >= 50_000 else f"-{args.num_samples}"
    metrics = {"Inception Score": 301.26, f"FID{end}": 2.7345, f"sFID{end}": 5.0, "Precision": 0.8, "Recall": None}
    run = asdict(args) | plain(drawing)
    return {**metrics, "metrics": list(metrics), "real_images": {}, "num_samples": args.num_samples, "run": run}


def test_the_published_metrics_stand_beside_the_measured_ones() -> None:
    lines = published_lines(result_of(batch_size=64, nproc=8), PRESET, PRESETS_DRAWING)
    assert [line.split() for line in lines] == [
        ["measured", "published"], ["Inception", "Score", "301.3", "302.5"], ["FID", "2.735", "2.72"],
        ["sFID", "5", "-"], ["Precision", "0.8", "0.81"], ["Recall", "-", "0.56"],
    ]  # fmt: skip


def test_a_longer_name_keeps_the_columns() -> None:
    result = result_of()
    result |= {"Inception Score (shuffled)": 303.0, "metrics": [*result["metrics"], "Inception Score (shuffled)"]}
    lines = published_lines(result, PRESET, PRESETS_DRAWING)
    assert lines[-1].split() == ["Inception", "Score", "(shuffled)", "303", "-"]
    assert len({len(line) for line in lines}) == 1


def test_what_was_published_of_other_settings_is_said() -> None:
    result = result_of(Drawing(cfg=1.6, steps_per_scale=4), num_samples=2100)
    lines = published_lines(result, PRESET, PRESETS_DRAWING)
    assert lines[2].split() == ["FID-2100", "2.735", "2.72"]
    assert lines[-1] == "not the published settings: num_samples 2100, cfg 1.6"
    lines = published_lines(result_of(decoder_dtype="bfloat16"), PRESET, PRESETS_DRAWING)
    assert lines[-1] == "not the published settings: decoder_dtype bfloat16"


def test_without_a_preset_the_defaults_are_the_papers() -> None:
    assert RunArgs().completed().checkpoint.endswith("checkerboard-L-2x")
    assert RunArgs().num_samples == 50_000
    assert PRESETS["2x-cfg1.5"].drawing.items() <= plain(Drawing()).items()


def test_mistakes_are_found_before_anything_is_drawn(tmp_path: Path) -> None:
    flags = command(tmp_path / "run", *by_inception())[2:]
    assert "did you mean --num_samples" in call(program.main, *flags, "--num_sampels", "3").error()
    assert "no checkpoint at" in call(program.main, *flags, "--checkpoint", "nowhere").error()
    assert "nowhere.npz does not exist" in call(program.main, *flags, "--reference", "nowhere.npz").error()
    of_a_classifier = str(statistics_file("digits", "train"))
    assert (
        "statistics of another network's features, and no images"
        in call(program.main, *flags, "--reference", of_a_classifier).error()
    )
    of_digits = ("--features", "digits", "--num_samples", "48")
    assert "name the --checkpoint of the digits model" in call(program.main, *of_digits).error()
    of_digits += ("--checkpoint", str(CHECKPOINT))
    assert (
        "--preset means nothing with --features digits"
        in call(program.main, *of_digits, "--preset", "2x-cfg1.4").error()
    )
    of_another = str(statistics_file("cifar10", "train"))
    assert "another network's features" in call(program.main, *of_digits, "--reference", of_another).error()
    theirs = tmp_path / "theirs.npz"
    np.savez(theirs, mu=np.zeros(100), sigma=np.eye(100))
    assert (
        "of 100 features, but this network has 2048" in call(program.main, *flags, "--reference", str(theirs)).error()
    )
    assert "leave --features out" in call(program.main, *of_digits, "--reference", str(theirs)).error()
    assert "nowhere.pb" in call(program.main, *flags, "--inception_graph", "nowhere.pb").error()
    assert "nproc is 0" in call(program.main, *flags, "--nproc", "0").error()
    assert "preset" in call(program.main, *flags, "--preset", "8x").error()
    if not REFERENCE.exists():
        assert f"fetch {REFERENCE_URL} to" in call(program.main, *flags, "--reference", "").error()
    assert not (tmp_path / "run").exists()


@pytest.mark.processes
def test_a_mistake_is_one_line_before_any_rank_is_started(tmp_path: Path) -> None:
    outcome = start_run(tmp_path / "run", "--checkpoint", "nowhere", "--nproc", "2")
    assert outcome.code == 2
    assert [line.split(":")[0] for line in outcome.err.splitlines()] == ["error"]
