"""Checkpoint files: the published release's, LlamaGen's and ours, round trips, damaged and hostile ones."""

import argparse
import os
import pickle
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import save_file
from torch import Tensor

from models import load_checkpoint, sample
from models.checkerboard.model import Checkerboard
from models.config import AutoencoderPaths, LlamaGenVQConfig
from models.llamagen_vq import LlamaGenVQ
from models.loading import autoencoder
from models.loading.autoencoder import (
    autoencoder_config_dict,
    build_autoencoder,
    infer_autoencoder_config,
    load_autoencoder,
    open_autoencoder,
    read_autoencoder_config,
    read_autoencoder_state,
    save_autoencoder,
)
from models.loading.checkerboard import published_state
from models.loading.checkpoint import (
    CHECKPOINT_NAME,
    CONFIG_NAME,
    export_published,
    initialize_from,
)
from models.loading.state import read_torch_file
from runtime.errors import UserError
from tests.command_factory import ROOT, save_run
from tests.factory import Reference, assert_near, load_reference, random_codes, tiny_autoencoder, tiny_model
from tests.llamagen_factory import tiny_gpt

pytestmark = pytest.mark.quick
PUBLISHED_CODEBOOK = "quantize.embedding.parametrizations.weight.original"
PUBLISHED_ROPE = "llama.rotary_emb.position_embeddings.parametrizations.weight.original"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of tiny-2x that a test may spoil."""
    return Path(shutil.copytree(load_reference("tiny-2x").folder, tmp_path / "tiny-2x"))


def read_checkpoint(folder: Path) -> dict[str, Any]:
    return torch.load(folder / CHECKPOINT_NAME, weights_only=False)  # a file of our own


def edit_checkpoint(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite a checkpoint after ``edit`` changed it in place."""
    checkpoint = read_checkpoint(folder)
    edit(checkpoint)
    torch.save(checkpoint, folder / CHECKPOINT_NAME)


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite config.yaml after ``edit`` changed its model section in place."""
    config = yaml.safe_load((folder / CONFIG_NAME).read_text())
    edit(config["model"])
    (folder / CONFIG_NAME).write_text(yaml.safe_dump(config))


def autoencoder_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The autoencoder's own keys of a published checkpoint."""
    return {
        key.removeprefix("autoenc."): value for key, value in checkpoint["model"].items() if key.startswith("autoenc.")
    }


@torch.no_grad()
def assert_same_model(first: Checkerboard, second: Checkerboard) -> None:
    """Bit-equal weights, autoencoder included, and equal logits."""
    assert_equal_states(published_state(first), published_state(second))
    codes, labels = random_codes(first, batch=2), torch.tensor([1, 2])
    assert torch.equal(first(codes, labels)[0], second(codes, labels)[0])


def assert_equal_states(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert value.dtype == second[key].dtype, key
        assert torch.equal(value, second[key]), key


# Loading the published release


@pytest.mark.parametrize(("name", "use_ema"), [("tiny-2x", False), ("tiny-2x", True), ("tiny-4x", False)])
def test_greedy_samples_of_the_published_code(name: str, use_ema: bool, device: torch.device) -> None:
    reference, prefix = load_reference(name), "ema_sample" if use_ema else "sample"
    model = reference.model(use_ema, device)
    names = ("steps_per_scale", "cfg", "cfg_start_step", "temperature")
    out = sample(model, reference["labels"], **{name: reference.settings[name] for name in names})
    for i, side in enumerate(model.scale_sizes):
        assert torch.equal(out.step[i].cpu(), reference[f"{prefix}_step_{side}"])
        assert torch.equal(out.entropy[i].cpu(), reference[f"{prefix}_entropy_{side}"])
        tolerance = 5e-3 if side == 1 else 2e-4  # GroupNorm over one location amplifies rounding
        image = model.decode(out.codes[i])
        assert_near(image, reference[f"{prefix}_image_{side}"], atol=tolerance)
    assert torch.equal(out.images, image)


def test_file_and_folder_load_alike(reference: Reference) -> None:
    by_file = load_checkpoint(str(reference.folder / CHECKPOINT_NAME))
    assert_same_model(by_file, reference.model())


def test_a_checkpoint_of_any_name_takes_the_config_beside_it(folder: Path) -> None:
    (folder / CHECKPOINT_NAME).rename(folder / "epoch-90.pth")
    assert_same_model(load_checkpoint(folder / "epoch-90.pth"), load_reference("tiny-2x").model())


def test_a_loaded_model_is_ready_for_use(reference: Reference) -> None:
    model = reference.model()
    tensors = [*model.state_dict().values(), *model.autoencoder.state_dict().values()]
    assert {tensor.device.type for tensor in tensors} == {"cpu"}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training
    assert not model.autoencoder.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in model.autoencoder.parameters())


def test_averaged_weights_differ_and_share_the_autoencoder() -> None:
    reference = load_reference("tiny-2x")
    model, ema = reference.model(), reference.model(use_ema=True)
    assert not torch.equal(model.lm_head.weight, ema.lm_head.weight)
    assert_equal_states(model.autoencoder.state_dict(), ema.autoencoder.state_dict())


