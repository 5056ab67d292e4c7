"""A new codebook for a frozen autoencoder: its loss, moments, revivals, resumption, ranks, and the finished folder.

Letters: B batch, C code dimension, S side of a code map, V codes, N latents.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from models.autoencoder import resize_image
from models.config import AutoencoderConfig
from models.loading.autoencoder import export_autoencoder, open_autoencoder
from models.loading.state import read_torch_file
from runtime.command import Stopped
from runtime.errors import UserError
from tests.codebook_factory import CPU, digits, requantize_args, requantize_rank, requantize_task, requantize_trainer
from tests.codebook_factory import step as step_randomness
from tests.command_factory import ROOT, Outcome, call
from tests.factory import Reference, tiny_autoencoder
from tests.training_factory import assert_same_training, exit_codes, read_events, read_log, start_ranks
from train_ae_codebook import main as command
from train_ae_codebook.codebook import USAGE_RATE
from train_ae_codebook.requantize import EMA_RATE, KMEANS_LATENTS, RequantizeArgs, RequantizeTask

OPTIONS = ({}, {"codebook_start": "kmeans", "codebook_update": "ema"})


@pytest.fixture(scope="module")
def images() -> Tensor:
    """(64, 3, 8, 8) scans in [-1, 1]."""
    return torch.stack([digits("train", 300)[(i, 0)][0] for i in range(64)])


def latents_of(task: RequantizeTask, images: Tensor, side: int) -> Tensor:
    """(N, C) in the order of images, rows and columns."""
    with torch.no_grad():
        z = task.frozen.encode(resize_image(images, side * task.frozen.config.stride))
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])


def started(**overrides: Any) -> RequantizeTask:
    """A task at its first step with a codebook."""
    task = requantize_task(moment_steps=1, **overrides)
    task.loss([torch.stack([digits("train", 300)[(i, 0)][0] for i in range(64)])], step_randomness(0))
    task.module.begin(torch.Generator().manual_seed(0))
    return task


# The loss


def test_the_loss_and_its_gradient_are_the_published_ones(reference: Reference) -> None:
    start = reference.model().autoencoder
    side = reference["encoded"].shape[-1]
    args = requantize_args(img_size=side * start.config.stride, scale_sizes=(side,), n_embed=start.config.n_embed)
    task = RequantizeTask(start, args, digits("val", 1), CPU)
    assert args.commitment == RequantizeArgs().commitment
    with torch.no_grad():
        task.module.quantize.embedding.copy_(start.quantize.embedding)
    loss, _ = task._quantize(0, reference["encoded"].permute(0, 2, 3, 1).reshape(-1, 8))
    loss.backward()
    torch.testing.assert_close(loss.double(), reference["quantizer_loss"], atol=1e-7, rtol=0)
    gradient = task.module.quantize.embedding.grad
    torch.testing.assert_close(gradient, reference["quantizer_codebook_grad"], atol=1e-7, rtol=1e-4)


def test_a_step_quantizes_one_size_of_the_pyramid(images: Tensor) -> None:
    task = started(scale_sizes=(4,))
    loss, _ = task.loss([images], step_randomness(3))
    latents = latents_of(task, images, 4)
    nearest = torch.cdist(latents, task.module.quantize.codebook()).min(1).values
    torch.testing.assert_close(loss, 1.001 * nearest.square().mean() / 8, rtol=1e-4, atol=0)


def test_the_full_size_comes_outright_or_as_one_of_all() -> None:
    """With probability 0.1 + 0.9 / 3 of three sizes (method.md Sec. 7)."""
    args, count = requantize_args(full_size_share=0.1), 3000
    sides = np.array([args.draw_side([1, 2, 4], step_randomness(i).shared) for i in range(count)])
    for side, share in ((1, 0.3), (2, 0.3), (4, 0.4)):
        assert abs((sides == side).mean() - share) < 4 * np.sqrt(share * (1 - share) / count)


def test_the_defaults_and_the_configuration_are_the_paper_s() -> None:
    section = yaml.safe_load((ROOT / "train_ae_codebook/config_requantize.yaml").read_text())["requantize"]
    told = {key: tuple(value) if isinstance(value, list) else value for key, value in section.items()}
    own = {key: value for key, value in vars(RequantizeArgs()).items() if key in told}
    assert told == own | {"log_freq": 100}
    expected = {"n_embed": 4096, "lr": 1e-4, "betas": (0.5, 0.9), "epochs": 1, "batch_size": 32, "moment_steps": 1000}
    expected |= {"commitment": 0.001, "full_size_share": 0.1, "revive_after": 2000, "revive_freq": 1000}
    assert told.items() >= expected.items()
    assert (told["weight_decay"], told["warmup_epochs"], told["dead_below"]) == (0.0, 0.0, 1e-4)  # AdamW is Adam then


# The start


def test_moments_are_those_of_all_latents_of_a_scale(images: Tensor) -> None:
    task, seen = requantize_task(moment_steps=12), {side: [] for side in (1, 2, 4)}
    before = task.module.quantize.embedding.detach().clone()
    for number in range(12):
        batch = images[number * 5 : number * 5 + 5]
        side = task.args.draw_side(task.sides, step_randomness(number).shared)
        seen[side].append(latents_of(task, batch, side))
        loss, statistics = task.loss([batch], step_randomness(number))
        loss.backward()
        assert loss == 0
        assert task.module.quantize.embedding.grad.abs().max() == 0
    for i, side in enumerate((1, 2, 4)):
        latents = torch.cat(seen[side]).double()
        count = task.module.count[i]
        assert count == statistics()[f"latents_scale_{side}"] == len(latents) > 0
        torch.testing.assert_close(task.module.mean[i].double(), latents.mean(0), rtol=1e-5, atol=1e-6)
        variance = task.module.squares[i].double() / count
        torch.testing.assert_close(variance, latents.var(0, correction=0), rtol=1e-4, atol=1e-7)
    assert torch.equal(task.module.quantize.embedding, before)


def test_codes_start_as_gaussian_draws_in_proportion_to_the_latents() -> None:
    task = requantize_task(n_embed=8000)
    task.module.count.copy_(torch.tensor([1000, 0, 3000]))
    task.module.mean.copy_(torch.tensor([[2.0], [99.0], [-1.0]]).expand(3, 8))
    task.module.squares.copy_(torch.tensor([[90.0], [7.0], [120.0]]).expand(3, 8))  # standard deviations 0.3, -, 0.2
    task.module.begin(torch.Generator().manual_seed(0))
    first, last = task.module.quantize.embedding.detach().split([2000, 6000])
    assert (first.mean() - 2).abs() < 0.3 * 4 / 16000**0.5
    assert (last.mean() + 1).abs() < 0.2 * 4 / 48000**0.5
    assert first.std().item() == pytest.approx(0.3, rel=0.03)
    assert last.std().item() == pytest.approx(0.2, rel=0.03)
    assert len(first.unique(dim=0)) == 2000


def test_the_optimizer_leaves_the_codes_where_they_are_while_moments_are_gathered(tmp_path: Path) -> None:
    training = requantize_trainer(tmp_path, moment_steps=14)
    before = training.module.quantize.embedding.detach().clone()
    begin, at_begin = training.module.begin, []
    training.module.begin = lambda generator: (
        at_begin.append(training.module.quantize.embedding.clone()),
        begin(generator),
    )
    training.fit()
    assert torch.equal(at_begin[0], before)
    assert not torch.equal(training.module.quantize.embedding, before)


def test_kmeans_finds_clusters() -> None:
    task = requantize_task(n_embed=4, moment_steps=2, codebook_start="kmeans")
    centres = F.normalize(torch.randn(4, 8), dim=-1)
    noisy = F.normalize(centres.repeat(50, 1) + 0.01 * torch.randn(200, 8), dim=-1)
    for number in range(2):
        task.module.keep(number, noisy, torch.Generator().manual_seed(number))
    assert task.module.kept.shape == (4 * KMEANS_LATENTS, 8)
    assert torch.cdist(task.module.kept, noisy, compute_mode="donot_use_mm_for_euclid_dist").min(1).values.max() == 0
    task.module.begin(torch.Generator().manual_seed(0))
    assert torch.cdist(centres, task.module.quantize.codebook()).min(1).values.max() < 0.03


def test_kmeans_starts_nearer_to_the_latents_than_draws_do(images: Tensor) -> None:
    errors = []
    for start in ("gaussian", "kmeans"):
        task = requantize_task(codebook_start=start)
        for number in range(4):
            task.loss([images], step_randomness(number))
        task.module.begin(torch.Generator().manual_seed(0))
        latents = torch.cat([latents_of(task, images, side) for side in (1, 2, 4)])
        errors.append(torch.cdist(latents, task.module.quantize.codebook()).min(1).values.square().mean())
    assert errors[1] < 0.9 * errors[0]


def test_kmeans_of_too_few_latents_is_refused() -> None:
    task = requantize_task(n_embed=4, codebook_start="kmeans")
    for number in range(4):
        task.module.keep(number, torch.eye(8)[:3], torch.Generator().manual_seed(number))
    with pytest.raises(
        UserError, match="needs 4 different latents, but the first steps saw about 3; raise moment_steps"
    ):
        task.module.begin(torch.Generator())


# Usage and revival


def test_usage_and_perplexity_of_each_scale(images: Tensor) -> None:
    """Moving averages of frequencies; a scale's own ones move with its own steps alone."""
    task = started()
    overall, own, errors = torch.zeros(32), {side: torch.zeros(32) for side in (1, 2, 4)}, {}
    for number in range(1, 12):
        side = task.args.draw_side(task.sides, step_randomness(number).shared)
        distance = torch.cdist(latents_of(task, images, side), task.module.quantize.codebook()).detach()
        frequencies = torch.bincount(distance.argmin(1), minlength=32) / len(distance)
        error = distance.min(1).values.square().mean() / 8
        overall = (1 - USAGE_RATE) * overall + USAGE_RATE * frequencies
        own[side] = (1 - USAGE_RATE) * own[side] + USAGE_RATE * frequencies
        errors[side] = (1 - USAGE_RATE) * errors[side] + USAGE_RATE * error if side in errors else error
        _, statistics = task._quantize(task.sides.index(side), latents_of(task, images, side))
    figures = statistics()
    assert errors.keys() == {1, 2, 4}
    for name, usage in {"": overall, **{f"_scale_{side}": usage for side, usage in own.items()}}.items():
        shares = usage / usage.sum()
        entropy = -(shares * shares.clamp_min(1e-30).log()).sum()
        torch.testing.assert_close(figures["perplexity" + name], entropy.exp(), rtol=1e-4, atol=0)
        torch.testing.assert_close(figures["usage" + name], (usage >= 1e-4 / 32).float().mean())
    for side, error in errors.items():
        torch.testing.assert_close(figures[f"quantization_error_scale_{side}"], error, rtol=1e-3, atol=0)
    torch.testing.assert_close(task.module.usage, overall)


