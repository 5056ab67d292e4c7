"""Nats a token of held-out images are the model's own loss, whatever the batches."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data.images import CroppedImages, open_dataset
from experiments import likelihood
from models.checkerboard.model import Checkerboard, in_scan_order
from models.checkerboard.order import sampling_blocks
from models.config import TransformerConfig
from models.scales import join_scales
from tests.command_factory import call, save_run
from tests.factory import tiny_autoencoder, tiny_model

pytestmark = pytest.mark.quick


def small() -> Checkerboard:
    """A model of 8 px."""
    size = TransformerConfig(32, 64, 2, 1)
    return tiny_model(autoencoder=tiny_autoencoder(ch_mult=(1, 1)), img_size=8, llama_config=size)


def held_out() -> list[Tensor]:
    """20 held-out digits, evenly spaced, and their labels."""
    data = CroppedImages(open_dataset("digits", "", 8, "val"), 8, "center")
    return data.collate([data[i * len(data) // 20, 0] for i in range(20)])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return save_run(tmp_path / "run", small())


@pytest.mark.parametrize("batch_size", ["1", "7", "64"])
def test_it_is_the_mean_loss_over_all_images(run: Path, tmp_path: Path, batch_size: str) -> None:
    flags = ("--dataset", "digits", "--num_images", "20", "--batch_size", batch_size, "--device", "cpu")
    outcome = call(likelihood.main, "--checkpoint", str(run), *flags, "--output_file", str(tmp_path / "result.json"))
    assert outcome.code == 0, outcome.err
    model, (images, labels) = small(), held_out()
    with torch.no_grad():
        expected = float(model(model.tokenize(images), labels)[1])
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["nats_per_token"] == pytest.approx(expected, rel=1e-5)
    assert f"{expected:.4f} nats a token" in outcome.out


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_codes_of_one_block_do_not_see_each_other(run: Path, tmp_path: Path, steps: int) -> None:
    """The blocks of the given steps are those of the model's own loss, of all scales and of the finest."""
    flags = ("--dataset", "digits", "--num_images", "20", "--steps_per_scale", str(steps), "--device", "cpu")
    outcome = call(likelihood.main, "--checkpoint", str(run), *flags, "--output_file", str(tmp_path / "result.json"))
    assert outcome.code == 0, outcome.err
    model, (images, labels) = small(), held_out()
    with torch.no_grad():
        codes = model.tokenize(images)
        logits, loss = model(codes, labels, steps)
        targets = in_scan_order(join_scales(codes), model.layout(sampling_blocks((1, 2, 4), steps)))
        finest = torch.nn.functional.cross_entropy(logits[:, 5:].flatten(0, 1), targets[:, 5:].flatten())
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["nats_per_token"] == pytest.approx(float(loss), rel=1e-5)
    assert found["finest_scale"]["nats_per_token"] == pytest.approx(float(finest), rel=1e-5)
    assert (found["steps_per_scale"], found["dataset"]) == (steps, "digits")


def test_mistakes(run: Path, tmp_path: Path) -> None:
    assert call(likelihood.main).error() == "name the --checkpoint to measure"
    (tmp_path / "file").touch()
    for place, answer in (("file/a.json", "a.json cannot be written"), ("", "is a folder; name a file")):
        flags = ("--checkpoint", "nowhere", "--output_file", str(tmp_path / place))
        assert answer in call(likelihood.main, *flags).error()  # before anything is loaded
    assert (
        "no image folder"
        in call(likelihood.main, "--checkpoint", str(run), "--data_path", str(tmp_path / "no")).error()
    )
