"""Compiled steps of every family: what is compiled once is enough, and too many shapes are no failure."""

from collections.abc import Iterator
from functools import partial
from unittest.mock import patch

import pytest
import torch
from torch._dynamo.utils import counters

from models import compiled
from models.checkerboard.config import CheckerboardDrawing
from models.config import TransformerConfig
from models.family import Generator
from models.llamagen.config import LlamaGenDrawing
from models.randar.config import RandARDrawing
from models.sampler import Sampler
from tests.factory import tiny_model
from tests.llamagen_factory import tiny_gpt
from tests.randar_factory import tiny_randar

LABELS, SEEDS = torch.tensor([3, 7]), [3, 4]
DRAWINGS = {
    tiny_model: CheckerboardDrawing(cfg=1.5),
    tiny_gpt: LlamaGenDrawing(cfg=1.5),
    tiny_randar: RandARDrawing(cfg=1.5, steps=3),
}


@pytest.fixture(autouse=True)
def traced() -> Iterator[None]:
    """Compiling traces as ever; only its slow last part, writing C++, is left out."""
    torch._dynamo.reset()
    counters.clear()
    compiled.compiled_step.cache_clear()
    with patch("torch.compile", side_effect=partial(torch.compile, backend="eager")):
        yield
    compiled.compiled_step.cache_clear()
    torch._dynamo.reset()


@pytest.mark.parametrize("make", DRAWINGS)
def test_nothing_is_compiled_twice(make: type[Generator]) -> None:
    """Not for another batch of images, nor for another sampler with buffers of its own, nor for another model."""
    graphs = []
    for seed in (0, 1):
        model = make(seed)
        for _ in range(2):
            run = model.sampler(2, DRAWINGS[make], compiled=True)
            for _ in range(2):
                run(LABELS, SEEDS)
                graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert set(graphs) == {graphs[0]}
    assert not counters["graph_break"]


def test_more_shapes_than_are_kept_are_drawn_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "MAX_GRAPHS", 2)
    model = tiny_model(img_size=16, single_scale=True, llama_config=TransformerConfig(32, 64, 2, 1))

    def sampler(steps: int, compile_it: bool) -> Sampler:
        return model.sampler(2, CheckerboardDrawing(cfg=1.5, steps_per_scale=steps), compile_it)

    few = torch._dynamo.config.patch(recompile_limit=2)
    with few, pytest.warns(UserWarning, match="2 sets of shapes were compiled"):
        for steps in (1, 2, 4, 8):
            expected = sampler(steps, False)(LABELS, SEEDS).codes[0]
            assert torch.equal(sampler(steps, True)(LABELS, SEEDS).codes[0], expected)
