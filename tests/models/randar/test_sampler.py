"""Sampling against the published code, teacher forcing and whole passes without a cache; seeds, orders, editing, cost.

Letters: B images, S side of the grid of codes, L = S * S locations, n codes of a step, V codes.
"""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.measure import CountKernels
from models import parallel_schedule, sample
from models.draw import truncate
from models.family import Samples
from models.llamagen.config import LlamaConfig
from models.randar.config import RandARDrawing
from models.randar.model import RandAR
from models.sampling import checked_drawing
from models.scales import join_scales
from runtime.errors import UserError
from tests.factory import load_reference, tiny_autoencoder
from tests.randar_factory import L, V, order_of, random_orders, scored_steps, tiny_randar

pytestmark = pytest.mark.quick
LABELS, SEEDS = [3, 7], [5, 6]
REFERENCE = load_reference("tiny-randar")


# What the published code computed


@pytest.mark.parametrize("name", REFERENCE.settings["samples"])
def test_greedy_codes_of_the_published_code(name: str, device: torch.device) -> None:
    model, settings = REFERENCE.model(device=device), dict(REFERENCE.settings["samples"][name])
    raster = torch.arange(36).expand(4, -1)
    order = raster if settings.pop("order") == "raster" else REFERENCE["order"]
    out = sample(model, REFERENCE["labels"], temperature=0.0, order=order, **settings)
    assert torch.equal(out.codes[0].cpu(), REFERENCE[f"sample_{name}"])
    assert torch.equal(out.step[0].cpu(), REFERENCE[f"step_{name}"])


# Sampling equals teacher forcing, and whole passes


@torch.no_grad()
def assert_drawn_from(model: RandAR, out: Samples, order: Tensor, known: int = 0, **settings: Any) -> None:
    """Probability and entropy of every code after the first ``known`` are those of passes that need no cache."""
    settings = {"cfg": 0.0, "cfg_schedule": "linear", "top_k": 0, "top_p": 1.0, "steps": -1} | settings
    labels, order = torch.tensor(LABELS, device=model.device), order.to(model.device)
    counts = parallel_schedule(L - known, settings["steps"])
    cond, uncond = scored_steps(model, out.codes, labels, order, counts, known)
    done, shares = known, []
    for count in counts:
        shares += [done / L if settings["cfg_schedule"] == "linear" else 1.0] * count
        done += count
    strength = settings["cfg"] * torch.tensor(shares, device=model.device)[:, None]
    probs = truncate(cond + strength * (cond - uncond), settings["top_k"], settings["top_p"]).softmax(-1)
    codes, probability, entropy, step = (
        join_scales(maps).gather(1, order)[:, known:] for maps in (out.codes, out.probability, out.entropy, out.step)
    )
    chosen = probs.gather(-1, codes[..., None]).squeeze(-1)
    torch.testing.assert_close(probability, chosen, atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy, torch.special.entr(probs).sum(-1), atol=2e-4, rtol=0)
    numbers = [number for number, count in enumerate(counts) for _ in range(count)]
    assert step.tolist() == [numbers] * len(step)
    assert entropy.mean() > 0.5


@pytest.mark.parametrize(
    "settings",
    [
        {"cfg": 0.0},
        {"cfg": 1.5, "cfg_schedule": "constant"},
        {"cfg": 1.5, "cfg_schedule": "linear"},
        {"cfg": 1.5, "cfg_schedule": "constant", "top_k": 9, "top_p": 0.9},
    ],
    ids=str,
)
@torch.no_grad()
def test_one_code_a_step_equals_teacher_forcing(settings: dict[str, Any], device: torch.device) -> None:
    """By the forward pass of training: an instruction sees all codes before it."""
    model = tiny_randar().to(device)
    out = sample(model, LABELS, seeds=SEEDS, steps=-1, **settings)
    order = order_of(out.step)
    assert_drawn_from(model, out, order, **settings)
    if settings["cfg"] == 0:
        probs = model(out.codes, torch.tensor(LABELS, device=device), order)[0].softmax(-1)
        chosen = probs.gather(-1, out.codes[0].flatten(1).gather(1, order)[..., None]).squeeze(-1)
        drawn = out.probability[0].flatten(1).gather(1, order)
        torch.testing.assert_close(drawn, chosen, atol=1e-5, rtol=0)
    assert sorted(order[0].tolist()) == list(range(L))
    assert not torch.equal(order[0], order[1])
    assert model.num_steps(checked_drawing(model, {"steps": -1})) == L


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 9, 15])
@pytest.mark.parametrize("cfg_schedule", ["constant", "linear"])
def test_several_codes_a_step_equal_whole_passes(steps: int, cfg_schedule: str, device: torch.device) -> None:
    """Over ``c q x .. q_a .. q_b``, nothing kept from step to step."""
    model, order = tiny_randar().to(device), random_orders(2)
    settings = {"steps": steps, "cfg": 1.5, "cfg_schedule": cfg_schedule}
    out = sample(model, LABELS, seeds=SEEDS, order=order, **settings)
    assert_drawn_from(model, out, order, **settings)
    assert model.num_steps(checked_drawing(model, settings)) == max(2, steps)


