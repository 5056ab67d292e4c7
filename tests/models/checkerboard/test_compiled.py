"""The compiled sampler, which takes a C++ compiler half a minute."""

import pytest
import torch

from models import sample
from models.config import TransformerConfig
from models.transformer import BlockCausal
from tests.factory import random_codes, tiny_model


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


@pytest.mark.quick
def test_a_compiled_transformer_gets_one_mask_of_one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of attention differ from step to step, and compiled code would be made anew for each choice of them."""
    model, masks = tiny_model().train(), []
    forward = model.transformer.forward
    monkeypatch.setattr(model.transformer, "compile", lambda: None)
    monkeypatch.setattr(model.transformer, "forward", lambda *x, mask: masks.append(mask) or forward(*x, mask=mask))
    for compiled in (False, True):
        model.prepare_training("sdpa", compiled, activation_checkpointing=False)
        model(random_codes(model, batch=1), torch.tensor([1]))
    assert isinstance(masks[0], BlockCausal)
    assert masks[1].shape == (86, 86)
