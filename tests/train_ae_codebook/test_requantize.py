"""Training of a new codebook for a frozen autoencoder: resumption, ranks, the command and the finished folder.

Letters: B batch, C code dimension, S side of a code map, V codes, N latents.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from models.config import LlamaGenVQConfig
from models.loading.autoencoder import export_autoencoder, open_autoencoder
from models.loading.state import read_torch_file
from runtime.stopping import Stopped
from tests.codebook_factory import requantize_rank, requantize_task, requantize_trainer
from tests.command_factory import ROOT, Outcome, call
from tests.factory import Reference, tiny_autoencoder
from tests.training_factory import assert_same_training, exit_codes, read_events, read_log, start_ranks
from train_ae_codebook import main as command

OPTIONS = ({}, {"codebook_start": "kmeans", "codebook_update": "ema"})


def test_training_lowers_the_error(tmp_path: Path) -> None:
    requantize_trainer(tmp_path, epochs=8, n_embed=16, revive_freq=0).fit()
    begun = [metrics for metrics in read_log(tmp_path).values() if "usage" in metrics]
    assert len(begun) == 8 * 15 - 4
    for side in (2, 4):
        curve = [metrics[f"quantization_error_scale_{side}"] for metrics in begun]
        assert curve[-1] < 0.97 * next(error for error in curve if error > 0)
    held_out = [entry for entry in read_events(tmp_path) if "held_out_psnr_scale_4" in entry]
    assert len(held_out) == 1
    metrics = ("psnr", "l1", "quantization_error", "usage", "perplexity")
    assert {f"held_out_{name}_scale_{side}" for name in metrics for side in (1, 2, 4)} < held_out[0].keys()


@pytest.mark.parametrize("options", OPTIONS, ids=["paper", "kmeans-ema"])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(options: dict[str, Any], tmp_path: Path) -> None:
    """Stopped after every step: while moments are gathered, at the codebook's start, before revivals."""
    requantize_trainer(tmp_path / "whole", **options).fit()
    for _ in range(14):
        stopping = requantize_trainer(tmp_path / "stopped", **options)
        stopping.stop.number = 15
        with pytest.raises(Stopped):
            stopping.fit()
        assert stopping.state.module.count.sum() > 0
    requantize_trainer(tmp_path / "stopped", **options).fit()
    assert_same_training(tmp_path / "whole", tmp_path / "stopped")
    assert read_log(tmp_path / "whole") == read_log(tmp_path / "stopped")


