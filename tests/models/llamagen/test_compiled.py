"""The compiled sampler, which takes a C++ compiler half a minute."""

import torch
from torch._dynamo.utils import counters

from models.llamagen.config import LlamaGenDrawing
from tests.llamagen_factory import tiny_gpt

LABELS, SEEDS = torch.tensor([3, 7]), [3, 4]


def test_compiled_and_eager_agree() -> None:
    """One graph for every step of every image: guided or not, of any guidance and any temperature above 0."""
    model = tiny_gpt()
    torch._dynamo.reset()
    counters.clear()
    for settings in ({"cfg": 1.5}, {"cfg": 3.0, "cfg_interval": 4, "temperature": 0.7}):
        drawing = LlamaGenDrawing(**settings)
        eager = model.sampler(2, drawing)(LABELS, SEEDS)
        run = model.sampler(2, drawing, compiled=True)
        for seeds in (SEEDS, [8, 9], SEEDS):
            compiled = run(LABELS, seeds)
        assert torch.equal(eager.codes[0], compiled.codes[0])
        torch.testing.assert_close(eager.entropy, compiled.entropy, atol=1e-4, rtol=0)
        torch.testing.assert_close(eager.probability, compiled.probability, atol=1e-4, rtol=0)
        assert not counters["graph_break"]
        assert counters["stats"]["unique_graphs"] == 1