def test_truncated_parallel_draws() -> None:
    model, order = tiny_randar(), random_orders(2)
    settings = {"steps": 5, "cfg": 1.5, "top_k": 7, "top_p": 0.8}
    assert_drawn_from(model, sample(model, LABELS, seeds=SEEDS, order=order, **settings), order, **settings)


def test_the_usual_steps() -> None:
    """88, or one code a step where there are no more codes than that."""
    many, few = tiny_randar(img_size=160), tiny_randar()
    assert [model.num_steps(checked_drawing(model, {})) for model in (many, few)] == [88, L]
    assert many.num_steps(checked_drawing(many, {"steps": -1})) == 100
    out = sample(many, [3], seeds=[5])
    assert torch.bincount(out.step[0].flatten()).tolist() == list(parallel_schedule(100, 88))


def test_temperature_0_takes_the_likeliest_code_whatever_the_seed() -> None:
    model, order = tiny_randar(), random_orders(2)
    settings = {"steps": 5, "order": order}
    first, second = (sample(model, LABELS, temperature=0.0, seeds=seeds, **settings) for seeds in ([1, 2], [3, 4]))
    narrow = sample(model, LABELS, top_k=1, seeds=SEEDS, **settings)
    assert torch.equal(first.codes[0], second.codes[0])
    assert torch.equal(first.codes[0], narrow.codes[0])
    assert (first.entropy[0] == 0).all()
    assert (first.probability[0] == 1).all()


def test_draws_follow_the_distribution() -> None:
    """Of the first code, of 5,000 images: noise is independent of the order."""
    model, count, order = tiny_randar(), 5000, torch.arange(L)[None]
    run = model.sampler(count, RandARDrawing(cfg=0.0))
    next(run.steps(torch.full((count,), 3), range(count), order=order.expand(count, -1)))
    with torch.no_grad():
        probs = model([torch.zeros(1, 4, 4, dtype=torch.long)], torch.tensor([3]))[0][0, 0].softmax(-1)
    likely = probs * count > 5
    found = torch.bincount(run.sequence[:, 0], minlength=V)[likely]
    chi_square = ((found - count * probs[likely]).square() / (count * probs[likely])).sum()
    assert likely.sum() > 10
    assert chi_square < 2.5 * likely.sum()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_draws(dtype: torch.dtype) -> None:
    model, settings = tiny_randar(autoencoder=tiny_autoencoder()).to(dtype), {"seeds": SEEDS, "steps": 5}
    out = sample(model, LABELS, **settings)
    assert out.entropy[0].dtype == out.images.dtype == torch.float32
    exact = sample(model.float(), LABELS, **settings)
    first = out.step[0] == 0
    assert (out.entropy[0] - exact.entropy[0])[first].abs().max() < 0.1


def test_sampling_ignores_training_mode_and_training_is_left_as_it_was() -> None:
    """The published generate leaves its caches attached, and the next training forward breaks."""
    model = tiny_randar(dropout=0.5, label_drop=1.0)
    codes, order = [torch.zeros(2, 4, 4, dtype=torch.long)], random_orders(2)
    with torch.no_grad():
        before = model(codes, torch.tensor(LABELS), order)[0]
        expected = sample(model, LABELS, seeds=SEEDS, steps=5).codes[0]
        assert torch.equal(sample(model.train(), LABELS, seeds=SEEDS, steps=5).codes[0], expected)
        assert model.training
        assert torch.equal(model.eval()(codes, torch.tensor(LABELS), order)[0], before)
    model.train()(codes, torch.tensor(LABELS), order)[1].backward()