@pytest.mark.ranks
@pytest.mark.parametrize("options", OPTIONS, ids=["paper", "kmeans-ema"])
def test_two_ranks_follow_one_of_twice_the_batch(options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    ranks = start_ranks(tmp_path / "two", 2, requantize_rank, tmp_path / "two", options | {"batch_size": 10})
    requantize_trainer(tmp_path / "one", **options).fit()
    assert exit_codes(ranks) == [0, 0], (tmp_path / "two" / "rank0.txt").read_text()
    single, double = read_log(tmp_path / "one"), read_log(tmp_path / "two")
    assert single.keys() == double.keys()
    for number, metrics in single.items():
        assert double[number] == pytest.approx(metrics, rel=1e-3, abs=1e-5)
    one, two = (read_torch_file(tmp_path / name / "checkpoint-last.pth")["model"] for name in ("one", "two"))
    assert torch.equal(one["count"], two["count"])
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


def test_checkpoints_leave_the_frozen_autoencoder_out(tmp_path: Path) -> None:
    requantize_trainer(tmp_path).fit()
    saved = read_torch_file(tmp_path / "checkpoint-last.pth")["model"]
    assert not [key for key in saved if key.startswith(("encoder", "decoder", "frozen"))]
    assert list(dict(requantize_task().module.named_parameters())) == ["quantize.embedding"]


# The command


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], Outcome]:
    """The folder, arguments and outcome of a run from a file as LlamaGen stores it."""
    folder = tmp_path_factory.mktemp("requantize")
    start = tiny_autoencoder(ch_mult=(1, 1))
    state = {key: value for key, value in start.state_dict().items() if not key.startswith(("quantize", "cluster"))}
    state |= {"quantize.embedding.weight": start.quantize.embedding.detach(), "quantize.codebook_used": torch.zeros(9)}
    torch.save({"model": state}, folder / "vq.pt")
    flags = {"start": folder / "vq.pt", "output_dir": folder / "run", "dataset": "digits", "data_path": "data/imagenet"}
    flags |= {"crop": "center", "img_size": 8, "scale_sizes": [1, 2, 4], "n_embed": 16, "batch_size": 100}
    flags |= {"moment_steps": 5, "lr": 0.01, "log_freq": 5, "num_workers": 0, "device": "cpu"}
    argv = ["--config", str(ROOT / "train_ae_codebook/config_requantize.yaml")]
    argv += [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return folder, argv, call(command.main, *argv)


def test_the_command_writes_a_published_autoencoder(finished: tuple[Path, list[str], Outcome]) -> None:
    folder, _, outcome = finished
    assert outcome.code == 0, outcome.err
    assert f"autoencoder: {folder / 'run' / 'autoencoder'}" in outcome.out
    assert {path.name for path in (folder / "run/autoencoder").iterdir()} == {
        "autoencoder_config.yaml",
        "checkpoint.pth",
    }
    start, made = open_autoencoder(folder / "vq.pt"), open_autoencoder(folder / "run/autoencoder")
    assert made.config == LlamaGenVQConfig(**{**vars(start.config), "n_embed": 16})
    saved = read_torch_file(folder / "run/checkpoint-last.pth")["model"]
    for key, value in start.state_dict().items():
        if not key.startswith(("quantize", "cluster")):
            assert torch.equal(made.state_dict()[key], value), key
    assert torch.equal(made.quantize.embedding, saved["quantize.embedding"])
    assert torch.equal(made.cluster_usage_train, saved["usage"])
    codes = made.tokenize(torch.rand(2, 3, 8, 8) * 2 - 1, (1, 2, 4))
    assert [tuple(scale.shape) for scale in codes] == [(2, 1, 1), (2, 2, 2), (2, 4, 4)]
    assert made.decode(codes[-1]).shape == (2, 3, 8, 8)


def test_its_file_has_the_published_names(finished: tuple[Path, list[str], Outcome], reference: Reference) -> None:
    folder, _, _ = finished
    state = torch.load(folder / "run/autoencoder/checkpoint.pth", weights_only=True)["state_dict"]
    published = read_torch_file(reference.folder / "checkpoint-last.pth")["model"]
    expected = {key.removeprefix("autoenc.") for key in published if key.startswith("autoenc.")}
    levels = ("conv_blocks.2", "conv_blocks.1.downsample", "conv_blocks.1.upsample", "attn")  # of deeper ones
    assert {key for key in state if not any(level in key for level in levels)} == {
        key for key in expected if not any(level in key for level in levels)
    }
    assert state["quantize.embedding.parametrizations.weight.original"].shape == (16, 8)


def test_the_same_command_again_exports_the_same(finished: tuple[Path, list[str], Outcome]) -> None:
    folder, argv, _ = finished
    before = read_torch_file(folder / "run/autoencoder/checkpoint.pth")["state_dict"]
    before = {key: value.clone() for key, value in before.items()}
    again = call(command.main, *argv)
    assert again.code == 0, again.err
    after = read_torch_file(folder / "run/autoencoder/checkpoint.pth")["state_dict"]
    assert all(torch.equal(after[key], value) for key, value in before.items())
    written = yaml.safe_load((folder / "run/config.yaml").read_text())
    assert list(written) == ["requantize"]
    assert written["requantize"]["n_embed"] == 16


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (("--start", "nowhere.pt"), "no autoencoder weights at nowhere.pt"),
        (("--start", "configs"), "configs holds neither checkpoint.pth nor autoencoder.safetensors"),
        (("--moment_steps", "15"), "the run has 15 steps, and the first 15 only gather moments; lower moment_steps"),
        (("--moment_steps", "0"), "moment_steps is 0; it must be at least 1"),
        (("--img_size", "16"), "img_size is 16"),
        (("--n_embed", "17"), "is of no run of this model"),
        (("--codebook_start", "means"), "codebook_start is means; it must be one of gaussian, kmeans"),
        (("--momet_steps", "3"), "unknown option --momet_steps; did you mean --moment_steps?"),
    ],
)
def test_a_mistake_is_answered_by_one_line(
    flags: tuple[str, ...], answer: str, finished: tuple[Path, list[str], Outcome]
) -> None:
    assert answer in call(command.main, *finished[1], *flags).error()


def test_a_run_does_not_go_on_from_another_start(finished: tuple[Path, list[str], Outcome], tmp_path: Path) -> None:
    _, argv, _ = finished
    export_autoencoder(tiny_autoencoder(seed=3, ch_mult=(1, 1)), tmp_path / "other")
    assert "trained from another start" in call(command.main, *argv, "--start", str(tmp_path / "other")).error()


def test_a_run_does_not_go_on_with_another_gathering(finished: tuple[Path, list[str], Outcome]) -> None:
    """Its codes would start twice, or never."""
    error = call(command.main, *finished[1], "--moment_steps", "3").error()
    assert re.search(r"holds a run with moment_steps \d+, not 3; keep it so, or name another --output_dir$", error)


def test_the_log_tells_moments_then_usage_of_each_scale(finished: tuple[Path, list[str], Outcome]) -> None:
    entries = [json.loads(line) for line in (finished[0] / "run/log.jsonl").read_text().splitlines()]
    by_step = {entry["step"]: entry for entry in entries if "loss" in entry}
    assert {f"latents_scale_{side}" for side in (1, 2, 4)} < by_step[5].keys()
    names = ("usage", "perplexity", "quantization_error")
    assert {f"{name}_scale_{side}" for name in names for side in (1, 2, 4)} < by_step[15].keys()
