"""The picture of mixing coefficients."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import mixing
from tests.command_factory import call, save_run
from tests.factory import tiny_model

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(("value", "colour"), [(-2.0, (0, 0, 255)), (2.0, (255, 0, 0)), (0.0, (255, 254, 254))])
def test_blue_is_below_0_and_red_above(value: float, colour: tuple[int, ...], tmp_path: Path) -> None:
    mixing.draw(np.full((6, 6), value)).savefig(tmp_path / "a.png")
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    height, width, _ = pixels.shape
    assert tuple(pixels[height // 2 - 20, width // 2 - 20].tolist()) == colour


def test_the_command_says_and_draws_every_layer(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.rope.mixing_coeffs[0].fill_(np.log(3))
    run = save_run(tmp_path / "run", model)
    outcome = call(mixing.main, "--checkpoint", str(run), "--output", str(tmp_path / "a.png"))
    assert outcome.code == 0, outcome.err
    heads = model.config.llama_config.num_attention_heads
    lines = outcome.out.splitlines()
    assert lines[0] == f"layer 0: 75.0% of the location that a token predicts, mean over {heads} heads"
    assert len(lines) == 1 + model.config.mixing_layers
    assert (tmp_path / "a.png").is_file()


def test_a_model_without_mixing_has_nothing_to_draw(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", tiny_model(num_mixing_layers=0))
    assert "mixes no rotations" in call(mixing.main, "--checkpoint", str(run)).error()
    assert "name the --checkpoint" in call(mixing.main).error()
