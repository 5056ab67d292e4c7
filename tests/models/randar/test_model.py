"""The transformer against what the published code computed, and what no fixture shows: orders, what a token sees.

Letters: B batch, S side of the grid of codes, L = S * S locations, D width, V codes.
"""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from models import parallel_schedule
from models.llamagen.config import LlamaConfig
from models.randar.model import RandAR
from models.randar.upscale import extrapolated_rotation
from runtime.errors import UserError
from tests.factory import CPU, assert_near, load_reference, random_codes, tiny_autoencoder
from tests.randar_factory import CLASSES, L, V, random_orders, tiny_randar

pytestmark = pytest.mark.quick
LABELS = torch.tensor([3, 7])
KINDS = ("order", "raster")
each_kind = pytest.mark.parametrize("kind", KINDS)
SCHEDULES = [key for key in load_reference("tiny-randar").expected if key.startswith("schedule_")]


def scored(model: RandAR, kind: str) -> tuple[Tensor, Tensor]:
    """Logits and loss of the fixture's codes, in its order or in raster order."""
    reference = load_reference("tiny-randar")
    codes, labels = reference["codes"].to(model.device), reference["labels"].to(model.device)
    return model([codes], labels, order=reference["order"].to(model.device) if kind == "order" else None)


# What the published code computed


@each_kind
@torch.no_grad()
def test_logits_and_losses(kind: str, device: torch.device) -> None:
    reference = load_reference("tiny-randar")
    logits, loss = scored(reference.model(device=device), kind)
    assert logits.dtype == torch.float32
    assert_near(logits, reference[f"logits_{kind}"], atol=1e-4)
    assert_near(loss, reference[f"loss_{kind}"], atol=2e-5)


@each_kind
def test_norms_of_gradients(kind: str) -> None:
    reference = load_reference("tiny-randar")
    model = copy.deepcopy(reference.model())
    scored(model, kind)[1].backward()
    prefix, gradients = f"grad_{kind}/", {key: p.grad for key, p in model.named_parameters()}
    expected = {key.removeprefix(prefix): value for key, value in reference.expected.items() if key.startswith(prefix)}
    total = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    assert total.item() == pytest.approx(expected.pop("total").item(), rel=2e-4)
    assert len(expected) == 10
    for key, norm in expected.items():
        assert gradients[key].norm().item() == pytest.approx(norm.item(), rel=2e-4), key


@pytest.mark.parametrize("key", SCHEDULES)
def test_published_schedules(key: str) -> None:
    num_locations, steps = map(int, key.split("_")[1:])
    assert list(parallel_schedule(num_locations, steps)) == load_reference("tiny-randar")[key].tolist()


def test_images_to_codes_and_back() -> None:
    """By the tokenizer that RandAR's YAML names, and to bytes by its own rule."""
    reference = load_reference("tiny-randar")
    model = reference.model()
    (codes,) = model.tokenize(reference["images"])
    assert torch.equal(codes, reference["tokenized"])
    with torch.no_grad():
        images = model.decode(reference["codes"])
    assert_near(images, reference["decoded"], atol=2e-4)
    bytes_ = model.to_uint8(images).permute(0, 2, 3, 1)
    assert (bytes_.int() - reference["decoded_uint8"].int()).abs().max() <= 1
    assert torch.equal(model.to_uint8(reference["decoded"]).permute(0, 2, 3, 1), reference["decoded_uint8"])


def test_the_rotary_table_of_twice_the_side() -> None:
    reference = load_reference("tiny-randar")
    table = extrapolated_rotation(6, reference.model().config.llama_config.head_dim, CPU)
    assert_near(table, reference["extrapolated_rotary"], atol=1e-6)


# What no fixture shows


