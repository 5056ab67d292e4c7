"""Training of the autoencoder: its loss, the revival of dead codes, the command from digits to a usable file.

Letters: B batch, C code dimension, S side of the code map, V codes.
"""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from data.crops import to_bytes, to_floats
from data.images import open_dataset
from models.autoencoder import Autoencoder, resize_image
from models.config import AutoencoderConfig, AutoencoderPaths
from models.loading.autoencoder import load_autoencoder
from models.loading.state import read_torch_file
from runtime.command import Stopped
from runtime.errors import UserError
from tests.codebook_factory import CPU, ae_args, ae_task, ae_trainer, digits, step
from tests.command_factory import Outcome, call, start_python
from tests.factory import randomize, tiny_autoencoder
from tests.training_factory import assert_same_state, assert_same_training, read_events, read_log
from train_ae_codebook import main as command
from train_ae_codebook.codebook import USAGE_RATE
from train_ae_codebook.vqvae import VQVAETask

TINY = {"ch": 32, "ch_mult": (1, 1), "num_res_blocks": 1, "z_channels": 32, "embed_dim": 8, "n_embed": 64}


@pytest.fixture(scope="module")
def images() -> Tensor:
    """(32, 3, 8, 8) scans in [-1, 1]."""
    return torch.stack([digits("train", 300)[(i, 0)][0] for i in range(32)])


# The loss


def test_the_loss_is_reconstruction_codebook_and_commitment(images: Tensor) -> None:
    task = ae_task(full_size_share=1.0, commitment=0.3)
    loss, statistics = task.loss([images, None], step(0))
    module = task.module
    z = module.encode(images)
    codebook = F.normalize(module.quantize.embedding, dim=-1)
    codes = torch.cdist(z.permute(0, 2, 3, 1).reshape(-1, 8), codebook).argmin(-1).view(32, 4, 4)
    quantized = codebook[codes].permute(0, 3, 1, 2)
    error = module.decode_latents(quantized) - images
    distance = (z - quantized).square().mean()  # twice: for the codebook, and weighted for the encoder
    expected = error.abs().mean() + error.square().mean() + distance + 0.3 * distance
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(statistics()["l1"], error.abs().mean())


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
    task.loss([images, None], step(0))[0].backward()
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
        _, statistics = task.loss([images, None], step(0))
    frequencies = torch.bincount(codes.flatten(), minlength=64) / codes.numel()
    expected = (1 - USAGE_RATE) / 64 + USAGE_RATE * frequencies
    torch.testing.assert_close(task.module.cluster_usage_train, expected)
    entropy = -(expected * expected.log()).sum()
    torch.testing.assert_close(statistics()["perplexity"], entropy.exp())


def prepared(revive_freq: int = 10) -> tuple[VQVAETask, Tensor]:
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
        _, statistics = task.loss([images, None], step(9))
    after, usage = task.module.quantize.embedding.detach(), task.module.cluster_usage_train
    dead = torch.arange(0, 64, 2)
    latents = z.permute(0, 2, 3, 1).reshape(-1, 8)
    assert torch.cdist(after[dead], latents, compute_mode="donot_use_mm_for_euclid_dist").min(1).values.max() == 0
    assert len(after[dead].unique(dim=0)) > len(dead) // 2
    assert torch.equal(after[1::2], before[1::2])
    torch.testing.assert_close(usage[dead], torch.full((32,), 1 / 64))
    assert statistics()["dead_codes"] == 0
    codes = task.module.quantize_latents(z)
    assert torch.isin(codes, dead).float().mean() > 0.3  # and are used at once


@pytest.mark.parametrize(("number", "revive_freq"), [(8, 10), (10, 10), (9, 0)])
def test_codes_are_revived_at_their_steps_alone(number: int, revive_freq: int, images: Tensor) -> None:
    task, before = prepared(revive_freq)
    with torch.no_grad():
        _, statistics = task.loss([images, None], step(number))
    assert torch.equal(task.module.quantize.embedding, before)
    assert statistics()["dead_codes"] >= 0.4


def test_the_loss_of_a_revival_is_that_of_the_new_codes(images: Tensor) -> None:
    task, _ = prepared()
    with torch.no_grad():
        revived, _ = task.loss([images, None], step(9))
        again, _ = task.loss([images, None], step(10))
    torch.testing.assert_close(revived, again)


# Training


