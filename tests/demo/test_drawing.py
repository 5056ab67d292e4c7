"""The page draws what the command line beside it draws, and keeps it as that would."""

import asyncio
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

import main_sample
from data.crops import center_crop
from demo import drawing
from demo.backend import Backend, Choice, mask_of, picture_to_edit, sentence, usual_drawing
from demo.drawing import REPLAYED, DrawingRequest, Frame, draw
from demo.jobs import CancelledError, Job, JobQueue
from demo.options import DemoArgs
from models.family import Generator
from runtime.config import read_yaml, write_yaml
from runtime.errors import UserError
from runtime.files import read_json, same_settings
from sampling.folder import UNIMPORTANT
from sampling.options import SampleArgs
from sampling.pipeline import StepProgress
from tests.command_factory import call, read_pixels, save_run
from tests.demo.factory import SHIPPED, draw_now, loaded
from tests.factory import tiny_autoencoder, tiny_model
from tests.llamagen_factory import tiny_gpt
from tests.pictures import picture
from tests.randar_factory import tiny_randar

pytestmark = pytest.mark.quick
OF_FAMILIES = [
    (tiny_model, {"cfg": (0.0, 1.0, 2.0, 3.5), "steps_per_scale": 2, "remainder": "fold", "temperature": 0.8}),
    (tiny_gpt, {"cfg": 2.5, "top_k": 20, "cfg_interval": 3}),
    (tiny_randar, {"steps": 6, "cfg_schedule": "constant", "top_p": 0.9}),
]


def saved(make: Any, folder: Path) -> Path:
    model = make(autoencoder=tiny_autoencoder(), img_size=32)
    model.class_names = [f"number {i}, {i} of ten" for i in range(10)]
    return save_run(folder, model)


def run_command(command: str, folder: Path) -> None:
    """Run the command line that the page shows, into another folder than it would take."""
    program, *words = shlex.split(command)[1:]
    assert program == "main_sample.py"
    outcome = call(main_sample.main, *words, "--output_dir", str(folder))
    assert outcome.code == 0, outcome.err


def assert_same(drawn: drawing.Drawn, folder: Path) -> None:
    for index, image in enumerate(drawn.images):
        pixels = image.permute(1, 2, 0).numpy()
        for place in (drawn.folder, folder):
            assert np.array_equal(read_pixels(place / f"{index:06d}.png"), pixels)
    assert np.array_equal(read_pixels(drawn.folder / "grid.png"), read_pixels(folder / "grid.png"))
    assert same_settings(*(read_json(place / "samples.json") for place in (drawn.folder, folder)), UNIMPORTANT)


@pytest.mark.parametrize(("make", "settings"), OF_FAMILIES)
def test_the_command_line_draws_the_same(make: type[Generator], settings: dict[str, Any], tmp_path: Path) -> None:
    model = loaded(saved(make, tmp_path / "run"))
    drawn = draw_now(model, tmp_path / "page", settings, labels="number 3,7", num_samples=3, seed=5)
    run_command(drawn.command, tmp_path / "again")
    assert_same(drawn, tmp_path / "again")
    assert read_json(drawn.folder / "samples.json")["seed"] == 5


def test_the_command_line_holds_where_a_checkpoint_recommends_other_settings(tmp_path: Path) -> None:
    """What is chosen is written out even if it is a default, and what is recommended even if it is not changed."""
    run = saved(tiny_model, tmp_path / "run")
    write_yaml(run / "config.yaml", read_yaml(run / "config.yaml") | {"sampling": {"steps_per_scale": 2, "cfg": 3.0}})
    usual, chosen = (draw_now(loaded(run), tmp_path, settings) for settings in ({}, {"steps_per_scale": 4, "cfg": 1.5}))
    write_yaml(run / "config.yaml", read_yaml(run / "config.yaml") | {"sampling": {"steps_per_scale": 1, "cfg": 0.0}})
    for name, drawn in (("usual", usual), ("chosen", chosen)):
        run_command(drawn.command, tmp_path / name)
        assert_same(drawn, tmp_path / name)


def test_its_folder_is_one_of_main_sample(tmp_path: Path) -> None:
    drawn = draw_now(loaded(SHIPPED), tmp_path)
    words = shlex.split(drawn.command)[2:]
    outcome = call(main_sample.main, *words, "--output_dir", str(drawn.folder))
    assert "holds these samples already" in outcome.out


