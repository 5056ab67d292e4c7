"""Pictures of how samples come about, against the samples they show."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from torchvision.utils import make_grid

from models import sample
from models.autoencoder import to_uint8, upsample_latents
from models.checkerboard.config import CheckerboardConfig
from models.checkerboard.model import Checkerboard
from models.checkerboard.order import sampling_blocks
from models.config import LlamaGenVQConfig, TransformerConfig
from models.family import Samples
from models.llamagen_vq import LlamaGenVQ
from sampling.maps import (
    UNDRAWN_CONTRAST,
    entropy_by_step,
    known_latents,
    num_steps,
    pyramid_images,
    save_animation,
    save_entropy_by_step,
    save_maps,
    step_images,
)

BATCH = 3


def build_model(scale_min_size: int) -> Checkerboard:
    """A tiny model whose logits are spread, so that entropy differs from location to location."""
    torch.manual_seed(0)
    config = LlamaGenVQConfig(ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, z_channels=32, n_embed=32)
    transformer = TransformerConfig(hidden_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=2)
    settings = CheckerboardConfig(img_size=32, scale_min_size=scale_min_size, num_classes=4, llama_config=transformer)
    model = Checkerboard(settings, LlamaGenVQ(config)).eval()
    torch.nn.init.normal_(model.lm_head.weight, std=0.2)
    return model


@pytest.fixture(scope="module", params=[1, 4], ids=["from-1x1", "from-4x4"])
def drawn(request: pytest.FixtureRequest) -> tuple[Checkerboard, Samples]:
    """A model and samples of it; the first scale is drawn in one step, or in four."""
    model = build_model(scale_min_size=request.param)
    return model, sample(model, range(BATCH), steps_per_scale=4, seeds=range(BATCH))


def read_frames(path: Path) -> tuple[list[np.ndarray], list[int]]:
    """(H, W, 3) of each frame, and its time in milliseconds."""
    with Image.open(path) as gif:
        frames = [(np.array(frame.convert("RGB")), frame.info["duration"]) for frame in ImageSequence.Iterator(gif)]
    images, durations = zip(*frames, strict=True)
    return list(images), list(durations)


def test_8_bit_rule_truncates_and_clamps() -> None:
    values = torch.tensor([-3.0, -1.0, 0.0, 0.999, 1.0, 3.0]).view(1, 1, 2, 3).expand(1, 3, 2, 3)
    assert to_uint8(values)[0, 0].flatten().tolist() == [0, 0, 127, 254, 255, 255]


def test_known_latents_are_codes_where_drawn_and_the_previous_scale_elsewhere(
    drawn: tuple[Checkerboard, Samples],
) -> None:
    model, samples = drawn
    step = 0
    for scale, side in enumerate(model.scale_sizes):
        own = model.autoencoder.lookup(samples.codes[scale])
        previous = torch.zeros_like(own)
        if scale:
            previous = upsample_latents(model.autoencoder.lookup(samples.codes[scale - 1]), side)
        for length in sampling_blocks(model.scale_sizes, 4)[scale]:
            latents, is_drawn = known_latents(samples, model, step)
            is_new = samples.step[scale] == step
            assert is_new.sum() == BATCH * length
            assert torch.equal(is_drawn, samples.step[scale] <= step)
            torch.testing.assert_close(latents, torch.where(is_drawn[:, None], own, previous), rtol=0, atol=1e-6)
            step += 1
        assert is_drawn.all()
    assert step == num_steps(samples)


def test_step_images_fade_what_is_not_drawn(drawn: tuple[Checkerboard, Samples]) -> None:
    model, samples = drawn
    for step in range(num_steps(samples)):
        latents, is_drawn = known_latents(samples, model, step)
        with torch.inference_mode():
            decoded = model.autoencoder.decode_latents(latents).clamp(-1, 1)
        in_pixels = is_drawn.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
        faded = decoded * (UNDRAWN_CONTRAST if step > samples.step[0].max() else 0.0)
        expected = to_uint8(torch.where(in_pixels, decoded, faded))
        factor = 32 // decoded.shape[-1]
        expected = expected.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        assert (step_images(samples, model, step).int() - expected.int()).abs().max() <= 1


def test_a_pyramid_so_far_has_the_scales_that_are_begun(drawn: tuple[Checkerboard, Samples]) -> None:
    model, samples = drawn
    for step in range(num_steps(samples)):
        *complete, last = pyramid_images(samples, model, step)
        assert len(complete) == sum(bool(steps.max() < step) for steps in samples.step)
        for codes, image in zip(samples.codes, complete, strict=False):
            assert torch.equal(image, to_uint8(model.decode(codes)))
        factor = 32 // last.shape[-1]
        enlarged = last.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        assert (enlarged.int() - step_images(samples, model, step).int()).abs().max() <= 1


def test_complete_scales_are_shown_at_full_brightness(drawn: tuple[Checkerboard, Samples]) -> None:
    model, samples = drawn
    for codes, steps in zip(samples.codes, samples.step, strict=True):
        decoded = to_uint8(model.decode(codes))
        factor = 32 // decoded.shape[-1]
        shown = step_images(samples, model, int(steps.max()))[:, :, ::factor, ::factor]
        assert (shown.int() - decoded.int()).abs().max() <= 1


def test_animation_has_one_frame_a_step_and_holds_the_final_images(
    drawn: tuple[Checkerboard, Samples], tmp_path: Path
) -> None:
    model, samples = drawn
    save_animation(samples, model, tmp_path / "steps.gif")
    frames, durations = read_frames(tmp_path / "steps.gif")
    assert len(frames) == num_steps(samples)
    side = 3 * 32 + 2  # small images are shown with larger pixels
    assert {frame.shape for frame in frames} == {(2 * side + 2, 2 * side + 2, 3)}
    assert durations == [300] * (len(frames) - 1) + [2000]
    shown = [*(step_images(samples, model, step) for step in range(len(frames) - 1)), to_uint8(samples.images)]
    for frame, images in zip(frames, shown, strict=True):
        large = images.repeat_interleave(3, 2).repeat_interleave(3, 3)
        expected = make_grid(large, nrow=2, padding=2, pad_value=255).permute(1, 2, 0).numpy()
        assert np.abs(frame.astype(int) - expected).mean() < 6  # 256 colours a frame
    assert [path.name for path in tmp_path.iterdir()] == ["steps.gif"]


def test_animation_of_images_of_another_size_grows_at_theirs(
    drawn: tuple[Checkerboard, Samples], tmp_path: Path
) -> None:
    model, samples = drawn
    large = replace(samples, images=samples.images.repeat_interleave(4, 2).repeat_interleave(4, 3))
    save_animation(large, model, tmp_path / "steps.gif")
    frames, _ = read_frames(tmp_path / "steps.gif")
    assert {frame.shape for frame in frames} == {(2 * 130 + 2, 2 * 130 + 2, 3)}
    shown = step_images(samples, model, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)
    expected = make_grid(shown, nrow=2, padding=2, pad_value=255).permute(1, 2, 0).numpy()
    assert np.abs(frames[2].astype(int) - expected).mean() < 6


def test_animation_shows_the_first_16_images(tmp_path: Path) -> None:
    model = build_model(scale_min_size=4)
    samples = sample(model, [0] * 17, steps_per_scale=1, seeds=range(17))
    save_animation(samples, model, tmp_path / "steps.gif")
    frames, _ = read_frames(tmp_path / "steps.gif")
    assert [frame.shape for frame in frames] == [(4 * 98 + 2, 4 * 98 + 2, 3)] * 2


def test_entropy_by_step_summarizes_images_and_locations(drawn: tuple[Checkerboard, Samples]) -> None:
    _, samples = drawn
    mean, low, high = entropy_by_step(samples)
    assert len(mean) == len(low) == len(high) == num_steps(samples)
    for step in range(num_steps(samples)):
        values = torch.cat([e[s == step] for e, s in zip(samples.entropy, samples.step, strict=True)])
        quartiles = values.quantile(torch.tensor([0.25, 0.75]))
        np.testing.assert_allclose([mean[step], low[step], high[step]], [values.mean(), *quartiles], rtol=1e-5)


def test_kept_codes_have_no_part_in_the_entropy_of_steps(drawn: tuple[Checkerboard, Samples]) -> None:
    model, _ = drawn
    codes, labels = [torch.zeros(2, s, s, dtype=torch.long) for s in model.scale_sizes], [0, 1]
    keep = [torch.zeros(2, s, s, dtype=torch.bool) for s in model.scale_sizes]
    keep[0][:], keep[-1][:, :4] = True, True
    out = sample(model, labels, steps_per_scale=2, seeds=range(2), keep=keep, keep_codes=codes)
    mean, low, _ = entropy_by_step(out)
    first = int(out.step[0].max())
    assert np.isnan(mean[: first + 1]).all()
    assert np.isnan(low[: first + 1]).all()
    last = num_steps(out) - 1
    new = (out.step[-1] == last) & ~keep[-1]
    np.testing.assert_allclose(mean[last], out.entropy[-1][new].mean(), rtol=1e-5)


def test_entropy_figure_is_a_png(drawn: tuple[Checkerboard, Samples], tmp_path: Path) -> None:
    save_entropy_by_step(drawn[1], tmp_path / "entropy.png")
    assert_picture(tmp_path / "entropy.png", 1050, 600)


def test_maps_hold_the_samples_and_a_figure_an_image(drawn: tuple[Checkerboard, Samples], tmp_path: Path) -> None:
    model, samples = drawn
    save_maps(samples, model, tmp_path)
    figures = [f"maps_{i:06d}.png" for i in range(BATCH)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["maps.npz", *figures]
    for name in figures:
        assert_picture(tmp_path / name, 225 * len(model.scale_sizes) + 150, 960)
    with np.load(tmp_path / "maps.npz") as maps:
        assert len(maps) == 3 * len(model.scale_sizes)
        for scale, side in enumerate(model.scale_sizes):
            for name in ("step", "entropy", "probability"):
                assert maps[f"{name}_{side}"].dtype == (np.int64 if name == "step" else np.float32)
                np.testing.assert_array_equal(maps[f"{name}_{side}"], getattr(samples, name)[scale].numpy())


def test_maps_of_the_likeliest_codes_have_colour_limits(tmp_path: Path) -> None:
    model = build_model(scale_min_size=4)
    samples = sample(model, [0, 1], steps_per_scale=1, temperature=0)
    save_maps(samples, model, tmp_path)
    assert_picture(tmp_path / "maps_000001.png", 600, 960)


def assert_picture(path: Path, width: int, height: int) -> None:
    """A PNG of about this size that is not blank."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.size == pytest.approx((width, height), rel=0.02)
        assert np.array(picture.convert("L")).std() > 10