@pytest.mark.filterwarnings("ignore:cfg has no effect")
def test_a_model_without_classes_draws() -> None:
    model = tiny_randar(class_cond=False)
    out, guided = (sample(model, [10, 10], seeds=SEEDS, cfg=cfg) for cfg in (0.0, 1.5))
    assert torch.equal(guided.codes[0], out.codes[0])


def test_without_an_autoencoder_there_are_codes_and_no_images() -> None:
    out = sample(tiny_randar(), LABELS, seeds=SEEDS, steps=5)
    assert out.images is None
    painted = sample(tiny_randar(autoencoder=tiny_autoencoder()), LABELS, seeds=SEEDS, steps=5)
    assert torch.equal(painted.codes[0], out.codes[0])
    assert painted.images.shape == (2, 3, 16, 16)


# Seeds and orders


@pytest.mark.parametrize("scan_order", ["random", "raster"])
def test_an_image_depends_on_its_seed_and_on_no_batch(scan_order: str, device: torch.device) -> None:
    model, labels, seeds = tiny_randar(scan_order=scan_order), [3, 7, 3], [11, 12, 13]
    settings = {"steps": 5, "cfg": 1.5}
    together = sample(model, labels, seeds=seeds, **settings)
    model.to(device)
    for image in range(3):
        alone = sample(model, labels[image : image + 1], seeds=seeds[image : image + 1], **settings)
        assert torch.equal(alone.codes[0][0].cpu(), together.codes[0][image])
        assert torch.equal(alone.step[0][0].cpu(), together.step[0][image])
    turned = sample(model, labels[::-1], seeds=seeds[::-1], **settings)
    assert torch.equal(turned.codes[0].cpu(), together.codes[0].flip(0))
    assert not torch.equal(together.codes[0][0], together.codes[0][2])  # same label, other seed
    assert torch.equal(together.step[0][0], together.step[0][2]) == (scan_order == "raster")


def test_the_order_of_a_seed_given_is_the_same_image() -> None:
    model = tiny_randar()
    drawn = sample(model, LABELS, seeds=SEEDS, steps=-1)
    order = order_of(drawn.step)
    for steps in (-1, 5):
        free, given = (sample(model, LABELS, seeds=SEEDS, steps=steps, order=each) for each in (None, order))
        assert torch.equal(free.codes[0], given.codes[0])
        assert torch.equal(free.step[0], given.step[0])
        assert torch.equal(free.probability[0], given.probability[0])
    other = sample(model, LABELS, seeds=SEEDS, steps=-1, order=order.flip(1).int())
    assert torch.equal(order_of(other.step), order.flip(1))
    assert not torch.equal(other.codes[0], drawn.codes[0])


def test_a_raster_model_draws_in_raster_order_unless_told() -> None:
    model, raster = tiny_randar(scan_order="raster"), torch.arange(L).expand(2, -1)
    out = sample(model, LABELS, seeds=SEEDS, steps=-1)
    assert torch.equal(out.step[0].flatten(1), raster)
    assert_drawn_from(model, out, raster, cfg=3.0)  # of the published interface, as it is by default
    assert torch.equal(sample(model, LABELS, seeds=SEEDS, steps=-1, order=raster).codes[0], out.codes[0])
    assert torch.equal(sample(tiny_randar(), LABELS, seeds=SEEDS, steps=-1, order=raster).codes[0], out.codes[0])
    order = random_orders(2)
    told = sample(model, LABELS, seeds=SEEDS, steps=5, order=order, cfg=1.5)
    assert_drawn_from(model, told, order, cfg=1.5, steps=5)


def test_one_sampler_draws_batch_after_batch() -> None:
    """Nothing of a batch is left for the next, neither codes, nor orders, nor what was kept."""
    model, keep = tiny_randar(), torch.rand(2, 4, 4) < 0.5
    run, labels = model.sampler(2, RandARDrawing(steps=5)), torch.tensor(LABELS)
    edit = {"keep": [keep], "keep_codes": [torch.randint(V, (2, 4, 4))]}
    asked = [(SEEDS, {}), ([8, 9], {"order": random_orders(2)}), (SEEDS, edit), ([8, 9], {})]
    for seeds, how in asked:
        again = run(labels, seeds, **how)
        fresh = sample(model, LABELS, seeds=seeds, steps=5, **how)
        for name in ("codes", "step", "entropy", "probability"):
            one, other = getattr(again, name)[0], getattr(fresh, name)[0]
            assert torch.equal(one.nan_to_num(-1), other.nan_to_num(-1)), name


# Editing


