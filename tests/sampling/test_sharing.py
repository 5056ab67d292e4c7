"""What is saved with a card, or uploaded to a hub, is the same model again, and says what it is."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, constants
from PIL import Image

from models import load_checkpoint, open_autoencoder
from models.autoencoder import Autoencoder
from models.family import Generator
from models.llamagen.model import LlamaGen
from models.loading.checkpoint import config_place, find_checkpoint
from models.loading.save import write_recommended
from models.loading.state import write_weights
from runtime.config import read_yaml
from runtime.errors import UserError
from runtime.files import new_folder, write_json
from sampling import Pipeline
from tests.command_factory import call, save_run, start_python
from tests.factory import tiny_autoencoder, tiny_model
from tests.hub_factory import Hub, running_hub
from tests.llamagen_factory import tiny_gpt
from tests.randar_factory import tiny_randar
from training import export

FAMILIES = [tiny_model, tiny_gpt, tiny_randar]
REPO = "someone/tiny"
RESULTS = {"FD-digits-100": 4.5, "Class accuracy": 0.25}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.chdir(tmp_path)
    yield from running_hub("nobody/nothing", {}, monkeypatch, tmp_path)


def assert_same(found: torch.nn.Module, expected: torch.nn.Module) -> None:
    assert type(found) is type(expected)
    assert found.state_dict().keys() == expected.state_dict().keys()
    for name, weight in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], weight), name


def named(make: Callable[..., Generator]) -> Generator:
    model = make(autoencoder=tiny_autoencoder(norm_groups=8))
    model.class_names = [f"thing {i}" for i in range(model.config.num_classes)]
    return model


@pytest.mark.quick
@pytest.mark.parametrize("make", FAMILIES)
def test_a_round_trip_over_the_hub(make: Callable[..., Generator], hub: Hub) -> None:
    model = named(make)
    model.recommended = {"cfg": 0.5, "temperature": 0.9}
    address = model.push_to_hub(REPO, license="mit", data="digits", results=RESULTS, num_samples=3)
    assert address == f"{hub.endpoint}/{REPO}"
    assert {"README.md", "config.json", "model.safetensors", "samples.png"} < set(hub.contents)
    loaded = load_checkpoint(REPO)
    assert_same(loaded, model)
    assert_same(loaded.autoencoder, model.autoencoder)
    assert loaded.class_names == model.class_names
    assert loaded.recommended == model.recommended
    pixels = [Pipeline(m)(1, generator=0).images[0].tobytes() for m in (model, loaded)]
    assert pixels[0] == pixels[1]


@pytest.mark.quick
def test_the_card_tells_people_and_the_hub(tmp_path: Path) -> None:
    model = named(tiny_model)
    model.save_pretrained(tmp_path / "saved", license="mit", data="digits", results=RESULTS, text="Draws things.")
    card = ModelCard.load(tmp_path / "saved/README.md", ignore_metadata_errors=False)
    assert (card.data.license, card.data.library_name) == ("mit", "progressive-checkerboard")
    assert {(result.metric_name, result.metric_value) for result in card.data.eval_results} == set(RESULTS.items())
    assert {result.dataset_name for result in card.data.eval_results} == {"digits"}
    assert "Draws things." in card.text
    assert "thing 0" in card.text
    assert str(model.num_codes) in card.text
    with Image.open(tmp_path / "saved/samples.png") as picture:
        assert min(picture.size) >= model.config.img_size
    assert ModelCard.load(tmp_path / "saved/README.md").text.count("samples.png") == 1


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["model", "codes alone", "autoencoder"])
def test_the_snippet_of_a_card_runs(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    if kind == "autoencoder":
        tiny_autoencoder().save_pretrained(folder, license="mit")
    else:
        (named(tiny_model) if kind == "model" else tiny_gpt()).save_pretrained(folder, license="mit", num_samples=0)
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    (tmp_path / "snippet.py").write_text(code)
    outcome = start_python("snippet.py", folder=tmp_path, PYTHONPATH=str(Path.cwd()))
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "image.png").exists() == (kind == "model")


@pytest.mark.quick
def test_an_autoencoder_goes_by_itself_and_may_be_named_by_models(hub: Hub, tmp_path: Path) -> None:
    autoencoder = tiny_autoencoder(norm_groups=8)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    autoencoder.push_to_hub("someone/tokens", license="mit", images=images)
    assert set(hub.contents) == {"README.md", "config.json", "model.safetensors", "samples.png"}
    for loaded in (open_autoencoder("someone/tokens"), Autoencoder.from_pretrained("someone/tokens")):
        assert loaded.config == autoencoder.config
        assert torch.equal(loaded.tokenize(images, (8,))[0], autoencoder.tokenize(images, (8,))[0])
    model = tiny_model(autoencoder=autoencoder)
    model.save_pretrained(tmp_path / "saved", autoencoder="someone/tokens", num_samples=0)
    assert not (tmp_path / "saved/autoenc").exists()
    assert_same(load_checkpoint(tmp_path / "saved").autoencoder, autoencoder)
    with pytest.raises(UserError, match="holds another autoencoder than the model's"):
        tiny_model().save_pretrained(tmp_path / "other", autoencoder="someone/tokens")
    assert not (tmp_path / "other").exists()


@pytest.mark.quick
def test_recommended_settings_are_written_into_what_was_saved(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "saved", num_samples=0)
    write_recommended(tmp_path / "saved/config.json", {"cfg": 1e-05})
    assert load_checkpoint(tmp_path / "saved").recommended == {"cfg": 1e-05}
    assert json.loads((tmp_path / "saved/config.json").read_text()) == read_yaml(tmp_path / "saved/config.json")


@pytest.mark.quick
def test_nothing_is_recommended_in_the_hubs_cache(hub: Hub) -> None:
    """Whose files are those of all programs."""
    tiny_model().push_to_hub("someone/model", license="mit", num_samples=0)
    place = config_place(find_checkpoint("someone/model"))
    before = place.read_bytes()
    with pytest.raises(UserError, match=r"write a copy of the model by training\.export first"):
        write_recommended(place, {"cfg": 3.0})
    assert place.read_bytes() == before


@pytest.mark.quick
def test_a_configuration_of_another_program_is_not_read(tmp_path: Path) -> None:
    """Many repositories have a config.json, and ours above it counts."""
    run = save_run(tmp_path / "run", tiny_model())
    (run / "weights").mkdir()
    (run / "checkpoint-last.pth").rename(run / "weights/checkpoint-last.pth")
    write_json(run / "weights/config.json", {"model": "gpt", "hidden_size": 3})
    assert_same(load_checkpoint(run / "weights"), tiny_model())


@pytest.mark.quick
def test_kinds_are_not_mixed_up(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "saved", num_samples=0)
    assert_same(Generator.from_pretrained(tmp_path / "saved"), tiny_model())
    with pytest.raises(UserError, match=r"is a Checkerboard, not a LlamaGen; load it as that"):
        LlamaGen.from_pretrained(tmp_path / "saved")


@pytest.mark.quick
def test_what_would_be_read_instead_is_not_uploaded_beside(hub: Hub) -> None:
    hub.repo, hub.contents = REPO, {"checkpoint-last.pth": b"another model"}
    with pytest.raises(UserError, match=r"holds checkpoint-last\.pth of something else"):
        tiny_model().push_to_hub(REPO, num_samples=0)
    assert set(hub.contents) == {"checkpoint-last.pth"}


@pytest.mark.quick
def test_who_may_not_upload_is_told(hub: Hub) -> None:
    hub.token = "secret"
    with pytest.raises(UserError, match=r"nothing was uploaded to someone/tiny .*; log in by hf auth login"):
        tiny_model().push_to_hub(REPO, num_samples=0)
    tiny_model().push_to_hub(REPO, num_samples=0, token="secret")
    assert_same(load_checkpoint(REPO), tiny_model())


@pytest.mark.quick
def test_terms_that_are_not_accepted_are_named(hub: Hub) -> None:
    hub.repo, hub.gated = REPO, True
    with pytest.raises(UserError, match=rf"{REPO} is gated; accept its terms at {hub.endpoint}/{REPO}"):
        load_checkpoint(REPO)


@pytest.mark.quick
@pytest.mark.parametrize("name", ["tiny", "someone/tiny@main", "someone/tiny/folder", "https://x.y/z"])
def test_a_name_to_upload_to_is_of_a_repository(name: str) -> None:
    with pytest.raises(UserError, match="give owner/name"):
        tiny_model().push_to_hub(name)


@pytest.mark.quick
def test_mistakes_leave_nothing_behind(tmp_path: Path) -> None:
    model = tiny_model()
    for details, answer in (
        ({"results": tmp_path / "none.json"}, "is no result.json of an evaluation"),
        ({"results": {"FID": "good"}}, "the result FID is 'good'; give a finite number"),
        ({"dtype": torch.int8}, "dtype is torch.int8; it must be one of"),
        ({"licence": "mit"}, "unknown key licence in what to save; did you mean license"),
    ):
        with pytest.raises(UserError, match=answer):
            model.save_pretrained(tmp_path / "saved", **details)
        assert not list(tmp_path.iterdir())
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").touch()
    with pytest.raises(UserError, match="is not empty"):
        model.save_pretrained(tmp_path / "full")


@pytest.mark.quick
def test_the_command(hub: Hub, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", tiny_model())
    write_json(tmp_path / "result.json", {"metrics": ["FID", "IS"], "FID": 3.5, "IS": None})
    flags = [
        "--checkpoint",
        str(run),
        "--format",
        "hub",
        "--license",
        "mit",
        "--results",
        str(tmp_path / "result.json"),
    ]
    outcome = call(export.main, *flags, "--output_dir", str(tmp_path / "out"), "--dtype", "bfloat16")
    assert outcome.code == 0, outcome.err
    rounded = {name: weight.bfloat16().float() for name, weight in load_checkpoint(run).state_dict().items()}
    found = load_checkpoint(tmp_path / "out").state_dict()
    assert all(torch.equal(found[name], rounded[name]) for name in rounded)
    assert "| FID | 3.5 |" in (tmp_path / "out/README.md").read_text()
    assert call(export.main, *flags, "--push_to", REPO).code == 0
    assert_same(load_checkpoint(REPO), load_checkpoint(run))
    assert "add --format hub" in call(export.main, *flags[:2], "--output_dir", "o", "--license", "mit").error()
    assert "where to --push_to" in call(export.main, *flags).error()
    assert constants.HF_HUB_DISABLE_XET  # what the stand-in cannot take


@pytest.mark.quick
def test_torch_hub_finds_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    tiny_model().save_pretrained(tmp_path / "saved", num_samples=0)
    project = str(Path(export.__file__).parents[1])
    pipe = torch.hub.load(project, "pipeline", str(tmp_path / "saved"), source="local")
    assert_same(pipe.model, tiny_model())
    assert_same(torch.hub.load(project, "model", str(tmp_path / "saved"), source="local"), tiny_model())
    found = torch.hub.load(project, "autoencoder", str(tmp_path / "saved"), source="local")
    assert_same(found, tiny_model().autoencoder)


@pytest.mark.quick
def test_names_are_text_and_no_markup(tmp_path: Path) -> None:
    model = tiny_model()
    odd = ["a|b", "c\nd", "---", "![i](http://x.y)", "<b>", "caf\udce9", "*x*", "#", "[", "\\"]
    model.class_names = odd
    model.save_pretrained(tmp_path / "saved", data="one | two", results={"a|b": 1.0}, num_samples=0)
    text = (tmp_path / "saved/README.md").read_text(encoding="utf-8")
    assert ModelCard.load(tmp_path / "saved/README.md").data.eval_results[0].metric_name == "a|b"
    (classes,) = re.findall(r"## Classes\n\n(.*)\n", text)
    assert all(shown in classes for shown in (r"a\|b", "c d", r"\!\[i\](http://x.y)", r"\<b\>", "caf?", r"\*x\*"))
    assert r"| trained on | one \| two |" in text
    assert load_checkpoint(tmp_path / "saved").class_names == odd


@pytest.mark.quick
def test_numbers_of_any_kind_are_results(tmp_path: Path) -> None:
    results = {"a": np.float32(1.5), "b": np.int64(3), "c": torch.tensor(2.0), "d": 4}
    tiny_model().save_pretrained(tmp_path / "saved", results=results, num_samples=0)
    card = ModelCard.load(tmp_path / "saved/README.md")
    assert [result.metric_value for result in card.data.eval_results] == [1.5, 3, 2, 4]


@pytest.mark.quick
def test_weights_that_nobody_could_load_are_not_saved(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = 1e6
    model.save_pretrained(tmp_path / "float32", num_samples=0)
    with pytest.raises(UserError, match=r"not finite in torch\.float16; save float32"):
        model.save_pretrained(tmp_path / "float16", dtype=torch.float16, num_samples=0)
    assert [path.name for path in tmp_path.iterdir()] == ["float32"]


@pytest.mark.quick
@pytest.mark.parametrize(
    "images",
    [torch.zeros(2, 3, 32, 64), torch.zeros(1, 3, 30, 30), torch.zeros(3, 32, 32), torch.zeros(0, 3, 8, 8), "a.png"],
)
def test_an_autoencoder_shows_squares_alone(images: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"images must be floats \(B, 3, S, S\)"):
        tiny_autoencoder().save_pretrained(tmp_path / "saved", images=images)
    assert not list(tmp_path.iterdir())


@pytest.mark.quick
def test_a_mounted_disk_takes_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be replaced, so what is whole moves into it."""
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path) == tmp_path / "volume")
    (tmp_path / "volume").mkdir()
    with new_folder(tmp_path / "volume") as partial:
        assert partial.parent == tmp_path / "volume"
        (partial / "autoenc").mkdir()
        (partial / "autoenc/weights").write_text("whole")
    assert (tmp_path / "volume/autoenc/weights").read_text() == "whole"
    assert [path.name for path in (tmp_path / "volume").iterdir()] == ["autoenc"]