@pytest.mark.parametrize("steps", [-1, 1, 2, 3, 7, 15, 16, 17, 1000])
@pytest.mark.parametrize("known", [0, 4, 15, 16])
def test_schedules_draw_every_location_once(steps: int, known: int) -> None:
    counts = parallel_schedule(L, steps, known)
    assert sum(counts) == L - known
    assert all(count >= 1 for count in counts)
    assert not counts or counts[0] == 1
    if steps == -1 or (steps >= L and not known):
        assert set(counts) <= {1}
    elif not known:
        assert len(counts) == max(2, steps)


@pytest.mark.parametrize("steps", [0, -2])
def test_impossible_schedules_are_refused(steps: int) -> None:
    with pytest.raises(UserError, match=rf"^steps is {steps}; it must be at least 1, or -1 for one code a step$"):
        parallel_schedule(L, steps)


@torch.no_grad()
def test_logits_follow_the_order_and_the_loss_is_their_mean() -> None:
    model, codes, order = tiny_randar(), random_codes(tiny_randar(), batch=2), random_orders(2)
    logits, loss = model(codes, LABELS, order)
    targets = codes[0].flatten(1).gather(1, order)
    log_probs = logits.log_softmax(-1).gather(-1, targets[..., None])
    assert loss.item() == pytest.approx(-log_probs.mean().item(), rel=1e-6)
    for none, given in zip(model(codes, LABELS), model(codes, LABELS, torch.arange(L).expand(2, -1)), strict=True):
        assert torch.equal(none, given)
    for image in range(2):  # each by its own order
        alone = model([codes[0][image : image + 1]], LABELS[image : image + 1], order[image : image + 1])[0]
        torch.testing.assert_close(alone[0], logits[image], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_code_reaches_what_is_drawn_after_it_alone() -> None:
    model, (codes,), order = tiny_randar(), random_codes(tiny_randar(), batch=1), random_orders(1)
    before, _ = model([codes], LABELS[:1], order)
    for number, location in enumerate(order[0].tolist()):
        changed = codes.clone()
        changed.view(-1)[location] = (changed.view(-1)[location] + 1) % V
        after, _ = model([changed], LABELS[:1], order)
        assert (before != after).any(-1)[0].tolist() == [later > number for later in range(L)]


@torch.no_grad()
def test_a_place_is_known_from_its_own_instruction_on() -> None:
    """And not before: what follows in the order is not told to the tokens in front of it."""
    model, codes, order = tiny_randar(), random_codes(tiny_randar(), batch=1), random_orders(1)
    before, _ = model(codes, LABELS[:1], order)
    other = order.clone()
    other[0, [5, 11]] = order[0, [11, 5]]
    after, _ = model(codes, LABELS[:1], other)
    assert (before != after).any(-1)[0].tolist() == [number >= 5 for number in range(L)]


@torch.no_grad()
def test_the_class_token_attends_to_itself_alone_and_has_no_place() -> None:
    """Its query and key are zeros: every other token scores it 0."""
    model, seen = tiny_randar(), []
    attention = torch.nn.functional.scaled_dot_product_attention

    def keep(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
        seen.append((q, k))
        return attention(q, k, v, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", keep)
        model(random_codes(model, batch=2), LABELS, random_orders(2))
    assert len(seen) == 2
    for q, k in seen:
        assert q.shape == (2, 2, 2 * L, 16)  # the last code is fed to nothing
        assert (q[:, :, 0] == 0).all()
        assert (k[:, :, 0] == 0).all()
        assert (k[:, :, 1:] != 0).any(-1).all()


@torch.no_grad()
def test_bfloat16_follows_float32() -> None:
    model, order = tiny_randar(), random_orders(2)
    codes = random_codes(model, batch=2)
    exact, rounded = model(codes, LABELS, order)[0], model.to(torch.bfloat16)(codes, LABELS, order)[0]
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).norm() < 0.05 * exact.norm()


@torch.no_grad()
def test_any_type_of_whole_numbers_is_an_order() -> None:
    model, codes, order = tiny_randar(), random_codes(tiny_randar(), batch=2), random_orders(2)
    expected = model(codes, LABELS, order)[0]
    for dtype in (torch.int32, torch.uint8):
        assert torch.equal(model(codes, LABELS, order.to(dtype))[0], expected)


def test_a_fresh_model_knows_nothing() -> None:
    """Every linear layer, embedding and the instruction are N(0, 0.02), whatever the depth; the head is 0."""
    size = LlamaConfig(hidden_size=128, intermediate_size=256, num_attention_heads=4, num_hidden_layers=3)
    model = RandAR(tiny_randar(llama_config=size, vocab_size=256, num_classes=200).config)
    _, loss = model(random_codes(model, batch=2), LABELS, random_orders(2))
    assert loss.item() == pytest.approx(math.log(256), rel=1e-6)
    for key, value in model.named_parameters():
        if "norm" in key:
            assert (value == 1).all(), key
        elif key == "output.weight":
            assert (value == 0).all()
        else:
            assert value.std().item() == pytest.approx(0.02, rel=0.2 if value.numel() == 128 else 0.03), key
            assert abs(value.mean().item()) < (0.006 if value.numel() == 128 else 0.001), key
    assert model.pos_instruct_embeddings.shape == (1, 128)
    assert not dict(model.named_buffers())


@pytest.mark.parametrize(
    ("size", "classes", "codes", "parameters"),
    [
        ((1024, 2816, 16, 24), 1000, 16384, 342_912_000),
        ((1024, 2816, 16, 24), 1000, 1024, 311_454_720),
        ((1280, 3584, 20, 36), 1000, 16384, 774_700_800),
        ((1536, 4096, 24, 48), 1000, 16384, 1_410_974_208),
        ((352, 1024, 8, 6), 10, 512, 9_831_008),
    ],
)
def test_published_numbers_of_parameters(size: tuple[int, ...], classes: int, codes: int, parameters: int) -> None:
    with torch.device("meta"):
        model = tiny_meta(LlamaConfig(*size), classes, codes)
    assert sum(p.numel() for p in model.parameters()) == parameters


def tiny_meta(size: LlamaConfig, classes: int, codes: int) -> RandAR:
    return RandAR(RandAR.Config(num_classes=classes, vocab_size=codes, llama_config=size))


# Mistakes


@pytest.mark.parametrize(
    ("order", "answer"),
    [
        (
            torch.zeros(2, L, dtype=torch.long),
            "^the order is no permutation; name each location 0 to 15 once an image$",
        ),
        (torch.arange(1, L + 1).expand(2, -1), "^the order is no permutation"),
        (torch.arange(L), r"^the order has shape \(16,\); give one row an image, \(2, 16\)$"),
        (torch.arange(L).expand(3, -1), r"^the order has shape \(3, 16\)"),
        (torch.arange(L + 1).expand(2, -1), r"^the order has shape \(2, 17\)"),
        (torch.arange(L).expand(2, -1).float(), "^the order has type torch.float32; give raster indices"),
        (torch.ones(2, L, dtype=torch.bool), "^the order "),
    ],
    ids=range(7),
)
def test_an_order_that_is_no_permutation_is_refused(order: Tensor, answer: str) -> None:
    model = tiny_randar()
    with pytest.raises(UserError, match=answer):
        model(random_codes(model, batch=2), LABELS, order)


def test_an_autoencoder_of_other_codes_is_refused() -> None:
    tiny_randar(autoencoder=tiny_autoencoder())
    with pytest.raises(UserError, match=r"^vocab_size is 65, but the autoencoder has 64 codes; set vocab_size to that"):
        tiny_randar(autoencoder=tiny_autoencoder(), vocab_size=65)


def test_only_two_orders_can_be_learned() -> None:
    """The published configuration's comment offers scan, which its training refuses too."""
    from models.config import FAMILIES
    from runtime.config import dataclass_from_dict

    config = FAMILIES["randar"].load("config")
    section = {"architecture": "randar", "num_classes": CLASSES, "scan_order": "scan"}
    with pytest.raises(UserError, match=r"scan_order is scan; it must be random or raster|scan_order"):
        dataclass_from_dict(config, section, "a.yaml")