def test_half_precision_weights_load_as_float32(folder: Path) -> None:
    edit_checkpoint(folder, lambda c: c["model"].update({k: v.half() for k, v in c["model"].items()}))
    model = load_checkpoint(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.lm_head.weight, load_reference("tiny-2x").model().lm_head.weight.half().float())


def test_files_of_the_older_torch_format_load(folder: Path) -> None:
    torch.save(read_checkpoint(folder), folder / CHECKPOINT_NAME, _use_new_zipfile_serialization=False)
    assert_same_model(load_checkpoint(folder), load_reference("tiny-2x").model())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_ddp_and_compile_are_stripped(folder: Path, prefix: str) -> None:
    def wrap(checkpoint: dict[str, Any]) -> None:
        for name in ("model", "model_ema"):
            checkpoint[name] = {prefix + key: value for key, value in checkpoint[name].items()}

    edit_checkpoint(folder, wrap)
    for use_ema in (False, True):
        assert_same_model(load_checkpoint(folder, use_ema), load_reference("tiny-2x").model(use_ema))


# Published variants


@torch.no_grad()
def test_weights_without_source_projection_load_as_identity(folder: Path) -> None:
    eye = {"src_latents_proj.weight": torch.eye(64), "src_latents_proj.bias": torch.zeros(64)}
    edit_checkpoint(folder, lambda c: c["model"].update(eye))
    with_identity = load_checkpoint(folder)
    edit_checkpoint(folder, lambda c: [c["model"].pop(key) for key in eye])
    without = load_checkpoint(folder)
    assert "src_latents_proj.weight" not in without.state_dict()
    codes, labels = random_codes(without, batch=2), torch.tensor([1, 2])
    torch.testing.assert_close(without(codes, labels)[0], with_identity(codes, labels)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("empty_table", [False, True])
def test_no_mixing_layers(folder: Path, empty_table: bool) -> None:
    """The published code may have stored an empty table of coefficients."""
    edit_config(folder, lambda model: model.update(num_mixing_layers=0))
    edit_checkpoint(folder, lambda c: c["model"].pop("llama.rotary_emb.mixing_coeffs"))
    if empty_table:
        edit_checkpoint(folder, lambda c: c["model"].update({"llama.rotary_emb.mixing_coeffs": torch.empty(0, 4)}))
    model = load_checkpoint(folder)
    assert model.rope.mixing_coeffs is None
    assert model(random_codes(model, batch=1), torch.tensor([1]))[1].isfinite()


def test_a_null_setting_for_mixing_means_every_layer(folder: Path) -> None:
    edit_config(folder, lambda model: model.update(num_mixing_layers=None))
    coefficients = torch.randn(3, 4)
    edit_checkpoint(folder, lambda c: c["model"].update({"llama.rotary_emb.mixing_coeffs": coefficients}))
    assert torch.equal(load_checkpoint(folder).rope.mixing_coeffs, coefficients)


# The autoencoder's files


def test_the_autoencoders_folder_may_be_missing(folder: Path) -> None:
    shutil.rmtree(folder / "autoenc")
    assert_same_model(load_checkpoint(folder), load_reference("tiny-2x").model())


def test_the_yaml_agrees_with_the_architecture_read_off_the_weights(reference: Reference) -> None:
    inferred = infer_autoencoder_config(reference.model().autoencoder.state_dict(), reference.folder)
    assert read_autoencoder_config(reference.folder / "autoenc/autoencoder_config.yaml") == inferred


@pytest.mark.parametrize(
    "config",
    [
        LlamaGenVQConfig(),
        LlamaGenVQConfig(ch=32, ch_mult=(1, 2, 4), num_res_blocks=1, z_channels=16, embed_dim=4, n_embed=32),
        LlamaGenVQConfig(ch=64, ch_mult=(1,), num_res_blocks=3, z_channels=64, embed_dim=16, n_embed=8),
    ],
    ids=["vq16", "widening", "one level"],
)
def test_architectures_survive_weights_and_yaml(config: LlamaGenVQConfig, tmp_path: Path) -> None:
    with torch.device("meta"):
        autoencoder = LlamaGenVQ(config)
    assert infer_autoencoder_config(autoencoder.state_dict(), tmp_path) == config
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(autoencoder_config_dict(autoencoder)))
    assert read_autoencoder_config(tmp_path / "a.yaml") == config
    overridden = read_autoencoder_config(tmp_path / "a.yaml", {"n_embed": 5, "requant_pyramid_levels": -1})
    assert overridden == replace(config, n_embed=5)


@pytest.mark.parametrize("place", ["", "autoencoder", "autoenc"])
def test_a_runs_folder_stands_for_its_autoencoder(place: str, tmp_path: Path) -> None:
    made = tiny_autoencoder(seed=3)
    save_autoencoder(made, tmp_path / "run" / place)
    (tmp_path / "run/checkpoint-last.pth").write_bytes(b"weights of a model")
    for loaded in (
        open_autoencoder(tmp_path / "run"),
        load_autoencoder(AutoencoderPaths(checkpoint_path=str(tmp_path / "run"))),
        load_autoencoder(AutoencoderPaths(checkpoint_path="run"), tmp_path),
    ):
        assert_equal_states(loaded.state_dict(), made.state_dict())


