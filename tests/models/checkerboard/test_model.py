"""The model: published numbers, token inputs, causality, gradients, initialization, training noise.

Letters: B batch, L locations of all scales, D width, V codes, C code dimension.
"""

import copy
import math
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

from models import transformer
from models.autoencoder import upsample_latents
from models.checkerboard.config import CheckerboardConfig
from models.checkerboard.layout import Layout, make_layout
from models.checkerboard.model import Checkerboard, in_scan_order, scale_metrics
from models.checkerboard.order import sampling_blocks, training_blocks
from models.checkerboard.rope import initial_angles
from models.config import TransformerConfig
from models.scales import join_scales, scale_slices, split_scales
from models.transformer import Modulation, RMSNorm
from runtime.config import dataclass_from_dict
from runtime.errors import UserError
from tests.factory import (
    TINY_TRANSFORMER,
    Reference,
    assert_near,
    random_codes,
    randomize,
    tiny_autoencoder,
    tiny_model,
)

pytestmark = pytest.mark.quick
VARIANTS = {
    "plain": {},
    "ratio_3": {"scale_ratio": 3.0},
    "ratio_4": {"scale_ratio": 4.0},
    "single_scale": {"single_scale": True},
    "head_mlp": {"use_head_mlp": True},
    "no_mixing": {"num_mixing_layers": 0},
    "mixing_first": {"num_mixing_layers": 1},
    "mixing_all": {"num_mixing_layers": "all"},
    "unconditional": {"class_cond": False},
    "raster": {"scan_order": "raster"},
    "random": {"scan_order": "random"},
    "replace_sampled": {"random_replace_sampled": True, "random_replace": 0.5},
}
every_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())


# Against the published code


def steps_of(reference: Reference) -> list[int]:
    return sorted(int(key.removeprefix("loss_P")) for key in reference.expected if key.startswith("loss_P"))


@torch.no_grad()
def test_losses_and_logits_for_every_number_of_steps(reference: Reference, device: torch.device) -> None:
    assert len(steps_of(reference)) >= 2
    model, codes, labels = reference.model(device=device), reference.codes(device), reference.labels(device)
    compared = 0
    for steps in steps_of(reference):
        logits, loss = model(codes, labels, steps_per_scale=steps)
        assert_near(loss, reference[f"loss_P{steps}"], atol=2e-5)
        if f"logits_P{steps}" in reference.expected:
            assert_near(logits, reference[f"logits_P{steps}"], atol=1e-4)
            compared += 1
    assert compared


@torch.no_grad()
def test_metrics_of_each_scale(reference: Reference, device: torch.device) -> None:
    model, codes = reference.model(device=device), reference.codes(device)
    for steps in steps_of(reference):
        logits, loss = model(codes, reference.labels(device), steps_per_scale=steps)
        layout = model.layout(sampling_blocks(model.scale_sizes, steps))
        targets = in_scan_order(join_scales(codes), layout)
        nats = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        metrics = scale_metrics(nats, (logits.argmax(-1) == targets).float(), layout.scale_sizes)
        assert len(metrics) == 2 * len(model.scale_sizes)
        for side in model.scale_sizes:
            published = f"stat_P{steps}_{{}}_scale_size{side}"
            assert_near(metrics[f"loss_scale_{side}"], reference[published.format("loss")], atol=2e-5)
            assert_near(metrics[f"accuracy_scale_{side}"], reference[published.format("top1_acc")], atol=1e-7)
        total = sum(metrics[f"loss_scale_{side}"] * side * side for side in model.scale_sizes) / model.num_locations
        torch.testing.assert_close(loss, total)


# Token inputs


def transformer_inputs(model: Checkerboard, *args: Any, **kwargs: Any) -> Tensor:
    """(B, 1 + L, D) what a forward pass hands to the transformer."""
    seen: list[Tensor] = []
    with model.transformer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0])):
        model(*args, **kwargs)
    return seen[0]


def slow_input(model: Checkerboard, codes: list[Tensor], layout: Layout, token: int) -> Tensor:
    """Eq. 1 for one token of one image: combine_inputs(concat[pos, src, pos of the previous block, prev])."""
    sequence = torch.cat([scale[0].flatten() for scale in codes])
    codebook = F.normalize(model.autoencoder.quantize.embedding, dim=-1)
    location, prev = layout.positions[0, token].item(), layout.prev_positions[0, token].item()
    starts = [sum(side * side for side in model.scale_sizes[:i]) for i in range(len(model.scale_sizes))]
    scale = max(i for i, start in enumerate(starts) if start <= location)
    if scale == 0:
        source = torch.zeros(8)
    else:
        latents = codebook[codes[scale - 1][0]].permute(2, 0, 1)[None]
        source = upsample_latents(latents, model.scale_sizes[scale])[0].flatten(1)[:, location - starts[scale]]
    parts = [
        model.embed_positions.weight[location],
        model.src_latents_proj(model.embed_codevecs_mlp(source)),
        model.empty_token_pos if prev < 0 else model.embed_positions.weight[prev],
        model.empty_token_emb if prev < 0 else model.embed_codevecs_mlp(codebook[sequence[prev]]),
    ]
    return model.combine_inputs(torch.cat(parts))


