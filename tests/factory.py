"""Tiny models for tests, and the reference fixtures.

Letters: B batch, S side of a scale.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models import load_checkpoint
from models.autoencoder import Autoencoder
from models.checkerboard.config import CheckerboardConfig
from models.checkerboard.model import Checkerboard
from models.config import LlamaGenVQConfig, TransformerConfig
from models.family import Generator
from models.llamagen_vq import LlamaGenVQ

FIXTURES = Path(__file__).parent / "fixtures"
CPU = torch.device("cpu")
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TINY_TRANSFORMER = TransformerConfig(hidden_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=2)


def tiny_autoencoder(seed: int = 0, **overrides: Any) -> LlamaGenVQ:
    """A random autoencoder of stride 4 with 64 codes; ``overrides`` are fields of LlamaGenVQConfig."""
    tiny = {"ch": 32, "ch_mult": (1, 1, 1), "num_res_blocks": 1, "z_channels": 32, "n_embed": 64}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaGenVQ(LlamaGenVQConfig(**(tiny | overrides))).eval()


def tiny_model(seed: int = 0, autoencoder: Autoencoder | None = None, **overrides: Any) -> Checkerboard:
    """A model in eval mode whose every weight is random, so that each one matters to the logits.

    Args:
        seed: of all weights.
        autoencoder: by default ``tiny_autoencoder(seed)``, so that the scales are 1 2 4 8.
        overrides: fields of CheckerboardConfig.
    """
    tiny = {"img_size": 32, "num_classes": 10, "llama_config": TINY_TRANSFORMER}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Checkerboard(CheckerboardConfig(**(tiny | overrides)), autoencoder or tiny_autoencoder(seed))
        randomize(model)
    return model.eval()


@torch.no_grad()
def randomize(module: nn.Module, std: float = 0.2) -> None:
    """Add noise to every parameter: fresh models start with zeros that hide mistakes."""
    for parameter in module.parameters():
        parameter.add_(std * torch.randn_like(parameter))


def zeros_of(*shape: int) -> Tensor:
    """Zeros of any size that take no memory."""
    return torch.zeros(()).expand(shape)


def random_codes(model: Generator, batch: int, seed: int = 0) -> list[Tensor]:
    """Uniformly random codes (B, S, S) of each scale, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.randint(model.num_codes, (batch, side, side), generator=generator) for side in model.scale_sizes)
    return [codes.to(model.device) for codes in drawn]


def assert_near(ours: Tensor, expected: Tensor, atol: float) -> None:
    """Equal but for rounding; devices that add up in another order than the CPU may be off by ten times as much."""
    atol *= 1 if ours.device.type == "cpu" else 10
    torch.testing.assert_close(ours.detach().cpu(), expected.detach().cpu().to(ours.dtype), atol=atol, rtol=0)


@dataclass(frozen=True)
class Reference:
    """A checkpoint folder in the published layout, and what the published code computed from it."""

    folder: Path
    settings: dict[str, Any]
    expected: dict[str, Tensor]

    def model(self, use_ema: bool = False, device: torch.device = CPU) -> Generator:
        return _load_once(self.folder, use_ema, device)

    def __getitem__(self, key: str) -> Tensor:
        return self.expected[key]

    def codes(self, device: torch.device = CPU) -> list[Tensor]:
        return [self[f"codes_{side}"].to(device) for side in self["scale_sizes"].tolist()]

    def labels(self, device: torch.device = CPU) -> Tensor:
        return self["labels"].to(device)


@cache
def load_reference(name: str) -> Reference:
    """``tiny-2x`` and ``tiny-4x``, LlamaGen's ``tiny-llamagen`` and ``tiny-npp``, RandAR's ``tiny-randar``."""
    folder = FIXTURES / name
    with np.load(folder / "expected.npz") as arrays:
        expected = {key: torch.from_numpy(arrays[key]) for key in arrays}
    return Reference(folder, json.loads((folder / "settings.json").read_text()), expected)


@cache
def _load_once(folder: Path, use_ema: bool, device: torch.device) -> Generator:
    return load_checkpoint(folder, use_ema).to(device)
