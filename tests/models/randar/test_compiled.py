"""The compiled sampler: the same codes, and few graphs."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch._dynamo.utils import counters

from models.compiled import compiled_step
from models.family import Samples
from models.randar.config import RandARDrawing
from models.randar.model import RandAR
from tests.randar_factory import TINY_GPT, V, random_orders, tiny_randar

LABELS, SEEDS = torch.tensor([3, 7]), [3, 4]


def small_randar() -> RandAR:
    """Of one layer and 2 x 2 codes: what is compiled is little."""
    return tiny_randar(img_size=32, llama_config=replace(TINY_GPT, num_hidden_layers=1))


def assert_same_draws(compiled: Samples, eager: Samples) -> None:
    assert torch.equal(eager.codes[0], compiled.codes[0])
    assert torch.equal(eager.step[0], compiled.step[0])
    for name in ("entropy", "probability"):
        one, other = getattr(eager, name)[0], getattr(compiled, name)[0]
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0, equal_nan=True)


@pytest.fixture
def traced() -> Iterator[None]:
    """Compiling traces as ever; only its slow last part, writing C++, is left out."""
    torch._dynamo.reset()
    counters.clear()
    compiled_step.cache_clear()
    with patch("torch.compile", side_effect=partial(torch.compile, backend="aot_eager")):
        yield
    compiled_step.cache_clear()


@pytest.mark.usefixtures("traced")
def test_graphs_are_shared_by_settings_images_and_steps() -> None:
    """One for each pair of lengths, whatever the guidance, the temperature above 0, the order and what is kept."""
    model, order = small_randar(), random_orders(2, 4)
    asked: list[dict[str, Any]] = [
        {"cfg": 1.5},
        {"cfg": 3.0, "temperature": 0.7},
        {"cfg": 3.0, "cfg_schedule": "constant"},
    ]
    for settings in asked:
        drawing = RandARDrawing(steps=2, **settings)
        run, eager = (model.sampler(2, drawing, compiled=compiled) for compiled in (True, False))
        for seeds, given in ((SEEDS, None), ([8, 9], order), (SEEDS, None)):
            assert_same_draws(run(LABELS, seeds, order=given), eager(LABELS, seeds, order=given))
        assert counters["stats"]["unique_graphs"] == 2  # of the first code, and of the other three
    assert not counters["graph_break"]
    edit = ([random_orders(2, 4).view(2, 2, 2) == 3], [torch.randint(V, (2, 2, 2))])
    assert_same_draws(run(LABELS, SEEDS, *edit), eager(LABELS, SEEDS, *edit))


@pytest.mark.usefixtures("traced")
def test_twice_the_side() -> None:
    """Guidance away from what lacks some codes is no constant either."""
    model, graphs = small_randar(), []
    for settings in ({"spatial_cfg": 1.5}, {"spatial_cfg": 2.0, "spatial_ratio": 0.25, "cfg": 3.0}):
        drawing = RandARDrawing(upscale=2, steps=2, **settings)
        run, eager = (model.sampler(2, drawing, compiled=compiled) for compiled in (True, False))
        for seeds in (SEEDS, [8, 9]):
            assert_same_draws(run(LABELS, seeds), eager(LABELS, seeds))
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1]
    assert not counters["graph_break"]


def test_compiled_to_the_end() -> None:
    """Which takes a C++ compiler half a minute: one code a step, so that two graphs do."""
    torch._dynamo.reset()
    counters.clear()
    model = small_randar()
    drawing = RandARDrawing(steps=-1, cfg=1.5)
    run, eager = (model.sampler(2, drawing, compiled=compiled) for compiled in (True, False))
    for seeds in (SEEDS, [8, 9]):
        assert_same_draws(run(LABELS, seeds), eager(LABELS, seeds))
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
