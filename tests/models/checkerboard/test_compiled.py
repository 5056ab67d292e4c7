"""The compiled sampler, which takes a C++ compiler half a minute."""

import torch

from models import sample
from models.config import TransformerConfig
from tests.factory import tiny_model


def test_compiled_and_eager_agree() -> None:
    """One graph for each block length, none broken; guided from the second step on."""
    model = tiny_model(img_size=16, single_scale=True, llama_config=TransformerConfig(32, 64, 2, 1))
    settings = {"labels": [3, 7], "cfg": 1.5, "cfg_start_step": 1, "seeds": [3, 4], "steps_per_scale": 4}
    eager = sample(model, **settings)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = sample(model, **settings, compiled=True)
    assert torch.equal(eager.codes[0], compiled.codes[0])
    torch.testing.assert_close(eager.entropy, compiled.entropy, atol=1e-4, rtol=0)
    torch.testing.assert_close(eager.probability, compiled.probability, atol=1e-4, rtol=0)
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 2  # the first block has the class token too; the other three share one