def painted_layer(side: int, box: tuple[int, int, int, int]) -> Image.Image:
    """A layer of the canvas, half transparent paint within a box."""
    layer = Image.new("RGBA", (side, side))
    layer.paste((255, 0, 0, 90), box)
    return layer


def test_a_pixel_is_painted_if_half_of_it_is() -> None:
    image = picture(32, 32, seed=0)
    mask = np.array(mask_of({"layers": [painted_layer(512, (0, 0, 7 * 16 + 8, 5 * 16 + 7))]}, image))
    assert np.argwhere(mask).max(axis=0).tolist() == [4, 7]
    assert set(np.unique(mask)) == {0, 255}
    for layers in ([], [painted_layer(512, (0, 0, 8, 8))]):
        with pytest.raises(UserError, match="nothing is painted"):
            mask_of({"layers": layers}, image)
    with pytest.raises(UserError, match="there is no image yet"):
        mask_of(None, None)


@pytest.mark.parametrize(("make", "settings"), OF_FAMILIES)
def test_an_edit_keeps_what_is_not_painted(make: type[Generator], settings: dict[str, Any], tmp_path: Path) -> None:
    model, image = loaded(saved(make, tmp_path / "run")), picture(32, 32, seed=1)
    mask = mask_of({"layers": [painted_layer(512, (0, 0, 256, 192))]}, image)
    drawn = draw_now(model, tmp_path / "page", settings, image, mask, labels="1")
    painted = np.array(mask) > 0
    pixels = drawn.images.permute(0, 2, 3, 1).numpy()
    assert (pixels[:, ~painted] == np.array(image)[~painted]).all()
    assert not (pixels[0][painted] == np.array(image)[painted]).all()
    run_command(drawn.command, tmp_path / "again")
    assert_same(drawn, tmp_path / "again")


def test_an_image_of_another_size_is_cropped_as_editing_crops_it(tmp_path: Path) -> None:
    """And one that is no image is a sentence, which does not say where uploads are kept."""
    model = loaded(SHIPPED).model
    image, path = picture(90, 61, seed=2), tmp_path / "wide.png"
    image.save(path)
    assert np.array_equal(np.array(picture_to_edit(str(path), model)), np.array(center_crop(image, 32)))
    path.write_text("no image")
    with pytest.raises(UserError, match=r"^wide\.png cannot be read as an image"):
        picture_to_edit(str(path), model)


def test_a_model_without_classes_draws_without_guidance(tmp_path: Path) -> None:
    model = loaded(save_run(tmp_path / "run", tiny_model(class_cond=False)))
    assert usual_drawing(model.model).cfg == 0
    drawn = draw_now(model, tmp_path / "page")
    assert drawn.captions == ["", ""]
    run_command(drawn.command, tmp_path / "again")
    assert_same(drawn, tmp_path / "again")


def test_a_class_whose_name_is_no_text_is_drawn(tmp_path: Path) -> None:
    model = loaded(save_run(tmp_path / "run", tiny_model()))
    model.model.class_names = ["caf\udce9"] * model.model.config.num_classes
    drawn = draw_now(model, tmp_path / "page")
    assert set(drawn.captions) == {"caf?"}
    assert drawn.command.isprintable()


@pytest.mark.parametrize(
    ("args", "settings", "answer"),
    [
        ({"num_samples": 17}, {}, "the number of images is 17; it must lie between 1 and 16"),
        ({}, {"top_p": 2.0}, "top_p is 2.0"),
        ({}, {"cfg": (1.0, 2.0)}, "cfg has 2 values"),
        ({}, {"steps_per_scale": 0}, "steps_per_scale is 0"),
    ],
)
def test_a_wrong_request_is_a_sentence_and_leaves_nothing(
    args: dict[str, Any], settings: dict[str, Any], answer: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=answer):
        draw_now(loaded(SHIPPED), tmp_path / "page", settings, **args)
    assert not (tmp_path / "page").exists()


# Steps, as they are seen


def draw_job(tmp_path: Path, job: Job) -> drawing.Drawn:
    args = SampleArgs(checkpoint=str(SHIPPED), device="cpu", num_samples=2)
    return draw(loaded(SHIPPED), DrawingRequest(args, {}), tmp_path / "page", job, JobQueue())


def frames_of(job: Job) -> list[Frame]:
    return list(iter(job.next_frame, None))


