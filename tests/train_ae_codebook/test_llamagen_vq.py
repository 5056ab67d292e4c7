"""The autoencoder's loss, and the revival of dead codes.

Letters: B batch, C code dimension, S side of the code map, V codes.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.autoencoder import Autoencoder, resize_image
from runtime.errors import UserError
from tests.codebook_factory import CPU, ae_args, ae_task, digits, step
from tests.factory import tiny_autoencoder
from train_ae_codebook.codebook import USAGE_RATE
from train_ae_codebook.tasks import LlamaGenVQTask

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def images() -> Tensor:
    """(32, 3, 8, 8) scans in [-1, 1]."""
    return torch.stack([digits("train", 300)[(i, 0)][0] for i in range(32)])


# The loss


def test_the_loss_is_reconstruction_codebook_and_commitment(images: Tensor) -> None:
    task = ae_task(full_size_share=1.0, commitment=0.3)
    loss = task.loss([images, None], step(0))
    module = task.module
    z = module.encode(images)
    codebook = F.normalize(module.quantize.embedding, dim=-1)
    codes = torch.cdist(z.permute(0, 2, 3, 1).reshape(-1, 8), codebook).argmin(-1).view(32, 4, 4)
    quantized = codebook[codes].permute(0, 3, 1, 2)
    error = module.decode_latents(quantized) - images
    distance = (z - quantized).square().mean()  # twice: for the codebook, and weighted for the encoder
    expected = error.abs().mean() + error.square().mean() + distance + 0.3 * distance
    torch.testing.assert_close(loss.value, expected)
    torch.testing.assert_close(loss.metrics()["l1"], error.abs().mean())


def test_mixed_precision_changes_the_loss_a_little(images: Tensor) -> None:
    task = ae_task(full_size_share=1.0, perceptual=0.5)
    exact = task.loss([images, None], step(0)).value
    with torch.autocast("cpu", torch.bfloat16):
        mixed = task.loss([images, None], step(0)).value
    assert mixed.dtype == torch.float32
    assert mixed != exact
    torch.testing.assert_close(mixed, exact, rtol=0.03, atol=0)
    mixed.backward()
    assert all(p.grad.isfinite().all() for p in task.module.parameters())


def test_gradients_reach_every_parameter_and_pass_straight_through(images: Tensor) -> None:
    """What the encoder gets is the decoder's gradient at the codes plus the commitment's, and no more."""
    task = ae_task(full_size_share=1.0, commitment=0.0)
    encoded: list[Tensor] = []
    encode = task.module.encode

    def keep(pixels: Tensor) -> Tensor:
        encoded.append(encode(pixels))
        encoded[0].retain_grad()
        return encoded[0]

    task.module.encode = keep
    task.loss([images, None], step(0)).value.backward()
    without = [name for name, p in task.module.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without == []

    quantized = task.module.lookup(task.module.quantize_latents(encoded[0])).detach().requires_grad_()
    error = task.module.decode_latents(quantized) - images
    (error.abs().mean() + error.square().mean()).backward()
    torch.testing.assert_close(encoded[0].grad, quantized.grad)


def test_a_step_sees_one_size_of_the_pyramid() -> None:
    """Full size half of the time, else one of the smaller ones; the same for the same seed and step."""
    task, seen = ae_task(full_size_share=0.5), []
    pixels = torch.rand(2, 3, 8, 8)
    for number in range(200):
        small = task._at_random_size(pixels, step(number))
        seen.append(small.shape[-1] // 2)
        assert torch.equal(small, resize_image(pixels, small.shape[-1]))
    counts = np.bincount(seen, minlength=5)
    assert counts[[1, 2, 4]].sum() == 200
    assert abs(counts[4] - 100) < 4 * np.sqrt(50)  # four standard deviations
    assert abs(counts[1] - counts[2]) < 4 * np.sqrt(100)
    again = [task._at_random_size(pixels, step(number)).shape[-1] // 2 for number in range(200)]
    assert again == seen
    assert {ae_task(scale_sizes=(4,))._at_random_size(pixels, step(n)).shape[-1] for n in range(20)} == {8}
    assert {ae_task(full_size_share=1.0)._at_random_size(pixels, step(n)).shape[-1] for n in range(20)} == {8}


# Usage, and the revival of dead codes


def test_usage_is_a_moving_average_of_frequencies(images: Tensor) -> None:
    task = ae_task(full_size_share=1.0)
    task.module.cluster_usage_train.fill_(1 / 64)
    with torch.no_grad():
        codes = task.module.quantize_latents(task.module.encode(images))
        loss = task.loss([images, None], step(0))
    frequencies = torch.bincount(codes.flatten(), minlength=64) / codes.numel()
    expected = (1 - USAGE_RATE) / 64 + USAGE_RATE * frequencies
    torch.testing.assert_close(task.module.cluster_usage_train, expected)
    entropy = -(expected * expected.log()).sum()
    torch.testing.assert_close(loss.metrics()["perplexity"], entropy.exp())


def prepared(revive_freq: int = 10) -> tuple[LlamaGenVQTask, Tensor]:
    """A task half of whose codes are dead, the even ones, and its codebook before."""
    task = ae_task(full_size_share=1.0, revive_freq=revive_freq)
    usage = task.module.cluster_usage_train.fill_(1 / 64)
    usage[::2] = 0
    task.module.quantize.embedding.data[::2] = -10 * F.normalize(torch.ones(8), dim=0)  # nearest to few latents
    return task, task.module.quantize.embedding.detach().clone()


def test_dead_codes_move_onto_latents_of_the_batch(images: Tensor) -> None:
    task, before = prepared()
    with torch.no_grad():
        z = task.module.encode(images)
        loss = task.loss([images, None], step(9))
    after, usage = task.module.quantize.embedding.detach(), task.module.cluster_usage_train
    dead = torch.arange(0, 64, 2)
    latents = z.permute(0, 2, 3, 1).reshape(-1, 8)
    assert torch.cdist(after[dead], latents, compute_mode="donot_use_mm_for_euclid_dist").min(1).values.max() == 0
    assert len(after[dead].unique(dim=0)) > len(dead) // 2
    assert torch.equal(after[1::2], before[1::2])
    torch.testing.assert_close(usage[dead], torch.full((32,), 1 / 64))
    assert loss.metrics()["dead_codes"] == 0
    codes = task.module.quantize_latents(z)
    assert torch.isin(codes, dead).float().mean() > 0.3  # and are used at once


@pytest.mark.parametrize(("number", "revive_freq"), [(8, 10), (10, 10), (9, 0)])
def test_codes_are_revived_at_their_steps_alone(number: int, revive_freq: int, images: Tensor) -> None:
    task, before = prepared(revive_freq)
    with torch.no_grad():
        loss = task.loss([images, None], step(number))
    assert torch.equal(task.module.quantize.embedding, before)
    assert loss.metrics()["dead_codes"] >= 0.4


def test_codes_are_revived_once_a_step(images: Tensor) -> None:
    task, before = prepared()
    with torch.no_grad():
        task.loss([images, None], replace(step(9), batch=1))
    assert torch.equal(task.module.quantize.embedding, before)


def test_the_loss_of_a_revival_is_that_of_the_new_codes(images: Tensor) -> None:
    task, _ = prepared()
    with torch.no_grad():
        revived, again = (task.loss([images, None], step(number)).value for number in (9, 10))
    torch.testing.assert_close(revived, again)


# Settings


@pytest.mark.parametrize("sizes", [(), (0, 4), (1, -2)])
def test_impossible_scales_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="name at least one side, each at least 1"):
        ae_args(scale_sizes=sizes)


def test_the_largest_scale_must_be_that_of_the_images() -> None:
    with pytest.raises(UserError, match="the largest of scale_sizes is one of 8 pixels, but img_size is 12"):
        LlamaGenVQTask(tiny_autoencoder(ch_mult=(1, 1)), ae_args(img_size=12), digits("val", 64), CPU)


@pytest.mark.parametrize("here", [True, False], ids=["a CPU with bfloat16", "one without"])
@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
def test_the_module_is_an_autoencoder_in_float32_if_nothing_else_is_said(
    dtype: str, here: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("runtime.device.cpu_has_bfloat16", lambda: here)
    task = ae_task(dtype=dtype)
    assert task.precision == (torch.bfloat16 if here and dtype == "bfloat16" else torch.float32)
    assert ("training in float32" in capsys.readouterr().out) == (dtype == "bfloat16" and not here)
    assert isinstance(task.module, Autoencoder)
    assert task.describe()["config"]["n_embed"] == 64
