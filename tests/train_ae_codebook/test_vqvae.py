"""Training of the small VQ-VAE: loss, moving averages, resumption, ranks, the command and the finished folder.

Letters: N latents, C code dimension, V codes.
"""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from models.autoencoder import Autoencoder
from models.loading.autoencoder import open_autoencoder
from models.loading.state import read_torch_file
from models.vqvae import VQVAE
from runtime.stopping import Stopped
from tests.codebook_factory import digits, step, vqvae_rank, vqvae_task, vqvae_trainer
from tests.command_factory import ROOT, call
from tests.training_factory import assert_same_training, exit_codes, read_events, read_log, start_ranks
from train_ae_codebook import main as command

CONFIG = str(ROOT / "train_ae_codebook/config_cifar10_vqvae.yaml")
TINY = ("--channels", "8", "--residual_channels", "4", "--embed_dim", "4", "--n_embed", "16", "--device", "cpu")


@pytest.fixture(scope="module")
def images() -> Tensor:
    """(32, 3, 8, 8) scans in [-1, 1]."""
    return torch.stack([digits("train", 300)[(i, 0)][0] for i in range(32)])


def nearest(module: Autoencoder, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (N, C), codes (N,) and the codebook (V, C) of now."""
    with torch.no_grad():
        latents = module.encode(images).permute(0, 2, 3, 1).reshape(-1, 8)
    codebook = module.codebook().clone()
    return latents, torch.cdist(latents, codebook).argmin(-1), codebook


def spread_codes(module: VQVAE, images: Tensor) -> None:
    """Put the codes onto latents, so that many are used."""
    with torch.no_grad():
        latents = module.encode(images).permute(0, 2, 3, 1).reshape(-1, 8)
        module.begin_codes(latents[:: len(latents) // 32][:32], size=4)


def test_the_loss_is_the_error_over_the_variance_and_commitment(images: Tensor) -> None:
    task = vqvae_task(variance=0.05, commitment=0.3)
    spread_codes(task.module, images)
    latents, codes, codebook = nearest(task.module, images)
    with torch.no_grad():
        quantized = codebook[codes].view(32, 2, 2, 8).permute(0, 3, 1, 2)
        rebuilt = task.module.decode_latents(quantized)
    error = ((rebuilt + 1) / 2 - (images + 1) / 2).square().mean() / 0.05
    loss = task.loss([images, None], step(0))
    torch.testing.assert_close(loss.value, error + 0.3 * (latents - codebook[codes]).square().mean())
    shares = torch.bincount(codes, minlength=32) / len(codes)
    metrics = loss.metrics()
    torch.testing.assert_close(metrics["mse_over_variance"], error)
    torch.testing.assert_close(metrics["perplexity"], torch.special.entr(shares).sum().exp())
    assert metrics["perplexity"] > 5


def test_gradients_reach_every_weight_but_the_codes(images: Tensor) -> None:
    task = vqvae_task()
    task.loss([images, None], step(0)).value.backward()
    without = [name for name, p in task.module.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without == ["_vq_vae._embedding.weight"]


def test_a_batch_moves_the_codes_to_the_averages_of_its_latents(images: Tensor) -> None:
    task = vqvae_task()
    spread_codes(task.module, images)
    book = task.module._vq_vae
    w, size = book._ema_w.double(), book._ema_cluster_size.double()
    for number in range(3):
        latents, codes, _ = nearest(task.module, images)
        chosen = torch.nn.functional.one_hot(codes, 32).double()
        task.loss([images, None], step(number))
        w = 0.9 * w + 0.1 * chosen.T @ latents.double()
        size = 0.9 * size + 0.1 * chosen.sum(0)
        size = (size + 1e-5) / (size.sum() + 32e-5) * size.sum()
        used = chosen.sum(0) > 0
        assert used.sum() > 5
        expected = (w / size[:, None])[used].float()
        torch.testing.assert_close(book.codebook()[used], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(book._ema_w.double(), w, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_codes_may_begin_on_latents(images: Tensor) -> None:
    """And their averages with them: codes that no latent chooses stay where they are, but for what smooths."""
    task = vqvae_task(codebook_start="latents", codebook_decay=0.99)
    latents = task.module.encode(images).permute(0, 2, 3, 1).reshape(-1, 8)
    moved = task.module.average_codes
    begun: list[Tensor] = []
    task.module.average_codes = lambda *args: begun.append(task.module.codebook().clone()) or moved(*args)
    loss = task.loss([images, None], step(0))
    assert torch.cdist(begun[0], latents, compute_mode="donot_use_mm_for_euclid_dist").min(1).values.max() == 0
    assert loss.metrics()["perplexity"] > 5
    task.module.average_codes(torch.zeros(32), torch.zeros(32, 8), 0.99)
    assert (task.module.codebook() - begun[0]).norm() < 0.1 * begun[0].norm()
    before = task.module.codebook().clone()
    task.loss([images, None], step(1))
    assert (task.module.codebook() - before).norm() < 0.1 * before.norm()  # begun once alone


def test_training_learns_to_reconstruct(tmp_path: Path) -> None:
    vqvae_trainer(tmp_path, epochs=12, codebook_start="latents").fit()
    log = list(read_log(tmp_path).values())
    assert log[-1]["mse_over_variance"] < 0.7 * log[0]["mse_over_variance"]
    assert log[-1]["perplexity"] > 2
    shown = [entry for entry in read_events(tmp_path) if "psnr" in entry]
    assert shown[-1]["psnr"] > shown[0]["psnr"]


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    """The averages that the codes follow from are in the checkpoint."""
    settings = {"epochs": 2, "eval_freq": 0}
    vqvae_trainer(tmp_path / "whole", **settings).fit()
    for _ in range(5):
        stopping = vqvae_trainer(tmp_path / "stopped", **settings)
        stopping.stop.number = 15
        with pytest.raises(Stopped):
            stopping.fit()
    saved = read_torch_file(tmp_path / "stopped" / "checkpoint-last.pth")
    assert saved["step"] == 5
    assert saved["model"]["_vq_vae._ema_cluster_size"].sum() > 0
    vqvae_trainer(tmp_path / "stopped", **settings).fit()
    assert_same_training(tmp_path / "whole", tmp_path / "stopped")
    assert read_log(tmp_path / "whole") == read_log(tmp_path / "stopped")


@pytest.mark.ranks
def test_two_ranks_follow_one_of_twice_the_batch(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    ranks = start_ranks(tmp_path / "two", 2, vqvae_rank, tmp_path / "two", {"batch_size": 25})
    vqvae_trainer(tmp_path / "one").fit()
    assert exit_codes(ranks) == [0, 0], (tmp_path / "two" / "rank0.txt").read_text()
    single, double = read_log(tmp_path / "one"), read_log(tmp_path / "two")
    assert single.keys() == double.keys()
    for number, metrics in single.items():
        assert double[number] == pytest.approx(metrics, rel=1e-3, abs=1e-5)
    one, two = (read_torch_file(tmp_path / name / "checkpoint-last.pth")["model"] for name in ("one", "two"))
    for key in ("_vq_vae._ema_w", "_vq_vae._ema_cluster_size"):
        torch.testing.assert_close(two[key], one[key], rtol=1e-3, atol=1e-4)


# The command


def class_folders(root: Path) -> list[str]:
    for split, count in (("train", 12), ("test", 4)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng(i).integers(256, size=(32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return ["--dataset", "folder", "--data_path", str(root)]


def torchvision_files(root: Path) -> list[str]:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        data = np.random.default_rng(0).integers(256, size=(5, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": [0, 1, 2, 3, 4]}))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    return ["--dataset", "cifar10", "--data_path", str(root)]


@pytest.mark.parametrize("source", [class_folders, torchvision_files])
def test_the_command_writes_an_autoencoder_that_loads(
    source: Callable[[Path], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: Path(path).exists())
    argv = ["--config", CONFIG, *source(tmp_path / "data"), *TINY, "--batch_size", "8", "--epochs", "1"]
    outcome = call(command.main, *argv, "--output_dir", str(tmp_path / "run"), "--log_freq", "1")
    assert outcome.code == 0, outcome.err
    loaded = open_autoencoder(tmp_path / "run/autoencoder")
    assert isinstance(loaded, VQVAE)
    trained = read_torch_file(tmp_path / "run/checkpoint-last.pth")["model"]
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in trained.items())
    assert loaded.tokenize(torch.zeros(1, 3, 32, 32), (8,))[0].shape == (1, 8, 8)
    metrics = {"loss", "lr", "epoch", "grad_norm", "step", "mse_over_variance", "perplexity"}
    assert all(set(entry) == metrics for entry in read_log(tmp_path / "run").values())
    assert (tmp_path / "run/samples/epoch_0001.png").exists()


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (("--variance", "0"), "variance is 0.0; it must be above 0"),
        (("--codebook_decay", "2"), "codebook_decay is a probability"),
        (("--channels", "7"), "channels is 7; it must be even"),
        (("--img_size", "30"), "img_size is 30; it must be a multiple of 4"),
        (("--scale_sizes", "[8]"), "unknown option --scale_sizes"),
        (("--start", "x"), "unknown option --start"),
    ],
)
def test_a_mistake_is_answered_by_one_line(flags: tuple[str, ...], answer: str, tmp_path: Path) -> None:
    argv = ["--config", CONFIG, *class_folders(tmp_path / "data"), "--batch_size", "8"]
    argv += ["--output_dir", str(tmp_path / "run")]
    assert answer in call(command.main, *argv, *flags).error()


def test_a_new_codebook_needs_llamagens_kind(tmp_path: Path) -> None:
    torch.save(vqvae_task().module.state_dict(), tmp_path / "vqvae.pth")
    argv = ["--config", str(ROOT / "train_ae_codebook/config_requantize.yaml"), *class_folders(tmp_path / "data")]
    argv += ["--start", str(tmp_path / "vqvae.pth"), "--batch_size", "2", "--moment_steps", "1", "--device", "cpu"]
    assert "is an autoencoder of the kind vqvae; name one of LlamaGen's" in call(command.main, *argv).error()