def test_dead_codes_alone_are_redrawn_from_the_used_ones() -> None:
    task = requantize_task(n_embed=6000)
    task.module.usage.fill_(1 / 6000)
    task.module.usage[::2] = 0.99e-4 / 6000
    with torch.no_grad():
        task.module.quantize.embedding.normal_(0.5, 0.2)
    before = task.module.quantize.embedding.detach().clone()
    used = F.normalize(before[1::2], dim=-1)
    task.module.revive(1e-4, torch.Generator().manual_seed(0))
    after = task.module.quantize.embedding.detach()
    assert torch.equal(after[1::2], before[1::2])
    assert not (after[::2] == before[::2]).any()
    torch.testing.assert_close(after[::2].mean(0), used.mean(0), rtol=0, atol=4 * used.std().item() / 3000**0.5)
    torch.testing.assert_close(after[::2].std(0), used.std(0), rtol=0.06, atol=0)


def test_revivals_come_at_multiples_after_a_step() -> None:
    paper = requantize_task(revive_after=2000, revive_freq=1000)
    assert [number for number in range(5001) if paper._revives(number)] == [3000, 4000, 5000]
    never = requantize_task(revive_freq=0)
    assert not any(never._revives(number) for number in range(5001))


def test_a_run_revives_at_those_steps(tmp_path: Path) -> None:
    training, steps = requantize_trainer(tmp_path), []
    revive = training.module.revive
    training.module.revive = lambda *args: (steps.append(training.step), revive(*args))
    training.fit()
    assert steps == [8, 12]


