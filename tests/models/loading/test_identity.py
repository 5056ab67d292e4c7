"""A model's identity: all that decides its images, and nothing else."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models import load_checkpoint
from models.checkerboard.model import Checkerboard
from models.config import AutoencoderPaths
from models.loading.checkpoint import export_published
from models.loading.identity import model_sha256
from tests.command_factory import save_run
from tests.factory import tiny_autoencoder, tiny_model

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def sha256() -> str:
    return model_sha256(tiny_model())


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return module.state_dict()


def test_it_is_the_same_wherever_and_however_a_model_lies(sha256: str, tmp_path: Path) -> None:
    model = tiny_model()
    assert model_sha256(model) == sha256
    model.config = replace(model.config, autoenc=AutoencoderPaths("a.yaml", "b.pth"), num_mixing_layers="all")
    model.class_names = list("abcdefghij")
    assert model_sha256(model) == sha256
    loaded = load_checkpoint(save_run(tmp_path / "run", model))
    assert model_sha256(loaded) == sha256
    export_published(tmp_path / "run", tmp_path / "exported")
    assert model_sha256(load_checkpoint(tmp_path / "exported")) == sha256
    state = {
        key: value.t().contiguous().t() if value.ndim == 2 else value for key, value in loaded.state_dict().items()
    }
    loaded.load_state_dict(state, assign=True)
    assert not loaded.lm_head.weight.is_contiguous()
    assert model_sha256(loaded) == sha256


@pytest.mark.parametrize("part", [lambda model: model, lambda model: model.autoencoder], ids=["own", "autoencoder"])
def test_every_weight_counts(part: Callable[[Checkerboard], nn.Module], sha256: str) -> None:
    model, seen = tiny_model(), {sha256}
    for value in tensors(part(model)).values():
        first = value.view(-1)[:1]
        kept = first.clone()
        first.copy_(~kept if kept.dtype == torch.bool else torch.nextafter(kept, kept + 1))  # its last bit alone
        seen.add(model_sha256(model))
        first.copy_(kept)
    assert len(seen) == 1 + len(tensors(part(model)))
    assert model_sha256(model) == sha256


def test_names_shapes_types_and_settings_count(sha256: str) -> None:
    model, other = tiny_model(), tiny_model()
    other.embed_positions, other.rope.table = (
        nn.Embedding.from_pretrained(model.rope.table),
        model.embed_positions.weight,
    )
    turned = tiny_model()
    turned.lm_head.weight = nn.Parameter(turned.lm_head.weight.view(32, 64))
    raster = tiny_model()
    raster.config = replace(raster.config, scan_order="raster")
    autoencoder = tiny_model(autoencoder=tiny_autoencoder())
    autoencoder.autoencoder.config = replace(autoencoder.autoencoder.config, ch_mult=(1, 1, 2))
    half = tiny_model().bfloat16()
    models = (other, turned, raster, autoencoder, half)
    assert len({sha256, *map(model_sha256, models)}) == 1 + len(models)


def test_averaged_weights_are_another_model(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "run", tiny_model(), ema=True)
    assert model_sha256(load_checkpoint(folder)) != model_sha256(load_checkpoint(folder, use_ema=True))
