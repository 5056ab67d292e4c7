"""Sampling: cached blocks equal teacher forcing, draws follow their distribution, images keep to their seeds.

Letters: B images, l tokens, L of all scales, V codes, S side of a scale.
"""

import importlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

import models
from benchmarks.measure import CountKernels
from models import make_sampler, sample
from models.checkerboard import sampler
from models.checkerboard.config import CheckerboardConfig, CheckerboardDrawing
from models.checkerboard.layout import Layout
from models.checkerboard.model import Checkerboard, in_scan_order
from models.checkerboard.order import sampling_blocks
from models.config import NUM_SEEDS, LlamaGenVQConfig
from models.draw import draw, truncate
from models.family import Samples
from models.llamagen_vq import LlamaGenVQ
from models.sampling import checked_drawing
from models.scales import join_scales
from runtime.config import dataclass_from_dict, read_yaml
from runtime.errors import UserError
from tests.command_factory import ROOT
from tests.factory import FIXTURES, assert_near, load_reference, tiny_autoencoder, tiny_model

pytestmark = pytest.mark.quick
LABELS, SEEDS = [3, 7], [5, 6]


# Cached sampling equals teacher forcing


@dataclass(frozen=True)
class Drawn:
    """Samples, the layout that they were drawn by, and the (B, L, V) guided logits, in scan order."""

    samples: Samples
    layout: Layout
    logits: Tensor


