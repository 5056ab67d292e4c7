"""Files of every kind of autoencoder: published, ours, damaged, and beside a configuration of another kind."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from models.autoencoder import Autoencoder
from models.config import AutoencoderPaths, MaskGITVQConfig, VQVAEConfig
from models.loading.autoencoder import (
    autoencoder_hash,
    export_autoencoder,
    infer_autoencoder_config,
    load_autoencoder,
    open_autoencoder,
    save_autoencoder,
)
from models.loading.autoencoder_kinds import new_autoencoder
from models.loading.checkpoint import load_checkpoint
from models.maskgit_vq import MaskGITVQ
from models.vqvae import VQVAE
from runtime.config import write_yaml
from runtime.errors import UserError
from tests.command_factory import ROOT
from tests.factory import FIXTURES, randomize, tiny_autoencoder
from tests.llamagen_factory import tiny_gpt
from training.options import TrainArgs
from training.run_folder import begin_run, run_settings

pytestmark = pytest.mark.quick
CONFIGS = [
    MaskGITVQConfig(embed_dim=16, n_embed=64, ch=32, ch_mult=(1, 2), num_res_blocks=1),
    MaskGITVQConfig(embed_dim=4, n_embed=8, ch=64, ch_mult=(1, 1, 3), num_res_blocks=2),
    VQVAEConfig(embed_dim=8, n_embed=64, channels=16, residual_channels=4, num_residual_layers=3),
    VQVAEConfig(embed_dim=3, n_embed=5, channels=6, num_residual_layers=0),
]
each_kind = pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[2]], ids=["maskgit", "vqvae"])
KINDS = {"llamagen": tiny_autoencoder, "maskgit": lambda: MaskGITVQ(CONFIGS[0]), "vqvae": lambda: VQVAE(CONFIGS[2])}


def random_autoencoder(config: Any) -> Autoencoder:
    autoencoder = new_autoencoder(config).eval()
    randomize(autoencoder)
    return autoencoder


def assert_same(loaded: Autoencoder, written: Autoencoder) -> None:
    assert (type(loaded), loaded.config, loaded.training) == (type(written), written.config, False)
    theirs, ours = written.state_dict(), loaded.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


@pytest.mark.parametrize("config", CONFIGS)
def test_sizes_are_read_off_the_weights(config: Any) -> None:
    with torch.device("meta"):
        state = new_autoencoder(config).state_dict()
    assert infer_autoencoder_config(state, Path("a.pth")) == config


@each_kind
@pytest.mark.parametrize("name", ["a.bin", "a.pth", "a.pt", "a.safetensors"])
def test_bare_weights_load(config: Any, name: str, tmp_path: Path) -> None:
    written = random_autoencoder(config)
    (save_file if name.endswith("safetensors") else torch.save)(written.state_dict(), tmp_path / name)
    assert_same(open_autoencoder(tmp_path / name), written)
    assert_same(open_autoencoder(tmp_path), written)  # the only file of weights there
    assert_same(load_autoencoder(AutoencoderPaths(checkpoint_path=name), tmp_path), written)
    missing = AutoencoderPaths("autoencoder_config.yaml", name)
    assert_same(load_autoencoder(missing, tmp_path), written)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("write", [save_autoencoder, export_autoencoder])
def test_every_kind_survives_saving_and_export(kind: str, write: Any, tmp_path: Path) -> None:
    written = KINDS[kind]().eval()
    randomize(written)
    write(written, tmp_path)
    assert_same(open_autoencoder(tmp_path), written)
    (tmp_path / "autoencoder_config.yaml").unlink()
    assert_same(open_autoencoder(tmp_path), written)


def test_an_exported_vqvae_is_the_file_that_was_read(tmp_path: Path) -> None:
    published = torch.load(FIXTURES / "tiny-randar/vqvae.pth", weights_only=True)
    export_autoencoder(open_autoencoder(FIXTURES / "tiny-randar/vqvae.pth"), tmp_path)
    exported = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    assert list(exported) == list(published)
    assert all(torch.equal(exported[key], value) for key, value in published.items())


@each_kind
def test_a_run_folder_keeps_its_autoencoder(config: Any, tmp_path: Path) -> None:
    written = random_autoencoder(config)
    model = tiny_gpt(autoencoder=written)
    begin_run(tmp_path, written)
    write_yaml(tmp_path / "config.yaml", run_settings(model.config, TrainArgs()))
    torch.save({"model": model.state_dict()}, tmp_path / "checkpoint-last.pth")
    assert_same(load_checkpoint(tmp_path).autoencoder, written)


# The hash, by which caches know their codes


def test_the_hash_of_shipped_autoencoders_stays() -> None:
    """Caches of codes exist."""
    known = {
        "digits": "9a76433bf9aa59db57dbd5e0087068d1dc6d4d2cdbe4c9e3ef16e362fd0df5c4",
        "cifar10": "04d881ca9522087a5e051f4b40a50c9aafa4cee43db67bb8e13187bda71077d9",
    }
    found = {name: autoencoder_hash(open_autoencoder(ROOT / "pretrained_models" / name)) for name in known}
    assert found == known


@each_kind
def test_the_hash_is_of_the_weights_that_decide_codes(config: Any) -> None:
    autoencoder = random_autoencoder(config)
    seen = {autoencoder_hash(autoencoder)}
    for key, value in autoencoder.state_dict().items():
        matters = "decoder" not in key and "_ema_" not in key
        with torch.no_grad():
            value.view(-1)[-1] += 1e-2
        assert (autoencoder_hash(autoencoder) not in seen) == matters, key
        seen.add(autoencoder_hash(autoencoder))


# Mistakes


def vqvae_state() -> dict[str, Tensor]:
    return VQVAE(CONFIGS[2]).state_dict()


def test_wrong_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    def answer(content: Any) -> str:
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(UserError) as error:
            open_autoencoder(tmp_path / "a.pth")
        assert "\n" not in str(error.value)
        return str(error.value)

    state = vqvae_state()
    assert "lacks _encoder._conv_2.weight; it is no" in answer(
        {key: value for key, value in state.items() if key != "_encoder._conv_2.weight"}
    )
    assert "missing _decoder._conv_1.bias" in answer(
        {key: value for key, value in state.items() if key != "_decoder._conv_1.bias"}
    )
    assert "unexpected _extra" in answer(state | {"_extra": torch.zeros(1)})
    assert "is no autoencoder of the CIFAR-10 baseline's layout" in answer(
        state | {"_vq_vae._embedding.weight": torch.zeros(3)}
    )
    odd = state | {"_encoder._conv_2.weight": torch.zeros(7, 3, 4, 4)}
    assert "channels is 7" in answer(odd)
    nan = {key: value.clone() for key, value in state.items()}
    nan["_pre_vq_conv.bias"][0] = float("nan")
    assert "not finite, first in _pre_vq_conv.bias" in answer(nan)
    assert "of a known kind (LlamaGen's, MaskGIT's, the CIFAR-10 baseline's)" in answer({"a": torch.zeros(1)})
    assert "nor bare weights" in answer({"a": torch.zeros(1), "epoch": 3})
    maskgit = MaskGITVQ(CONFIGS[0]).state_dict()
    assert "missing decoder.mid.0.conv1.weight" in answer(
        {key: value for key, value in maskgit.items() if key != "decoder.mid.0.conv1.weight"}
    )
    assert "lacks quantize.embedding.weight" in answer(
        {key: value for key, value in maskgit.items() if not key.startswith("quantize")}
    )
    assert "is no autoencoder of MaskGIT's layout" in answer(maskgit | {"encoder.conv_in.weight": torch.zeros(0, 3)})


def test_a_yaml_of_another_kind_is_refused(tmp_path: Path) -> None:
    save_autoencoder(VQVAE(CONFIGS[2]), tmp_path)
    shutil.copy(ROOT / "pretrained_models/cifar10/autoencoder_config.yaml", tmp_path)
    with pytest.raises(UserError, match=r"of the CIFAR-10 baseline's kind, but .*autoencoder_config\.yaml describes"):
        open_autoencoder(tmp_path)
    paths = AutoencoderPaths(None, "autoencoder.safetensors")
    assert load_autoencoder(paths, tmp_path).config == CONFIGS[2]
    write_yaml(tmp_path / "autoencoder_config.yaml", {"model": {"kind": "vq-vae", "params": {}}})
    with pytest.raises(UserError, match="names the kind vq-vae; known are llamagen, maskgit, vqvae"):
        open_autoencoder(tmp_path)


def test_settings_override_the_yaml_of_every_kind(tmp_path: Path) -> None:
    save_autoencoder(VQVAE(CONFIGS[2]), tmp_path)
    content = yaml.safe_load((tmp_path / "autoencoder_config.yaml").read_text())
    assert content["model"]["kind"] == "vqvae"
    content["model"]["params"]["channels"] = 8
    write_yaml(tmp_path / "autoencoder_config.yaml", content)
    with pytest.raises(UserError, match="does not fit the model"):
        open_autoencoder(tmp_path)
    paths = AutoencoderPaths("autoencoder_config.yaml", "autoencoder.safetensors", {"channels": 16})
    assert load_autoencoder(paths, tmp_path).config == CONFIGS[2]


def test_one_of_several_files_must_be_named(tmp_path: Path) -> None:
    for name in ("a.pth", "b.bin"):
        torch.save(vqvae_state(), tmp_path / name)
    with pytest.raises(UserError, match=r"holds a\.pth, b\.bin; name one of these files"):
        open_autoencoder(tmp_path)