def test_training_learns_to_reconstruct(tmp_path: Path) -> None:
    ae_trainer(tmp_path, epochs=6, full_size_share=1.0, eval_freq=1, revive_freq=10).fit()
    l1 = [figures["l1"] for figures in read_log(tmp_path).values()]
    assert l1[-1] < 0.6 * l1[0]
    psnr = [entry["psnr"] for entry in read_events(tmp_path) if "psnr" in entry]
    assert len(psnr) == 6
    assert psnr[-1] > psnr[0] + 1


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    """Usage of the codes and revivals too."""
    settings = {"epochs": 2, "revive_freq": 3, "ema": True, "ema_decay": 0.9, "log_freq": 2}
    ae_trainer(tmp_path / "whole", **settings).fit()
    for _ in range(5):
        stopping = ae_trainer(tmp_path / "stopped", **settings)
        stopping.stop_signal = 15
        with pytest.raises(Stopped):
            stopping.fit()
    assert read_torch_file(tmp_path / "stopped" / "checkpoint-last.pth")["step"] == 5
    ae_trainer(tmp_path / "stopped", **settings).fit()
    assert_same_training(tmp_path / "whole", tmp_path / "stopped")
    assert read_log(tmp_path / "whole") == read_log(tmp_path / "stopped")


def test_pictures_and_figures_of_held_out_images(tmp_path: Path) -> None:
    """Rows of originals over reconstructions, scale by scale, pixels enlarged; mean PSNR of images in [0, 1]."""
    task = ae_task()
    randomize(task.module.eval(), std=0.05)
    figures = task.show(task.module, tmp_path, "epoch_0001")
    held_out = torch.stack([digits("val", 64)[(i, 0)][0] for i in range(64)])
    with torch.no_grad():
        codes = task.module.quantize_latents(task.module.encode(held_out))
        rebuilt = task.module.decode(codes).clamp(-1, 1)
    mse = ((rebuilt - held_out) / 2).square().mean((1, 2, 3))
    assert figures["psnr"] == pytest.approx((-10 * mse.log10()).mean().item(), rel=1e-4)
    assert figures["used_codes"] == pytest.approx(len(codes.unique()) / 64)
    with Image.open(tmp_path / "epoch_0001.png") as picture:
        rows = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    assert rows.shape == (3, 6 * 66 + 2, 16 * 66 + 2)
    originals = rows[:, 4 * 66 + 2 : 5 * 66 : 8, 2:66:8]  # 8 pixels each
    assert (originals.float() - (held_out[0] + 1) * 127.5).abs().max() <= 1


@pytest.mark.parametrize("sizes", [(), (0, 4), (1, -2)])
def test_impossible_scales_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="name at least one side, each at least 1"):
        ae_args(scale_sizes=sizes)


def test_the_largest_scale_must_be_that_of_the_images() -> None:
    with pytest.raises(UserError, match="the largest of scale_sizes is one of 8 pixels, but img_size is 12"):
        VQVAETask(tiny_autoencoder(ch_mult=(1, 1)), ae_args(img_size=12), digits("val", 64), CPU)


# The command


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], Outcome]:
    """The folder, arguments and outcome of a run of one epoch, in a process of its own."""
    folder = tmp_path_factory.mktemp("autoencoder")
    settings = {"output_dir": folder / "run", "export_dir": folder / "export", "export_dtype": "float16", "ema": True}
    flags = {"dataset": "digits", "crop": "center", "img_size": 8, "scale_sizes": [1, 2, 4], "batch_size": 250}
    flags |= {"epochs": 1, "lr": 3e-3, "num_workers": 0, "log_freq": 2, "device": "cpu"}
    values = {**TINY, "ch_mult": [1, 1], **flags, **settings}
    argv = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    return folder, argv, start_python("train_ae_codebook/main.py", *argv)


