"""The transformer against what the published code computed, and what no fixture shows: causality, patches, precision.

Letters: B batch, G side of the grid of codes, N = G * G, p side of a patch, M patches, D width, V codes.
"""

import copy
import math

import pytest
import torch
from torch import Tensor

from models.llamagen.config import LlamaConfig
from models.llamagen.model import EPS, LlamaGen, Norm
from models.llamagen.patches import grid_rotation, pair_rotation, rotate_pairs
from runtime.errors import UserError
from tests.factory import CPU, Reference, assert_near, load_reference, random_codes, tiny_autoencoder
from tests.llamagen_factory import REFERENCES, TINY_GPT, tiny_gpt

pytestmark = pytest.mark.quick
SIDES = [("tiny-llamagen", 1), ("tiny-npp", 1), ("tiny-npp", 2), ("tiny-npp", 4), ("tiny-npp", 8)]
each_side = pytest.mark.parametrize(("name", "side"), SIDES, ids=[f"{name}-{side}" for name, side in SIDES])
each_reference = pytest.mark.parametrize("name", REFERENCES)


def scored(reference: Reference, model: LlamaGen, labels: Tensor | None = None, side: int = 1) -> tuple[Tensor, Tensor]:
    """Logits and loss of a fixture's codes."""
    labels = reference["labels"] if labels is None else labels
    return model([reference["codes"].to(model.device)], labels.to(model.device), patch_size=side)


# What the published code computed


@each_side
@torch.no_grad()
def test_logits_and_losses(name: str, side: int, device: torch.device) -> None:
    reference = load_reference(name)
    logits, loss = scored(reference, reference.model(device=device), side=side)
    assert logits.dtype == torch.float32
    assert_near(logits, reference[f"logits_P{side}"], atol=1e-4)
    assert_near(loss, reference[f"loss_P{side}"], atol=2e-5)


@each_reference
@torch.no_grad()
def test_logits_without_a_class(name: str) -> None:
    reference, model = load_reference(name), load_reference(name).model()
    labels = torch.full_like(reference["labels"], model.unconditional_label)
    assert_near(scored(reference, model, labels)[0], reference["logits_null_P1"], atol=1e-4)


@torch.no_grad()
def test_logits_of_the_averaged_weights() -> None:
    reference = load_reference("tiny-npp")
    logits, loss = scored(reference, reference.model(use_ema=True))
    assert_near(logits, reference["ema_logits_P1"], atol=1e-4)
    assert_near(loss, reference["ema_loss_P1"], atol=2e-5)


@each_side
def test_norms_of_gradients(name: str, side: int) -> None:
    """At p = G no code is an input, and the gradient of their embeddings is 0."""
    reference = load_reference(name)
    model = copy.deepcopy(reference.model())
    scored(reference, model, side=side)[1].backward()
    prefix, gradients = f"gradnorm_P{side}/", {key: p.grad for key, p in model.named_parameters()}
    expected = {key.removeprefix(prefix): value for key, value in reference.expected.items() if key.startswith(prefix)}
    assert len(expected) == 9
    for key, norm in expected.items():
        assert gradients[key].norm().item() == pytest.approx(norm.item(), rel=1e-4, abs=1e-10), key
    total = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    assert total.item() == pytest.approx(reference[f"gradnorm_P{side}_total"].item(), rel=1e-4)


@each_side
def test_the_rotary_table(name: str, side: int) -> None:
    reference, model = load_reference(name), load_reference(name).model()
    grid = model.scale_sizes[0] // side
    table = grid_rotation(grid, model.config.llama_config.head_dim, CPU)
    assert table.dtype == torch.float32
    assert_near(table, reference[f"rope_P{side}"], atol=1e-6)


# What no fixture shows


def test_adjacent_components_are_turned_in_float32() -> None:
    """By the angle of their location; in bfloat16 only the input and the result are rounded."""
    x = torch.randn(3, 17, 8)
    for dtype in (torch.float32, torch.bfloat16):
        turned = rotate_pairs(x.to(dtype), pair_rotation(4, 8, CPU))
        assert turned.dtype == torch.float32
        table = torch.view_as_complex(grid_rotation(4, 8, CPU).contiguous())
        pairs = torch.view_as_complex(x.to(dtype).float().unflatten(-1, (4, 2)))
        torch.testing.assert_close(turned, torch.view_as_real(pairs * table).flatten(-2), atol=1e-6, rtol=0)
    assert (turned[:, 0] == 0).all()  # of the class token


def test_a_norm_rounds_before_its_weight() -> None:
    norm, x = Norm(64).to(torch.bfloat16), 3 * torch.randn(500, 64).to(torch.bfloat16)
    torch.nn.init.normal_(norm.weight)
    wide = x.double()
    expected = (wide / (wide.square().mean(-1, keepdim=True) + EPS).sqrt()).to(torch.bfloat16) * norm.weight
    assert (norm(x) != expected).sum() <= 2  # where the mean lies between two numbers of bfloat16
    tiny = torch.full((1, 64), 1e-3)
    assert Norm(64)(tiny)[0, 0].item() == pytest.approx(1e-3 / math.sqrt(1e-6 + 1e-5))