@pytest.mark.parametrize("remainder", ["separate", "fold"])
@pytest.mark.parametrize("variant", ["plain", "ratio_3", "single_scale"])
@torch.no_grad()
def test_token_inputs_against_a_slow_restatement(variant: str, remainder: str) -> None:
    model = tiny_model(**VARIANTS[variant])
    codes, layout = random_codes(model, batch=1), model.layout(sampling_blocks(model.scale_sizes, 5, remainder))
    inputs = transformer_inputs(model, codes, torch.tensor([3]), layout=layout)
    expected = [slow_input(model, codes, layout, token) for token in range(model.num_locations)]
    torch.testing.assert_close(inputs[0], torch.stack([model.class_embeddings.weight[3], *expected]))


@torch.no_grad()
def test_targets_are_read_at_each_tokens_own_place() -> None:
    model = tiny_model()
    codes, layout = random_codes(model, batch=2), model.layout(sampling_blocks(model.scale_sizes, 4))
    logits, loss = model(codes, torch.tensor([1, 2]), layout=layout)
    sequence = join_scales(codes)
    losses = [
        -logits[image, token].log_softmax(-1)[sequence[image, layout.positions[0, token]]]
        for image in range(2)
        for token in range(model.num_locations)
    ]
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    assert torch.equal(in_scan_order(sequence, layout), sequence[:, layout.positions[0]])


@torch.no_grad()
def test_head_mlp_adds_to_the_output_weights() -> None:
    model = tiny_model(use_head_mlp=True)
    net = model.head_mlp.net
    assert net[0].bias is not None
    assert net[4].bias is None
    codebook = F.normalize(model.autoencoder.quantize.embedding, dim=-1)
    hidden = F.silu(net[2](F.silu(net[0](codebook))))
    weight, bias = model.head_parameters()
    torch.testing.assert_close(weight, model.lm_head.weight + hidden @ net[4].weight.T)
    assert torch.equal(bias, model.lm_head.bias)


@torch.no_grad()
def test_no_source_projection_means_the_identity() -> None:
    torch.manual_seed(0)
    config = CheckerboardConfig(img_size=32, num_classes=10, llama_config=TINY_TRANSFORMER)
    plain = Checkerboard(config, tiny_autoencoder(), project_source=False)
    randomize(plain)
    projected = tiny_model()
    identity = {"src_latents_proj.weight": torch.eye(32), "src_latents_proj.bias": torch.zeros(32)}
    projected.load_state_dict(plain.state_dict() | identity)
    codes, labels = random_codes(plain, batch=2), torch.tensor([1, 2])
    torch.testing.assert_close(plain.eval()(codes, labels)[0], projected(codes, labels)[0])


# Nothing leaks


@pytest.mark.parametrize(("steps", "remainder"), [(1, "separate"), (4, "separate"), (5, "fold"), (1000, "separate")])
@pytest.mark.parametrize("variant", ["plain", "ratio_3", "single_scale", "head_mlp", "no_mixing", "raster", "random"])
@torch.no_grad()
def test_no_code_reaches_its_own_block_or_an_earlier_one(variant: str, steps: int, remainder: str) -> None:
    """Image i has the code of location i changed; logits of all tokens up to and in its block are equal bit by bit."""
    model = tiny_model(**VARIANTS[variant])
    L = model.num_locations
    order = model.order_uniforms(1, None)  # one random order for all, so that images compare
    layout = model.layout(sampling_blocks(model.scale_sizes, steps, remainder), order)
    sequence = join_scales(random_codes(model, batch=1)).repeat(L, 1)
    changed = sequence + torch.eye(L, dtype=torch.long)
    changed %= model.autoencoder.config.n_embed
    labels = torch.full((L,), 3)
    before, after = (model(split_scales(s, model.scale_sizes), labels, layout=layout)[0] for s in (sequence, changed))
    differs = (before != after).any(-1)  # (changed location, token)
    steps_of_location = torch.empty_like(layout.steps).index_copy(0, layout.positions[0], layout.steps)
    later = layout.steps[None] > steps_of_location[:, None]
    assert not (differs & ~later).any()

    # The change must arrive where it should: at the block that is told of it, and at the next scale.
    last = scale_slices(model.scale_sizes)[-1]
    told = torch.isin(torch.arange(L), layout.prev_positions)
    told[: last.start] = True
    assert torch.equal(differs.any(1), told)


