"""The pipeline draws what the functions and programs below it draw, and says what goes on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main_sample
from models import sample
from models.draw import image_seed
from models.family import Generator
from runtime.errors import UserError
from sampling import Pipeline
from sampling.pipeline import StepProgress
from tests.command_factory import call, save_run
from tests.factory import tiny_autoencoder, tiny_model
from tests.llamagen_factory import tiny_gpt
from tests.pictures import picture
from tests.randar_factory import tiny_randar

pytestmark = pytest.mark.quick
FAMILIES = [tiny_model, tiny_gpt, tiny_randar]


def named(model: Generator) -> Pipeline:
    model.class_names = [f"number {i}, {i} of ten" for i in range(model.config.num_classes)]
    return Pipeline(model)


def bytes_of(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


@pytest.mark.parametrize("make", FAMILIES)
def test_it_draws_what_sample_draws(make: type[Generator]) -> None:
    pipe = named(make(autoencoder=tiny_autoencoder(), img_size=32))
    out = pipe(["number 3", 5, "2 of ten"], num_images=4, guidance=0.5, generator=7, batch_size=2)
    assert out.labels == [3, 5, 2, 3]
    assert out.seeds == [image_seed(7, i) for i in range(4)]
    expected = sample(pipe.model, out.labels, cfg=0.5, seeds=out.seeds)
    drawn, wanted = bytes_of(out.images), pipe.model.to_uint8(expected.images).permute(0, 2, 3, 1).numpy()
    assert abs(drawn.astype(int) - wanted).max() <= 1
    codes = torch.cat([part.codes[-1] for part in out.samples])
    assert torch.equal(codes, expected.codes[-1])


def test_it_draws_what_the_program_draws(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", tiny_model())
    flags = ["--labels", "3,1", "--num_samples", "3", "--seed", "5", "--device", "cpu", "--steps_per_scale", "2"]
    assert call(main_sample.main, "--checkpoint", str(run), "--output_dir", str(tmp_path / "a"), *flags).code == 0
    images = Pipeline.from_pretrained(run)([3, 1], num_images=3, generator=5, steps_per_scale=2).images
    for i, image in enumerate(images):
        with Image.open(tmp_path / f"a/{i:06d}.png") as stored:
            assert np.array_equal(np.asarray(stored), np.asarray(image))


def test_recommended_settings_hold_where_none_is_given() -> None:
    pipe = Pipeline(tiny_model())
    pipe.model.recommended = {"cfg": 3.0, "steps_per_scale": 1, "cfg_start_step": 0}
    drawn = bytes_of(pipe(4, generator=0).images)
    assert np.array_equal(
        drawn, bytes_of(pipe(4, generator=0, guidance=3.0, steps_per_scale=1, cfg_start_step=0).images)
    )
    assert not np.array_equal(drawn, bytes_of(pipe(4, generator=0, guidance=0).images))


def test_a_generator_decides() -> None:
    pipe = Pipeline(tiny_model())
    first, again, other = (pipe(2, generator=torch.Generator().manual_seed(seed)).seeds for seed in (1, 1, 2))
    assert first == again != other
    for seed in (-1, 2**32):  # which torch would take for others
        with pytest.raises(UserError, match=f"generator is {seed}; it must lie between 0 and"):
            pipe(2, generator=seed)
    torch.manual_seed(3)
    assert pipe(2).seeds != pipe(2).seeds


def test_output_types() -> None:
    pipe = Pipeline(tiny_model())
    images, floats, tensors = (pipe([1, 2], generator=0, output_type=kind).images for kind in ("pil", "np", "pt"))
    assert floats.shape == (2, 32, 32, 3)
    np.testing.assert_allclose(floats * 255, bytes_of(images), atol=1e-4)
    assert torch.equal(tensors, torch.from_numpy(floats).permute(0, 3, 1, 2))


@pytest.mark.parametrize("make", FAMILIES)
def test_a_callback_sees_the_picture_grow(make: type[Generator]) -> None:
    pipe = Pipeline(make(autoencoder=tiny_autoencoder(), img_size=32))
    seen: list[tuple[int, int, int, np.ndarray]] = []

    def note(progress: StepProgress) -> None:
        seen.append((progress.first_image, progress.step, progress.num_steps, bytes_of(progress.images())))

    out = pipe([1, 2, 3], generator=0, batch_size=2, callback=note)
    num_steps = seen[0][2]
    assert [(first, step) for first, step, *_ in seen] == [(0, i) for i in range(num_steps)] + [
        (2, i) for i in range(num_steps)
    ]
    last = np.concatenate([seen[num_steps - 1][3], seen[-1][3][:1]])
    assert abs(last.astype(int) - bytes_of(out.images)).max() <= 1
    assert not np.array_equal(seen[0][3], seen[1][3])


def test_an_exception_in_the_callback_ends_the_drawing() -> None:
    pipe, steps = Pipeline(tiny_model()), []

    def stop(progress: StepProgress) -> None:
        steps.append(progress.step)
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe(1, callback=stop)
    assert steps == [0, 1, 2]
    assert len(pipe(1, generator=0).images) == 1  # and leaves the pipeline as it was


def test_editing_keeps_what_the_mask_keeps() -> None:
    pipe, image = Pipeline(tiny_model()), picture(32, 32, seed=1)
    mask = Image.fromarray(np.tile(np.repeat(np.array([255, 0], np.uint8), 16), (32, 1)))
    drawn = bytes_of(pipe.edit(image, mask, [1, 2], num_images=3, generator=0).images)
    assert (drawn[:, :, 16:] == np.asarray(image)[:, 16:]).all()
    assert not (drawn[0, :, :16] == np.asarray(image)[:, :16]).all()
    with pytest.raises(UserError, match="the mask is 16 x 16 pixels, but the image is 32 x 32"):
        pipe.edit(image, mask.resize((16, 16)), 1)
    with pytest.raises(UserError, match=r"blend is 0\.5; give a number of pixels"):
        pipe.edit(image, mask, 1, blend=0.5)
    with pytest.raises(UserError, match="too narrow"):
        pipe.edit(Image.new("RGB", (1000, 2)), Image.new("RGB", (1000, 2)), 1)


@pytest.mark.parametrize("make", FAMILIES)
def test_an_edit_says_how_many_steps_it_takes(make: type[Generator]) -> None:
    pipe, seen = Pipeline(make(autoencoder=tiny_autoencoder(), img_size=32)), []
    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 8, 8))  # 4 codes of the finest scale are drawn anew
    callback = lambda progress: seen.append((progress.step + 1, progress.num_steps))  # noqa: E731
    pipe.edit(picture(32, 32, seed=1), mask, 3, generator=0, callback=callback)
    assert [step for step, _ in seen] == list(range(1, seen[0][1] + 1))
    assert {total for _, total in seen} == {len(seen)}


def test_mistakes() -> None:
    pipe = named(tiny_model())
    for arguments, answer in (
        ({"class_labels": "number 77"}, "no class is called number 77; did you mean number 7"),
        ({"class_labels": 11}, "label 11 is out of range"),
        ({"class_labels": []}, "nothing to draw"),
        ({"class_labels": 1, "num_images": 0}, "nothing to draw"),
        ({"class_labels": 1, "guidance": 1, "cfg": 1}, "the same setting"),
        ({"class_labels": 1, "guidance": "high"}, "cfg is high"),
        ({"class_labels": 1, "output_type": "jpeg"}, "must be pil, np or pt"),
        ({"class_labels": 1, "steps": 3}, "steps means nothing to checkerboard"),
        ({"class_labels": 1, "guidance_scale": 3}, "give guidance instead"),
        ({"class_labels": 1, "generator": "3"}, "generator is '3'; give a whole number"),
        ({"class_labels": 1, "generator": 1.0}, "generator is 1.0"),
        ({"class_labels": 1, "batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"class_labels": 1, "batch_size": None}, "batch_size is None; give a whole number"),
        ({"class_labels": 1, "num_images": 2.5}, "num_images is 2.5; give a whole number"),
        ({"class_labels": [True, 2]}, "a label is True; give a whole number"),
        ({"class_labels": b"number 1"}, "a label is b'number 1'"),
    ):
        with pytest.raises(UserError, match=answer):
            pipe(**arguments)
    with pytest.raises(UserError, match=r"dtype is torch\.int8"):
        pipe.to("cpu", torch.int8)
    for device in ("gpu", "cuda:77"):
        with pytest.raises(UserError, match=f"cannot go to {device}"):
            pipe.to(device)
    for wrong in (None, np.zeros((32, 32, 3), np.uint8)):
        with pytest.raises(UserError, match="give a PIL image or the path of a file"):
            pipe.edit(wrong, wrong, 1)
    with pytest.raises(UserError, match="has no autoencoder"):
        Pipeline(tiny_gpt())


def test_whole_numbers_of_any_kind_serve() -> None:
    pipe = Pipeline(tiny_model())
    expected = pipe([3, 1], generator=5)
    for labels in (np.array([3, 1]), torch.tensor([3, 1]), (np.int64(3), 1)):
        assert pipe(labels, generator=np.int64(5)).seeds == expected.seeds
        assert pipe(labels, generator=torch.tensor(5)).labels == [3, 1]
    assert pipe(torch.tensor(3), generator=0).labels == pipe(np.array(3), generator=0).labels == [3]


def test_a_callback_of_a_drawing_of_twice_the_side() -> None:
    """While the small images are drawn, there is nothing to show."""
    pipe, seen = Pipeline(tiny_randar(autoencoder=tiny_autoencoder(), img_size=32)), []
    out = pipe(1, generator=0, upscale=2, callback=lambda progress: seen.append(progress.images()))
    assert seen[0] == []
    assert seen[-1][0].size == out.images[0].size == (64, 64)


def test_what_it_returns_prints_in_a_line() -> None:
    assert len(repr(Pipeline(tiny_model())(1))) < 300


def test_what_a_callback_keeps_stays_as_it_was() -> None:
    pipe, seen = Pipeline(tiny_model()), []
    out = pipe(1, generator=0, callback=lambda progress: seen.append(progress.so_far()))
    for step, samples in enumerate(seen):
        for scale, final, steps in zip(samples.codes, out.samples[0].codes, samples.step, strict=True):
            assert torch.equal(scale[steps <= step], final[steps <= step])
    assert not torch.equal(seen[0].codes[-1], seen[-1].codes[-1])


@pytest.mark.parametrize("settings", [{"steps": 4}, {"steps": 4, "upscale": 2}])
def test_steps_of_several_batches_in_random_order_are_each_its_own(settings: dict[str, int]) -> None:
    pipe, seen = Pipeline(tiny_randar(autoencoder=tiny_autoencoder(), img_size=32)), []
    keep = lambda progress: seen.append((progress.first_image, progress.step, progress.so_far()))  # noqa: E731
    out = pipe([0, 1, 2], generator=3, batch_size=1, callback=keep, **settings)
    for i, seed in enumerate(out.seeds):
        alone = sample(pipe.model, [i], seeds=[seed], **settings)
        assert torch.equal(out.samples[i].step[-1], alone.step[-1])
        for step, samples in ((step, samples) for first, step, samples in seen if first == i and samples):
            assert torch.equal(samples.step[-1], alone.step[-1])  # not yet drawn is not drawn in step 0
            drawn = alone.step[-1] <= step
            assert torch.equal(samples.codes[-1][drawn], alone.codes[-1][drawn])


def test_a_setting_without_effect_is_a_warning() -> None:
    with pytest.warns(UserWarning, match="cfg has no effect at the scales"):
        Pipeline(tiny_model())(1, generator=0, guidance=2.0, cfg_start_step=1000)