def test_the_checkpoint_of_a_training_is_no_autoencoder(tmp_path: Path) -> None:
    """Its weights are not the averaged ones, and may be half trained."""
    (tmp_path / "run").mkdir()
    state = {"model": tiny_autoencoder().state_dict(), "model_ema": None, "data_order": {"batch_size": 8}}
    torch.save(state, tmp_path / "run/checkpoint-last.pth")
    with pytest.raises(UserError, match=r"is the checkpoint of a training.*export_dir"):
        open_autoencoder(tmp_path / "run")


def test_settings_of_a_runs_autoencoder_hold_wherever_it_is_named(tmp_path: Path) -> None:
    """Its own ``params``, and an ``autoenc`` that is a path alone."""
    made, run = tiny_autoencoder(n_embed=32), tmp_path / "run"
    save_autoencoder(made, run / "vq")
    (run / "vq/other.yaml").write_text(yaml.safe_dump(autoencoder_config_dict(tiny_autoencoder(n_embed=64))))
    weights = "vq/autoencoder.safetensors"
    section = {"config_path": "vq/other.yaml", "checkpoint_path": weights, "params": {"n_embed": 32}}
    for autoenc in (section, weights):
        (run / "config.yaml").write_text(yaml.safe_dump({"model": {"autoenc": autoenc}}))
        for loaded in (open_autoencoder(run), load_autoencoder(AutoencoderPaths(None, str(run)))):
            assert_equal_states(loaded.state_dict(), made.state_dict())


def test_a_description_that_is_not_there_is_refused(tmp_path: Path) -> None:
    save_autoencoder(tiny_autoencoder(), tmp_path)
    paths = AutoencoderPaths(str(tmp_path / "autoencoder_confg.yaml"), str(tmp_path / "autoencoder.safetensors"))
    with pytest.raises(UserError, match=r"no such file: .*autoencoder_confg.yaml; did you mean .*autoencoder_config"):
        load_autoencoder(paths)


def test_weights_that_lie_otherwise_in_memory_are_saved(tmp_path: Path) -> None:
    made = tiny_autoencoder().to(memory_format=torch.channels_last)
    save_autoencoder(made, tmp_path)
    assert_equal_states(open_autoencoder(tmp_path).state_dict(), made.state_dict())


def test_groups_of_channels_survive_weights_and_yaml(tmp_path: Path) -> None:
    made, usual = tiny_autoencoder(norm_groups=8), tiny_autoencoder()
    save_autoencoder(made, tmp_path)
    for path in (tmp_path, tmp_path / "autoencoder.safetensors"):
        loaded, images = open_autoencoder(path), torch.rand(2, 3, 32, 32) * 2 - 1
        assert loaded.config == made.config
        assert torch.equal(loaded.tokenize(images, (8,))[0], made.tokenize(images, (8,))[0])
        assert not torch.equal(loaded.tokenize(images, (8,))[0], usual.tokenize(images, (8,))[0])
    assert "norm_groups" not in usual.state_dict()  # as published


@pytest.mark.parametrize(("of_weights", "of_yaml"), [(8, 32), (8, 4), (32, 8)])
def test_groups_of_channels_that_the_weights_contradict_are_refused(
    of_weights: int, of_yaml: int, tmp_path: Path
) -> None:
    save_autoencoder(tiny_autoencoder(norm_groups=of_weights), tmp_path)
    yaml_of = autoencoder_config_dict(tiny_autoencoder(norm_groups=of_yaml))
    (tmp_path / "autoencoder_config.yaml").write_text(yaml.safe_dump(yaml_of))
    with pytest.raises(UserError, match=r"does not fit the model .* norm_groups"):
        open_autoencoder(tmp_path)


@pytest.mark.parametrize("with_yaml", [False, True])
def test_published_autoencoder_file(folder: Path, with_yaml: bool) -> None:
    state = autoencoder_state(read_checkpoint(folder))
    assert PUBLISHED_CODEBOOK in state
    torch.save({"state_dict": state, "epoch": 0, "global_step": 1}, folder / "autoenc/checkpoint.pth")
    config_path = "autoenc/autoencoder_config.yaml" if with_yaml else None
    loaded = load_autoencoder(AutoencoderPaths(config_path, "autoenc/checkpoint.pth"), folder)
    assert_equal_states(loaded.state_dict(), load_reference("tiny-2x").model().autoencoder.state_dict())
    assert not loaded.training


def llamagen_state(num_codes: int) -> dict[str, Tensor]:
    """LlamaGen's layout: the codebook under its own key and not normalized, a usage buffer, no bookkeeping of ours."""
    state = tiny_autoencoder(n_embed=num_codes).state_dict()
    for key in ("quantize.embedding", "quantize.initialized", "cluster_usage_train"):
        del state[key]
    codebook = torch.empty(num_codes, 8).uniform_(-1 / num_codes, 1 / num_codes)
    return state | {"quantize.embedding.weight": codebook, "quantize.codebook_used": torch.zeros(65536)}