# Gradients


@every_variant
def test_every_parameter_gets_a_gradient(variant: dict[str, Any]) -> None:
    model = tiny_model(**variant).train()
    _, loss = model(random_codes(model, batch=4), torch.arange(4))
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without == []
    assert all(parameter.grad is None for parameter in model.autoencoder.parameters())


def test_half_precision_autocast_keeps_logits_and_loss_in_float32() -> None:
    model = tiny_model()
    codes, labels = random_codes(model, batch=2), torch.tensor([1, 2])
    with torch.autocast("cpu", torch.bfloat16):
        logits, loss = model(codes, labels)
    assert logits.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(loss, model(codes, labels)[1], atol=0.05, rtol=0)


@pytest.mark.parametrize("use_head_mlp", [False, True])
@torch.no_grad()
def test_half_precision_autocast_computes_logits_in_float32(use_head_mlp: bool) -> None:
    model, hidden = tiny_model(use_head_mlp=use_head_mlp), list[Tensor]()
    model.transformer.register_forward_hook(lambda module, args, output: hidden.append(output[:, 1:].float()))
    weight, bias = model.head_parameters()
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = model(random_codes(model, batch=2), torch.tensor([1, 2]))
    assert torch.equal(logits, F.linear(hidden[0], weight, bias))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_flex_attention_gives_the_same_logits() -> None:
    model = tiny_model(scale_ratio=3.0)
    codes, labels = random_codes(model, batch=2), torch.tensor([1, 2])
    expected, _ = model(codes, labels)
    model.use_flex_attention = True
    with patch.object(transformer, "compiled_flex_attention", lambda: flex_attention):  # compiling takes long
        logits, _ = model(codes, labels)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_random_orders_come_from_the_generator_one_an_image() -> None:
    model = tiny_model(scan_order="random")
    codes, labels = [scale.repeat(2, 1, 1) for scale in random_codes(model, batch=1)], torch.tensor([1, 1])
    first, again, other = (model(codes, labels, generator=torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])
    with pytest.raises(UserError, match="random scan order needs numbers"):
        model.layout(sampling_blocks(model.scale_sizes, 4))


# The frozen autoencoder