@torch.no_grad()
def test_bfloat16_follows_float32() -> None:
    """The head and the loss are computed in float32 all the same."""
    model, labels = tiny_gpt(), torch.tensor([1, 2])
    codes = random_codes(model, batch=2)
    exact, rounded = model(codes, labels)[0], model.to(torch.bfloat16)(codes, labels)[0]
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).norm() < 0.05 * exact.norm()
    assert (rounded != rounded.to(torch.bfloat16).float()).any()


@pytest.mark.parametrize("side", [1, 2])
@torch.no_grad()
def test_a_code_reaches_what_is_predicted_after_its_patch_alone(side: int) -> None:
    model, (codes,) = tiny_gpt(), random_codes(tiny_gpt(), batch=1)
    patches = (4 // side) ** 2
    before, _ = model([codes], torch.tensor([3]), patch_size=side)
    for n in range(16):
        changed = codes.clone()
        changed.view(-1)[n] = (changed.view(-1)[n] + 1) % 64
        after, _ = model([changed], torch.tensor([3]), patch_size=side)
        patch = n // 4 // side * (4 // side) + n % 4 // side
        differs = (before != after).any(-1)[0]
        assert differs.tolist() == [m > patch for m in range(patches)]


@torch.no_grad()
def test_a_patch_is_the_mean_of_its_codes_whatever_their_order() -> None:
    model, (codes,) = tiny_gpt(), random_codes(tiny_gpt(), batch=1)
    mirrored = codes.unflatten(2, (2, 2)).flip(3).flatten(2)  # within each patch
    logits, loss = model([codes], torch.tensor([3]), patch_size=2)
    again, same = model([mirrored], torch.tensor([3]), patch_size=2)
    torch.testing.assert_close(again, logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(same, loss, atol=1e-6, rtol=0)
    assert logits.shape == (1, 4, 64)
    assert not torch.allclose(model([codes.roll(1, 2)], torch.tensor([3]), patch_size=2)[0], logits, atol=1e-2)


@torch.no_grad()
def test_one_call_leaves_no_grid_for_the_next() -> None:
    model, labels = tiny_gpt(), torch.tensor([1, 2])
    codes = random_codes(model, batch=2)
    fresh = {side: model(codes, labels, patch_size=side) for side in (1, 2, 4)}
    for side in (4, 1, 2, 1):
        for ours, expected in zip(model(codes, labels, patch_size=side), fresh[side], strict=True):
            assert torch.equal(ours, expected)


@torch.no_grad()
def test_training_mode_differs_by_dropout_alone() -> None:
    model, labels = tiny_gpt(dropout=0.0, label_drop=1.0), torch.tensor([1, 2])
    codes = random_codes(model, batch=2)
    for side in (1, 2, 4):
        expected = model.eval()(codes, labels, patch_size=side)
        for ours, theirs in zip(model.train()(codes, labels, patch_size=side), expected, strict=True):
            assert torch.equal(ours, theirs)


@torch.no_grad()
def test_a_model_without_classes_heeds_no_label() -> None:
    model = tiny_gpt(class_cond=False)
    codes = random_codes(model, batch=1)
    first, second = (model(codes, torch.tensor([label]))[0] for label in (1, 10))
    assert torch.equal(first, second)


def test_a_fresh_model_knows_nothing() -> None:
    """Every linear layer and embedding is N(0, 0.02), whatever its depth; the head is 0."""
    size = LlamaConfig(hidden_size=128, intermediate_size=256, num_attention_heads=4, num_hidden_layers=3)
    model = LlamaGen(tiny_gpt(llama_config=size, vocab_size=256, num_classes=200).config)
    _, loss = model(random_codes(model, batch=2), torch.tensor([1, 2]))
    assert loss.item() == pytest.approx(math.log(256), rel=1e-6)
    for key, value in model.named_parameters():
        if "norm" in key:
            assert (value == 1).all(), key
        elif key == "output.weight":
            assert (value == 0).all()
        else:
            assert value.std().item() == pytest.approx(0.02, rel=0.03), key
            assert abs(value.mean().item()) < 0.001, key
            assert value.abs().max() > 0.06, key  # not cut off


# Mistakes


@pytest.mark.parametrize("side", [5, 3, 8, 0, -1])
def test_patches_that_do_not_divide_the_grid_are_refused(side: int) -> None:
    model = tiny_gpt()
    with pytest.raises(UserError, match=rf"^patches of side {side} do not divide a grid of 4 x 4 codes; choose one"):
        model(random_codes(model, batch=1), torch.tensor([3]), patch_size=side)


def test_an_autoencoder_of_other_codes_is_refused() -> None:
    tiny_gpt(autoencoder=tiny_autoencoder())
    with pytest.raises(UserError, match=r"^vocab_size is 65, but the autoencoder has 64 codes; set vocab_size to that"):
        tiny_gpt(autoencoder=tiny_autoencoder(), vocab_size=65)


def test_heads_that_cannot_be_turned_in_two_dimensions_are_refused() -> None:
    with pytest.raises(UserError, match=r"^hidden_size 36 over num_attention_heads 6 must be a multiple of 4"):
        LlamaConfig(hidden_size=36, num_attention_heads=6)


def test_the_width_of_the_feed_forward_layers_is_taken_as_it_is() -> None:
    assert tiny_gpt().layers[0].feed_forward.w1.weight.shape == (TINY_GPT.intermediate_size, 32) == (64, 32)