@pytest.mark.quick
def test_nothing_of_a_save_that_was_killed_gets_into_the_next(tmp_path: Path) -> None:
    (tmp_path / "saved.partial").mkdir()
    (tmp_path / "saved.partial/checkpoint-last.pth").write_bytes(b"of another")
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "saved") as partial:
        (partial / "begun").touch()
        raise KeyboardInterrupt
    tiny_model().save_pretrained(tmp_path / "saved", num_samples=0)
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        *("README.md", "config.json", "model.safetensors", "autoenc")
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved", "saved.partial"]
    (tmp_path / "disk").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "disk")
    with new_folder(tmp_path / "linked") as partial:
        (partial / "made").touch()
    assert (tmp_path / "linked").is_symlink()
    assert (tmp_path / "disk/made").exists()
    for name in ("file", "link"):
        path = tmp_path / name
        path.touch() if name == "file" else path.symlink_to(tmp_path / "nowhere")
        with pytest.raises(UserError, match="is a file or a broken link"):
            tiny_model().save_pretrained(path)


@pytest.mark.quick
def test_a_repository_is_of_one_kind(hub: Hub) -> None:
    tiny_model().push_to_hub(REPO, num_samples=0)
    before = dict(hub.contents)
    with pytest.raises(UserError, match=r"holds config\.json of something else"):
        tiny_autoencoder().push_to_hub(REPO)
    hub.contents["config.yaml"] = b"model: {}"
    with pytest.raises(UserError, match=r"holds config\.yaml of something else"):
        tiny_model().push_to_hub(REPO, num_samples=0)
    assert hub.contents == before | {"config.yaml": b"model: {}"}