def test_the_autoencoder_is_no_part_of_the_model() -> None:
    model = tiny_model()
    frozen = {id(tensor) for tensor in model.autoencoder.state_dict(keep_vars=True).values()}
    assert frozen
    assert frozen.isdisjoint(map(id, model.parameters()))
    assert frozen.isdisjoint(map(id, model.state_dict(keep_vars=True).values()))
    assert not any("encoder" in name or "quantize" in name for name in model.state_dict())
    assert not any(parameter.requires_grad for parameter in model.autoencoder.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not model.train().autoencoder.training


def test_copies_share_the_autoencoder() -> None:
    model = tiny_model()
    duplicate = copy.deepcopy(model)
    assert duplicate.autoencoder is model.autoencoder
    assert duplicate.lm_head.weight is not model.lm_head.weight
    codes, labels = random_codes(model, batch=1), torch.tensor([0])
    assert torch.equal(duplicate(codes, labels)[0], model(codes, labels)[0])


@pytest.mark.parametrize("move", [lambda model: model.to("meta"), lambda model: model.to("meta").double()])
def test_a_copy_that_moves_leaves_the_originals_autoencoder(move: Callable[[Checkerboard], Checkerboard]) -> None:
    model = tiny_model()
    before = {key: value.clone() for key, value in model.autoencoder.state_dict().items()}
    for mover, other in ((copy.deepcopy(model), model), (model, copy.deepcopy(model))):
        kept = other.autoencoder
        assert move(mover).autoencoder.quantize.embedding.device.type == "meta"
        assert other.autoencoder is kept
        assert all(torch.equal(value, before[key]) for key, value in kept.state_dict().items())
        assert other.decode(torch.zeros(1, 8, 8, dtype=torch.long)).isfinite().all()
        assert not mover.autoencoder.training
        assert not any(parameter.requires_grad for parameter in mover.autoencoder.parameters())


def test_the_autoencoder_follows_to_a_device_but_keeps_its_precision() -> None:
    model = tiny_model()
    assert model.to(torch.float64).lm_head.weight.dtype == torch.float64
    assert {parameter.dtype for parameter in model.autoencoder.parameters()} == {torch.float32}
    model.to("meta")
    assert model.device.type == "meta"
    assert {tensor.device.type for tensor in model.autoencoder.state_dict().values()} == {"meta"}


# Initialization


@pytest.fixture(scope="module")
def fresh() -> Checkerboard:
    torch.manual_seed(0)
    sizes = TransformerConfig(hidden_size=64, intermediate_size=64, num_attention_heads=2, num_hidden_layers=2)
    config = CheckerboardConfig(img_size=32, num_classes=100, use_head_mlp=True, llama_config=sizes)
    return Checkerboard(config, tiny_autoencoder())


def test_modulation_survives_the_blanket_initialization(fresh: Checkerboard) -> None:
    modulations = [module for module in fresh.modules() if isinstance(module, Modulation)]
    assert len(modulations) == 4
    for modulation in modulations:
        shift, scale = modulation.linear.bias.chunk(2)
        assert torch.equal(scale, torch.ones(64))
        assert torch.equal(shift, torch.zeros(64))
        assert torch.equal(modulation.linear.weight, torch.zeros(128, 64))


def test_weights_start_normal_with_std_0_02(fresh: Checkerboard) -> None:
    at_zero = {module.linear for module in fresh.modules() if isinstance(module, Modulation)} | {fresh.lm_head}
    weights = [
        module.weight
        for module in fresh.modules()
        if isinstance(module, nn.Linear | nn.Embedding) and module not in at_zero
    ]
    assert len(weights) == 2 + 3 + 3 + 2 + 2 * 5  # tables, two MLPs, projections, linears of two layers
    for weight in (*weights, fresh.empty_token_emb, fresh.empty_token_pos):
        standard_error = 0.02 / math.sqrt(2 * weight.numel())
        assert abs(weight.std().item() - 0.02) < 4 * standard_error
        assert abs(weight.mean().item()) < 4 * 0.02 / math.sqrt(weight.numel())


def test_the_rest_starts_at_values_of_its_own(fresh: Checkerboard) -> None:
    for name, parameter in fresh.named_parameters():
        if name.endswith("bias") and "modulation" not in name:
            assert torch.equal(parameter, torch.zeros_like(parameter)), name
    for module in fresh.modules():
        if isinstance(module, RMSNorm):
            assert torch.equal(module.weight, torch.ones(64))
    assert torch.equal(fresh.lm_head.weight, torch.zeros(64, 64))
    assert torch.equal(fresh.rope.mixing_coeffs, torch.zeros(2, 2))
    assert torch.equal(fresh.rope.table[:, 0::2], initial_angles((1, 2, 4, 8), 32).cos())
    assert torch.equal(fresh.rope.table[:, 1::2], initial_angles((1, 2, 4, 8), 32).sin())


def test_a_fresh_model_without_head_mlp_knows_nothing() -> None:
    model = Checkerboard(CheckerboardConfig(img_size=32, llama_config=TINY_TRANSFORMER), tiny_autoencoder()).eval()
    _, loss = model(random_codes(model, batch=2), torch.tensor([1, 2]))
    torch.testing.assert_close(loss, torch.tensor(math.log(64)))


# Training noise

IMAGES = 4000  # of a model with 1 + 4 locations


def noise_model(**overrides: Any) -> Checkerboard:
    return tiny_model(img_size=8, **overrides).train()


def is_binomial(count: int, draws: int, probability: float) -> bool:
    """Whether a count lies within 4 standard deviations of its mean."""
    return abs(count - draws * probability) < 4 * math.sqrt(draws * probability * (1 - probability))


def seen_labels(model: Checkerboard, labels: Tensor) -> Tensor:
    seen: list[Tensor] = []
    with model.class_embeddings.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0])):
        model(random_codes(model, len(labels)), labels)
    return seen[0]


@torch.no_grad()
def test_labels_are_dropped_in_training_only() -> None:
    model, labels = noise_model(label_drop=0.3), torch.arange(IMAGES) % 10
    seen = seen_labels(model, labels)
    dropped = seen == model.unconditional_label
    assert model.unconditional_label == 10
    assert is_binomial(dropped.sum().item(), IMAGES, 0.3)
    assert torch.equal(seen[~dropped], labels[~dropped])
    assert torch.equal(seen_labels(model.eval(), labels), labels)
    assert torch.equal(seen_labels(noise_model(label_drop=0.0), labels), labels)
    assert (seen_labels(noise_model(label_drop=1.0), labels) == 10).all()


