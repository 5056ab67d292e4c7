"""Images of twice the side: the published code's codes, both stages by whole passes, row sets, orders, mistakes.

Letters: B images, S side of the model's grid, L = S * S, 4L locations drawn, V codes.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from models import parallel_schedule, sample
from models.randar.config import RandARDrawing
from models.randar.upscale import UpscaleSampler
from models.sampling import checked_drawing
from models.scales import join_scales
from runtime.errors import UserError
from tests.factory import load_reference, tiny_autoencoder
from tests.randar_factory import SIDE, L, V, at_instructions, order_of, random_orders, tiny_randar

pytestmark = pytest.mark.quick
LABELS, SEEDS = [3, 7], [5, 6]
BIG = 2 * SIDE
AT = torch.arange(4 * L)
EVEN = (AT // BIG % 2 == 0) & (AT % BIG % 2 == 0)  # (4L,)


def big_orders(batch: int) -> Tensor:
    """(B, 4L) even locations first, each part shuffled."""
    order = random_orders(batch, 4 * L)
    return torch.stack([torch.cat([row[EVEN[row]], row[~EVEN[row]]]) for row in order])


@pytest.mark.parametrize("name", ["off", "on"])
def test_greedy_codes_of_the_published_code(name: str, device: torch.device) -> None:
    """But for the order's last token, which it never draws."""
    reference = load_reference("tiny-randar")
    order = reference["extrapolated_order"]
    spatial = {"spatial_cfg": 0.0} if name == "off" else {"spatial_cfg": 1.5, "spatial_ratio": 1.0}
    settings = {"cfg": 2.0, "cfg_schedule": "constant", "steps": 144, "temperature": 0.0, "upscale": 2} | spatial
    out = sample(reference.model(device=device), reference["labels"], order=order, **settings)
    ours, expected = (
        codes.cpu().flatten(1).gather(1, order)[:, :-1] for codes in (out.codes[0], reference[f"extrapolated_{name}"])
    )
    assert torch.equal(ours, expected)
    assert out.images.shape == (4, 3, 24, 24)


@pytest.mark.parametrize("cfg_schedule", ["constant", "linear"])
def test_the_even_locations_are_the_small_image_of_the_seed(cfg_schedule: str) -> None:
    model, settings = tiny_randar(), {"cfg": 1.5, "cfg_schedule": cfg_schedule}
    small = sample(model, LABELS, seeds=SEEDS, steps=-1, **settings)
    for steps in (0, -1, 4 * L):
        out = sample(model, LABELS, seeds=SEEDS, steps=steps, upscale=2, **settings)
        assert out.codes[0].shape == (2, BIG, BIG)
        for name in ("codes", "step", "entropy", "probability"):
            assert torch.equal(getattr(out, name)[0][:, ::2, ::2], getattr(small, name)[0]), name
        assert torch.equal(order_of(out.step)[:, L:].sort(dim=1).values, AT[~EVEN].expand(2, -1))
        assert len(out.step[0].unique()) == model.num_steps(checked_drawing(model, {"steps": steps, "upscale": 2}))


def test_both_stages_take_the_same_steps() -> None:
    """By default 1024 of the usual size, which is one code a step: not the usual number of a small image."""
    model = tiny_randar(img_size=160)  # 100 codes, more than the usual 88 steps
    for steps, small in ((0, 100), (-1, 100), (400, 100), (5, 5)):
        drawing = checked_drawing(model, {"steps": steps, "upscale": 2})
        rest = parallel_schedule(400, steps or -1, 100)
        assert model.num_steps(drawing) == small + len(rest)
        assert drawing.first_stage().schedule(100) == parallel_schedule(100, steps or -1)


@pytest.mark.parametrize("spatial_cfg", [0.0, 1.5])
@pytest.mark.parametrize("settings", [{"steps": -1}, {"steps": 20}, {"steps": 9, "cfg_schedule": "constant"}], ids=str)
@torch.no_grad()
def test_the_second_stage_equals_whole_passes(
    settings: dict[str, Any], spatial_cfg: float, device: torch.device
) -> None:
    """Over ``c q x .. q_a .. q_b`` of three row sets; the share of all 4L codes decides how far they guide."""
    model, order, labels = tiny_randar().to(device), big_orders(2).to(device), torch.tensor(LABELS, device=device)
    settings = {"cfg": 1.5, "cfg_schedule": "linear", "spatial_cfg": spatial_cfg, "upscale": 2} | settings
    run = model.sampler(2, checked_drawing(model, settings))
    out = run(labels, SEEDS, order=order)
    codes, lacking = join_scales(out.codes), run.lacking
    assert lacking.sum(1).tolist() == [L // 2] * 2
    assert not lacking[:, ~EVEN.to(device)].any()
    none, done, probs = torch.full_like(labels, model.unconditional_label), L, []
    counts = parallel_schedule(4 * L, settings["steps"], L)
    for count in counts:
        share = done / (4 * L) if settings["cfg_schedule"] == "linear" else 1.0
        cond, uncond, without = (
            at_instructions(model, codes, each, order, done, count, zeroed)
            for each, zeroed in ((labels, None), (none, None), (none, lacking))
        )
        scale, spatial = 1 + share * 1.5, 1 + share * spatial_cfg  # the published scales
        if spatial_cfg:
            logits = without + scale * (cond - uncond) + spatial * (uncond - without)
        else:
            logits = uncond + scale * (cond - uncond)
        probs.append(logits.softmax(-1))
        done += count
    chosen = torch.cat(probs, 1).gather(-1, codes.gather(1, order)[:, L:, None]).squeeze(-1)
    drawn = join_scales(out.probability).gather(1, order)[:, L:]
    torch.testing.assert_close(drawn, chosen, atol=1e-5, rtol=0)
    first = len(parallel_schedule(L, settings["steps"]))
    numbers = [first + number for number, count in enumerate(counts) for _ in range(count)]
    assert join_scales(out.step).gather(1, order)[0, L:].tolist() == numbers


@pytest.mark.parametrize(("settings", "row_sets"), [({}, 3), ({"spatial_cfg": 0.0}, 2), ({"cfg": 0.0}, 3)], ids=str)
def test_row_sets(settings: dict[str, Any], row_sets: int) -> None:
    """Two without spatial guidance, one without any; the first stage has no third."""
    model, rows = tiny_randar(), []
    with model.norm.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0]))):
        sample(model, LABELS, seeds=SEEDS, upscale=2, steps=4, **settings)
        sample(model, LABELS, seeds=SEEDS, upscale=2, steps=4, cfg=0.0, spatial_cfg=0.0)
    first, steps = (1 if "cfg" in settings else 2), model.num_steps(RandARDrawing(upscale=2, steps=4))
    assert rows == [2 * first] * 4 + [2 * row_sets] * (steps - 4) + [2] * steps