def edited(count: int = 6, seed: int = 1) -> tuple[Tensor, Tensor]:
    """(2, S, S) what is kept, ``count`` codes of each image at random, and codes."""
    kept = random_orders(2, seed=seed) < count
    return kept.view(2, 4, 4), torch.randint(V, (2, 4, 4), generator=torch.Generator().manual_seed(seed))


def in_drawing(out: Samples, keep: Tensor, model: RandAR, order: Tensor | None = None) -> Tensor:
    """(B, L) the order of an edit, read off its sampler: kept locations first."""
    run = model.sampler(2, RandARDrawing(steps=-1))
    run(torch.tensor(LABELS), SEEDS, [keep], [out.codes[0]], order)
    return run.order


@pytest.mark.parametrize("steps", [-1, 4])
@pytest.mark.parametrize("cfg_schedule", ["constant", "linear"])
def test_kept_codes_come_first_and_the_rest_is_drawn_given_all_of_them(steps: int, cfg_schedule: str) -> None:
    model, (keep, codes) = tiny_randar(), edited()
    settings = {"steps": steps, "cfg": 1.5, "cfg_schedule": cfg_schedule}
    out = sample(model, LABELS, seeds=SEEDS, keep=[keep], keep_codes=[codes], **settings)
    assert torch.equal(out.codes[0][keep], codes[keep])
    assert torch.equal(out.probability[0].isnan(), keep)
    assert (out.entropy[0][keep] == 0).all()
    order = in_drawing(out, keep, model)
    assert keep.flatten(1).gather(1, order)[:, :6].all()
    free = order_of(sample(model, LABELS, seeds=SEEDS, steps=-1).step)  # kept first, else as the seed has it
    for row, kept, drawn in zip(order.tolist(), keep.flatten(1).tolist(), free.tolist(), strict=True):
        assert row == [at for at in drawn if kept[at]] + [at for at in drawn if not kept[at]]
    assert_drawn_from(model, out, order, known=6, **settings)


def test_images_that_keep_different_numbers_of_codes() -> None:
    """Each as alone, though steps of one batch must be of one length."""
    model, labels, seeds = tiny_randar(), [3, 7, 3, 1], [5, 6, 7, 8]
    keep = torch.stack([random_orders(1, seed=n)[0] < count for n, count in enumerate((6, 0, 6, 16))]).view(4, 4, 4)
    codes, settings = torch.randint(V, (4, 4, 4)), {"steps": 5, "cfg": 1.5}
    out = sample(model, labels, seeds=seeds, keep=[keep], keep_codes=[codes], **settings)
    given = sample(model, labels, seeds=seeds, keep=[keep], keep_codes=[codes], order=random_orders(4), **settings)
    for n in range(4):
        one = slice(n, n + 1)
        how = {"seeds": seeds[one], "keep": [keep[one]], "keep_codes": [codes[one]]} | settings
        for together, alone in (
            (out, sample(model, labels[one], **how)),
            (given, sample(model, labels[one], order=random_orders(4)[one], **how)),
        ):
            assert torch.equal(together.codes[0][one], alone.codes[0])
            assert torch.equal(together.step[0][one], alone.step[0])
            assert torch.equal(together.probability[0][one].isnan(), keep[one])
    assert torch.equal(out.codes[0][1], sample(model, [7], seeds=[6], **settings).codes[0][0])
    assert torch.equal(out.codes[0][keep], codes[keep])


@pytest.mark.parametrize("scan_order", ["random", "raster"])
@pytest.mark.parametrize("steps", [-1, 1, 5])
def test_an_image_that_keeps_every_code_is_those(scan_order: str, steps: int) -> None:
    model, codes = tiny_randar(scan_order=scan_order), torch.randint(V, (2, 4, 4))
    keep = torch.ones(2, 4, 4, dtype=torch.bool)
    out = sample(model, LABELS, seeds=SEEDS, steps=steps, keep=[keep], keep_codes=[codes])
    assert torch.equal(out.codes[0], codes)
    assert out.probability[0].isnan().all()