@torch.no_grad()
def test_an_unconditional_model_sees_no_label() -> None:
    labels = torch.arange(10)
    for model in (noise_model(class_cond=False), noise_model(class_cond=False).eval()):
        assert (seen_labels(model, labels) == 10).all()


def code_inputs(model: Checkerboard, codes: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents of the previous scale (B, L, C) and of the previous block (B, L, C), logits and loss."""
    seen: list[Tensor] = []
    with model.embed_codevecs_mlp.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0])):
        logits, loss = model(codes, torch.zeros(len(codes[0]), dtype=torch.long), steps_per_scale=4)
    sources, prev = seen
    return sources, prev, logits, loss


@pytest.mark.parametrize("replace_sampled", [False, True])
@torch.no_grad()
def test_random_replacement_touches_the_right_inputs_at_its_rate(replace_sampled: bool) -> None:
    """Scale 2's sources all come from the one code of scale 1; its 4 blocks give 3 told locations an image."""
    model = noise_model(random_replace=0.25, random_replace_sampled=replace_sampled)
    codes = random_codes(model, IMAGES)
    clean_sources, clean_prev, *_ = code_inputs(model.eval(), codes)
    sources, prev, logits, loss = code_inputs(model.train(), codes)
    source_changed = (sources != clean_sources).any(-1)  # (B, 5)
    layout = model.layout(sampling_blocks(model.scale_sizes, 4))
    prev_changed = (prev != clean_prev).any(-1) & (layout.prev_positions >= 0)
    assert not source_changed[:, 0].any()  # the first scale has no source
    visible = 0.25 * 63 / 64  # a random code may be the one it replaces
    if replace_sampled:
        assert not source_changed.any()
        assert is_binomial(prev_changed.sum().item(), 3 * IMAGES, visible)
        assert not torch.equal(prev_changed[:, 2], prev_changed[:, 3])  # each location on its own
        replacements = prev[prev_changed]
    else:
        assert not prev_changed.any()
        assert is_binomial(source_changed[:, 1].sum().item(), IMAGES, visible)
        assert torch.equal(source_changed[:, 1:], source_changed[:, 1:2].expand(-1, 4))
        replacements = sources[:, 1][source_changed[:, 1]]
    distances = torch.cdist(replacements, model.autoencoder.quantize.codebook())
    assert distances.min(-1).values.max() < 1e-3  # codebook vectors
    assert distances.argmin(-1).unique().numel() == 64
    targets = in_scan_order(join_scales(codes), model.layout(sampling_blocks(model.scale_sizes, 4)))
    torch.testing.assert_close(loss, F.cross_entropy(logits.flatten(0, 1), targets.flatten()))  # never targets


@torch.no_grad()
def test_training_noise_comes_from_the_given_generator() -> None:
    model = noise_model(random_replace=0.5)
    codes, labels = random_codes(model, batch=8), torch.arange(8)
    first, again, other = (model(codes, labels, generator=torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    state = torch.get_rng_state()
    model(codes, labels, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model.eval()(codes, labels)[0], model(codes, labels)[0])


def test_training_layouts_run() -> None:
    model, rng = tiny_model(scale_ratio=3.0).train(), random.Random(0)
    for _ in range(5):
        layout = make_layout(model.scale_sizes, training_blocks(model.scale_sizes, rng))
        logits, loss = model(random_codes(model, batch=2), torch.tensor([1, 2]), layout=layout)
        assert logits.shape == (2, model.num_locations, 64)
        assert loss.isfinite()


# Mistakes


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"random_replace": 1.5}, "random_replace is a probability"),
        ({"label_drop": -0.1}, "label_drop is a probability"),
        ({"scan_order": "spiral"}, "scan_order is spiral; it must be one of checkerboard, raster, random"),
        ({"num_mixing_layers": "most"}, "num_mixing_layers is most"),
        ({"num_mixing_layers": 3}, "num_mixing_layers 3"),
        ({"num_mixing_layers": -1}, "num_mixing_layers -1"),
    ],
)
def test_impossible_settings_are_refused(setting: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        dataclass_from_dict(CheckerboardConfig, setting | {"llama_config": asdict(TINY_TRANSFORMER)}, "a YAML")


def test_mixing_layers_are_counted() -> None:
    config = CheckerboardConfig(llama_config=TINY_TRANSFORMER)
    assert [replace(config, num_mixing_layers=k).mixing_layers for k in (None, "all", 0, 1, 2)] == [2, 2, 0, 1, 2]


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(UserError, match=r"give floats in \[-1, 1\] of shape \(B, 3, 32, 32\)"):
        tiny_model().tokenize(torch.zeros(1, 3, 64, 64))