@torch.no_grad()
def test_llamagen_autoencoder_file(tmp_path: Path) -> None:
    state = llamagen_state(16384)
    torch.save({"model": state}, tmp_path / "vq_ds16_c2i.pt")
    loaded = load_autoencoder(AutoencoderPaths(None, str(tmp_path / "vq_ds16_c2i.pt")))
    assert loaded.config.n_embed == 16384
    codebook = state["quantize.embedding.weight"]
    assert torch.equal(loaded.quantize.embedding, codebook)
    torch.testing.assert_close(loaded.quantize.codebook(), F.normalize(codebook, dim=-1))
    latents = loaded.encode(torch.randn(1, 3, 32, 32))
    directions = F.normalize(codebook.double(), dim=-1)
    expected = torch.einsum("bchw,vc->bhwv", latents.double(), directions).argmax(-1)
    assert torch.equal(loaded.quantize_latents(latents), expected)


def test_safetensors_autoencoder_file(tmp_path: Path) -> None:
    written = tiny_autoencoder(seed=3)
    save_file(written.state_dict(), tmp_path / "autoencoder.safetensors")
    loaded = load_autoencoder(AutoencoderPaths(None, "autoencoder.safetensors"), tmp_path)
    assert_equal_states(loaded.state_dict(), written.state_dict())
    (tmp_path / "damaged.safetensors").write_bytes((tmp_path / "autoencoder.safetensors").read_bytes()[:1000])
    with pytest.raises(UserError, match=r"damaged\.safetensors is damaged"):
        read_autoencoder_state(tmp_path / "damaged.safetensors")


def test_weights_in_the_checkpoint_win_over_the_autoencoders_file(folder: Path) -> None:
    torch.save({"state_dict": tiny_autoencoder(seed=9).state_dict()}, folder / "autoenc/checkpoint.pth")
    assert_same_model(load_checkpoint(folder), load_reference("tiny-2x").model())


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that takes the project's place, with an autoencoder, of seed 1, in models/a.safetensors."""
    monkeypatch.setattr(autoencoder, "PROJECT", tmp_path / "project")
    save_weights(tmp_path / "project/models/a.safetensors", seed=1)
    return tmp_path / "project"


def save_weights(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tiny_autoencoder(seed=seed).state_dict(), path)


def assert_loads(path: str, folder: Path | None, seed: int) -> None:
    loaded = load_autoencoder(AutoencoderPaths(checkpoint_path=path), folder)
    assert_equal_states(loaded.state_dict(), tiny_autoencoder(seed=seed).state_dict())