@torch.no_grad()
def test_a_raster_model_keeps_codes_in_their_places() -> None:
    """What is drawn sees the kept codes before it, and none after it."""
    model, (keep, codes) = tiny_randar(scan_order="raster"), edited()
    keep[:, 0], keep[:, 3, 2] = False, True
    free, out = (
        sample(model, LABELS, seeds=SEEDS, steps=-1, cfg=1.5, **how)
        for how in ({}, {"keep": [keep], "keep_codes": [codes]})
    )
    assert torch.equal(out.codes[0][keep], codes[keep])
    assert torch.equal(out.probability[0].isnan(), keep)
    assert torch.equal(out.step[0].flatten(1), torch.arange(L).expand(2, -1))
    assert torch.equal(out.codes[0][:, 0], free.codes[0][:, 0])
    raster = torch.arange(L).expand(2, -1)
    cond, uncond = scored_steps(model, out.codes, torch.tensor(LABELS), raster, (1,) * L)
    probs = (cond + 1.5 * torch.arange(L)[:, None] / L * (cond - uncond)).softmax(-1)
    chosen = probs.gather(-1, out.codes[0].flatten(1)[..., None]).view(2, 4, 4)
    torch.testing.assert_close(out.probability[0][~keep], chosen[~keep], atol=1e-5, rtol=0)


@pytest.mark.parametrize("scan_order", ["random", "raster"])
def test_a_given_order_of_an_edit(scan_order: str) -> None:
    """Its kept locations come first, both parts in the order given."""
    model, (keep, codes), given = tiny_randar(scan_order=scan_order), edited(), random_orders(2, seed=3)
    out = sample(model, LABELS, seeds=SEEDS, steps=5, cfg=1.5, keep=[keep], keep_codes=[codes], order=given)
    order = in_drawing(out, keep, model, given)
    for row, kept, wanted in zip(order.tolist(), keep.flatten(1).tolist(), given.tolist(), strict=True):
        assert row == [at for at in wanted if kept[at]] + [at for at in wanted if not kept[at]]
    assert torch.equal(out.codes[0][keep], codes[keep])
    assert_drawn_from(model, out, order, known=6, cfg=1.5, steps=5)


def test_impossible_edits_are_refused() -> None:
    model, keep = tiny_randar(), [torch.ones(2, 4, 4, dtype=torch.bool)]
    with pytest.raises(UserError, match=r"keep_codes must lie between 0 and 63$"):
        sample(model, LABELS, keep=keep, keep_codes=[torch.full((2, 4, 4), 64)])
    with pytest.raises(UserError, match=r"keep must be a list of one map for each scale"):
        sample(model, LABELS, keep=keep * 2, keep_codes=[torch.zeros(2, 4, 4, dtype=torch.long)])


# Cost


def kernels_of_step(model: Any, drawing: Any, skipped: int) -> int:
    """Operations that one step launches after so many."""
    run = model.sampler(1, drawing)
    steps = run.steps(torch.tensor([3]), [5])
    for _ in range(skipped):
        next(steps)
    with CountKernels() as kernels:
        next(steps)
    return kernels.count


def test_a_decoding_step_launches_few_operations() -> None:
    """Of 12 layers, whatever their width."""
    size = LlamaConfig(hidden_size=48, intermediate_size=64, num_attention_heads=12, num_hidden_layers=12)
    model = tiny_randar(llama_config=size)
    one, several = (kernels_of_step(model, RandARDrawing(cfg=1.0, steps=steps), 3) for steps in (-1, 5))
    assert one == several
    assert 100 < one <= 300


def test_a_step_feeds_each_code_once_and_unguided_images_cost_half() -> None:
    """From the second step on 2n' - 1 + n tokens, n' codes of the step before; the first step 2."""
    model, fed, order = tiny_randar(), [], random_orders(2)
    with model.norm.register_forward_pre_hook(lambda module, inputs: fed.append(tuple(inputs[0].shape[:2]))):
        sample(model, LABELS, cfg=1.5, steps=5, order=order)
        sample(model, LABELS, cfg=0.0, steps=5, order=order)
    counts = parallel_schedule(L, 5)
    tokens = [2, *(2 * before - 1 + now for before, now in pairwise(counts))]
    assert fed == [(4, count) for count in tokens] + [(2, count) for count in tokens]