def draw_recorded(
    model: Checkerboard,
    keep: Sequence[Tensor] | None = None,
    keep_codes: Sequence[Tensor] | None = None,
    **settings: Any,
) -> Drawn:
    """Draw images of ``LABELS``; ``settings`` are those of a drawing."""
    blocks: list[Tensor] = []

    def spy(logits: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        blocks.append(logits)
        return draw(logits, *args)

    run = model.sampler(len(LABELS), checked_drawing(model, settings))
    with patch.object(sampler, "draw", spy):
        labels = LABELS if model.config.class_cond else [model.unconditional_label] * len(LABELS)
        samples = run(torch.tensor(labels), SEEDS, keep, keep_codes)
    return Drawn(samples, run.layout, torch.cat(blocks, dim=1))


@torch.no_grad()
def teacher_forced(model: Checkerboard, drawn: Drawn, cfg: float, cfg_start_step: int) -> Tensor:
    """(B, L, V) guided logits of the drawn codes, from one conditional and one unconditional pass."""
    codes, layout, labels = drawn.samples.codes, drawn.layout, torch.tensor(LABELS, device=model.device)
    cond, _ = model(codes, labels, layout=layout)
    uncond, _ = model(codes, torch.full_like(labels, model.unconditional_label), layout=layout)
    guided = (layout.steps >= cfg_start_step)[:, None]
    return torch.where(guided, cond + cfg * (cond - uncond), cond)


def assert_matches_teacher_forcing(
    model: Checkerboard, steps_per_scale: int, cfg: float = 1.5, cfg_start_step: int = 3, **settings: Any
) -> None:
    settings |= {"steps_per_scale": steps_per_scale, "cfg": cfg, "cfg_start_step": cfg_start_step}
    drawn = draw_recorded(model, **settings)
    blocks = sampling_blocks(model.scale_sizes, steps_per_scale, settings.get("remainder", "separate"))
    assert drawn.layout.blocks == blocks
    assert model.num_steps(checked_drawing(model, settings)) == drawn.layout.steps[-1] + 1 == sum(map(len, blocks))
    tolerance = 1e-5 * (1 + 2 * cfg)  # guidance multiplies the rounding of its two halves
    assert_near(drawn.logits, teacher_forced(model, drawn, cfg, cfg_start_step), atol=tolerance)


@pytest.mark.parametrize(
    "variant",
    [
        {"scale_ratio": 2.0},
        {"scale_ratio": 3.0},
        {"scale_ratio": 4.0},
        {"scale_min_size": 2},
        {"single_scale": True},
        {"use_head_mlp": True},
        {"num_mixing_layers": 0},
        {"num_mixing_layers": 1},
        {"class_cond": False},
        {"scan_order": "raster"},
        {"scan_order": "random"},
    ],
    ids=lambda variant: "-".join(map(str, *variant.items())),
)
@pytest.mark.filterwarnings("ignore:cfg has no effect")
def test_cached_sampling_equals_teacher_forcing(variant: dict[str, Any], device: torch.device) -> None:
    assert_matches_teacher_forcing(tiny_model(**variant).to(device), steps_per_scale=4)


@pytest.mark.parametrize(
    ("cfg", "steps", "start", "lost"),
    [
        (1.5, 4, 5, []),  # steps 1, 4, 4, 4: the first two scales are drawn before step 5, as is meant
        (1.5, 1, 5, [1, 2, 4, 8]),
        (0.0, 1, 5, []),
        ((0.0, 1.0, 2.0, 2.0), 4, 5, [2]),
        ((3.0, 0.0, 2.0, 2.0), 4, 1, [1]),
        ((3.0, 1.0, 2.0, 2.0), 4, 0, []),
    ],
)
def test_guidance_that_never_begins(cfg: float | tuple[float, ...], steps: int, start: int, lost: list[int]) -> None:
    drawing = CheckerboardDrawing(steps_per_scale=steps, cfg=cfg, cfg_start_step=start)
    said = drawing.warnings((1, 2, 4, 8))
    assert len(said) == bool(lost)
    assert all(f"no effect at the scales {', '.join(map(str, lost))}, " in text for text in said)


@pytest.mark.parametrize("remainder", ["separate", "fold"])
@pytest.mark.parametrize("steps_per_scale", [1, 3, 5, 7, 1000])
def test_steps_that_do_not_divide_equal_teacher_forcing(steps_per_scale: int, remainder: str) -> None:
    assert_matches_teacher_forcing(tiny_model(scale_ratio=3.0), steps_per_scale, remainder=remainder)


@pytest.mark.parametrize(
    "settings",
    [
        {"cfg": 0.0},
        {"cfg": 3.0, "cfg_start_step": 0},
        {"cfg": 1.5, "cfg_start_step": 1000},
        {"temperature": 0.0},
        {"temperature": 0.7, "top_k": 5, "top_p": 0.9},
    ],
    ids=str,
)
def test_draw_settings_leave_the_logits_before_truncation_alone(settings: dict[str, Any]) -> None:
    assert_matches_teacher_forcing(tiny_model(), 4, **settings)


def test_sampling_ignores_training_mode() -> None:
    model = tiny_model(random_replace=1.0, label_drop=1.0)
    expected = sample(model, LABELS, seeds=[1, 2])
    torch.testing.assert_close(sample(model.train(), LABELS, seeds=[1, 2]).images, expected.images)
    assert model.training


# What sample returns


def test_maps_agree_with_the_recorded_distributions() -> None:
    """Entropy and probability are those of the distribution drawn from: guided, tempered and truncated."""
    model, temperature, top_k, top_p = tiny_model(), 0.8, 20, 0.9
    drawn = draw_recorded(model, temperature=temperature, top_k=top_k, top_p=top_p)
    probs = truncate(drawn.logits / temperature, top_k, top_p).softmax(-1).double()
    codes, entropy, probability = (
        in_scan_order(join_scales(maps), drawn.layout)
        for maps in (drawn.samples.codes, drawn.samples.entropy, drawn.samples.probability)
    )
    chosen = probs.gather(-1, codes[..., None]).squeeze(-1)
    torch.testing.assert_close(probability.double(), chosen, atol=1e-6, rtol=0)
    direct = -(probs * probs.clamp(min=1e-300).log()).sum(-1)
    torch.testing.assert_close(entropy.double(), direct, atol=1e-5, rtol=0)
    assert (entropy > 0.1).any()
    assert entropy.max() <= math.log(top_k)


@pytest.mark.parametrize("scan_order", ["checkerboard", "raster", "random"])
def test_steps_are_mapped_to_their_locations(scan_order: str) -> None:
    model = tiny_model(scale_ratio=3.0, scan_order=scan_order)
    drawn = draw_recorded(model, steps_per_scale=4, remainder="fold")
    flat = join_scales(drawn.samples.step)
    for image, positions in enumerate(drawn.layout.positions.expand(2, -1).tolist()):
        step_of = dict(zip(positions, drawn.layout.steps.tolist(), strict=True))
        assert flat[image].tolist() == [step_of[location] for location in range(model.num_locations)]


def test_shapes_types_and_image() -> None:
    model = tiny_model(scale_ratio=3.0)
    out = sample(model, torch.tensor(LABELS))
    for maps in (out.codes, out.entropy, out.step, out.probability):
        assert [tuple(scale.shape) for scale in maps] == [(2, side, side) for side in (1, 3, 8)]
    assert {scale.dtype for scale in (*out.codes, *out.step)} == {torch.int64}
    assert {scale.dtype for scale in (*out.entropy, *out.probability)} == {torch.float32}
    assert all(((scale >= 0) & (scale < 64)).all() for scale in out.codes)
    assert torch.equal(out.images, model.decode(out.codes[-1]))


def test_samples_can_be_trained_on() -> None:
    model = tiny_model().train()
    out = sample(model, LABELS)
    _, loss = model(out.codes, torch.tensor(LABELS))
    loss.backward()
    assert model.lm_head.weight.grad.abs().max() > 0


def test_the_public_name_is_the_function_whatever_was_imported_before() -> None:
    importlib.import_module("models.sampling")
    assert models.sample is sample
    assert models.load_checkpoint(FIXTURES / "tiny-4x").scale_sizes == load_reference("tiny-4x").model().scale_sizes


# Seeds


@pytest.mark.parametrize("scan_order", ["checkerboard", "random"])
def test_an_image_depends_neither_on_its_batch_nor_on_the_device(scan_order: str, device: torch.device) -> None:
    model, labels, seeds = tiny_model(scan_order=scan_order), [3, 7, 3], [11, 12, 13]
    together = sample(model, labels, seeds=seeds)
    model.to(device)
    for image in range(3):
        alone = sample(model, labels[image : image + 1], seeds=seeds[image : image + 1])
        for scale, expected in zip((*alone.codes, *alone.step), (*together.codes, *together.step), strict=True):
            assert torch.equal(scale[0].cpu(), expected[image])
    assert not torch.equal(together.codes[-1][0], together.codes[-1][2])  # same label, other seed


def test_without_seeds_the_global_generator_decides() -> None:
    model = tiny_model()
    torch.manual_seed(1)
    first, second = sample(model, LABELS), sample(model, LABELS)
    torch.manual_seed(1)
    again = sample(model, LABELS)
    assert torch.equal(first.codes[-1], again.codes[-1])
    assert not torch.equal(first.codes[-1], second.codes[-1])


def test_given_seeds_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    sample(tiny_model(), LABELS, seeds=[1, 2])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_sampler_is_made_once_and_used_often() -> None:
    model, labels = tiny_model(), torch.tensor([3, 1, 4])
    sampler = make_sampler(model, 3, cfg=1.5, temperature=0.9)
    for seeds in ([0, 1, 2], [7, 8, 9], [0, 1, 2]):
        expected, found = sample(model, labels, seeds=seeds, cfg=1.5, temperature=0.9), sampler(labels, seeds)
        assert torch.equal(found.images, expected.images)
    for call, words in (
        (lambda: sampler(labels[:2], [0, 1]), "2 labels for a sampler of 3 images"),
        (lambda: sampler(labels, [0, 1]), "2 seeds for 3 labels"),
        (lambda: sampler(labels + 90, [0, 1, 2]), "out of range"),
        (lambda: sampler([True, False, True], [0, 1, 2]), "give one class index an image"),
        (lambda: sampler("abc", [0, 1, 2]), "give one class index an image"),
        (lambda: sampler(labels, [0, 1.5, 2]), "give a whole number for each image"),
        (lambda: sampler(labels, None), "give a whole number for each image"),
        (lambda: make_sampler(model, 0), "batch is 0"),
        (lambda: make_sampler(model, True), "batch is True"),
        (lambda: make_sampler(model, 2, steps=3), "steps means nothing"),
    ):
        with pytest.raises(UserError, match=words):
            call()


def test_a_sampler_takes_labels_as_sample_does() -> None:
    sampler = make_sampler(tiny_model(), 3)
    expected = sampler(torch.tensor([3, 1, 4]), [0, 1, 2]).codes[-1]
    for labels in ([3, 1, 4], np.array([3, 1, 4], dtype=np.int32)):
        assert torch.equal(sampler(labels, np.arange(3)).codes[-1], expected)


def test_samples_are_there_once_all_steps_are_drawn() -> None:
    sampler = make_sampler(tiny_model(), 2)
    with pytest.raises(UserError, match="not drawn yet"):
        sampler.samples()
    steps = sampler.steps(LABELS, [0, 1])
    next(steps)
    with pytest.raises(UserError, match="not drawn yet"):
        sampler.samples()
    list(steps)
    assert torch.equal(sampler.samples().images, sampler(LABELS, [0, 1]).images)


def test_a_sampler_of_a_model_that_has_moved_is_refused() -> None:
    model = tiny_model()
    sampler = make_sampler(model, 2)
    model.to(dtype=torch.bfloat16)
    with pytest.raises(UserError, match="make another sampler"):
        sampler(LABELS, [0, 1])


def test_seeds_that_would_be_others_are_refused() -> None:
    model = tiny_model()
    last = sample(model, [1, 1], seeds=[0, NUM_SEEDS - 1]).codes[-1]
    assert not torch.equal(last[0], last[1])
    for seed in (-1, NUM_SEEDS):
        with pytest.raises(UserError, match="seeds must lie between 0 and 2"):
            sample(model, [1], seeds=[seed])


def test_batch_sizes_change_no_code_of_a_large_codebook() -> None:
    """Rounding differs between batch sizes; with thousands of codes a draw must not hang on it."""
    autoencoder = tiny_autoencoder(n_embed=4096)
    model = tiny_model(autoencoder=autoencoder)
    with torch.no_grad():
        model.lm_head.weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(0))
    labels, seeds = [i % 10 for i in range(48)], list(range(48))
    whole = sample(model, labels, seeds=seeds)
    assert whole.entropy[-1].mean() > 2
    for size, count in ((1, 16), (5, 48)):
        for first in range(0, count, size):
            part = sample(model, labels[first : first + size], seeds=seeds[first : first + size])
            for codes, expected in zip(part.codes, whole.codes, strict=True):
                assert torch.equal(codes, expected[first : first + size])