def test_a_users_paths_are_tried_from_here_then_from_the_project(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, home = tmp_path / "here", tmp_path / "home"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    assert_loads("models/a.safetensors", None, seed=1)
    save_weights(here / "models/a.safetensors", seed=2)
    save_weights(home / "a.safetensors", seed=3)
    assert_loads("models/a.safetensors", None, seed=2)
    assert_loads("~/a.safetensors", None, seed=3)
    assert_loads(str(home / "a.safetensors"), None, seed=3)
    assert_loads("../home/a.safetensors", None, seed=3)
    assert_equal_states(open_autoencoder("~/a.safetensors").state_dict(), tiny_autoencoder(seed=3).state_dict())
    with pytest.raises(UserError, match=rf"no autoencoder weights at {here}/no\.pth nor at {project}/no\.pth; mend"):
        load_autoencoder(AutoencoderPaths(checkpoint_path="no.pth"))
    with pytest.raises(UserError, match=rf"no autoencoder weights at {home}/no\.pth; mend"):
        load_autoencoder(AutoencoderPaths(checkpoint_path="~/no.pth"))


def test_a_checkpoints_paths_are_tried_from_its_folder_then_from_the_project(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = project / "output/run"
    beside.mkdir(parents=True)
    save_weights(tmp_path / "models/a.safetensors", seed=2)
    monkeypatch.chdir(tmp_path)  # where it is looked for last
    for path in ("models/a.safetensors", "../../models/a.safetensors", str(project / "models/a.safetensors")):
        assert_loads(path, beside, seed=1)
    save_weights(beside / "models/a.safetensors", seed=3)
    assert_loads("models/a.safetensors", beside, seed=3)
    assert_loads("models/a.safetensors", Path("project/output/../output/run"), seed=3)
    (beside / "link").symlink_to(tmp_path / "models")
    assert_loads("link/a.safetensors", beside, seed=2)
    save_weights(tmp_path / "here/b.safetensors", seed=4)
    assert_loads("here/b.safetensors", beside, seed=4)


@pytest.mark.parametrize("key", ["checkpoint_path", "config_path"])
@pytest.mark.parametrize("path", ["{}/secret", "../secret", "autoenc/../../secret", "~/secret"])
def test_a_checkpoints_configuration_names_no_file_outside(
    path: str, key: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    shutil.move(folder / "autoenc", folder.parent / "secret")
    path = path.format(folder.parent)
    edit_config(folder, lambda model: model["autoenc"].update({key: path}))
    if key == "checkpoint_path":
        edit_checkpoint(folder, lambda c: [c["model"].pop(name) for name in list(c["model"]) if "autoenc." in name])
    shown = path.replace("~", str(folder.parent))
    with pytest.raises(UserError, match=rf"{folder} names {shown}, which is neither in that folder nor in the project"):
        load_checkpoint(folder)


def test_a_configuration_of_another_program_above_the_weights_does_not_count(tmp_path: Path) -> None:
    model = tiny_gpt(autoencoder=tiny_autoencoder(), img_size=32)
    run = save_run(tmp_path / "run", model)
    (run / "a/b").mkdir(parents=True)
    torch.save({"model": model.state_dict()}, run / "a/b/c2i.pt")
    (run / "a/config.yaml").write_text("title: my site\n")
    assert load_checkpoint(run / "a/b/c2i.pt").config.llama_config == model.config.llama_config


def test_a_home_folder_is_known_by_its_sign(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert_same_model(load_checkpoint("~/tiny-2x"), load_reference("tiny-2x").model())
    with pytest.raises(UserError, match=rf"no checkpoint at {folder.parent}/nowhere;"):
        load_checkpoint("~/nowhere")


def test_wrong_autoencoder_files_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"set model\.autoenc\.checkpoint_path"):
        load_autoencoder(AutoencoderPaths(), folder)
    with pytest.raises(UserError, match=rf"no autoencoder weights at {folder}/nowhere\.pth nor at {ROOT}/nowhere\.pth"):
        load_autoencoder(AutoencoderPaths(checkpoint_path="nowhere.pth"), folder)
    torch.save({"weights": {}}, folder / "a.pth")
    with pytest.raises(UserError, match="neither state_dict nor model"):
        load_autoencoder(AutoencoderPaths(checkpoint_path="a.pth"), folder)
    torch.save({"state_dict": {"conv.weight": torch.zeros(1)}}, folder / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth is no autoencoder of a known kind \(LlamaGen's, MaskGIT's"):
        load_autoencoder(AutoencoderPaths(checkpoint_path="a.pth"), folder)
    torch.save({"state_dict": {"encoder.conv_blocks.0.res.0.norm1.bias": torch.zeros(1)}}, folder / "a.pth")
    with pytest.raises(UserError, match=r"lacks encoder\.conv_in\.weight; it is no autoencoder of LlamaGen's"):
        load_autoencoder(AutoencoderPaths(checkpoint_path="a.pth"), folder)
    yaml_path = folder / "autoenc/autoencoder_config.yaml"
    state = tiny_autoencoder(num_res_blocks=2).state_dict()
    with pytest.raises(UserError, match=r"unexpected encoder\.conv_blocks\.0\.res\.1"):
        build_autoencoder(state, AutoencoderPaths(str(yaml_path)), None, Path("a.pth"))
    with pytest.raises(UserError, match="normalize: false"):
        read_autoencoder_config(yaml_path, {"normalize": False})
    yaml_path.write_text("model: {}\n")
    with pytest.raises(UserError, match=r"no model\.params section"):
        read_autoencoder_config(yaml_path)


# Export


def test_published_weights_survive_export_bit_by_bit(folder: Path, tmp_path: Path) -> None:
    export_published(folder, tmp_path / "exported")
    source, exported = read_checkpoint(folder), read_checkpoint(tmp_path / "exported")
    assert exported.keys() == {"model", "model_ema", "optimizer", "epoch", "scaler", "args"}
    assert isinstance(exported["args"], argparse.Namespace)
    assert exported["epoch"] == source["epoch"]
    assert_equal_states(source["model"], exported["model"])
    frozen = {f"autoenc.{key}": value for key, value in autoencoder_state(source).items()}
    assert_equal_states(source["model_ema"] | frozen, exported["model_ema"])
    own_file = torch.load(tmp_path / "exported/autoenc/checkpoint.pth", weights_only=True)
    assert_equal_states(own_file["state_dict"], autoencoder_state(source))
    for use_ema in (False, True):
        assert_same_model(load_checkpoint(tmp_path / "exported", use_ema), load_checkpoint(folder, use_ema))


def test_export_of_the_4x_release(tmp_path: Path) -> None:
    """With an output MLP, and without averaged weights."""
    folder = load_reference("tiny-4x").folder
    export_published(folder / CHECKPOINT_NAME, tmp_path / "exported")
    exported = read_checkpoint(tmp_path / "exported")
    assert_equal_states(read_checkpoint(folder)["model"], exported["model"])
    assert exported["model_ema"] is None


def test_the_exported_config_says_what_the_published_one_said(folder: Path, tmp_path: Path) -> None:
    export_published(folder, tmp_path / "exported")
    source, exported = (
        yaml.safe_load((place / CONFIG_NAME).read_text())["model"] for place in (folder, tmp_path / "exported")
    )
    source["autoenc"]["params"] = {}  # a training setting of the release
    assert exported == source | {"scale_min_size": 1}
    architectures = [
        read_autoencoder_config(place / "autoenc/autoencoder_config.yaml") for place in (folder, tmp_path / "exported")
    ]
    assert architectures[0] == architectures[1]


def write_our_checkpoint(folder: Path, model: Checkerboard, ema: Checkerboard | None = None) -> None:
    """A checkpoint as training writes it: the frozen autoencoder lies in a file of its own."""
    save_file(model.autoencoder.state_dict(), folder / "autoencoder.safetensors")
    config = asdict(model.config) | {"autoenc": {"checkpoint_path": "autoencoder.safetensors"}}
    (folder / CONFIG_NAME).write_text(yaml.safe_dump({"model": config, "args": {}}))
    state_ema = None if ema is None else ema.state_dict()
    checkpoint = {"model": model.state_dict(), "model_ema": state_ema, "epoch": 7, "class_names": [*"abcdefghij"]}
    torch.save(checkpoint, folder / CHECKPOINT_NAME)


@pytest.mark.parametrize(
    "overrides",
    [{}, {"scale_ratio": 3.0, "use_head_mlp": True}, {"num_mixing_layers": 0}, {"single_scale": True}],
    ids=str,
)
def test_our_checkpoint_survives_export(overrides: dict[str, Any], tmp_path: Path) -> None:
    model, ema = (tiny_model(seed, tiny_autoencoder(), **overrides) for seed in (1, 2))
    write_our_checkpoint(tmp_path, model, ema)
    loaded = load_checkpoint(tmp_path)
    assert loaded.class_names == [*"abcdefghij"]
    assert_same_model(loaded, model)
    assert_same_model(load_checkpoint(tmp_path, use_ema=True), ema)
    export_published(tmp_path, tmp_path / "exported")
    assert_same_model(load_checkpoint(tmp_path / "exported"), model)
    assert_same_model(load_checkpoint(tmp_path / "exported", use_ema=True), ema)
    keys = read_checkpoint(tmp_path / "exported")["model"].keys()
    assert {PUBLISHED_ROPE, f"autoenc.{PUBLISHED_CODEBOOK}"} <= keys
    assert "llama.layers.0.input_modulation.adaLN_modulation.1.weight" in keys
    assert not any(key.startswith(("rope.", "transformer.")) for key in keys)


def test_a_model_of_ours_has_the_keys_of_the_release() -> None:
    reference = load_reference("tiny-2x")
    model = reference.model()
    ours = Checkerboard(model.config, tiny_autoencoder(z_channels=32))
    published = read_checkpoint(reference.folder)["model"]
    shapes = {key: value.shape for key, value in published_state(ours).items()}
    assert shapes == {key: value.shape for key, value in published.items()}


def test_the_published_layout_cannot_say_another_scan_order(tmp_path: Path) -> None:
    model = tiny_model(scan_order="raster")
    write_our_checkpoint(tmp_path, model)
    assert_same_model(load_checkpoint(tmp_path), model)
    with pytest.raises(UserError, match="scan_order raster"):
        export_published(tmp_path, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_other_groups_of_channels_are_not_published(tmp_path: Path) -> None:
    """The published code has 32."""
    run = save_run(tmp_path / "run", tiny_model(autoencoder=tiny_autoencoder(norm_groups=8)))
    with pytest.raises(UserError, match=r"normalizes 32 groups of channels.*export by --format safetensors"):
        export_published(run, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_export_leaves_a_used_folder_alone(folder: Path, tmp_path: Path) -> None:
    used = tmp_path / "used"
    used.mkdir()
    export_published(folder, used)  # empty: welcome
    before = {path: path.read_bytes() for path in used.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="used is not empty"):
        export_published(folder, used)
    assert {path: path.read_bytes() for path in used.rglob("*") if path.is_file()} == before


# Files that do not fit


def test_every_key_that_does_not_fit_is_listed(folder: Path) -> None:
    def spoil(checkpoint: dict[str, Any]) -> None:
        state = checkpoint["model"]
        del state["combine_inputs.bias"], state["llama.layers.1.ffn_norm.weight"]
        state["lm_head.weight"] = torch.zeros(65, 64)
        state["surplus.weight"] = torch.zeros(1)

    edit_checkpoint(folder, spoil)
    with pytest.raises(UserError) as error:
        load_checkpoint(folder)
    for problem in (
        "missing combine_inputs.bias",
        "missing transformer.layers.1.ffn_norm.weight",
        "unexpected surplus.weight",
        "lm_head.weight has shape (65, 64), not (64, 64)",
    ):
        assert problem in str(error.value)
    assert str(error.value).startswith(str(folder / CHECKPOINT_NAME))
    assert "\n" not in str(error.value)


def test_an_autoencoder_that_does_not_fit_is_listed(folder: Path) -> None:
    edit_checkpoint(folder, lambda c: c["model"].pop("autoenc.decoder.conv_out.bias"))
    with pytest.raises(UserError, match=r"missing decoder\.conv_out\.bias"):
        load_checkpoint(folder)


def test_a_config_of_another_model_is_refused(folder: Path) -> None:
    edit_config(folder, lambda model: model.update(num_classes=11))
    with pytest.raises(UserError, match=r"class_embeddings\.weight has shape \(11, 64\), not \(12, 64\)"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("section", "key", "near"),
    [
        (None, "scale_ration", "scale_ratio"),
        ("llama_config", "hidden_sise", "hidden_size"),
        ("autoenc", "checkpoint_pth", "checkpoint_path"),
    ],
)
def test_an_unknown_setting_suggests_the_near_one(folder: Path, section: str | None, key: str, near: str) -> None:
    edit_config(folder, lambda model: (model if section is None else model[section]).update({key: 1}))
    with pytest.raises(UserError, match=rf"unknown key {key} in .*did you mean {near}\?"):
        load_checkpoint(folder)


def test_an_unknown_setting_without_a_near_one_lists_them_all(folder: Path) -> None:
    edit_config(folder, lambda model: model.update(zzzz=1))
    with pytest.raises(
        UserError, match=r"unknown key zzzz .*known are architecture, img_size, .*scale_ratio, .*llama_config"
    ):
        load_checkpoint(folder)


@pytest.mark.parametrize("content", ["", "- 1\n", "model: [1", "model: 3\n", "args: {}\n", "\x00"])
def test_a_config_without_a_model_is_refused(folder: Path, content: str) -> None:
    (folder / CONFIG_NAME).write_text(content)
    with pytest.raises(UserError, match=CONFIG_NAME):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        (None, "img_size", "large"),
        (None, "scale_ratio", "two"),
        (None, "num_classes", None),
        (None, "random_replace", "often"),
        (None, "llama_config", None),
        (None, "autoenc", None),
        ("llama_config", "hidden_size", "64"),
        ("autoenc", "config_path", 3),
    ],
)
def test_a_setting_of_the_wrong_type_is_refused(folder: Path, section: str | None, key: str, value: Any) -> None:
    edit_config(folder, lambda model: (model if section is None else model[section]).update({key: value}))
    with pytest.raises(UserError, match=key):
        load_checkpoint(folder)


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no checkpoint at .*nowhere"):
        load_checkpoint(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=rf"no checkpoint at .*empty/{CHECKPOINT_NAME}"):
        load_checkpoint(tmp_path / "empty")
    with pytest.raises(UserError, match="no such file"):
        read_torch_file(tmp_path / "nowhere.pth")
    (folder / CONFIG_NAME).unlink()
    with pytest.raises(UserError, match=rf"no such file: .*{CONFIG_NAME}"):
        load_checkpoint(folder)


def test_averaged_weights_that_are_not_there_are_refused() -> None:
    with pytest.raises(UserError, match="holds no EMA weights"):
        load_checkpoint(load_reference("tiny-4x").folder, use_ema=True)


@pytest.mark.parametrize("use_ema", [False, True])
def test_averaged_weights_that_are_left_out_are_named(
    use_ema: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_run(tmp_path / "run", tiny_model(), ema=True)
    capfd.readouterr()
    load_checkpoint(tmp_path / "run", use_ema=use_ema)
    assert ("holds averaged weights too, which --use_ema" in capfd.readouterr().out) == (not use_ema)


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), "text", None], ids=["list", "tensor", "text", "none"])
def test_a_file_that_is_no_dictionary_is_refused(folder: Path, content: Any) -> None:
    torch.save(content, folder / CHECKPOINT_NAME)
    with pytest.raises(UserError, match=rf"holds a {type(content).__name__}, not a checkpoint's dictionary"):
        load_checkpoint(folder)


@pytest.mark.parametrize("content", [{}, {"model": None}, {"state_dict": {}}], ids=str)
def test_a_dictionary_without_a_model_is_refused(folder: Path, content: dict[str, Any]) -> None:
    torch.save(content, folder / CHECKPOINT_NAME)
    with pytest.raises(UserError, match="has no model entry"):
        load_checkpoint(folder)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 1e300])
@pytest.mark.parametrize("half", [False, True])
def test_weights_that_are_not_finite_are_refused(number: float, half: bool, folder: Path) -> None:
    key = "llama.layers.1.feed_forward.w2.weight"

    def spoil(checkpoint: dict[str, Any]) -> None:
        value = checkpoint["model"][key]
        checkpoint["model"][key] = value.bfloat16() if half else value.double()  # 1e300 is too large for float32
        checkpoint["model"][key][3, 5] = number

    edit_checkpoint(folder, spoil)
    answer = rf"{CHECKPOINT_NAME} holds numbers that are not finite, first in transformer\.layers\.1\..*{key}\); get it"
    with pytest.raises(UserError, match=answer):
        load_checkpoint(folder)
    with pytest.raises(UserError, match=answer):
        initialize_from(load_reference("tiny-2x").model(), folder)
    load_checkpoint(folder, use_ema=True)


def test_an_autoencoder_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    state = tiny_autoencoder().state_dict()
    state["decoder.conv_out.bias"][1] = float("nan")
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"a\.safetensors holds numbers .* first in decoder\.conv_out\.bias; get"):
        open_autoencoder(tmp_path / "a.safetensors")