# Mistakes


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({"cfg": -0.5}, r"^cfg is -0.5; it must not be negative, 0 for no guidance$"),
        ({"cfg": math.nan}, "^cfg is nan;"),
        ({"cfg": [1.0, 2.0]}, "^cfg has 2 values; give one number, or one for each of the scales 4$"),
        ({"steps": 17}, "^steps is 17, but an image has 16 codes; set 1 to 16, or -1 for one code a step$"),
        ({"steps": -2}, "^steps is -2, but an image has 16 codes"),
        ({"steps": 65, "upscale": 2}, "^steps is 65, but an image has 64 codes"),
        ({"upscale": 3}, "^upscale is 3; it must be 1 or 2$"),
        ({"upscale": 0}, "^upscale is 0; it must be 1 or 2$"),
        ({"spatial_cfg": -1.0}, "^spatial_cfg is -1.0;"),
        ({"spatial_cfg": math.nan}, "^spatial_cfg is nan;"),
        ({"spatial_ratio": 1.5}, "^spatial_ratio is a probability; 1.5"),
        ({"cfg_interval": 3}, "^cfg_interval means nothing to randar, which has cfg, .*steps"),
        ({"steps_per_scale": 2}, "^steps_per_scale means nothing to randar"),
        ({"temperature": 1e-9}, "^temperature is 1e-09; it must be 0"),
        ({"top_p": 0.0}, "^top_p is 0.0;"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(settings: dict[str, Any], answer: str) -> None:
    with pytest.raises(UserError, match=answer):
        sample(tiny_randar(), LABELS, **settings)


@pytest.mark.parametrize(
    ("order", "answer"),
    [
        (
            torch.zeros(2, L, dtype=torch.long),
            "^the order is no permutation; name each location 0 to 15 once an image$",
        ),
        (torch.arange(L), r"^the order has shape \(16,\); give one row an image, \(2, 16\)$"),
        (torch.arange(L).expand(3, -1), r"^the order has shape \(3, 16\)"),
        (torch.arange(L).expand(2, -1).float(), "^the order has type torch.float32; give raster indices"),
    ],
    ids=range(4),
)
@pytest.mark.parametrize("kept", [0, 5])
def test_an_order_that_is_no_permutation_is_refused(order: Tensor, answer: str, kept: int) -> None:
    """Also where images keep different numbers of codes."""
    keep = torch.zeros(2, 4, 4, dtype=torch.bool)
    keep[0].view(-1)[:kept] = True
    with pytest.raises(UserError, match=answer):
        sample(tiny_randar(), LABELS, order=order, keep=[keep], keep_codes=[torch.zeros(2, 4, 4, dtype=torch.long)])


def test_logits_that_are_not_finite_are_named() -> None:
    model = tiny_randar()
    with torch.no_grad():
        model.tok_embeddings.weight.fill_(math.nan)
    with pytest.raises(UserError, match=r"^the logits are not finite from step 1 on, at the scale of side 4; take"):
        sample(model, LABELS, seeds=SEEDS)


@pytest.mark.parametrize("trained", ["random", "raster"])
def test_either_order_can_be_drawn_in(trained: str) -> None:
    """Raster order is the given one of that name; a random order is the one that a model of random order draws."""
    model, raster = tiny_randar(scan_order=trained), torch.arange(L).expand(2, -1)
    own, in_raster, shuffled = (
        sample(model, LABELS, seeds=SEEDS, draw_order=name) for name in ("model", "raster", "random")
    )
    given = sample(model, LABELS, seeds=SEEDS, order=raster)
    assert torch.equal(in_raster.codes[0], given.codes[0])
    assert torch.equal(order_of(in_raster.step), raster)
    assert torch.equal(own.codes[0], (shuffled if trained == "random" else in_raster).codes[0])
    assert torch.equal(order_of(shuffled.step), order_of(sample(tiny_randar(), LABELS, seeds=SEEDS).step))


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({"cfg_schedule": "cosine"}, "cfg_schedule is cosine"),
        ({"upscale": 2.0}, r"upscale is 2\.0"),
        ({"steps": "4"}, "steps is 4; it must be a whole number"),
        ({"steps": True}, "steps is True"),
        ({"order": "raster"}, "the order is no tensor"),
    ],
    ids=str,
)
def test_settings_of_another_kind_are_refused(settings: dict[str, Any], answer: str) -> None:
    with pytest.raises(UserError, match=answer):
        sample(tiny_randar(), LABELS, **settings)


def test_an_order_may_be_a_list() -> None:
    model, order = tiny_randar(), random_orders(2)
    first, second = (sample(model, LABELS, seeds=SEEDS, order=given) for given in (order, order.tolist()))
    assert torch.equal(first.codes[0], second.codes[0])


def test_what_has_no_effect_is_said() -> None:
    assert RandARDrawing(spatial_cfg=3.0).warnings([4]) == ["spatial_cfg has no effect without upscale 2"]
    assert not RandARDrawing(spatial_cfg=3.0, upscale=2).warnings([4])