def test_the_command_writes_an_autoencoder_that_loads(finished: tuple[Path, list[str], Outcome]) -> None:
    folder, _, outcome = finished
    assert outcome.code == 0, outcome.err
    assert f"autoencoder: {folder / 'export'}; reconstructions: {folder / 'run' / 'samples'}" in outcome.out
    loaded = load_autoencoder(AutoencoderPaths("autoencoder_config.yaml", "autoencoder.safetensors"), folder / "export")
    assert loaded.config == AutoencoderConfig(**TINY)
    saved = read_torch_file(folder / "run" / "checkpoint-last.pth")
    assert saved["step"] == 6
    for key, value in loaded.state_dict().items():
        expected = saved["model_ema"][key]
        assert torch.equal(value, expected.half().float() if expected.is_floating_point() else expected), key
    assert {value.dtype for value in load_file(folder / "export" / "autoencoder.safetensors").values()} == {
        torch.float16,
        torch.bool,
    }
    assert loaded.tokenize(torch.zeros(1, 3, 8, 8), (1, 2, 4))[2].shape == (1, 4, 4)


def test_the_command_logs_its_figures(finished: tuple[Path, list[str], Outcome]) -> None:
    folder, _, _ = finished
    log = read_log(folder / "run")
    assert list(log) == [2, 4, 6]
    for figures in log.values():
        assert {"loss", "l1", "dead_codes", "perplexity", "lr", "epoch", "grad_norm", "step"} == set(figures)
    shown = [entry for entry in read_events(folder / "run") if "psnr" in entry]
    assert len(shown) == 1
    assert 0 < shown[0]["used_codes"] <= 1
    assert (folder / "run" / "samples" / "epoch_0001.png").exists()


def test_a_run_on_other_images_is_refused(finished: tuple[Path, list[str], Outcome], tmp_path: Path) -> None:
    folder, argv, _ = finished
    other = [*argv, "--dataset", "folder", "--data_path", str(tmp_path / "images")]
    (tmp_path / "images/one").mkdir(parents=True)
    for i in range(250):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"images/one/{i}.png")
    error = call(command.main, *other).error()
    assert f"{folder / 'run'} holds a run on digits" in error
    assert "name another --output_dir" in error


def test_the_same_command_again_does_not_train_again(finished: tuple[Path, list[str], Outcome]) -> None:
    folder, argv, _ = finished
    before = (folder / "run" / "checkpoint-last.pth").read_bytes()
    exported = load_file(folder / "export" / "autoencoder.safetensors")
    again = call(command.main, *argv)
    assert again.code == 0, again.err
    assert "epoch 1, step 6" in again.out
    assert (folder / "run" / "checkpoint-last.pth").read_bytes() == before
    assert_same_state(load_file(folder / "export" / "autoencoder.safetensors"), exported)


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (("--epocs", "3"), "unknown option --epocs; did you mean --epochs?"),
        (("--ch", "48"), "autoencoder ch 48 must be a multiple of 32"),
        (("--scale_sizes", "[]"), "name at least one side"),
        (("--img_size", "12"), "img_size is 12"),
        (("--batch_size", "2000"), "1500 images do not fill one step of 2000"),
        (("--dataset", "folder", "--data_path", "nowhere"), "no image folder at nowhere"),
        (("--config", "nowhere.yaml"), "no such file: nowhere.yaml"),
        (("--n_embed", "32"), "is of no run of this model"),
    ],
)
def test_a_mistake_is_answered_by_one_line(
    flags: tuple[str, ...], answer: str, finished: tuple[Path, list[str], Outcome]
) -> None:
    _, argv, _ = finished
    assert answer in call(command.main, *argv, *flags).error()


def test_the_shipped_autoencoder_reconstructs_held_out_digits() -> None:
    """pretrained_models/digits, made by this command: PSNR and use of its codes on images it was not trained on."""
    paths = AutoencoderPaths(
        "pretrained_models/digits/autoencoder_config.yaml", "pretrained_models/digits/autoencoder.safetensors"
    )
    autoencoder = load_autoencoder(paths, Path(__file__).parents[2])
    data = open_dataset("digits", "", 32, "val")
    pixels = torch.stack([to_floats(to_bytes(data.read(i))) for i in random.sample(range(len(data)), 40)])
    with torch.no_grad():
        codes = autoencoder.quantize_latents(autoencoder.encode(pixels))
        rebuilt = autoencoder.decode(codes).clamp(-1, 1)
    psnr = -10 * ((rebuilt - pixels) / 2).square().mean().log10()
    assert psnr > 20
    assert len(codes.unique()) > 0.5 * autoencoder.config.n_embed


def test_the_module_is_an_autoencoder_in_float32() -> None:
    task = ae_task()
    assert task.precision() == torch.float32
    assert isinstance(task.module, Autoencoder)
    assert task.describe()["config"]["n_embed"] == 64
