"""What is saved with a card, or uploaded to a hub, is the same model again, and says what it is."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants
from PIL import Image

from models import load_checkpoint, open_autoencoder
from models.autoencoder import Autoencoder
from models.family import Generator
from models.llamagen.model import LlamaGen
from models.loading.save import write_recommended
from runtime.config import read_yaml
from runtime.errors import UserError
from runtime.files import write_json
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
    with pytest.raises(UserError, match=r"holds checkpoint-last\.pth, other weights than these"):
        tiny_model().push_to_hub(REPO, num_samples=0)
    assert set(hub.contents) == {"checkpoint-last.pth"}


@pytest.mark.quick
def test_who_may_not_upload_is_told(hub: Hub) -> None:
    hub.token = "secret"
    with pytest.raises(UserError, match=r"no repository someone/tiny that you may .* log in by hf auth login"):
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
        ({"results": {"FID": "good"}}, "the result FID is 'good'; give a number"),
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
