"""Runs with a discriminator, and from given weights: ranks, kills, mistakes."""

import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.autoencoder import Autoencoder
from models.loading.autoencoder import export_autoencoder, open_autoencoder
from models.loading.state import read_torch_file
from runtime.errors import UserError
from runtime.stopping import Stopped
from tests.codebook_factory import ADVERSARIAL, ae_rank, ae_trainer
from tests.command_factory import ROOT, call
from tests.factory import tiny_autoencoder
from tests.training_factory import (
    assert_same_state,
    assert_same_training,
    exit_codes,
    read_log,
    start_process,
    start_ranks,
)
from train_ae_codebook import main as command
from train_ae_codebook.realism import PatchDiscriminator


@pytest.mark.ranks
def test_two_ranks_follow_one_of_twice_the_batch(tmp_path: Path) -> None:
    """All but the norm of the gradient, which turns on single codes."""
    settings = ADVERSARIAL | {"batch_size": 60, "lr": 1e-4, "discriminator_lr": 1e-4, "discriminator_start": 0}
    (tmp_path / "two").mkdir()
    ranks = start_ranks(tmp_path / "two", 2, ae_rank, tmp_path / "two", settings | {"batch_size": 30})
    ae_trainer(tmp_path / "one", **settings).fit()
    assert exit_codes(ranks) == [0, 0], (tmp_path / "two" / "rank0.txt").read_text()
    single, double = read_log(tmp_path / "one"), read_log(tmp_path / "two")
    assert single.keys() == double.keys()
    assert any("discriminator" in metrics for metrics in single.values())
    for number, metrics in single.items():
        assert double[number] | {"grad_norm": 0} == pytest.approx(metrics | {"grad_norm": 0}, rel=1e-2, abs=1e-3)


def kill_within(folder: Path, saved_steps: int, settings: dict[str, Any]) -> None:
    """SIGKILL a run in a process of its own once so many more steps are in its log."""
    log, process = folder / "log.jsonl", start_process(folder.with_suffix(".txt"), ae_rank, folder, settings)
    lines = len(log.read_text().splitlines()) if log.exists() else 0
    while process.is_alive() and (not log.exists() or len(log.read_text().splitlines()) < lines + saved_steps):
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.processes
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    """The discriminator, its optimizer and what it wants of the autoencoder too; a checkpoint after every step."""
    settings = ADVERSARIAL | {"epochs": 2, "batch_size": 20, "save_minutes": 0.0, "eval_freq": 0, "ema": True}
    ae_trainer(tmp_path / "whole", **settings).fit()
    for count in (4, 8):
        kill_within(tmp_path / "killed", count, settings)
    assert 0 < read_torch_file(tmp_path / "killed" / "checkpoint-last.pth")["step"] < 30
    ae_trainer(tmp_path / "killed", **settings).fit()
    assert_same_training(tmp_path / "whole", tmp_path / "killed")
    states = [read_torch_file(tmp_path / name / "checkpoint-last.pth")["task"] for name in ("whole", "killed")]
    assert states[0].keys() == {"discriminator", "optimizer"}
    assert len(states[0]["optimizer"]["state"]) == len(list(PatchDiscriminator().parameters()))
    assert_same_state(*states)
    assert read_log(tmp_path / "whole") == read_log(tmp_path / "killed")


@pytest.mark.parametrize("first", [True, False])
def test_a_run_keeps_its_discriminator_or_its_lack_of_one(first: bool, tmp_path: Path) -> None:
    with_it = ADVERSARIAL | {"discriminator_start": 0}
    stopping = ae_trainer(tmp_path, **(with_it if first else {}))
    stopping.stop.number = 15
    with pytest.raises(Stopped):
        stopping.fit()
    with pytest.raises(UserError, match=f"of a run {'with' if first else 'without'} a discriminator; keep it so"):
        ae_trainer(tmp_path, **({} if first else with_it)).fit()


# Starting from given weights


def tiny_start(folder: Path, **config: Any) -> tuple[Autoencoder, list[str]]:
    """An autoencoder as LlamaGen's file has it, 20 codes, and the arguments of a run of one step from there."""
    start = tiny_autoencoder(ch_mult=(1, 1), n_embed=20)
    state = {key: value for key, value in start.state_dict().items() if not key.startswith(("quantize", "cluster"))}
    state |= {"quantize.embedding.weight": start.quantize.embedding.detach(), "quantize.codebook_used": torch.zeros(9)}
    torch.save({"model": state}, folder / "vq.pt")
    flags = {**vars(replace(start.config, **config)), "start": folder / "vq.pt", "output_dir": folder / "run"}
    flags["ch_mult"] = list(flags["ch_mult"])
    flags |= {"dataset": "digits", "data_path": "data/imagenet", "crop": "center", "img_size": 8, "lr": 1e-5}
    flags |= {
        "scale_sizes": [1, 2, 4],
        "batch_size": 1500,
        "full_size_share": 1.0,
        "epochs": 1,
        "num_workers": 0,
        "device": "cpu",
    }
    argv = ["--config", str(ROOT / "train_ae_codebook/config_256.yaml"), "--warmup_epochs", "0"]
    return start, argv + [word for name, value in flags.items() for word in (f"--{name}", str(value))]


@pytest.mark.parametrize("num_codes", [20, 64])
def test_a_run_starts_from_given_weights_and_trains_all_of_them(num_codes: int, tmp_path: Path) -> None:
    start, argv = tiny_start(tmp_path, n_embed=num_codes)
    outcome = call(command.main, *argv)
    assert outcome.code == 0, outcome.err
    made = open_autoencoder(tmp_path / "run" / "autoencoder")
    assert made.config == replace(start.config, n_embed=num_codes)
    before = start.state_dict()
    for key, value in made.named_parameters():
        if key != "quantize.embedding" or num_codes == 20:
            assert not torch.equal(value, before[key]) or value.ndim == 1, key  # a bias may be lost in a norm
            torch.testing.assert_close(value, before[key], rtol=0, atol=1e-3)


def test_a_start_of_another_architecture_is_refused(tmp_path: Path) -> None:
    _, argv = tiny_start(tmp_path)
    export_autoencoder(tiny_autoencoder(ch_mult=(1, 1), z_channels=64), tmp_path / "other")
    answer = call(command.main, *argv, "--start", str(tmp_path / "other")).error()
    assert answer.endswith("other has z_channels 64, not 32; put that into the configuration's model:")
    assert "no autoencoder weights at nowhere.pt" in call(command.main, *argv, "--start", "nowhere.pt").error()
