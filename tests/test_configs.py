"""Every configuration builds at its true size and takes a training step made small."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from models.checkerboard.config import CheckerboardConfig
from models.config import Drawing, Family, GeneratorConfig, LlamaGenVQConfig, TransformerConfig, family_of
from models.llamagen.config import LlamaConfig, LlamaGenConfig
from models.llamagen_vq import LlamaGenVQ
from runtime.config import parse_config
from tests.factory import CPU
from training.generator import GeneratorTask
from training.options import TrainArgs
from training.task import step_context

pytestmark = pytest.mark.quick
ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
# Millions of parameters, trained (formats.md M4): S and L are the paper's sizes.
SIZES = {"config_256_S": 57.7, "config_256_L": 367.6}
LLAMAGEN_SIZES = {  # parameters (formats.md G1)
    "B": 110_888_448,
    "L": 342_910_976,
    "XL": 774_699_520,
    "XXL": 1_410_972_672,
    "3B": 3_096_659_200,
}
PUBLISHED = [
    path for path in CONFIGS if path.stem in {f"{kind}_{s}" for kind in ("llamagen", "npp") for s in LLAMAGEN_SIZES}
]
NUM_STEPS = {  # steps of an image with the configuration's steps per scale
    "config_256_S": 17,
    "config_256_S_4x": 17,
    "config_256_L": 17,
    "config_256_L_4x": 17,
    "llamagen_B": 256,
    "llamagen_XL": 576,
    "npp_XL": 256,
}
each_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


def read(path: Path) -> tuple[Family, GeneratorConfig, TrainArgs, Drawing]:
    family = family_of(yaml.safe_load(path.read_text())["model"])
    sections = {"model": family.load("config"), "args": (TrainArgs, family.load("drawing"))}
    settings, _ = parse_config(["--config", str(path)], "main.py", "", sections)
    return family, settings["model"], *settings["args"]


def autoencoder_of(config: GeneratorConfig) -> LlamaGenVQConfig:
    """The one that ships with the project, or one as deep as the released one (CIFAR-10's: as its recipe's)."""
    path = ROOT / (config.autoenc.config_path or "")
    if path.is_file():
        ddconfig = yaml.safe_load(path.read_text())["model"]["params"]["ddconfig"]
        ch_mult = tuple(ddconfig["ch_mult"])
    else:
        ch_mult = (1, 1, 1) if config.img_size == 32 else (1, 1, 1, 1, 1)
    codes = {"n_embed": config.vocab_size} if isinstance(config, LlamaGenConfig) else {}
    return LlamaGenVQConfig(ch_mult=ch_mult, ch=32, z_channels=32, num_res_blocks=1, **codes)


def narrowed(config: GeneratorConfig) -> GeneratorConfig:
    """The same model but for two narrow layers."""
    if isinstance(config, LlamaGenConfig):
        return replace(config, llama_config=LlamaConfig(32, 64, 2, 2))
    assert isinstance(config, CheckerboardConfig)
    mixing = config.num_mixing_layers
    layers = max(2, mixing) if isinstance(mixing, int) else 2
    return replace(config, llama_config=TransformerConfig(32, 256, 2, layers))


@each_config
def test_it_builds_and_takes_a_step(path: Path) -> None:
    family, config, args, drawing = read(path)
    config = replace(config, num_classes=config.num_classes or 10)
    autoencoder = autoencoder_of(config)
    with torch.device("meta"):
        model = family.load("generator")(config, LlamaGenVQ(autoencoder))
    size = sum(p.numel() for p in model.parameters())
    if path.stem in SIZES:
        assert size / 1e6 == pytest.approx(SIZES[path.stem], abs=0.05)
    if path in PUBLISHED:
        assert size == LLAMAGEN_SIZES[path.stem.split("_")[1]]
    if path.stem in NUM_STEPS:
        assert model.num_steps(drawing) == NUM_STEPS[path.stem]

    model = family.load("generator")(narrowed(config), LlamaGenVQ(autoencoder)).train()
    task = GeneratorTask(model, replace(args, device="cpu"), drawing)
    codes = [torch.randint(autoencoder.n_embed, (2, side, side)) for side in model.scale_sizes]
    labels = torch.randint(config.num_classes, (2,))
    for epoch in {0, args.epochs - 1}:
        loss = task.loss([codes, labels], step_context(0, 0, 0, CPU, epoch))
        assert loss.value.item() == pytest.approx(math.log(autoencoder.n_embed), rel=1e-3)  # head starts at 0
    loss.value.backward()
    head = model.lm_head if config.architecture == "checkerboard" else model.output
    assert head.weight.grad.abs().max() > 0
    of_scale = {f"accuracy_scale_{side}" for side in model.scale_sizes}
    assert (of_scale if config.architecture == "checkerboard" else {"accuracy"}) <= loss.metrics().keys()


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_llamagens_settings_are_the_published_ones(path: Path) -> None:
    """Of formats.md G4, G5: stages, schedule and all that both share."""
    _, config, args, _ = read(path)
    kind, size = path.stem.split("_")
    assert (config.dropout, config.drop_path_rate, config.label_drop) == (0.1, 0.0, 0.1)
    assert (args.lr, args.betas, args.weight_decay, args.clip_grad) == (1e-4, (0.9, 0.95), 0.05, 1.0)
    assert (args.epochs, args.batch_size, args.accum_steps, args.ema, args.crop) == (300, 256, 1, False, "ten")
    sides, n = [args.patch_side(epoch) for epoch in range(300)], 5004
    rates = {step: args.lr_at(step / n, n) for step in (0, n, 119 * n, 150 * n - 1, 150 * n, 300 * n - 1)}
    if kind == "llamagen":
        assert config.img_size == (256 if size in ("B", "L") else 384)
        assert (set(sides), set(rates.values())) == ({1}, {1e-4})
    else:
        assert config.img_size == 256
        assert sides == [2] * 150 + [1] * 150
        assert list(rates.values()) == pytest.approx([0, 1e-4, 1e-4, 1e-5, 0, 1e-5], rel=1e-4)


@each_config
def test_its_header_says_how_to_run_it_and_what_it_reaches(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(header)
    assert f"python main.py --config configs/{path.name}" in text
    assert "Needs: " in text
    assert re.search(r"^# Reaches(, by the paper)?: ", text, re.MULTILINE)


@pytest.mark.parametrize("order", ["random", "raster"])
def test_the_page_of_cifar10_trains_what_the_study_has_measured(order: str) -> None:
    names = (f"cifar10_randar_{order}", f"study/randar_{order}")
    ours, studys = (yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text()) for name in names)
    del studys["args"]["output_dir"]
    assert ours == studys