def test_a_fast_drawing_shows_its_steps_once_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine is: the clock stands."""
    monkeypatch.setattr(drawing, "time", SimpleNamespace(perf_counter=lambda: 0.0))
    job = Job("a", lambda job: None)
    drawn = draw_job(tmp_path, job)
    frames = frames_of(job)
    assert len(frames) == REPLAYED < drawn.steps
    assert len({frame.pictures for frame in frames}) == REPLAYED
    assert [frame.scales.count("blank") for frame in (frames[0], frames[-1])] == [2, 0]  # of three scales
    assert job.progress == (13, 13)


def test_pictures_of_a_slow_drawing_take_a_tenth_of_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which a step takes two seconds and a picture one. At the end there is time for one more."""
    now, job = [0.0], Job("a", lambda job: None)
    monkeypatch.setattr(drawing, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    step, images = drawing.StepPictures.step, drawing.step_images

    def slow_step(shown: drawing.StepPictures, progress: StepProgress) -> None:
        now[0] += 2
        step(shown, progress)

    def slow_images(*which: Any) -> Tensor:
        now[0] += 1
        return images(*which)

    monkeypatch.setattr(drawing.StepPictures, "step", slow_step)
    monkeypatch.setattr(drawing, "step_images", slow_images)
    drawn = draw_job(tmp_path, job)
    assert drawn.seconds == 26 + 3  # a picture after 2 seconds, and ten seconds after each, or at the next step
    assert len(frames_of(job)) == 3 + 1


def test_a_drawing_that_is_cancelled_ends_after_the_step_and_keeps_nothing(tmp_path: Path) -> None:
    job = Job("a", lambda job: None)
    show, steps = job.check, []

    def check() -> None:
        steps.append(job.progress[0])
        if job.progress[0] == 4:
            job.cancel()
        show()

    job.check = check
    with pytest.raises(CancelledError):
        draw_job(tmp_path, job)
    assert steps == [0, 1, 2, 3, 4]
    assert not (tmp_path / "page").exists()


# Several visitors


def backend_of(tmp_path: Path) -> Backend:
    return Backend(DemoArgs(checkpoint=str(SHIPPED), device="cpu", output_dir=str(tmp_path)), [str(SHIPPED)])


def choice(**changed: Any) -> Choice:
    return Choice(**{"checkpoint": str(SHIPPED), "classes": [3], "count": 1, "seed": 0, "settings": []} | changed)


async def seen(backend: Backend, job: Job) -> list[str | Frame]:
    return [news async for news in backend.follow(job)]


def test_who_waits_sees_how_many_come_before(tmp_path: Path) -> None:
    backend = backend_of(tmp_path)
    jobs = [backend.drawing(owner, choice(seed=seed)) for seed, owner in enumerate("abc")]

    async def all_seen() -> list[list[str | Frame]]:
        return await asyncio.gather(*(seen(backend, job) for job in jobs))

    first, second, third = asyncio.run(all_seen())
    assert "2 drawings before yours" in third[0]
    assert "1 drawing before yours" in second[0]
    assert not [news for news in first if isinstance(news, str) and "before yours" in news]
    assert not [news for news in (*first, *second) if isinstance(news, Frame)]  # others do not wait for a replay
    assert [job.result.captions for job in jobs] == [["cat"]] * 3


def test_who_leaves_in_the_middle_leaves_no_drawing_behind(tmp_path: Path) -> None:
    backend = backend_of(tmp_path)
    job = backend.drawing("a", choice())

    async def leave() -> None:
        following = backend.follow(job)
        await anext(following)
        await following.aclose()

    asyncio.run(leave())
    assert job.done.wait(20)
    assert isinstance(job.error, CancelledError)
    assert not list(tmp_path.glob("2*"))


@pytest.mark.parametrize(
    ("changed", "answer"),
    [
        ({"seed": 1.5}, "seed is 1.5; it must be a whole number"),
        ({"seed": -1}, "seed is -1"),
        ({"count": 2.5}, "the number of images is 2.5"),
        ({"checkpoint": "output/other"}, "output/other is not offered here"),
        ({"classes": [11]}, "label 11 is out of range"),
    ],
)
def test_a_field_that_holds_something_wrong_is_a_sentence(changed: dict[str, Any], answer: str, tmp_path: Path) -> None:
    backend = backend_of(tmp_path)
    job = backend.drawing("a", choice(**changed))
    assert job.done.wait(20)
    assert answer in sentence(job.error)


def test_a_bug_is_told_to_the_terminal_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert "the terminal" in sentence(KeyError("secret"))
    assert "secret" in capsys.readouterr().err
