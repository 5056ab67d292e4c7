"""Every configuration builds at its true size and takes a training step made small."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from models.autoencoder import Autoencoder
from models.checkerboard.config import CheckerboardConfig, CheckerboardDrawing
from models.checkerboard.model import Checkerboard
from models.config import AutoencoderConfig, TransformerConfig
from runtime.config import parse_config
from tests.factory import CPU
from training.generator import GeneratorTask
from training.options import TrainArgs
from training.task import step_context

pytestmark = pytest.mark.quick
ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
# Millions of parameters, trained (method.md Sec. 4): S and L are the paper's sizes.
SIZES = {"config_256_S": 57.7, "config_256_L": 367.6}
NUM_STEPS = {  # steps of an image with the configuration's steps per scale
    "config_256_S": 17,
    "config_256_S_4x": 17,
    "config_256_L": 17,
    "config_256_L_4x": 17,
}


def read(path: Path) -> tuple[CheckerboardConfig, TrainArgs, CheckerboardDrawing]:
    sections = {"model": CheckerboardConfig, "args": (TrainArgs, CheckerboardDrawing)}
    settings, _ = parse_config(["--config", str(path)], "main.py", "", sections)
    return settings["model"], *settings["args"]


def autoencoder_of(config: CheckerboardConfig) -> AutoencoderConfig:
    """The one that ships with the project, or one as deep as the released one (CIFAR-10's: as its recipe's)."""
    path = ROOT / (config.autoenc.config_path or "")
    if path.is_file():
        ddconfig = yaml.safe_load(path.read_text())["model"]["params"]["ddconfig"]
        return AutoencoderConfig(ch_mult=tuple(ddconfig["ch_mult"]), ch=32, z_channels=32, num_res_blocks=1)
    ch_mult = (1, 1, 1) if config.img_size == 32 else (1, 1, 1, 1, 1)
    return AutoencoderConfig(ch_mult=ch_mult, ch=32, z_channels=32, num_res_blocks=1)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_builds_and_takes_a_step(path: Path) -> None:
    config, args, drawing = read(path)
    autoencoder = autoencoder_of(config)
    with torch.device("meta"):
        model = Checkerboard(config, Autoencoder(autoencoder))
    if path.stem in SIZES:
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(SIZES[path.stem], abs=0.05)
    if path.stem in NUM_STEPS:
        assert model.num_steps(drawing) == NUM_STEPS[path.stem]

    mixing = config.num_mixing_layers
    narrow = TransformerConfig(32, 256, 2, max(2, mixing) if isinstance(mixing, int) else 2)
    model = Checkerboard(replace(config, llama_config=narrow), Autoencoder(autoencoder)).train()
    task = GeneratorTask(model, replace(args, device="cpu"), drawing)
    codes = [torch.randint(autoencoder.n_embed, (2, side, side)) for side in model.scale_sizes]
    labels = torch.randint(config.num_classes, (2,))
    loss = task.loss([codes, labels], step_context(0, 0, 0, CPU))
    assert loss.value.item() == pytest.approx(math.log(autoencoder.n_embed), rel=1e-3)  # head starts at 0
    loss.value.backward()
    assert model.lm_head.weight.grad.abs().max() > 0
    assert {f"accuracy_scale_{side}" for side in model.scale_sizes} <= loss.metrics().keys()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_its_header_says_how_to_run_it_and_what_it_reaches(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(header)
    assert f"python main.py --config configs/{path.name}" in text
    assert "Needs: " in text
    assert re.search(r"^# Reaches(, by the paper)?: ", text, re.MULTILINE)