# Damaged files


def test_a_truncated_checkpoint_is_refused_at_any_length(folder: Path) -> None:
    path = folder / CHECKPOINT_NAME
    whole = path.read_bytes()
    for length in (0, 1, 2, 10, 100, 1000, len(whole) // 3, len(whole) // 2, len(whole) - 1000, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=f"{CHECKPOINT_NAME} is (truncated|damaged) or no checkpoint"):
            load_checkpoint(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"\xff\xd8\xff\xe0" + bytes(100),
        b"<html><body>404 Not Found</body></html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        b"PK\x05\x06" + bytes(18),  # an empty zip file
    ],
    ids=["png", "jpeg", "html", "git lfs", "zip"],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"file\.pth is (truncated|damaged) or no checkpoint"):
        read_torch_file(tmp_path / "file.pth")


@pytest.mark.parametrize("content", [b"hello world\n", b"a", b".", b"\x80", b"GIF89a"], ids=str)
def test_bytes_that_look_like_a_pickle_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"file\.pth is (truncated|damaged) or no checkpoint"):
        read_torch_file(tmp_path / "file.pth")


def test_truncated_files_of_the_older_format_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    torch.save({"model": {"weight": torch.randn(20)}}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError):
            read_torch_file(path)


# Hostile files


class Payload:
    """Unpickling it calls a function."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def payloads(marker: Path) -> dict[str, Payload]:
    """Each creates ``marker`` when it runs."""
    return {
        "open": Payload(open, str(marker), "w"),
        "mkdir": Payload(os.mkdir, str(marker)),
        "eval": Payload(eval, f"open({str(marker)!r}, 'w')"),
    }


CONTAINERS: dict[str, Callable[[Any], Any]] = {
    "bare": lambda payload: payload,
    "weights": lambda payload: {"model": {"weight": payload}},
    "args": lambda payload: {"model": {}, "args": argparse.Namespace(lr=payload)},
}
WRITERS: dict[str, Callable[[Any, Path], Any]] = {
    "pickle": lambda content, path: path.write_bytes(pickle.dumps(content)),
    "pickle2": lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)),
    "torch": torch.save,
    "old torch": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("kind", ["open", "mkdir", "eval"])
def test_no_code_of_a_file_runs(folder: Path, kind: str, container: str, writer: str) -> None:
    marker = folder / "marker"
    WRITERS[writer](CONTAINERS[container](payloads(marker)[kind]), folder / CHECKPOINT_NAME)
    with pytest.raises(UserError, match=CHECKPOINT_NAME):
        load_checkpoint(folder)
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["open", "mkdir", "eval"])
def test_the_payloads_above_are_live(tmp_path: Path, kind: str) -> None:
    pickle.loads(pickle.dumps(payloads(tmp_path / "marker")[kind]))
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("open", r"io\.open"),
        ("eval", "eval"),
        ("mkdir", r"posix\.mkdir"),
    ],
)
def test_a_refusal_names_what_was_refused(tmp_path: Path, kind: str, name: str) -> None:
    torch.save({"model": payloads(tmp_path / "marker")[kind]}, tmp_path / "file.pth")
    with pytest.raises(UserError, match=rf"file\.pth was refused: it holds {name};"):
        read_torch_file(tmp_path / "file.pth")


def test_objects_beyond_plain_values_are_refused(tmp_path: Path) -> None:
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"holds torch\.nn\.modules\.linear\.Linear"):
        read_torch_file(tmp_path / "file.pth")


def test_a_namespace_is_let_through_here_alone(tmp_path: Path) -> None:
    torch.save({"args": argparse.Namespace(lr=1e-4)}, tmp_path / "file.pth")
    assert read_torch_file(tmp_path / "file.pth")["args"].lr == 1e-4
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "file.pth", weights_only=True)


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
@pytest.mark.parametrize(("name", "kind"), [("WindowsPath", PureWindowsPath), ("PosixPath", PurePosixPath)])
def test_paths_of_any_system_are_let_through(
    name: str, kind: type[PurePath], module: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a pure path; on Linux, ``WindowsPath`` itself cannot be made."""
    there = type(name, (), {"__module__": module, "__reduce__": lambda self: (there, ("data", "train"))})
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{name: there}))
    edit_checkpoint(folder, lambda c: c.update(args=argparse.Namespace(data_path=there())))
    monkeypatch.undo()
    found = read_torch_file(folder / CHECKPOINT_NAME)["args"].data_path
    assert type(found) is kind
    assert found == kind("data/train")
    assert_same_model(load_checkpoint(folder), load_reference("tiny-2x").model())


