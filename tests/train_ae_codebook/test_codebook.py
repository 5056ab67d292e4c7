"""A new codebook for a frozen autoencoder: its loss, moments, first codes, usage and revivals.

Letters: B batch, C code dimension, S side of a code map, V codes, N latents.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from models.autoencoder import resize_image
from runtime.errors import UserError
from runtime.stopping import Stopped
from tests.codebook_factory import CPU, digits, requantize_args, requantize_task, requantize_trainer, step
from tests.command_factory import ROOT
from tests.factory import Reference
from train_ae_codebook.codebook import EMA_RATE, KMEANS_LATENTS, USAGE_RATE
from train_ae_codebook.options import RequantizeArgs
from train_ae_codebook.tasks import RequantizeTask

pytestmark = pytest.mark.quick


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
    task.loss([torch.stack([digits("train", 300)[(i, 0)][0] for i in range(64)])], step(0))
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
    loss = task._quantize(0, reference["encoded"].permute(0, 2, 3, 1).reshape(-1, 8)).value
    loss.backward()
    torch.testing.assert_close(loss.double(), reference["quantizer_loss"], atol=1e-7, rtol=0)
    gradient = task.module.quantize.embedding.grad
    torch.testing.assert_close(gradient, reference["quantizer_codebook_grad"], atol=1e-7, rtol=1e-4)


def test_a_step_quantizes_one_size_of_the_pyramid(images: Tensor) -> None:
    task = started(scale_sizes=(4,))
    loss = task.loss([images], step(3)).value
    latents = latents_of(task, images, 4)
    nearest = torch.cdist(latents, task.module.quantize.codebook()).min(1).values
    torch.testing.assert_close(loss, 1.001 * nearest.square().mean() / 8, rtol=1e-4, atol=0)


def test_the_full_size_comes_outright_or_as_one_of_all() -> None:
    """With probability 0.1 + 0.9 / 3 of three sizes (formats.md M7)."""
    args, count = requantize_args(full_size_share=0.1), 3000
    sides = np.array([args.draw_side([1, 2, 4], step(i).step_rng) for i in range(count)])
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
        side = task.args.draw_side(task.sides, step(number).step_rng)
        seen[side].append(latents_of(task, batch, side))
        loss = task.loss([batch], step(number))
        loss.value.backward()
        assert loss.value == 0
        assert task.module.quantize.embedding.grad.abs().max() == 0
    for i, side in enumerate((1, 2, 4)):
        latents = torch.cat(seen[side]).double()
        count = task.module.count[i]
        assert count == loss.metrics()[f"latents_scale_{side}"] == len(latents) > 0
        torch.testing.assert_close(task.module.mean[i].double(), latents.mean(0), rtol=1e-5, atol=1e-6)
        variance = task.module.squares[i].double() / count
        torch.testing.assert_close(variance, latents.var(0, correction=0), rtol=1e-4, atol=1e-7)
    assert torch.equal(task.module.quantize.embedding, before)


def test_codes_start_as_gaussian_samples_in_proportion_to_the_latents() -> None:
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
    training = requantize_trainer(tmp_path)
    before = training.state.module.quantize.embedding.detach().clone()
    training.stop.number = 15
    with pytest.raises(Stopped):
        training.fit()
    assert training.state.step == 1
    assert torch.equal(training.state.module.quantize.embedding, before)


def test_kmeans_finds_clusters() -> None:
    task = requantize_task(n_embed=4, moment_steps=2, codebook_start="kmeans")
    centres = F.normalize(torch.randn(4, 8), dim=-1)
    noisy = F.normalize(centres.repeat(50, 1) + 0.01 * torch.randn(200, 8), dim=-1)
    for number in range(2):
        task.module.gather(number, 0, noisy, torch.Generator().manual_seed(number))
    assert task.module.kept.shape == (4 * KMEANS_LATENTS, 8)
    assert torch.cdist(task.module.kept, noisy, compute_mode="donot_use_mm_for_euclid_dist").min(1).values.max() == 0
    task.module.begin(torch.Generator().manual_seed(0))
    assert torch.cdist(centres, task.module.quantize.codebook()).min(1).values.max() < 0.03


def test_kmeans_starts_nearer_to_the_latents_than_random_ones(images: Tensor) -> None:
    errors = []
    for start in ("gaussian", "kmeans"):
        task = requantize_task(codebook_start=start)
        for number in range(4):
            task.loss([images], step(number))
        task.module.begin(torch.Generator().manual_seed(0))
        latents = torch.cat([latents_of(task, images, side) for side in (1, 2, 4)])
        errors.append(torch.cdist(latents, task.module.quantize.codebook()).min(1).values.square().mean())
    assert errors[1] < 0.9 * errors[0]


def test_kmeans_of_too_few_latents_is_refused() -> None:
    task = requantize_task(n_embed=4, codebook_start="kmeans")
    for number in range(4):
        task.module.gather(number, 0, torch.eye(8)[:3], torch.Generator().manual_seed(number))
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
        side = task.args.draw_side(task.sides, step(number).step_rng)
        distance = torch.cdist(latents_of(task, images, side), task.module.quantize.codebook()).detach()
        frequencies = torch.bincount(distance.argmin(1), minlength=32) / len(distance)
        error = distance.min(1).values.square().mean() / 8
        overall = (1 - USAGE_RATE) * overall + USAGE_RATE * frequencies
        own[side] = (1 - USAGE_RATE) * own[side] + USAGE_RATE * frequencies
        errors[side] = (1 - USAGE_RATE) * errors[side] + USAGE_RATE * error if side in errors else error
        loss = task._quantize(task.sides.index(side), latents_of(task, images, side))
    metrics = loss.metrics()
    assert errors.keys() == {1, 2, 4}
    for name, usage in {"": overall, **{f"_scale_{side}": usage for side, usage in own.items()}}.items():
        shares = usage / usage.sum()
        entropy = -(shares * shares.clamp_min(1e-30).log()).sum()
        torch.testing.assert_close(metrics["perplexity" + name], entropy.exp(), rtol=1e-4, atol=0)
        torch.testing.assert_close(metrics["usage" + name], (usage >= 1e-4 / 32).float().mean())
    for side, error in errors.items():
        torch.testing.assert_close(metrics[f"quantization_error_scale_{side}"], error, rtol=1e-3, atol=0)
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


@pytest.mark.parametrize("number", range(5, 13))
def test_a_step_revives_if_its_number_is_due(number: int, images: Tensor) -> None:
    """Every fourth after the sixth."""
    task = started()
    task.module.usage[1::2] = 1 / 32
    before = task.module.quantize.embedding.detach().clone()
    task.loss([images], step(number))
    moved = (task.module.quantize.embedding != before).any(1)
    assert moved[::2].tolist() == [number in (8, 12)] * 16
    assert not moved[1::2].any()


@pytest.mark.parametrize("number", [1, 8])
def test_the_codes_begin_and_are_revived_once_a_step(number: int, images: Tensor) -> None:
    """Where a step gathers several batches, the first has done it."""
    task = started()
    task.module.usage[1::2] = 1 / 32
    before = task.module.quantize.embedding.detach().clone()
    task.loss([images], replace(step(number), batch=1))
    assert torch.equal(task.module.quantize.embedding, before)


def test_averages_of_latents_are_the_codes(images: Tensor) -> None:
    task = started(codebook_update="ema")
    sums = F.normalize(task.module.quantize.embedding.detach(), dim=-1) / 32
    for number in range(6):
        latents = latents_of(task, images, (1, 2, 4)[number % 3])
        before = task.module.quantize.embedding.detach().clone()
        codes = task.module.quantize.nearest(latents)
        loss = task._quantize(number % 3, latents).value
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