@pytest.mark.quick
def test_the_autoencoder_of_a_model_is_found_where_the_model_names_it() -> None:
    for name in ("cifar10-checkerboard", "digits-checkerboard"):
        found = open_autoencoder(f"pretrained_models/{name}")
        assert_same(found, load_checkpoint(f"pretrained_models/{name}").autoencoder)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ({"llama_config": {"num_hidden_layers": 10**9}}, "num_hidden_layers is 1000000000; it must be at most"),
        ({"img_size": 2**40}, "img_size is 1099511627776; it must be at most"),
        ("[" * 100_000, "no such file: .*config.yaml"),
    ],
)
def test_hostile_configurations_are_refused_at_once(change: dict | str, answer: str, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "saved", num_samples=0)
    place = tmp_path / "saved/config.json"
    section = json.loads(place.read_text())["model"]
    place.write_text(change if isinstance(change, str) else json.dumps({"model": section | change}))
    with pytest.raises(UserError, match=answer):
        load_checkpoint(tmp_path / "saved")


@pytest.mark.quick
def test_names_of_another_number_of_classes_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model()
    write_weights(model.state_dict(), tmp_path / "model.safetensors", ["a", "b"])
    tiny_model().save_pretrained(tmp_path / "saved", num_samples=0)
    (tmp_path / "model.safetensors").rename(tmp_path / "saved/model.safetensors")
    assert load_checkpoint(tmp_path / "saved").class_names is None
    assert "names 2 classes, but its model has 10; they are left out" in capsys.readouterr().err


@pytest.mark.quick
def test_an_autoencoder_is_no_model(tmp_path: Path) -> None:
    tiny_autoencoder().save_pretrained(tmp_path / "saved")
    with pytest.raises(UserError, match="holds an autoencoder and no model; load it by open_autoencoder"):
        load_checkpoint(tmp_path / "saved")