def test_averages_of_latents_are_the_codes(images: Tensor) -> None:
    task = started(codebook_update="ema")
    sums = F.normalize(task.module.quantize.embedding.detach(), dim=-1) / 32
    for number in range(6):
        latents = latents_of(task, images, (1, 2, 4)[number % 3])
        before = task.module.quantize.embedding.detach().clone()
        codes = task.module.quantize.nearest(latents)
        loss, _ = task._quantize(number % 3, latents)
        task.module.quantize.embedding.grad = None
        loss.backward()
        batch = torch.stack([latents[codes == code].sum(0) for code in range(32)]) / len(latents)
        sums = (1 - EMA_RATE) * sums + EMA_RATE * batch
        chosen = torch.isin(torch.arange(32), codes)
        after = task.module.quantize.embedding.detach()
        torch.testing.assert_close(after[chosen], sums[chosen])
        assert torch.equal(after[~chosen], before[~chosen])
        assert task.module.quantize.embedding.grad.abs().max() == 0
        assert loss > 0


# Training


def test_training_lowers_the_error(tmp_path: Path) -> None:
    requantize_trainer(tmp_path, epochs=8, n_embed=16, revive_freq=0).fit()
    begun = [figures for figures in read_log(tmp_path).values() if "usage" in figures]
    assert len(begun) == 8 * 15 - 4
    for side in (2, 4):
        curve = [figures[f"quantization_error_scale_{side}"] for figures in begun]
        assert curve[-1] < 0.97 * next(error for error in curve if error > 0)
    held_out = [entry for entry in read_events(tmp_path) if "held_out_psnr_scale_4" in entry]
    assert len(held_out) == 1
    figures = ("psnr", "l1", "quantization_error", "usage", "perplexity")
    assert {f"held_out_{name}_scale_{side}" for name in figures for side in (1, 2, 4)} < held_out[0].keys()


