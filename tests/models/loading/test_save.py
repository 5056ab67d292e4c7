"""A model saved as a folder is the same model again."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from models.checkerboard.config import CheckerboardDrawing
from models.family import Generator
from models.loading.autoencoder import PROJECT, export_autoencoder, open_autoencoder
from models.loading.checkpoint import load_checkpoint
from models.loading.save import save_model, write_recommended
from models.sampling import checked_drawing
from runtime.errors import UserError
from tests.command_factory import call, save_run
from tests.factory import tiny_autoencoder, tiny_model
from tests.llamagen_factory import tiny_gpt
from tests.randar_factory import tiny_randar
from training import export

pytestmark = pytest.mark.quick
FAMILIES = [tiny_model, tiny_gpt, tiny_randar]


@pytest.mark.parametrize("make", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_same_model_but_for_rounding(
    make: Callable[..., Generator], dtype: torch.dtype, tmp_path: Path
) -> None:
    model = make(autoencoder=tiny_autoencoder(norm_groups=8))
    model.class_names = [f"class {i}" for i in range(model.config.num_classes)]
    save_model(model, tmp_path / "saved", dtype)
    loaded = load_checkpoint(tmp_path / "saved")
    assert type(loaded) is type(model)
    assert loaded.class_names == model.class_names
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight.to(dtype).float()), name
    for name, weight in model.autoencoder.state_dict().items():
        assert torch.equal(loaded.autoencoder.state_dict()[name], weight), name
    assert not list(tmp_path.glob("*.partial"))


def test_everyone_may_read_what_everyone_may_read_of_new_files(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        save_model(tiny_model(), tmp_path / "saved")
    finally:
        os.umask(before)
    assert (tmp_path / "saved/model.safetensors").stat().st_mode & 0o777 == 0o644


def test_an_autoencoder_of_the_project_is_named_and_not_copied(tmp_path: Path) -> None:
    shipped = PROJECT / "pretrained_models/digits"
    model = tiny_model(autoencoder=open_autoencoder(shipped))
    save_model(model, tmp_path / "saved", autoencoder=str(shipped))
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["config.yaml", "model.safetensors"]
    paths = yaml.safe_load((tmp_path / "saved/config.yaml").read_text())["model"]["autoenc"]
    assert paths["checkpoint_path"] == "pretrained_models/digits/autoencoder.safetensors"
    codes = load_checkpoint(tmp_path / "saved").tokenize(torch.zeros(1, 3, 32, 32))[-1]
    assert torch.equal(codes, model.tokenize(torch.zeros(1, 3, 32, 32))[-1])


def test_an_autoencoder_in_a_published_file_is_named_by_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("save", "autoencoder"):
        monkeypatch.setattr(f"models.loading.{module}.PROJECT", tmp_path)
    model = tiny_model()
    export_autoencoder(model.autoencoder, tmp_path / "pretrained_models/autoenc")
    for name in ("pretrained_models/autoenc", "pretrained_models/autoenc/checkpoint.pth"):
        saved = tmp_path / name.replace("/", "-")
        save_model(model, saved, autoencoder=str(tmp_path / name))
        assert not (saved / "autoenc").exists()
        codes = load_checkpoint(saved).tokenize(torch.zeros(1, 3, 32, 32))[-1]
        assert torch.equal(codes, model.tokenize(torch.zeros(1, 3, 32, 32))[-1])


def test_recommended_settings_come_along(tmp_path: Path) -> None:
    """They hold where nothing else is said, in ``sample`` as in a command."""
    model = tiny_model()
    model.recommended = {"cfg": (0.5, 1.0, 2.0, 2.0), "steps_per_scale": 2}
    save_model(model, tmp_path / "saved")
    loaded = load_checkpoint(tmp_path / "saved")
    assert loaded.recommended == model.recommended
    assert checked_drawing(loaded, {"cfg": 0}) == CheckerboardDrawing(cfg=0.0, steps_per_scale=2)
    assert checked_drawing(loaded, {}).cfg == (0.5, 1.0, 2.0, 2.0)


def test_what_is_recommended_replaces_what_was_and_nothing_else(tmp_path: Path) -> None:
    place = tmp_path / "saved/config.yaml"
    save_model(tiny_model(), place.parent)
    text = "# mine\n" + place.read_text()
    place.write_text(text)
    write_recommended(place, {"cfg": 2.0, "temperature": (1.0, 1.0, 0.5, 0.5)})
    place.write_text(place.read_text() + "args:  # of the run\n  lr: 1\n")
    write_recommended(place, {"cfg": 0.5})
    assert place.read_text() == text + "args:  # of the run\n  lr: 1\nsampling:\n  cfg: 0.5\n"
    assert load_checkpoint(place.parent).recommended == {"cfg": 0.5}


@pytest.mark.parametrize(
    "text", ["sampling: {cfg: 1}\n# of args\nargs: {lr: 1}\n", "sampling:\n  cfg: 1\n\n# of args\nargs: {lr: 1}\n"]
)
def test_comments_of_others_stay(text: str, tmp_path: Path) -> None:
    place = tmp_path / "config.yaml"
    place.write_text(text)
    write_recommended(place, {"cfg": 2.0})
    assert "# of args\nargs: {lr: 1}\n" in place.read_text()
    assert yaml.safe_load(place.read_text()) == {"args": {"lr": 1}, "sampling": {"cfg": 2.0}}


@pytest.mark.parametrize("text", ['"sampling":\n  cfg: 1\n', "{model: 2}\n", "model: 2\n...\n"])
def test_a_file_that_nothing_can_be_added_to_stays_as_it_is(text: str, tmp_path: Path) -> None:
    place = tmp_path / "config.yaml"
    place.write_text(text)
    with pytest.raises(UserError, match=r"put sampling: cfg: 2.0 into it by hand"):
        write_recommended(place, {"cfg": 2.0})
    assert place.read_text() == text


@pytest.mark.parametrize(
    ("section", "answer"),
    [
        ("{cgf: 1}", "unknown key cgf in .*config.yaml: sampling; did you mean cfg"),
        ("{cfg: high}", "config.yaml: sampling: cfg is high; it must be a number"),
        ("0.5", "config.yaml: sampling holds 0.5, not settings"),
        ("{steps_per_scale: 0}", "config.yaml: sampling: steps_per_scale"),
        ("{cfg: [1, 2]}", "config.yaml: sampling: cfg has 2 values"),
    ],
)
def test_wrong_recommendations_are_refused(section: str, answer: str, tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path / "saved")
    with (tmp_path / "saved/config.yaml").open("a") as file:
        file.write(f"sampling: {section}\n")
    with pytest.raises(UserError, match=answer):
        load_checkpoint(tmp_path / "saved")


def test_mistakes(tmp_path: Path) -> None:
    model, shipped = tiny_model(), str(PROJECT / "pretrained_models/digits")
    with pytest.raises(UserError, match="holds another autoencoder than the model's"):
        save_model(model, tmp_path / "saved", autoencoder=shipped)
    with pytest.raises(UserError, match="neither in the project nor on the hub"):
        save_model(model, tmp_path / "saved", autoencoder=str(tmp_path))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").touch()
    with pytest.raises(UserError, match="is not empty"):
        save_model(model, tmp_path / "full")
    assert not (tmp_path / "saved").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_the_command_exports_either_layout(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", tiny_model())
    flags = ["--checkpoint", str(run), "--output_dir", str(tmp_path / "out"), "--format", "safetensors"]
    outcome = call(export.main, *flags, "--dtype", "bfloat16")
    assert outcome.code == 0, outcome.err
    expected = {name: weight.bfloat16().float() for name, weight in load_checkpoint(run).state_dict().items()}
    found = load_checkpoint(tmp_path / "out").state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    error = call(export.main, *flags[:4], "--dtype", "bfloat16").error()
    assert error == "--dtype means nothing with --format published; add --format safetensors"
