"""Every configuration builds at its true size and takes a training step made small."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from models.autoencoder import Autoencoder
from models.checkerboard.config import CheckerboardConfig, TransformerConfig
from models.checkerboard.model import Checkerboard
from models.checkerboard.order import sampling_blocks
from models.config import AutoencoderConfig
from models.family import StepContext
from runtime.config import parse_config
from tests.command_factory import ROOT
from training.generator import GeneratorTask
from training.options import TrainArgs

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
CPU = torch.device("cpu")
# Millions of parameters, trained (method.md Sec. 4): S and L are the paper's sizes.
SIZES = {"config_256_S": 57.7, "config_256_L": 367.6}
NUM_STEPS = {  # steps of an image with the configuration's steps per scale
    "config_256_S": 17,
    "config_256_S_4x": 17,
    "config_256_L": 17,
    "config_256_L_4x": 17,
}


def read(path: Path) -> tuple[CheckerboardConfig, TrainArgs, str]:
    settings, name = parse_config(
        ["--config", str(path)], "main.py", "", {"model": CheckerboardConfig, "args": TrainArgs}
    )
    return settings["model"], settings["args"], name


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
    config, args, name = read(path)
    autoencoder = autoencoder_of(config)
    with torch.device("meta"):
        model = Checkerboard(config, Autoencoder(autoencoder))
    if name in SIZES:
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(SIZES[name], abs=0.05)
    if name in NUM_STEPS:
        blocks = sampling_blocks(model.scale_sizes, args.steps_per_scale)
        assert sum(map(len, blocks)) == NUM_STEPS[name]

    mixing = config.num_mixing_layers
    narrow = TransformerConfig(32, 256, 2, max(2, mixing) if isinstance(mixing, int) else 2)
    model = Checkerboard(replace(config, llama_config=narrow), Autoencoder(autoencoder)).train()
    task = GeneratorTask(model, replace(args, device="cpu"))
    codes = [torch.randint(autoencoder.n_embed, (2, side, side)) for side in model.scale_sizes]
    labels = torch.randint(config.num_classes, (2,))
    loss, statistics = task.loss([codes, labels], StepContext(0, 0, 0, CPU))
    assert loss.item() == pytest.approx(
        torch.tensor(float(autoencoder.n_embed)).log().item(), rel=1e-3
    )  # head starts at 0
    loss.backward()
    assert model.lm_head.weight.grad.abs().max() > 0
    assert {f"accuracy_scale_{side}" for side in model.scale_sizes} <= statistics().keys()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_its_header_says_how_to_run_it_and_what_it_reaches(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(header)
    assert f"python main.py --config configs/{path.name}" in text
    assert "Needs: " in text
    assert re.search(r"^# Reaches(, by the paper)?: ", text, re.MULTILINE)