@pytest.mark.parametrize("options", OPTIONS, ids=["paper", "kmeans-ema"])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(options: dict[str, Any], tmp_path: Path) -> None:
    """Stopped after every step: while moments are gathered, at the codebook's start, before revivals."""
    requantize_trainer(tmp_path / "whole", **options).fit()
    for _ in range(14):
        stopping = requantize_trainer(tmp_path / "stopped", **options)
        stopping.stop_signal = 15
        with pytest.raises(Stopped):
            stopping.fit()
        assert stopping.module.count.sum() > 0
    requantize_trainer(tmp_path / "stopped", **options).fit()
    assert_same_training(tmp_path / "whole", tmp_path / "stopped")
    assert read_log(tmp_path / "whole") == read_log(tmp_path / "stopped")


@pytest.mark.parametrize("options", OPTIONS, ids=["paper", "kmeans-ema"])
def test_two_ranks_follow_one_of_twice_the_batch(options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    ranks = start_ranks(tmp_path / "two", 2, requantize_rank, tmp_path / "two", options | {"batch_size": 10})
    requantize_trainer(tmp_path / "one", **options).fit()
    assert exit_codes(ranks) == [0, 0], (tmp_path / "two" / "rank0.txt").read_text()
    single, double = read_log(tmp_path / "one"), read_log(tmp_path / "two")
    assert single.keys() == double.keys()
    for number, figures in single.items():
        assert double[number] == pytest.approx(figures, rel=1e-3, abs=1e-5)
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
    assert made.config == AutoencoderConfig(**{**vars(start.config), "n_embed": 16})
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


def test_the_log_tells_moments_then_usage_of_each_scale(finished: tuple[Path, list[str], Outcome]) -> None:
    entries = [json.loads(line) for line in (finished[0] / "run/log.jsonl").read_text().splitlines()]
    by_step = {entry["step"]: entry for entry in entries if "loss" in entry}
    assert {f"latents_scale_{side}" for side in (1, 2, 4)} < by_step[5].keys()
    names = ("usage", "perplexity", "quantization_error")
    assert {f"{name}_scale_{side}" for name in names for side in (1, 2, 4)} < by_step[15].keys()