def test_many_names_load_within_seconds(tmp_path: Path) -> None:
    names = [f"class/{i:07d}.jpg" for i in range(300_000)]
    torch.save({"images": names}, tmp_path / "file.pth")
    start = time.process_time()
    assert read_torch_file(tmp_path / "file.pth")["images"] == names
    assert time.process_time() - start < 10


# Nested settings


@pytest.mark.parametrize("deep", [120, 300, 450, 1000, 30_000])
@pytest.mark.parametrize("place", ["beside", "num_classes", "params", "hidden_size"])
def test_settings_nested_deep_are_loaded_or_refused_in_one_sentence(place: str, deep: int, folder: Path) -> None:
    path = folder / CONFIG_NAME
    content = yaml.safe_load(path.read_text())
    model = content["model"]
    owner = {"beside": content, "params": model["autoenc"], "hidden_size": model["llama_config"]}.get(place, model)
    owner[place] = "PLACE"
    path.write_text(yaml.safe_dump(content).replace("PLACE", "{a: " * deep + "1" + "}" * deep))
    with pytest.raises(UserError, match=rf"{CONFIG_NAME} is no valid YAML: more than 100 settings lie within") as error:
        load_checkpoint(folder)
    assert len(str(error.value)) < 300


def test_a_configuration_is_no_checkpoint(folder: Path) -> None:
    with pytest.raises(UserError, match="is a configuration; name the folder"):
        load_checkpoint(folder / CONFIG_NAME)