# Guidance


def test_no_guidance_runs_no_unconditional_half() -> None:
    model = tiny_model()
    batches: set[int] = set()
    with model.transformer.register_forward_pre_hook(lambda module, inputs: batches.add(len(inputs[0]))):
        sample(model, LABELS, cfg=0.0)
        assert batches == {2}
        sample(model, LABELS, cfg=1.5)
        assert batches == {2, 4}


def test_guidance_before_its_start_changes_nothing() -> None:
    """Codes of the steps before cfg_start_step are those of cfg 0."""
    model, seeds = tiny_model(), [1, 2]
    plain, guided = (sample(model, LABELS, cfg=cfg, cfg_start_step=5, seeds=seeds) for cfg in (0.0, 4.0))
    for scale in (0, 1):  # steps 0 to 4
        assert torch.equal(plain.codes[scale], guided.codes[scale])
    assert not torch.equal(plain.codes[-1], guided.codes[-1])


def test_cfg_on_an_unconditional_model_warns() -> None:
    model = tiny_model(class_cond=False)
    with pytest.warns(UserWarning, match="cfg has no effect"):
        guided = sample(model, [10, 10], cfg=1.5, seeds=[1, 2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none without guidance
        plain, default = sample(model, [10, 10], cfg=0.0, seeds=[1, 2]), sample(model, [10, 10], seeds=[1, 2])
    assert torch.equal(guided.codes[-1], plain.codes[-1])
    assert torch.equal(default.codes[-1], plain.codes[-1])


def test_the_warning_points_at_the_call() -> None:
    with pytest.warns(UserWarning) as caught:
        sample(tiny_model(class_cond=False), [10, 10], cfg=1.5)
    assert caught[0].filename == __file__


# Schedules over scales


def test_a_list_of_equal_values_is_that_value() -> None:
    model, seeds = tiny_model(), [1, 2]
    single = sample(model, LABELS, cfg=2.0, temperature=0.7, seeds=seeds)
    listed = sample(model, LABELS, cfg=[2.0] * 4, temperature=[0.7] * 4, seeds=seeds)
    assert torch.equal(single.images, listed.images)


def test_each_scale_has_its_temperature_and_guidance() -> None:
    model, seeds = tiny_model(), [1, 2]
    likeliest = sample(model, LABELS, cfg=0.0, temperature=0.0, seeds=seeds)
    mixed = sample(model, LABELS, cfg=[0.0, 0.0, 3.0, 3.0], temperature=[0.0, 0.0, 1.0, 1.0], seeds=seeds)
    for scale in (0, 1):
        assert torch.equal(mixed.codes[scale], likeliest.codes[scale])
        assert (mixed.entropy[scale] == 0).all()
    assert (mixed.entropy[2] > 0).all()
    drawn = draw_recorded(model, cfg=[0.0, 0.0, 3.0, 3.0], cfg_start_step=0)
    guided = torch.cat([torch.full((side * side,), side > 2) for side in model.scale_sizes])
    plain, extrapolated = (teacher_forced(model, drawn, cfg, 0) for cfg in (0.0, 3.0))
    expected = torch.where(guided[:, None], extrapolated, plain)
    torch.testing.assert_close(drawn.logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("setting", ["temperature", "cfg"])
def test_a_list_of_another_length_is_refused(setting: str) -> None:
    with pytest.raises(
        UserError, match=f"{setting} has 3 values; give one number, or one for each of the scales 1, 2,"
    ):
        sample(tiny_model(), LABELS, **{setting: [1.0, 1.0, 1.0]})


# Editing


def kept_half(model: Checkerboard) -> tuple[list[Tensor], list[Tensor]]:
    """(keep, codes): the left half of every scale but the first stays."""
    keep = [torch.zeros(2, side, side, dtype=torch.bool) for side in model.scale_sizes]
    for scale in keep[1:]:
        scale[:, :, : scale.shape[-1] // 2] = True
    num_codes = model.autoencoder.config.n_embed
    return keep, [torch.randint(num_codes, scale.shape) for scale in keep]


def test_kept_codes_stay_and_the_rest_is_drawn_given_them() -> None:
    model = tiny_model()
    keep, codes = kept_half(model)
    edited = draw_recorded(model, keep, codes, cfg=0.0)
    out, free = edited.samples, sample(model, LABELS, cfg=0.0, seeds=SEEDS)
    for mask, kept, drawn in zip(keep, codes, out.codes, strict=True):
        assert torch.equal(drawn[mask], kept[mask])
    assert torch.equal(out.codes[0], free.codes[0])
    assert any(
        not torch.equal(drawn[~mask], other[~mask])
        for mask, drawn, other in zip(keep, out.codes, free.codes, strict=True)
    )
    for mask, probability in zip(keep, out.probability, strict=True):
        assert torch.equal(probability.isnan(), mask)
    expected = teacher_forced(model, edited, cfg=0.0, cfg_start_step=0)  # of what stands there
    torch.testing.assert_close(edited.logits, expected, atol=1e-5, rtol=0)


def test_keeping_all_gives_the_image_of_the_codes() -> None:
    model = tiny_model()
    codes = sample(model, LABELS, seeds=[8, 9]).codes
    keep = [torch.ones_like(scale, dtype=torch.bool) for scale in codes]
    arrays = {"keep": [scale.numpy() for scale in keep], "keep_codes": [scale.numpy() for scale in codes]}
    for kept in ({"keep": keep, "keep_codes": codes}, arrays):
        assert torch.equal(sample(model, [0, 0], **kept).images, model.decode(codes[-1]))


def test_labels_of_small_types_are_the_same_classes() -> None:
    model = tiny_model(num_classes=300)
    expected = sample(model, [100, 17], seeds=[0, 1]).codes[-1]
    for dtype in (torch.uint8, torch.int8, torch.int16):
        assert torch.equal(sample(model, torch.tensor([100, 17], dtype=dtype), seeds=[0, 1]).codes[-1], expected)
    with pytest.raises(UserError, match="this model knows no classes; give 300"):
        sample(tiny_model(num_classes=300, class_cond=False), torch.tensor([44], dtype=torch.uint8))  # 300 - 256


def test_impossible_edits_are_refused() -> None:
    model = tiny_model()
    keep, codes = kept_half(model)
    for given in ({"keep": keep}, {"keep_codes": codes}, {"keep": keep[1:], "keep_codes": codes[1:]}):
        with pytest.raises(UserError, match="must be a list of one map for each scale"):
            sample(model, LABELS, **given)
    codes[2][0, 0, 0] = model.autoencoder.config.n_embed
    with pytest.raises(UserError, match="keep_codes must lie between 0 and"):
        sample(model, LABELS, keep=keep, keep_codes=codes)


# Speed


def test_an_image_of_the_large_model_launches_few_kernels() -> None:
    """The number of operations depends on layers and steps, not on widths; the published code launches 17,541."""
    large = dataclass_from_dict(CheckerboardConfig, read_yaml(ROOT / "configs/config_256_L.yaml")["model"], "L")
    narrow = replace(large.llama_config, hidden_size=2 * large.llama_config.num_attention_heads, intermediate_size=256)
    model = Checkerboard(replace(large, llama_config=narrow), LlamaGenVQ(LlamaGenVQConfig(ch=32, z_channels=32)))
    with patch.object(model, "decode", lambda codes: codes), CountKernels() as kernels:
        out = sample(model.eval(), [207], steps_per_scale=4, cfg=1.5)
    assert int(out.step[-1].max()) == 16
    assert 5000 < kernels.count <= 7500


# Draws


def test_temperature_0_takes_the_likeliest_code_whatever_the_seed() -> None:
    model = tiny_model()
    first, second = (sample(model, LABELS, temperature=0.0, seeds=seeds) for seeds in ([1, 2], [3, 4]))
    narrow = sample(model, LABELS, top_k=1, seeds=[5, 6])
    for scale in range(4):
        assert torch.equal(first.codes[scale], second.codes[scale])
        assert torch.equal(first.codes[scale], narrow.codes[scale])
        assert (first.entropy[scale] == 0).all()
        assert (first.probability[scale] == 1).all()


# Numbers that are none


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("scan_order", ["checkerboard", "random"])
@pytest.mark.parametrize(("location", "side"), [(0, 1), (6, 4), (60, 8)])
def test_the_first_step_that_is_not_finite_is_named(
    location: int, side: int, scan_order: str, temperature: float
) -> None:
    model = tiny_model(scan_order=scan_order)
    settings = {"seeds": [1, 2], "temperature": temperature}
    step = min(join_scales(sample(model, LABELS, **settings).step)[:, location].tolist())
    with torch.no_grad():
        model.embed_positions.weight[location] = math.nan
    for dtype, mend in ((torch.bfloat16, "draw with --dtype float32, or take"), (torch.float32, "take")):
        answer = (
            f"^the logits are not finite from step {step} on, at the scale of side {side}; {mend} another checkpoint$"
        )
        with pytest.raises(UserError, match=answer):
            sample(model.to(dtype), LABELS, **settings)


def test_numbers_beyond_half_precision_are_named_and_float32_holds_them() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.transformer.layers[0].feed_forward.w2.weight.mul_(1e5)
    assert sample(model, LABELS, seeds=[1, 2]).images.isfinite().all()
    with pytest.raises(UserError, match="not finite from step 0 on, at the scale of side 1; draw with --dtype float32"):
        sample(model.half(), LABELS, seeds=[1, 2])


def test_images_that_are_not_finite_are_refused() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.autoencoder.decoder.conv_out.bias[1] = math.nan
    with pytest.raises(UserError, match="decoded images are not finite; take another autoencoder"):
        sample(model, LABELS)


# Mistakes


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"labels": []}, "labels have shape"),
        ({"labels": 3}, "labels have shape"),
        ({"labels": [[1, 2]]}, "labels have shape"),
        ({"labels": [1, 11]}, "label 11 is out of range; this model has classes 0 to 9"),
        ({"labels": [-1]}, "label -1"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"cfg_start_step": -1}, "cfg_start_step is -1"),
        ({"steps_per_scale": 0}, "steps_per_scale is 0"),
        ({"remainder": "drop"}, "remainder is drop"),
        ({"seeds": [1]}, "1 seeds for 2 labels"),
        ({"seeds": [1, 2, 3]}, "3 seeds for 2 labels"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        sample(tiny_model(), **({"labels": LABELS} | settings))


@pytest.mark.parametrize("setting", ["temperature", "cfg"])
def test_settings_that_are_no_number_are_refused(setting: str) -> None:
    with pytest.raises(UserError, match=setting):
        sample(tiny_model(), LABELS, **{setting: math.nan})


def test_the_unconditional_label_is_a_label() -> None:
    assert sample(tiny_model(), [10], cfg=0.0).images.shape == (1, 3, 32, 32)


@pytest.mark.parametrize("labels", [[3], [10, 0], [11]])
def test_a_model_without_classes_takes_no_class(labels: list[int]) -> None:
    with pytest.raises(UserError, match="this model knows no classes; give 10 as the label of each image"):
        sample(tiny_model(class_cond=False), labels, cfg=0.0)


def test_a_deeper_pyramid_and_another_codebook_size() -> None:
    model = tiny_model(autoencoder=tiny_autoencoder(ch_mult=(1, 1), n_embed=17, embed_dim=4), scale_ratio=4.0)
    out = sample(model, LABELS, steps_per_scale=8, seeds=[1, 2])
    assert [tuple(scale.shape[1:]) for scale in out.codes] == [(1, 1), (4, 4), (16, 16)]
    assert max(scale.max().item() for scale in out.codes) == 16
    assert max(scale.max().item() for scale in out.step) == 16  # 17 steps
