"""main.py as a command: a whole small run, going on after kills at any moment, and answers to mistakes."""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main
from models import load_checkpoint
from models.checkerboard.config import CheckerboardConfig, CheckerboardDrawing
from models.loading.autoencoder import save_autoencoder
from models.loading.save import write_recommended
from models.loading.state import read_torch_file
from runtime.config import parse_config, to_yaml
from tests.command_factory import Outcome, call, start_python
from tests.factory import FIXTURES, tiny_autoencoder
from tests.training_factory import (
    FEW_DIGITS,
    assert_same_training,
    exit_codes,
    main_command,
    read_events,
    read_log,
    start_process,
    tiny_command,
)
from training import job
from training.options import TrainArgs

LAST = "checkpoint-last.pth"
SCORE = re.compile(
    r"drawn digits, by the classifier in pretrained_models/classifiers:\n"
    r"FD-digits-(?:10|500): (\S+) \(real test images: FD-digits-297 \S+\)\n"
    r"Class accuracy: (\S+) \(real test images: Class accuracy (\S+)\)\n"
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an autoencoder and a cache of codes, that all runs of this module share."""
    root = tmp_path_factory.mktemp("main")
    out = call(main.main, *tiny_command(root, root / "unused", use_cache=False, batch_size=250))
    assert out.code == 0, out.err
    assert not (root / "unused").exists()  # without use_cache, the cache is all that is made
    return root


def tiny_yaml(root: Path, folder: Path, **settings: Any) -> Path:
    """A configuration file that says what ``tiny_command`` does; the autoencoder's path is from here."""
    path = folder / "tiny.yaml"
    sections = {"model": CheckerboardConfig, "args": (TrainArgs, CheckerboardDrawing)}
    parsed, _ = parse_config(tiny_command(root, folder, **settings), "", "", sections)
    path.write_text(to_yaml(parsed))
    return path


@pytest.fixture(scope="module", autouse=True)
def few_scored() -> Iterator[None]:
    """In this process alone: one that is started by its file scores as many digits as users see."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "NUM_SCORED_DIGITS", FEW_DIGITS)
        yield


# A whole run


@pytest.fixture(scope="module")
def finished(root: Path) -> tuple[Path, Path, Outcome]:
    """The folder, the configuration and the outcome of a run of two epochs, in a process of its own."""
    config = tiny_yaml(root, root, output_dir=root / "run", epochs=2, batch_size=100, log_freq=5, ema=True)
    return root / "run", config, start_python("main.py", "--config", str(config))


@pytest.mark.processes
def test_a_run_says_what_it_does_and_how_it_went(finished: tuple[Path, Path, Outcome]) -> None:
    folder, _, outcome = finished
    assert outcome.code == 0, outcome.err
    assert "Traceback" not in outcome.err
    assert "error" not in outcome.err
    assert "scales 1 2 4; 1500 images of 10 classes; 15 steps an epoch on 1 rank; float32 on cpu" in outcome.out
    assert f"samples: {folder / 'samples'}; checkpoint: {folder / LAST}\n" in outcome.out
    distance, drawn, held_out = map(float, SCORE.search(outcome.out).groups())
    assert distance > 0
    assert 0 <= drawn <= 1
    assert held_out > 0.9


def test_a_folder_that_another_process_trains_in_is_left_alone(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = tiny_yaml(root, tmp_path, output_dir=folder, epochs=1, batch_size=100)
    folder.mkdir()
    with FileLock(folder / ".lock"):
        message = call(main.main, "--config", str(config), "--scan_order", "raster").error()
    assert f"another process is at work in {folder}; wait for it, or name another output_dir" in message
    assert not (folder / "config.yaml").exists()


def test_a_run_leaves_everything_in_its_folder(finished: tuple[Path, Path, Outcome]) -> None:
    folder, _, _ = finished
    files = sorted(path.name for path in folder.iterdir() if not path.name.startswith("events.out"))
    assert files == ["autoenc", LAST, "config.yaml", "log.jsonl", "samples"]
    saved = read_torch_file(folder / LAST)
    assert (saved["step"], saved["epoch"], saved["class_names"]) == (30, 2, [str(digit) for digit in range(10)])
    with Image.open(folder / "samples" / "epoch_0002.png") as grid:
        assert grid.size[0] > 8 * (64 + 2) + 2  # 8 columns of 8 px enlarged beside the names
        assert grid.size[1] == 10 * (64 + 2) + 2  # a row a digit
        assert np.array(grid).std() > 5
    for use_ema in (False, True):
        assert load_checkpoint(folder, use_ema).config.num_classes == 10


def test_the_log_is_json_lines_and_tensorboard_holds_the_same(finished: tuple[Path, Path, Outcome]) -> None:
    folder, _, _ = finished
    log = read_log(folder)
    assert list(log) == [5, 10, 15, 20, 25, 30]
    board = EventAccumulator(str(folder))
    board.Reload()
    names = {"loss", "epoch", "lr", "grad_norm"} | {
        f"{kind}_scale_{side}" for kind in ("loss", "accuracy") for side in (1, 2, 4)
    }
    assert set(board.Tags()["scalars"]) == names
    for name in names:
        scalars = {scalar.step: scalar.value for scalar in board.Scalars(name)}
        assert scalars == pytest.approx({step: entry[name] for step, entry in log.items()}, rel=1e-6)
    for entry in log.values():
        assert all(map(np.isfinite, entry.values()))
        assert all(0 <= entry[f"accuracy_scale_{side}"] <= 1 for side in (1, 2, 4))
    assert log[30]["loss"] < 0.95 * log[5]["loss"]


def test_the_same_command_again_does_not_train_again(finished: tuple[Path, Path, Outcome]) -> None:
    folder, config, _ = finished
    before, settings = (folder / LAST).read_bytes(), (folder / "config.yaml").read_bytes()
    again = call(main.main, "--config", str(config), "--lr", "0.5")
    assert again.code == 0, again.err
    assert f"going on from {folder / LAST}: epoch 2, step 30" in again.out
    assert "is finished with 2 epochs; a higher --epochs goes on with it" in again.out
    assert re.search(r"warning: no effect on a finished run: lr 0.5 \(it has [\d.e-]+\)\n", again.err)
    assert not SCORE.search(again.out)
    assert (folder / LAST).read_bytes() == before
    assert (folder / "config.yaml").read_bytes() == settings
    assert list(read_log(folder)) == [5, 10, 15, 20, 25, 30]


def test_what_previews_are_drawn_by_is_recommended(finished: tuple[Path, Path, Outcome], tmp_path: Path) -> None:
    """Once a sweep has found better settings they stay; the run's own configuration can be trained from."""
    shutil.copytree(finished[0], tmp_path / "run")
    place = tmp_path / "run/config.yaml"
    before = yaml.safe_load(place.read_text())
    assert before["sampling"] == {"cfg": 0.0, "steps_per_scale": 1}
    write_recommended(place, {"cfg": 0.5})
    command = ["--config", str(place), "--output_dir", str(tmp_path / "run"), "--epochs", "3"]
    assert call(main.main, *command).code == 0
    assert yaml.safe_load(place.read_text())["sampling"] == {"cfg": 0.5}
    command[3] = str(tmp_path / "new")  # another run, of the same configuration
    assert call(main.main, *command[:-2], "--epochs", "1").code == 0
    assert yaml.safe_load((tmp_path / "new/config.yaml").read_text())["sampling"] == {"cfg": 0.5}

    shutil.copytree(finished[0], tmp_path / "other")  # which no sweep has changed
    command = ["--config", str(finished[1]), "--output_dir", str(tmp_path / "other"), "--epochs", "3"]
    assert call(main.main, *command, "--cfg", "2").code == 0
    found = yaml.safe_load((tmp_path / "other/config.yaml").read_text())["sampling"]
    assert found == {"cfg": 2.0, "steps_per_scale": 1}


def test_a_users_files_in_the_run_folder_stay(finished: tuple[Path, Path, Outcome], tmp_path: Path) -> None:
    """The configuration itself, with its comments, and a folder called autoenc of another autoencoder."""
    folder = tmp_path / "mine"
    (folder / "autoenc").mkdir(parents=True)
    (folder / "autoenc/notes.txt").write_text("of another")
    text = f"# my notes\n{finished[1].read_text()}"
    (folder / "config.yaml").write_text(text)
    command = ["--config", str(folder / "config.yaml"), "--output_dir", str(folder), "--epochs", "1"]
    first = call(main.main, *command)
    assert first.code == 0, first.err
    assert (folder / "config.1.yaml").read_text() == text
    assert (folder / "autoenc.1/notes.txt").read_text() == "of another"
    again = call(main.main, *command)  # which now reads the configuration of the run
    assert "is finished with 1 epochs" in again.out
    assert not (folder / "config.2.yaml").exists()


def test_going_on_needs_no_weights_to_start_from(finished: tuple[Path, Path, Outcome], tmp_path: Path) -> None:
    shutil.copytree(finished[0], tmp_path / "first")
    command = ["--config", str(finished[1]), "--output_dir", str(tmp_path / "run")]
    command += ["--weights_init", str(tmp_path / "first")]
    assert call(main.main, *command, "--epochs", "1").code == 0
    shutil.rmtree(tmp_path / "first")
    outcome = call(main.main, *command, "--epochs", "2")
    assert outcome.code == 0, outcome.err


def test_a_last_preview_is_made_up_for(finished: tuple[Path, Path, Outcome], tmp_path: Path) -> None:
    """Of a run that was killed while it drew it."""
    shutil.copytree(finished[0], tmp_path / "run")
    (preview,) = (tmp_path / "run/samples").glob("epoch_0002*")
    preview.unlink()
    (tmp_path / "run/samples/.unfinished-epoch_0002").touch()
    outcome = call(main.main, "--config", str(finished[1]), "--output_dir", str(tmp_path / "run"))
    assert outcome.code == 0, outcome.err
    assert preview.is_file()


def test_previews_that_cannot_be_drawn_are_refused_at_the_start(
    finished: tuple[Path, Path, Outcome], tmp_path: Path
) -> None:
    command = ["--config", str(finished[1]), "--output_dir", str(tmp_path / "run"), "--steps_per_scale", "4"]
    command += ["--remainder", "fold", "--cfg", "[1,2]"]
    assert "cfg has 2 values" in call(main.main, *command).error()
    assert not (tmp_path / "run/config.yaml").exists()


def test_more_epochs_go_on(finished: tuple[Path, Path, Outcome], root: Path, tmp_path: Path) -> None:
    """In a moved folder, and to the same weights as a run of three epochs from the start."""
    folder, config, _ = finished
    shutil.copytree(folder, tmp_path / "moved")
    for name in ("moved", "whole"):
        outcome = call(main.main, "--config", str(config), "--epochs", "3", "--output_dir", str(tmp_path / name))
        assert outcome.code == 0, outcome.err
    assert_same_training(tmp_path / "whole", tmp_path / "moved")
    assert read_log(tmp_path / "whole") == read_log(tmp_path / "moved")
    grids = [(tmp_path / name / "samples" / "epoch_0003.png").read_bytes() for name in ("moved", "whole")]
    assert grids[0] == grids[1]


def test_images_train_as_their_cached_codes_do(root: Path, tmp_path: Path) -> None:
    for name, cached in (("live", False), ("cached", True)):
        flags = {"create_cache": False, "use_cache": cached, "batch_size": 250, "epochs": 1}
        outcome = call(main.main, *tiny_command(root, tmp_path / name, **flags))
        assert outcome.code == 0, outcome.err
    assert read_log(tmp_path / "live") == read_log(tmp_path / "cached")
    assert_same_training(tmp_path / "live", tmp_path / "cached")


def test_a_run_is_named_after_its_configuration(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_yaml(root, tmp_path, output_dir=None, epochs=1, batch_size=500)
    monkeypatch.chdir(tmp_path)
    assert call(main.main, "--config", str(config)).code == 0
    assert (tmp_path / "output" / "tiny" / LAST).exists()


def test_weights_to_start_from(finished: tuple[Path, Path, Outcome], root: Path, tmp_path: Path) -> None:
    """They start a new run alone: the second command goes on with the run that is there."""
    folder, _, _ = finished
    argv = tiny_command(root, tmp_path / "run", weights_init=folder, epochs=1, batch_size=500, scale_ratio=4.0, lr=0.0)
    first, again = (call(main.main, *argv, "--cached_path", str(tmp_path / "cached")) for _ in range(2))
    assert first.code == again.code == 0, first.err
    assert re.search(rf"\d+ of \d+ tensors start from {folder / LAST}", first.out)
    assert "not loaded, freshly initialized: embed_positions.weight ((21, 32) there, (17, 32) here)" in first.out
    assert "start from" not in again.out
    assert "going on from" in again.out
    weights = [read_torch_file(path / LAST)["model"]["lm_head.weight"] for path in (folder, tmp_path / "run")]
    assert torch.equal(*weights)


def test_the_cache_can_be_checked(root: Path) -> None:
    outcome = call(main.main, *tiny_command(root, root / "unused", create_cache=False, verify_cache=20))
    assert outcome.code == 0, outcome.err
    assert re.search(r"^0 of \d+ codes differ from those in ", outcome.out, flags=re.MULTILINE)
    assert not (root / "unused").exists()


def test_an_unconditional_model_trains_and_draws(root: Path, tmp_path: Path) -> None:
    argv = tiny_command(root, tmp_path, class_cond=False, num_classes=0, cfg=1.5, epochs=1, batch_size=500)
    outcome = call(main.main, *argv)
    assert outcome.code == 0, outcome.err
    assert "Warning" not in outcome.err
    assert "accuracy" not in outcome.out  # its digits are of no class
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["model"]["num_classes"] == 0
    with Image.open(tmp_path / "samples" / "epoch_0001.png") as grid:
        assert grid.size == (8 * 66 + 2, 16 * 66 + 2)


# Going on after kills


LONG = {"epochs": 4, "batch_size": 100, "log_freq": 2, "eval_freq": 2, "ema": True, "save_minutes": 0.001}


@pytest.fixture(scope="module")
def undisturbed(root: Path) -> tuple[Path, str]:
    """A run of 60 steps that saves after almost each, and the line of its score."""
    outcome = call(main.main, *tiny_command(root, root / "undisturbed", **LONG))
    assert outcome.code == 0, outcome.err
    return root / "undisturbed", SCORE.search(outcome.out)[0]


def num_lines(folder: Path) -> int:
    log = folder / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def disturb(argv: list[str], folder: Path, entries: int, delay: float, stop: Callable[[Any], None]) -> int:
    """Start a run, stop it ``delay`` seconds after it logged so many more entries; returns its exit code."""
    process, enough = start_process(folder.with_suffix(".txt"), main_command, argv), num_lines(folder) + entries
    while entries and num_lines(folder) < enough and process.is_alive():
        process.join(0.002)
    process.join(delay)
    stop(process)
    return exit_codes([process])[0]


def printed(folder: Path) -> str:
    """By the last process of a run that was disturbed."""
    return folder.with_suffix(".txt").read_text()


def assert_came_to_the_same(folder: Path, undisturbed: tuple[Path, str]) -> None:
    expected, score = undisturbed
    assert_same_training(expected, folder)
    assert read_log(folder) == read_log(expected)  # also: a step done twice logged the same twice
    grids = [path / "samples" / "epoch_0004.png" for path in (folder, expected)]  # a kill may cost an earlier one
    assert grids[0].read_bytes() == grids[1].read_bytes()
    files = {path.name for path in folder.iterdir() if not path.name.startswith("events.out")}
    assert files == {"autoenc", LAST, "config.yaml", "log.jsonl", "samples"}
    assert score in printed(folder)


@pytest.mark.processes
def test_a_run_killed_at_any_moment_comes_to_the_same_end(
    root: Path, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    """Killed while it starts, trains, saves or draws, as it falls out; the same command each time."""
    folder, rng = tmp_path / "killed", np.random.default_rng(0)
    argv = tiny_command(root, folder, **LONG)
    for entries in (0, 3, 0, 6, 7):
        code = disturb(argv, folder, entries, rng.uniform(0, 0.2 if entries else 1.0), lambda process: process.kill())
        assert code == -signal.SIGKILL
        for saved in folder.glob(LAST):
            assert all(weight.isfinite().all() for weight in read_torch_file(saved)["model"].values())
    assert disturb(argv, folder, 0, 0, lambda process: process.join()) == 0
    starts = [entry["step"] for entry in read_events(folder) if "event" in entry]
    assert len(starts) >= 3
    assert starts == sorted(starts)
    assert 0 < starts[-1] < 60
    assert_came_to_the_same(folder, undisturbed)


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_saves_first(
    number: signal.Signals, root: Path, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    folder = tmp_path / "stopped"
    argv = tiny_command(root, folder, **LONG | {"save_minutes": 10.0})
    assert disturb(argv, folder, 4, 0, lambda process: os.kill(process.pid, number)) == 128 + number
    assert "stopped; the checkpoint is written, and the same command goes on from it" in printed(folder)
    assert "Traceback" not in printed(folder)
    assert 6 <= read_torch_file(folder / LAST)["step"] < 60
    assert disturb(argv, folder, 0, 0, lambda process: process.join()) == 0
    assert_came_to_the_same(folder, undisturbed)


# Mistakes


@pytest.mark.processes
def test_a_mistake_ends_a_process_with_one_line_and_code_2(root: Path, tmp_path: Path) -> None:
    output = tmp_path / "output.txt"
    process = start_process(output, main_command, tiny_command(root, tmp_path / "run", dtype="bf16"))
    assert exit_codes([process]) == [2]
    assert re.fullmatch(r"error: dtype is bf16; .*\n", output.read_text())


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({"epohcs": 3}, "unknown option --epohcs; did you mean --epochs?"),
        ({"llama_config.hiden_size": 3}, "did you mean --llama_config.hidden_size?"),
        ({"dtype": "bf16"}, "dtype"),
        ({"device": "tpu"}, "device tpu is unknown"),
        ({"num_classes": 12}, "digits has 10 classes, but num_classes is 12; set num_classes 10"),
        ({"dataset": "folder", "data_path": "nowhere"}, "no image folder at nowhere"),
        ({"dataset": "cifar10", "data_path": "nowhere"}, "no cifar10 under nowhere"),
        ({"autoenc.checkpoint_path": "nowhere.pth"}, "no autoencoder weights at /"),
        ({"autoenc.checkpoint_path": "README.md"}, "README.md"),
        ({"batch_size": 1501}, "1500 images do not fill one step of 1501; lower batch_size or accum_steps"),
        ({"batch_size": 100, "accum_steps": 16}, "1500 images do not fill one step of 1600"),
        ({"img_size": 9}, "img_size 9 is not a multiple of the autoencoder's stride 2"),
        ({"scale_ratio": 1.0}, "scale_ratio 1.0 makes no pyramid"),
        ({"cached_path": "nowhere", "create_cache": False}, "no cache of codes at nowhere"),
        ({"weights_init": "nowhere"}, "no checkpoint at nowhere"),
        ({"resume": "nowhere"}, "no checkpoint at nowhere"),
        ({"resume": FIXTURES / "tiny-2x"}, "tiny-2x holds a run with llama_config"),
        ({"attention": "flex"}, "attention flex trains on CUDA alone"),
        ({"llama_config.hidden_size": 30}, "hidden_size 30 must be a multiple"),
    ],
    ids=lambda value: "-".join(map(str, value.items())) if isinstance(value, dict) else "",
)
def test_a_mistake_is_answered_by_one_line(
    settings: dict[str, Any], answer: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = call(main.main, *tiny_command(root, tmp_path / "run", **settings)).error()
    assert answer in error
    assert not (tmp_path / "run" / LAST).exists()


def test_a_setting_of_another_family_is_told_whose_it_is(root: Path, tmp_path: Path) -> None:
    command = tiny_command(root, tmp_path / "run")
    whose = "belongs to architecture llamagen or randar"
    assert f"--vocab_size {whose}" in call(main.main, *command, "--vocab_size", "64").error()
    config = tiny_yaml(root, tmp_path)
    config.write_text(config.read_text().replace("model:\n", "model:\n  vocab_size: 64\n"))
    assert f"model has vocab_size, which {whose}" in call(main.main, "--config", str(config)).error()


def test_the_family_is_that_of_the_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.main(["--architecture", "randar", "--vocab_size", "64", "--print_config"])
    assert "vocab_size: 64" in capsys.readouterr().out
    assert "known are checkerboard, llamagen, randar" in call(main.main, "--architecture", "gpt").error()


def test_a_configuration_that_is_wrong_or_not_there(root: Path, tmp_path: Path) -> None:
    config = tiny_yaml(root, tmp_path)
    config.write_text(config.read_text().replace("epochs:", "epocs:"))
    assert (
        f"unknown key epocs in {config}: args; did you mean epochs?" in call(main.main, "--config", str(config)).error()
    )
    missing = tmp_path / "nowhere.yaml"
    assert call(main.main, "--config", str(missing)).error() == f"no such file: {missing}"


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({"scan_order": "raster"}, "with scan_order checkerboard, not raster"),
        ({"llama_config.num_hidden_layers": 1}, "with llama_config"),
        ({"ema": False}, "was trained with ema"),
    ],
)
def test_another_model_in_the_same_folder(
    settings: dict[str, Any], answer: str, root: Path, finished: tuple[Path, Path, Outcome]
) -> None:
    folder, config, _ = finished
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    flags = [word for name, value in settings.items() for word in (f"--{name}", json.dumps(value).strip('"'))]
    error = call(main.main, "--config", str(config), *flags).error()
    assert answer in error
    assert "name another output_dir" in error
    assert (folder / LAST).read_bytes() == before[LAST]


def test_another_autoencoder_in_the_same_folder(finished: tuple[Path, Path, Outcome], tmp_path: Path) -> None:
    _, config, _ = finished
    save_autoencoder(tiny_autoencoder(seed=1, ch_mult=(1, 1)), tmp_path)
    other = ["--autoenc.checkpoint_path", str(tmp_path / "autoencoder.safetensors"), "--cached_path", str(tmp_path)]
    error = call(main.main, "--config", str(config), *other).error()
    assert "holds a run with another autoencoder" in error


@pytest.mark.parametrize(
    ("settings", "answer"),
    [({"scan_order": "raster"}, "with scan_order checkerboard, not raster"), ({}, "with another autoencoder")],
)
def test_another_model_is_not_resumed_in_a_new_folder(
    settings: dict[str, Any], answer: str, root: Path, finished: tuple[Path, Path, Outcome], tmp_path: Path
) -> None:
    if not settings:
        save_autoencoder(tiny_autoencoder(seed=1, ch_mult=(1, 1)), tmp_path)
        settings = {"autoenc.checkpoint_path": tmp_path / "autoencoder.safetensors", "cached_path": tmp_path}
    for place in (finished[0], finished[0] / LAST):
        error = call(main.main, *tiny_command(root, tmp_path / "run", resume=place, **settings)).error()
        assert answer in error
        assert "start from its weights by --weights_init" in error
    assert not (tmp_path / "run").exists()


def test_weights_to_start_from_are_not_taken_by_what_is_resumed(
    root: Path, finished: tuple[Path, Path, Outcome], tmp_path: Path
) -> None:
    """And a configuration that the user has put into the new folder stays, under another name."""
    own = tmp_path / "run/config.yaml"
    own.parent.mkdir()
    own.write_text("# mine\nargs: {}\n")
    earlier = shutil.copytree(finished[0], tmp_path / "earlier")
    content = read_torch_file(earlier / LAST)
    (earlier / LAST).unlink()  # which is mapped into the memory
    torch.save(content | {"epoch": 1, "step": 15}, earlier / LAST)
    flags = {"resume": earlier, "weights_init": FIXTURES / "tiny-2x", "epochs": 2, "batch_size": 100, "ema": True}
    outcome = call(main.main, *tiny_command(root, tmp_path / "run", **flags))
    assert outcome.code == 0, outcome.err
    assert "tensors start from" not in outcome.out
    assert f"going on from {earlier / LAST}: epoch 1, step 15" in outcome.out
    assert (tmp_path / "run/config.1.yaml").read_text() == "# mine\nargs: {}\n"


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({"cfg": "[1, 2]"}, "cfg"),
        ({"val_images": 298}, "297 images are held out"),
        ({"adaptive_order": True}, "randar"),
    ],
)
def test_a_mistake_is_found_before_a_cache_is_made(
    settings: dict[str, Any], answer: str, root: Path, tmp_path: Path
) -> None:
    command = tiny_command(root, tmp_path / "run", cached_path=tmp_path / "cached", **settings)
    assert answer in call(main.main, *command).error()
    assert not (tmp_path / "cached").exists()


def test_a_cache_of_another_autoencoder_is_refused(root: Path, tmp_path: Path) -> None:
    save_autoencoder(tiny_autoencoder(seed=1, ch_mult=(1, 1)), tmp_path)
    flags = {"autoenc.checkpoint_path": tmp_path / "autoencoder.safetensors", "create_cache": False}
    error = call(main.main, *tiny_command(root, tmp_path / "run", **flags)).error()
    assert "was made with autoencoder_sha256" in error
