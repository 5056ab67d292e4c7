"""The export command: a run of ours to the published layout and back; mistakes."""

from pathlib import Path

import pytest
import torch
import yaml

from models import load_checkpoint, sample
from models.checkerboard.model import Checkerboard
from models.loading.checkerboard import published_state
from models.loading.checkpoint import CHECKPOINT_NAME, CONFIG_NAME
from tests.command_factory import call, save_run
from tests.factory import load_reference, tiny_model
from training import export


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ours with averaged weights and named classes."""
    model = tiny_model(num_classes=3, num_mixing_layers="all")
    model.class_names = ["fox", "lamp", "car"]
    return save_run(tmp_path_factory.mktemp("run") / "named", model, ema=True)


@pytest.fixture(scope="module")
def exported(run_folder: Path) -> Path:
    """It, exported."""
    folder = run_folder.with_name("published")
    outcome = call(export.main, "--checkpoint", str(run_folder), "--output_dir", str(folder))
    assert (outcome.code, outcome.out) == (0, f"exported to {folder}\n"), outcome.err
    return folder


def assert_same_model(first: Checkerboard, second: Checkerboard) -> None:
    """Bit-equal weights, autoencoder included, and equal samples."""
    states = [published_state(model) for model in (first, second)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    drawn = [sample(model, [2, 0], seeds=[5, 6]) for model in (first, second)]
    assert torch.equal(drawn[0].images, drawn[1].images)


@pytest.mark.parametrize("use_ema", [False, True])
def test_there_and_back(use_ema: bool, run_folder: Path, exported: Path) -> None:
    assert_same_model(load_checkpoint(run_folder, use_ema), load_checkpoint(exported, use_ema))


def test_averaged_weights_are_others(exported: Path) -> None:
    weights = [load_checkpoint(exported, use_ema).lm_head.weight for use_ema in (False, True)]
    assert not torch.equal(*weights)


def test_the_layout_is_the_published_one(exported: Path) -> None:
    files = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    assert files == {CHECKPOINT_NAME, CONFIG_NAME, "autoenc/autoencoder_config.yaml", "autoenc/checkpoint.pth"}
    ours, published = (
        torch.load(folder / CHECKPOINT_NAME, weights_only=False)  # files of our own
        for folder in (exported, load_reference("tiny-2x").folder)
    )
    assert published.keys() <= ours.keys()
    last_layer = "llama.layers.2."  # the reference has a third one
    assert ours["model"].keys() == {key for key in published["model"] if not key.startswith(last_layer)}
    sections = [
        yaml.safe_load((folder / CONFIG_NAME).read_text()) for folder in (exported, load_reference("tiny-2x").folder)
    ]
    assert sections[0].keys() == sections[1].keys()
    assert sections[0]["model"].keys() - sections[1]["model"].keys() <= {"scale_min_size"}
    assert sections[0]["model"]["num_mixing_layers"] == 2


def test_the_run_is_left_as_it_was(run_folder: Path, exported: Path) -> None:
    assert load_checkpoint(run_folder).class_names == ["fox", "lamp", "car"]
    assert {"optimizer", "data_order"} <= torch.load(run_folder / CHECKPOINT_NAME, weights_only=True).keys()


# Mistakes


@pytest.mark.parametrize("flags", [(), ("--checkpoint", "a"), ("--output_dir", "b")])
def test_both_folders_must_be_named(flags: tuple[str, ...]) -> None:
    assert call(export.main, *flags).error().startswith("name the --checkpoint to export, and the --output_dir")


def test_no_checkpoint(tmp_path: Path) -> None:
    outcome = call(export.main, "--checkpoint", str(tmp_path), "--output_dir", str(tmp_path / "new"))
    assert outcome.error().startswith(f"no checkpoint at {tmp_path / CHECKPOINT_NAME}")
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_is_refused(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    message = call(export.main, "--checkpoint", str(run_folder), "--output_dir", str(tmp_path)).error()
    assert message == f"{tmp_path} is not empty; name a new folder to export to"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_folder_will_do(run_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    assert call(export.main, "--checkpoint", str(run_folder), "--output_dir", str(folder)).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    assert_same_model(load_checkpoint(run_folder), load_checkpoint(folder))


def test_another_scan_order_cannot_be_published(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", tiny_model(scan_order="raster"))
    message = call(export.main, "--checkpoint", str(run), "--output_dir", str(tmp_path / "new")).error()
    assert "scan_order raster" in message
    assert not (tmp_path / "new").exists()
