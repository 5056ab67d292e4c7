"""The folder of a run: it can be moved, and holds one model."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from models import load_checkpoint
from models.checkerboard.config import CheckerboardDrawing
from models.checkerboard.model import Checkerboard
from models.config import AutoencoderPaths
from models.loading.autoencoder import autoencoder_hash, load_autoencoder, save_autoencoder
from models.loading.checkpoint import read_model_config
from runtime.config import plain, read_yaml, write_yaml
from runtime.errors import UserError
from tests.command_factory import save_run
from tests.factory import TINY_TRANSFORMER, random_codes, tiny_autoencoder
from tests.training_factory import fresh_model, tiny_args, tiny_trainer
from training.run_folder import AUTOENCODER_PATHS, begin_run, check_same, exports_to, sampling_settings

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fresh model's run; tests leave it as it is."""
    return save_run(tmp_path_factory.mktemp("run") / "tiny", fresh_model())


def test_a_folder_holds_what_loading_needs(tmp_path: Path) -> None:
    model, folder = fresh_model(autoenc=AutoencoderPaths("elsewhere.yaml", "elsewhere.pth")), tmp_path / "new" / "run"
    save_run(folder, model, epochs=3)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    autoencoder = ["autoenc/autoencoder.safetensors", "autoenc/autoencoder_config.yaml"]
    assert files == [*autoencoder, "checkpoint-last.pth", "config.yaml"]
    assert read_model_config(folder / "checkpoint-last.pth") == replace(model.config, autoenc=AUTOENCODER_PATHS)
    assert read_yaml(folder / "config.yaml")["args"]["epochs"] == 3
    loaded = load_autoencoder(AUTOENCODER_PATHS, folder)
    assert loaded.config == model.autoencoder.config
    for key, value in model.autoencoder.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_half_precision_keeps_the_file_small_and_loads_as_float32(tmp_path: Path) -> None:
    autoencoder = tiny_autoencoder()
    save_autoencoder(autoencoder, tmp_path, torch.float16)
    saved = load_file(tmp_path / "autoencoder.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float16, torch.bool}
    paths = AutoencoderPaths("autoencoder_config.yaml", "autoencoder.safetensors")
    loaded = load_autoencoder(paths, tmp_path).state_dict()
    for key, value in autoencoder.state_dict().items():
        expected = value.half().float() if value.is_floating_point() else value
        assert torch.equal(loaded[key], expected), key


@pytest.mark.parametrize(
    ("previews", "written", "found"),
    [
        ({"cfg": 2.0, "steps_per_scale": 8}, {"cfg": 2.0, "steps_per_scale": 8}, {"cfg": 0.5}),  # of the previews
        ({"cfg": 2.0, "steps_per_scale": 8}, {"cfg": 2.0}, {"cfg": 2.0}),  # of a sweep: fewer steps are better
        ({}, {}, {"cfg": 0.5}),
        ({"cfg": 2.0}, {}, {"cfg": 0.5}),  # nothing was written
        ({}, {"top_p": 0.9}, {"top_p": 0.9}),
    ],
)
def test_what_a_sweep_recommends_outlives_going_on(
    previews: dict[str, Any], written: dict[str, Any], found: dict[str, Any], run: Path, tmp_path: Path
) -> None:
    folder, now = tmp_path / "run", CheckerboardDrawing(cfg=0.5)
    shutil.copytree(run, folder)
    place = folder / "config.yaml"
    saved = read_yaml(place)
    args = saved["args"] | plain(CheckerboardDrawing()) | previews
    write_yaml(place, saved | {"args": args, "sampling": written})
    assert sampling_settings(folder, now, None) == found
    (folder / "checkpoint-last.pth").unlink()  # a run that was killed before it saved says nothing
    assert sampling_settings(folder, now, None) == {"cfg": 0.5}


def test_a_run_knows_what_it_exports(tmp_path: Path) -> None:
    folder, usual, other = tmp_path / "run", tmp_path / "run/made", tmp_path / "other"
    assert not exports_to(folder, "args", usual, usual)
    folder.mkdir()
    (folder / "checkpoint-last.pth").touch()
    for named, own in ((None, usual), (str(other), other)):
        write_yaml(folder / "config.yaml", {"args": {"export_dir": named}})
        assert [exports_to(folder, "args", place, usual) for place in (usual, other)] == [own == usual, own == other]


def test_a_moved_folder_loads_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, elsewhere = tmp_path / "old", tmp_path / "far" / "new", tmp_path / "elsewhere"
    trainer = tiny_trainer(old, epochs=1, ema=True)
    begin_run(old, trainer.state.module.autoencoder)
    trainer.fit()
    new.parent.mkdir()
    shutil.move(old, new)
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)

    codes, labels = random_codes(trainer.state.module, batch=2), torch.tensor([1, 2])
    images = trainer.state.module.decode(codes[-1])
    for use_ema, trained in ((False, trainer.state.module), (True, trainer.state.ema.module)):
        loaded = load_checkpoint(new, use_ema)
        assert loaded.state_dict().keys() == trained.state_dict().keys()
        assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in trained.state_dict().items())
        assert torch.equal(loaded(codes, labels)[0], trained.eval()(codes, labels)[0])
        assert torch.equal(loaded.decode(codes[-1]), images)

    again = tiny_trainer(new, epochs=2, ema=True)
    again.fit()
    assert again.state.step == 2 * trainer.state.step


def check(folder: Path, model: Checkerboard) -> None:
    check_same(folder, model.config, autoencoder_hash(model.autoencoder))


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"num_classes": 11}, "num_classes 10, not 11"),
        ({"scan_order": "raster"}, "scan_order checkerboard, not raster"),
        ({"img_size": 32}, "img_size 16, not 32"),
        ({"llama_config": replace(TINY_TRANSFORMER, num_hidden_layers=1)}, "llama_config"),
    ],
)
def test_another_model_is_refused(run: Path, other: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=rf"{named}.*name another output_dir") as refused:
        check(run, fresh_model(**other))
    assert "\n" not in str(refused.value)


def test_another_autoencoder_is_refused(run: Path) -> None:
    model = fresh_model()
    with pytest.raises(UserError, match=r"another autoencoder.*name another output_dir") as refused:
        check_same(run, model.config, autoencoder_hash(tiny_autoencoder(seed=1)))
    assert "\n" not in str(refused.value)


def test_the_autoencoder_of_a_run_stays(run: Path) -> None:
    before = (run / "autoenc" / "autoencoder.safetensors").read_bytes()
    begin_run(run, tiny_autoencoder(seed=1))
    assert (run / "autoenc" / "autoencoder.safetensors").read_bytes() == before


def test_the_same_model_by_other_names_is_no_other(run: Path) -> None:
    check(run, fresh_model())
    check(run, fresh_model(autoenc=AutoencoderPaths("now/from.yaml", "now/from.pth")))
    check(run, fresh_model(num_mixing_layers="all"))


def test_the_configuration_is_that_of_the_last_steps(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, epochs=1).fit()
    tiny_trainer(tmp_path, epochs=1, lr=1.0).fit()
    assert read_yaml(tmp_path / "config.yaml")["args"]["lr"] == tiny_args().lr  # no step was taken
    tiny_trainer(tmp_path, epochs=2, lr=1.0).fit()
    assert read_yaml(tmp_path / "config.yaml")["args"]["lr"] == 1.0
