"""What runs cost by images, tokens and minutes, read from their logs; and the picture of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import tokens
from models.llamagen.config import LlamaConfig, LlamaGenConfig, LlamaGenDrawing
from models.llamagen.model import LlamaGen
from runtime.config import plain, write_yaml
from tests.command_factory import call
from tests.factory import tiny_autoencoder
from training.options import TrainArgs
from training.run_folder import begin_run, run_settings

pytestmark = pytest.mark.quick


def write_run(folder: Path, patch_level: int, log_freq: int = 1) -> Path:
    """A run of 4 epochs of 5 steps of 10 images, 16 codes each, 2 seconds a step and one pause of an hour."""
    config = LlamaGenConfig(img_size=8, num_classes=10, vocab_size=64, llama_config=LlamaConfig(8, 16, 2, 1))
    model = LlamaGen(config, tiny_autoencoder(ch_mult=(1, 1)))
    args = TrainArgs(epochs=4, batch_size=10, patch_level=patch_level)
    folder.mkdir()
    begin_run(folder, model.autoencoder)
    write_yaml(folder / "config.yaml", run_settings(config, (args, LlamaGenDrawing())))
    torch.save({"model": model.state_dict(), **plain(args)}, folder / "checkpoint-last.pth")
    start = {"event": "start", "images_a_step": 10}
    lines = [json.dumps(start | {"step": 0, "time": 0.0})]
    for step in range(1, 21):
        epoch = step / 5
        entry = {"step": step, "epoch": epoch, "loss": 5 - step / 10, "lr": 1.0, "time": 2.0 * step + 3600 * (step > 7)}
        if patch_level > 1:
            entry |= {"patch_side": args.patch_side(int(epoch - 0.01))}
        if step % log_freq == 0:
            lines.append(json.dumps(entry))
        if step == 7:  # it was stopped here, for an hour
            lines.append(json.dumps(start | {"step": 7, "time": 3614.0}))
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_costs_are_those_of_the_stages(tmp_path: Path) -> None:
    plain_run, patches = (tokens.course(write_run(tmp_path / f"run{level}", level)) for level in (1, 2))
    assert plain_run["images seen"][-1] == patches["images seen"][-1] == 200
    assert plain_run["tokens computed"][-1] == 200 * 16
    assert patches["tokens computed"][-1] == pytest.approx(100 * 4 + 100 * 16)
    assert patches["tokens computed"][9] == pytest.approx(100 * 4)
    assert plain_run["minutes"][-1] == pytest.approx(2 * 20 / 60)  # the pause does not count
    assert patches["side"].tolist() == [2] * 10 + [1] * 10


@pytest.mark.parametrize("log_freq", [3, 4, 7])
def test_a_stage_that_ends_between_two_entries(log_freq: int, tmp_path: Path) -> None:
    """It ends after 10 steps; the last entry has 18, 20 or 14 behind it."""
    found = tokens.course(write_run(tmp_path / "run", 2, log_freq=log_freq))
    last = 20 // log_freq * log_freq
    assert found["tokens computed"][-1] == pytest.approx(100 * 4 + (last - 10) * 10 * 16)


def test_steps_before_a_stop_count_without_an_entry(tmp_path: Path) -> None:
    """Logged every 5 steps, stopped after 7."""
    found = tokens.course(write_run(tmp_path / "run", 1, log_freq=5))
    assert found["images seen"].tolist() == [50, 100, 150, 200]
    assert found["minutes"].tolist() == pytest.approx([10 / 60, 20 / 60, 30 / 60, 40 / 60])


def test_steps_that_were_lost_do_not_count(tmp_path: Path) -> None:
    """Killed after step 20, it went on from a checkpoint of step 12."""
    folder = write_run(tmp_path / "run", 2)
    whole = tokens.course(folder)
    lines = (folder / "log.jsonl").read_text().splitlines()
    again = [json.loads(line) for line in lines if json.loads(line).get("step", 0) > 12]
    start = {"event": "start", "images_a_step": 10, "step": 12, "time": 9000.0}
    lines += [json.dumps(entry) for entry in (start, *(e | {"time": 9000 + 2.0 * (e["step"] - 12)} for e in again))]
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
    for name, values in tokens.course(folder).items():
        assert values.tolist() == pytest.approx(whole[name].tolist())
    (folder / "log.jsonl").write_text("\n".join(lines[: -len(again) + 1]) + "\n")
    assert tokens.course(folder)["images seen"][-1] == 130


def test_the_picture(tmp_path: Path) -> None:
    runs = ",".join(str(write_run(tmp_path / f"run{level}", level)) for level in (1, 2))
    outcome = call(tokens.main, "--runs", runs, "--smoothing", "1", "--output", str(tmp_path / "tokens.png"))
    assert outcome.code == 0, outcome.err
    assert "run2: loss 3.000 after 200 images seen, 2,000 tokens computed" in outcome.out
    assert np.array(Image.open(tmp_path / "tokens.png")).std() > 5


def test_mistakes(tmp_path: Path) -> None:
    assert call(tokens.main).error().startswith("name the --runs to compare")
    assert "no such file" in call(tokens.main, "--runs", str(tmp_path / "nowhere")).error()


def test_a_run_that_was_stopped_before_its_first_entry(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 1)
    starts = [{"event": "start", "step": step, "images_a_step": 10, "time": 9.0 * step} for step in (0, 30)]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in starts))
    assert "holds no metrics yet; train longer" in call(tokens.main, "--runs", str(run)).error()
