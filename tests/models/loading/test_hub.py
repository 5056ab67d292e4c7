"""Models by their name on the hub, against a small one on 127.0.0.1 and with the real client."""

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

import main_sample
from models.loading import llamagen
from models.loading.autoencoder import export_autoencoder
from models.loading.checkpoint import export_published, load_checkpoint
from models.loading.hub import files_of, is_hub_name
from models.loading.save import save_model
from runtime.errors import UserError
from tests.command_factory import call, save_run
from tests.factory import tiny_autoencoder, tiny_model
from tests.hub_factory import COMMIT, Hub, running_hub
from tests.llamagen_factory import tiny_gpt

pytestmark = pytest.mark.quick
REPO = "some/models"


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A repository as the release: models below pretrained_models/, their autoencoder beside; and one saved by us."""
    folder = tmp_path_factory.mktemp("made")
    export_published(save_run(folder / "run", tiny_model()), folder / "pretrained_models/two")
    (folder / "pretrained_models/two/autoenc").rename(folder / "pretrained_models/autoenc")
    config = folder / "pretrained_models/two/config.yaml"
    config.write_text(config.read_text().replace("autoenc/", "pretrained_models/autoenc/"))
    save_model(tiny_gpt(autoencoder=tiny_autoencoder()), folder / "ours")
    shutil.rmtree(folder / "run")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def hub(contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.chdir(tmp_path)
    yield from running_hub(REPO, contents, monkeypatch, tmp_path)


@pytest.mark.parametrize("name", ["two", "pretrained_models/two", "pretrained_models/two/checkpoint-last.pth"])
def test_a_released_repository_loads_as_it_is(hub: Hub, name: str) -> None:
    model, expected = load_checkpoint(f"{REPO}/{name}"), tiny_model()
    for key, weight in expected.state_dict().items():
        assert torch.equal(model.state_dict()[key], weight)
    for key, weight in expected.autoencoder.state_dict().items():
        assert torch.equal(model.autoencoder.state_dict()[key], weight)
    fetched = {Path(name).name for name, _ in hub.sent}
    assert "model.safetensors" not in fetched  # nothing of the other model


def test_what_is_in_the_cache_is_not_fetched_again_and_serves_without_network(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for revision in ("", f"@{COMMIT}"):
        load_checkpoint(f"{REPO}{revision}/ours")
    fetched = [name for name, _ in hub.sent if name == "model.safetensors"]
    assert len(fetched) == 1
    for way in ("offline", "out of reach"):
        with monkeypatch.context() as patch:
            if way == "offline":
                patch.setattr(constants, "HF_HUB_OFFLINE", True)
            else:
                hub.stop()
            for revision in ("", f"@{COMMIT}"):
                assert load_checkpoint(f"{REPO}{revision}/ours").num_codes == 64
                assert "cannot be reached; taking the copy" in capsys.readouterr().out


def test_a_model_that_the_copy_lacks_is_out_of_reach_not_absent(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    load_checkpoint(f"{REPO}/ours")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=f"{REPO}/two .*cannot be fetched from the hub .*HF_HUB_OFFLINE"):
        load_checkpoint(f"{REPO}/two")


def test_programs_take_names_of_the_hub(hub: Hub, tmp_path: Path) -> None:
    outcome = call(main_sample.main, "--checkpoint", f"{REPO}/two", "--labels", "3", "--output_dir", "drawn")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "drawn/000000.png").is_file()


def test_a_cut_connection_is_gone_on_with(hub: Hub) -> None:
    hub.cuts = [1500, 3000]
    load_checkpoint(f"{REPO}/ours")
    ranges = [wanted for name, wanted in hub.sent if name == "model.safetensors"]
    assert ranges[0] is None
    assert all(ranges[1:])


def test_a_damaged_file_is_refused(hub: Hub, contents: dict[str, bytes]) -> None:
    load_checkpoint(f"{REPO}/ours")
    blob = next(path for path in Path(constants.HF_HUB_CACHE).rglob("model.safetensors")).resolve()
    blob.write_bytes(b"x" * blob.stat().st_size)
    with pytest.raises(UserError, match=r"model\.safetensors of some/models/ours arrived damaged; delete .*blobs"):
        load_checkpoint(f"{REPO}/ours")


@pytest.mark.parametrize(
    ("status", "answer"),
    [(404, "no repository some/models that you may read"), (401, "no repository some/models that you may read")],
)
def test_what_the_hub_refuses_is_said(hub: Hub, status: int, answer: str) -> None:
    hub.status = status
    with pytest.raises(UserError, match=answer):
        load_checkpoint(f"{REPO}/ours")


def test_without_network_and_cache_one_sentence_says_what_to_do(hub: Hub) -> None:
    hub.stop()
    with pytest.raises(UserError, match=r"cannot be fetched from the hub .*; connect to the network, set HF_ENDPOINT"):
        load_checkpoint(f"{REPO}/ours")


def test_a_full_disk_is_said(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    with pytest.raises(UserError, match=r"/cache: No space left on device; free some space"):
        load_checkpoint(f"{REPO}/ours")


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("nowhere", "the repository has no folder or file nowhere; it has ours, .*pretrained_models/two"),
        ("", "holds no weights; name one of ours"),
    ],
)
def test_wrong_folders_are_refused(hub: Hub, name: str, answer: str) -> None:
    with pytest.raises(UserError, match=answer):
        load_checkpoint(f"{REPO}/{name}".rstrip("/"))


def test_a_file_of_llamagen_brings_its_autoencoder(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As LlamaGen's repository has it: files side by side and no configuration."""
    autoencoder = tiny_autoencoder(n_embed=16384, ch_mult=(1, 1, 1, 1, 1))
    gpt = tiny_gpt(img_size=256, vocab_size=16384, autoencoder=autoencoder)
    export_autoencoder(autoencoder, tmp_path)
    torch.save({"model": gpt.state_dict()}, tmp_path / "weights.pt")
    monkeypatch.setattr(llamagen, "AUTOENCODER", tmp_path / "none")
    monkeypatch.setattr(llamagen, "SIZES", {(2, 32): llamagen.Size("B", 2)})
    hub.repo = "FoundationVision/LlamaGen"
    weights, tokens = ((tmp_path / name).read_bytes() for name in ("weights.pt", "checkpoint.pth"))
    hub.contents = {"c2i_B_256.pt": weights, "c2i_L_256.pt": b"", "vq_ds16_c2i.pt": tokens}
    model = load_checkpoint("FoundationVision/LlamaGen/c2i_B_256.pt")
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in gpt.state_dict().items())
    for name, weight in autoencoder.state_dict().items():
        assert torch.equal(model.autoencoder.state_dict()[name], weight)
    assert {name for name, _ in hub.sent if name.endswith(".pt")} == {"c2i_B_256.pt", "vq_ds16_c2i.pt"}


def test_of_several_files_one_must_be_named() -> None:
    """As of LlamaGen's repository."""
    files = ["README.md", "c2i_B_256.pt", "c2i_L_256.pt"]
    with pytest.raises(UserError, match=r"holds c2i_B_256.pt, c2i_L_256.pt; name one .*as in a/b/c2i_B_256.pt"):
        files_of("a/b", "", files)
    assert files_of("a/b/c2i_L_256.pt", "c2i_L_256.pt", files) == ("c2i_L_256.pt", ["c2i_L_256.pt", "README.md"])


def test_what_is_a_path_here_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "output").mkdir()
    for path in ("output/typo", "pretrained_models/typo", "/a/b", "./a/b", "~/a/b", "a", "a/../b", "a//b", "a/b/../c"):
        assert not is_hub_name(path), path
    for name in ("a/b", "a/b@main", "a/b@main/c", "a-b/c.d/e/f.pt"):
        assert is_hub_name(name), name
