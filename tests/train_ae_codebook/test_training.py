"""Training of an autoencoder: what it learns, resumption, the command from digits to a usable file."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from data.crops import to_bytes, to_floats
from data.images import open_dataset
from models.config import AutoencoderPaths, LlamaGenVQConfig
from models.loading.autoencoder import load_autoencoder
from models.loading.state import read_torch_file
from runtime.stopping import Stopped
from tests.codebook_factory import ae_task, ae_trainer, digits
from tests.command_factory import Outcome, call
from tests.factory import randomize
from tests.training_factory import assert_same_state, assert_same_training, read_events, read_log
from train_ae_codebook import main as command

TINY = {"ch": 32, "ch_mult": (1, 1), "num_res_blocks": 1, "z_channels": 32, "embed_dim": 8, "n_embed": 64}


def test_training_learns_to_reconstruct(tmp_path: Path) -> None:
    ae_trainer(tmp_path, epochs=4, full_size_share=1.0, eval_freq=1, revive_freq=10).fit()
    l1 = [metrics["l1"] for metrics in read_log(tmp_path).values()]
    assert l1[-1] < 0.6 * l1[0]
    psnr = [entry["psnr"] for entry in read_events(tmp_path) if "psnr" in entry]
    assert len(psnr) == 4
    assert psnr[-1] > psnr[0] + 1


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    """Usage of the codes and revivals too."""
    settings = {"epochs": 2, "revive_freq": 3, "ema": True, "ema_decay": 0.9, "log_freq": 2}
    ae_trainer(tmp_path / "whole", **settings).fit()
    for _ in range(5):
        stopping = ae_trainer(tmp_path / "stopped", **settings)
        stopping.stop.number = 15
        with pytest.raises(Stopped):
            stopping.fit()
    assert read_torch_file(tmp_path / "stopped" / "checkpoint-last.pth")["step"] == 5
    ae_trainer(tmp_path / "stopped", **settings).fit()
    assert_same_training(tmp_path / "whole", tmp_path / "stopped")
    assert read_log(tmp_path / "whole") == read_log(tmp_path / "stopped")


def test_pictures_and_metrics_of_held_out_images(tmp_path: Path) -> None:
    """Rows of originals over reconstructions, scale by scale, pixels enlarged; mean PSNR of images in [0, 1]."""
    task = ae_task()
    randomize(task.module.eval(), std=0.05)
    (metrics,) = task.show(task.module, tmp_path, "epoch_0001")
    held_out = torch.stack([digits("val", 64)[(i, 0)][0] for i in range(64)])
    with torch.no_grad():
        codes = task.module.quantize_latents(task.module.encode(held_out))
        rebuilt = task.module.decode(codes).clamp(-1, 1)
    mse = ((rebuilt - held_out) / 2).square().mean((1, 2, 3))
    assert metrics["psnr"] == pytest.approx((-10 * mse.log10()).mean().item(), rel=1e-4)
    assert metrics["used_codes"] == pytest.approx(len(codes.unique()) / 64)
    with Image.open(tmp_path / "epoch_0001.png") as picture:
        rows = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    assert rows.shape[:2] == (3, 6 * 66 + 2)
    rows = rows[:, :, -(16 * 66 + 2) :]  # without the captions
    originals = rows[:, 4 * 66 + 2 : 5 * 66 : 8, 2:66:8]  # 8 pixels each
    assert (originals.float() - (held_out[0] + 1) * 127.5).abs().max() <= 1


# The command


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], Outcome]:
    """The folder, arguments and outcome of a run of one epoch."""
    folder = tmp_path_factory.mktemp("autoencoder")
    settings = {"output_dir": folder / "run", "export_dir": folder / "export", "export_dtype": "float16", "ema": True}
    flags = {"dataset": "digits", "crop": "center", "img_size": 8, "scale_sizes": [1, 2, 4], "batch_size": 250}
    flags |= {"epochs": 1, "lr": 3e-3, "num_workers": 0, "log_freq": 2, "device": "cpu"}
    values = {**TINY, "ch_mult": [1, 1], **flags, **settings}
    argv = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    return folder, argv, call(command.main, *argv)


def test_the_command_writes_an_autoencoder_that_loads(finished: tuple[Path, list[str], Outcome]) -> None:
    folder, _, outcome = finished
    assert outcome.code == 0, outcome.err
    assert f"autoencoder: {folder / 'export'}; reconstructions: {folder / 'run' / 'samples'}" in outcome.out
    loaded = load_autoencoder(AutoencoderPaths("autoencoder_config.yaml", "autoencoder.safetensors"), folder / "export")
    assert loaded.config == LlamaGenVQConfig(**TINY)
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


def test_the_command_logs_its_metrics(finished: tuple[Path, list[str], Outcome]) -> None:
    folder, _, _ = finished
    log = read_log(folder / "run")
    assert list(log) == [2, 4, 6]
    for metrics in log.values():
        assert {"loss", "l1", "dead_codes", "perplexity", "lr", "epoch", "grad_norm", "step"} == set(metrics)
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
        (("--ch", "0"), "ch is 0; it must be at least 1"),
        (("--ch_mult", "[]"), "ch_mult is []; name a multiplier"),
        (("--num_res_blocks", "0"), "num_res_blocks is 0; it must be at least 1"),
        (("--n_embed", "0"), "n_embed is 0; it must be at least 1"),
        (("--scale_sizes", "[]"), "name at least one side"),
        (("--img_size", "12"), "img_size is 12"),
        (("--batch_size", "2000"), "1500 images do not fill one step of 2000"),
        (("--dataset", "folder", "--data_path", "nowhere"), "no image folder at nowhere"),
        (("--config", "nowhere.yaml"), "no such file: nowhere.yaml"),
        (("--n_embed", "32"), "is of no run of this model; name one, or start from its weights by start"),
        (("--norm_groups", "8"), "is of no run of this model"),
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


@pytest.mark.parametrize("name", ["", "checkpoint.pth"])
def test_a_place_that_cannot_take_the_autoencoder_is_told_at_once(
    name: str, finished: tuple[Path, list[str], Outcome], tmp_path: Path
) -> None:
    """A file, or where the weights of another would be found in its place."""
    place = tmp_path / "export" / name
    place.parent.mkdir(exist_ok=True)
    place.write_text("of the user")
    folder = tmp_path / "export" if name else place
    places = ("--output_dir", str(tmp_path / "run"), "--export_dir", str(folder))
    error = call(command.main, *finished[1], *places).error()
    assert "name another export_dir" in error or "name a folder" in error
    assert not (tmp_path / "run").exists()
    assert place.read_text() == "of the user"


def test_another_run_does_not_replace_an_autoencoder(finished: tuple[Path, list[str], Outcome], tmp_path: Path) -> None:
    made = finished[0] / "export/autoencoder.safetensors"
    before, places = made.read_bytes(), ("--output_dir", str(tmp_path / "run"), "--export_dir", str(made.parent))
    assert f"{made} is there already, of another run" in call(command.main, *finished[1], *places).error()
    assert made.read_bytes() == before
