"""The transformer's parts against direct computations (formats.md M4), and its cache.

Letters: B batch, T tokens, D width, h heads, d dimension of a head.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.checkerboard.layout import block_causal_mask
from models.checkerboard.rope import Rotary, rotary_of
from models.config import TransformerConfig
from models.transformer import (
    Attention,
    BlockCausal,
    FeedForward,
    KVCache,
    Mask,
    Modulation,
    RMSNorm,
    Transformer,
    attend,
    flex_mask,
    modulate,
)
from runtime.errors import UserError
from tests.factory import randomize

pytestmark = pytest.mark.quick
CONFIG = TransformerConfig(hidden_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=2)


def unturned(num_tokens: int) -> Rotary:
    shape = (1, 1, num_tokens, CONFIG.head_dim)
    return rotary_of((torch.ones(shape), torch.zeros(shape)), [])


def random_rotary(num_tokens: int) -> Rotary:
    """Different rotations for queries and, in the first layer, keys."""
    queries, keys = (tuple(torch.randn(2, 1, 1, num_tokens, CONFIG.head_dim)) for _ in range(2))
    return rotary_of(queries, [keys])


# Parts


def test_rms_norm_has_a_weight_and_runs_in_float32() -> None:
    norm = RMSNorm(8)
    randomize(norm)
    x = torch.randn(2, 3, 8)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)
    tiny = torch.full((1, 8), 1e-3)  # small enough for eps to matter
    torch.testing.assert_close(norm(tiny), tiny / math.sqrt(2e-6) * norm.weight)
    half = norm(x.half() * 1000)  # whose squares overflow float16
    assert half.dtype == torch.float16
    torch.testing.assert_close(half, expected.half(), atol=5e-3, rtol=0)


def test_modulation_is_scale_then_shift_without_one_plus() -> None:
    modulation, x, embedding = Modulation(8), torch.randn(2, 3, 8), torch.randn(2, 8)
    randomize(modulation)
    out = modulation.linear(F.silu(embedding))
    expected = x * out[:, None, 8:] + out[:, None, :8]  # chunked as shift, scale
    torch.testing.assert_close(modulate(x, modulation(embedding)), expected)


def test_modulation_starts_as_the_identity() -> None:
    modulation, x = Modulation(8), torch.randn(2, 3, 8)
    modulation.reset_parameters()
    assert torch.equal(modulate(x, modulation(torch.randn(2, 8))), x)


def test_feed_forward_is_swiglu() -> None:
    layer, x = FeedForward(CONFIG), torch.randn(2, 3, 32)
    gate, value = x @ layer.w1.weight.T, x @ layer.w3.weight.T
    torch.testing.assert_close(layer(x), (gate * torch.sigmoid(gate) * value) @ layer.w2.weight.T)


@pytest.mark.parametrize(("intermediate", "rounded"), [(1, 256), (192, 256), (256, 256), (257, 512), (1536, 1536)])
def test_ffn_width_rounds_up_to_a_multiple_of_256(intermediate: int, rounded: int) -> None:
    assert TransformerConfig(intermediate_size=intermediate).ffn_size == rounded


def slow_attention(layer: Attention, x: Tensor, mask: Tensor) -> Tensor:
    """One head, one query at a time; q, k, v are contiguous thirds of wqkv."""
    d = CONFIG.head_dim
    q, k, v = (x @ layer.wqkv.weight.T).split(32, dim=-1)  # (B, T, D) each
    heads = []
    for start in range(0, 32, d):
        rows = []
        for token in range(x.shape[1]):
            seen = mask[token]
            scores = k[:, seen, start : start + d] @ q[:, token, start : start + d, None] / math.sqrt(d)
            rows.append((scores.softmax(1) * v[:, seen, start : start + d]).sum(1))
        heads.append(torch.stack(rows, dim=1))
    return torch.cat(heads, dim=-1) @ layer.wo.weight.T


def test_attention_against_a_slow_restatement() -> None:
    layer, x = Attention(CONFIG), torch.randn(2, 6, 32)
    mask = block_causal_mask(torch.tensor([0, 0, 1, 1, 2]))
    out = layer(x, unturned(6), 0, mask, cache=None, start=0)
    torch.testing.assert_close(out, slow_attention(layer, x, mask))


def test_linears_of_a_layer_have_no_bias() -> None:
    names = dict(Transformer(CONFIG).named_parameters())
    assert {name for name in names if name.endswith("bias")} == {
        f"layers.{i}.{place}_modulation.linear.bias" for i in range(2) for place in ("input", "post_attention")
    }


def test_flex_mask_is_the_dense_mask() -> None:
    steps = torch.tensor([0, 1, 1, 2, 2, 2, 3])
    query, key = torch.arange(8)[:, None], torch.arange(8)[None]
    mask = flex_mask(steps)
    assert torch.equal(mask.mask_mod(torch.tensor(0), torch.tensor(0), query, key), block_causal_mask(steps))


@pytest.mark.parametrize("block", [1, 7, 40, 96, 100, 200])
def test_attention_in_parts_is_that_of_the_dense_mask(block: int) -> None:
    """And so are its gradients; keys that no token of a part may see are left out, and masks that allow all."""
    steps = torch.arange(250) // block
    in_parts, dense = BlockCausal.of_steps(steps), block_causal_mask(steps)
    attended = []
    for mask in (in_parts, dense):
        torch.manual_seed(0)
        q, k, v = torch.randn(3, 2, 4, 251, 8).requires_grad_().unbind()
        found = attend(q, k, v, mask)
        attended.append((found, *torch.autograd.grad(found.square().sum(), (q, k, v))))
    torch.testing.assert_close(*attended)
    assert [end for _, end, _ in in_parts.parts[:-1]] == [first for first, _, _ in in_parts.parts[1:]]
    assert len(in_parts.parts) == {1: 3, 7: 3, 40: 3, 96: 3, 100: 3, 200: 2}[block]
    assert all((mask is None) == bool(dense[first:end, :end].all()) for first, end, mask in in_parts.parts)


def test_recomputed_activations_give_the_same_gradients() -> None:
    model = Transformer(CONFIG).train()
    randomize(model)
    x, rotary, embedding = torch.randn(2, 6, 32), random_rotary(6), torch.randn(2, 32)
    gradients = []
    for checkpointing in (False, True):
        model.activation_checkpointing = checkpointing
        model.zero_grad()
        model(x, model.modulations(embedding), rotary).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(*gradients)


# Cache


def test_cached_blocks_equal_one_masked_pass() -> None:
    model = Transformer(CONFIG)
    randomize(model)
    lengths = [3, 1, 4, 2]
    steps = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    x, rotary = torch.randn(2, 10, 32), random_rotary(10)
    modulations = model.modulations(torch.randn(2, 32))
    whole = model(x, modulations, rotary, mask=steps[:, None] >= steps[None])
    cache, start = KVCache.zeros(CONFIG, 2, max_tokens=10, like=x), 0
    for length in lengths:
        tokens = slice(start, start + length)
        block = model(x[:, tokens], modulations, rotary.slice(tokens), cache=cache, start=start)
        torch.testing.assert_close(block, whole[:, tokens])
        start += length


def test_mask_matters_to_the_comparison_above() -> None:
    model, x = Transformer(CONFIG), torch.randn(2, 4, 32)
    modulations = model.modulations(torch.randn(2, 32))
    steps = torch.arange(4)
    masked = model(x, modulations, random_rotary(4), mask=steps[:, None] >= steps[None])
    assert (masked - model(x, modulations, random_rotary(4)))[:, 0].abs().max() > 1e-3


def test_cache_is_allocated_once_in_the_models_precision() -> None:
    cache = KVCache.zeros(CONFIG, 2, max_tokens=5, like=torch.empty(0, dtype=torch.float16))
    assert [keys.shape for keys in cache.keys] == 2 * [(2, 2, 5, 16)]
    assert {tensor.dtype for tensor in (*cache.keys, *cache.values)} == {torch.float16}
    k, v = torch.randn(2, 2, 2, 3, 16).half().unbind(0)
    keys, values = cache.append(1, 2, k, v)
    assert keys.data_ptr() == cache.keys[1].data_ptr()
    assert torch.equal(keys[:, :, 2:5], k)
    assert torch.equal(values[:, :, 2:5], v)


# Configuration


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"hidden_size": 48, "num_attention_heads": 16}, "hidden_size 48 must be a multiple of"),
        ({"hidden_size": 32, "num_attention_heads": 32}, "hidden_size 32 must be a multiple of"),
        ({"num_hidden_layers": 0}, "at least 1"),
        ({"num_attention_heads": 0}, "at least 1"),
        ({"intermediate_size": -1}, "at least 1"),
    ],
)
def test_impossible_sizes_are_refused(settings: dict[str, int], named: str) -> None:
    with pytest.raises(UserError, match=named):
        TransformerConfig(**settings)


@pytest.mark.parametrize("mask", [None, "causal", torch.ones(7, 7, dtype=torch.bool).tril()])
def test_mixed_precision_on_a_cpu_attends_in_float32(mask: Mask) -> None:
    q, k, v = torch.randn(3, 2, 4, 7, 8, requires_grad=True).unbind()
    expected = attend(q, k, v, mask)
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(q, k, v, mask)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