def test_the_share_of_codes_that_the_last_row_set_lacks() -> None:
    """None: spatial guidance does nothing. All: the codes that lack are those of the first stage."""
    model, how = tiny_randar(), {"seeds": SEEDS, "upscale": 2, "steps": 20, "cfg": 1.5}
    off = sample(model, LABELS, spatial_cfg=0.0, **how).codes[0]
    assert torch.equal(sample(model, LABELS, spatial_ratio=0.0, **how).codes[0], off)
    assert not torch.equal(sample(model, LABELS, spatial_ratio=0.5, **how).codes[0], off)
    run = UpscaleSampler(model, 2, RandARDrawing(spatial_ratio=1.0, upscale=2, steps=20))
    run(torch.tensor(LABELS), SEEDS)
    assert torch.equal(run.lacking, EVEN.expand(2, -1))


def test_an_image_depends_on_its_seed_and_on_no_batch(device: torch.device) -> None:
    model, labels, seeds = tiny_randar(), [3, 7, 3], [11, 12, 13]
    settings = {"steps": 20, "upscale": 2}
    together = sample(model, labels, seeds=seeds, **settings)
    model.to(device)
    run = model.sampler(3, checked_drawing(model, settings))
    for _ in range(2):  # nothing of a batch is left for the next
        again = run(torch.tensor(labels), seeds)
        assert torch.equal(again.codes[0].cpu(), together.codes[0])
    for image in range(3):
        one = slice(image, image + 1)
        alone = sample(model, labels[one], seeds=seeds[one], **settings)
        assert torch.equal(alone.codes[0].cpu(), together.codes[0][one])
        assert torch.equal(alone.step[0].cpu(), together.step[0][one])


def test_the_order_of_a_seed_given_is_the_same_image() -> None:
    model, how = tiny_randar(), {"seeds": SEEDS, "upscale": 2}
    order = order_of(sample(model, LABELS, steps=-1, **how).step)
    for steps in (-1, 20):
        free, given = (sample(model, LABELS, steps=steps, order=each, **how) for each in (None, order))
        assert torch.equal(free.codes[0], given.codes[0])
        assert torch.equal(free.step[0], given.step[0])


def test_images_are_of_twice_the_side() -> None:
    model = tiny_randar(autoencoder=tiny_autoencoder())
    out = sample(model, LABELS, seeds=SEEDS, upscale=2, steps=9)
    assert out.images.shape == (2, 3, 32, 32)
    torch.testing.assert_close(out.images, model.decode(out.codes[0]).detach())


# Mistakes


def test_what_cannot_be_drawn_at_twice_the_side_is_refused() -> None:
    for side in (SIDE, BIG):
        edit = {
            "keep": [torch.ones(2, side, side, dtype=torch.bool)],
            "keep_codes": [torch.zeros(2, side, side).long()],
        }
        with pytest.raises(UserError, match=r"^upscale 2 draws whole images; leave out what is to be kept"):
            sample(tiny_randar(), LABELS, upscale=2, **edit)
    with pytest.raises(UserError, match=r"^upscale 2 draws in random order; it needs a model of that order"):
        sample(tiny_randar(scan_order="raster"), LABELS, upscale=2)


@pytest.mark.parametrize(
    ("order", "answer"),
    [
        (AT.expand(2, -1), "^the order of upscale 2 must begin with all locations of even row and column$"),
        (random_orders(2), r"^the order has shape \(2, 16\); give one row an image, \(2, 64\)$"),
        (torch.zeros(2, 4 * L, dtype=torch.long), "^the order is no permutation; name each location 0 to 63 once"),
    ],
    ids=range(3),
)
def test_an_order_of_another_kind_is_refused(order: Tensor, answer: str) -> None:
    assert V == 64
    with pytest.raises(UserError, match=answer):
        sample(tiny_randar(), LABELS, upscale=2, order=order)
