"""Photographs of one's own: from class folders to a page, going on after a stop, and mistakes."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.images import open_dataset
from experiments import own_images
from experiments.own_images import OwnArgs, listing_sha256, own_tasks
from experiments.own_page import recognition, verdict
from experiments.tasks import carry_out
from models import load_checkpoint
from tests.command_factory import Outcome, call, carry_out_here
from tests.pictures import write_pictures

NOTHING = {"drawn_accuracy": 0.5, "held_out_accuracy": None}
COLOURS = {"blue ball": (40, 60, 220), "green leaf": (30, 180, 60), "red brick": (200, 50, 30)}


def write_photographs(root: Path, count: int = 12) -> Path:
    """Classes that even a glance tells apart, each of a colour, with a bright disc somewhere."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:48, :64]
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.clip(colour + rng.normal(0, 20, size=(48, 64, 3)), 0, 255)
            pixels[(y - rng.integers(12, 36)) ** 2 + (x - rng.integers(16, 48)) ** 2 < 60] = 240
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def flags(root: Path, folder: Path, *more: str) -> list[str]:
    steps = ("--tokenizer_steps", "1", "--model_steps", "2", "--samples_per_class", "2")
    return ["--data_path", str(root), "--output_dir", str(folder), *steps, *more]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path, Outcome]]:
    """The photographs, the folder made of them, and what was said."""
    folder = tmp_path_factory.mktemp("own")
    root = write_photographs(folder / "photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_images, "carry_out", carry_out_here)
        outcome = call(own_images.main, *flags(root, folder / "made"))
    assert outcome.code == 0, outcome.err
    yield root, folder / "made", outcome


def test_one_command_makes_tokenizer_model_images_and_a_page(finished: tuple[Path, Path, Outcome]) -> None:
    _, folder, outcome = finished
    model = load_checkpoint(folder / "model")
    assert model.class_names == list(COLOURS)
    assert len(list((folder / "samples").glob("[0-9]*.png"))) == 6
    results = json.loads((folder / "results.json").read_text())
    assert results["classes"] == 3
    assert results["images"] == 36
    assert results["minutes"].keys() == {"tokenizer", "model", "samples"}
    assert results["held_out_accuracy"] > 0.9  # the classes are told apart by colour
    assert f"{results['drawn_accuracy']:.1%}" in outcome.out
    page = (folder / "index.html").read_text()
    for name in COLOURS:
        assert name in page
    for line in page.split('src="')[1:]:
        with Image.open(folder / line.split('"')[0]) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 50


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    root, folder = write_photographs(tmp_path / "photos", 2), tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("model: {}\n")
    assert "holds files of something else" in call(own_images.main, *flags(root, folder)).error()
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


def test_it_starts_from_the_shipped_weights(finished: tuple[Path, Path, Outcome]) -> None:
    """Two steps move them little; the classes are new."""
    ours, theirs = load_checkpoint(finished[1] / "model"), load_checkpoint("pretrained_models/cifar10-checkerboard")
    states = ours.state_dict(), theirs.state_dict()
    moved = [(states[0][name] - states[1][name]).abs().max() for name in states[1] if "class_emb" not in name]
    assert max(moved) < 0.01
    for name, weight in ours.autoencoder.state_dict().items():
        if "decoder" in name:
            assert (weight - theirs.autoencoder.state_dict()[name]).abs().max() < 0.01


def test_what_is_finished_is_not_done_again(finished: tuple[Path, Path, Outcome], tmp_path: Path) -> None:
    root, folder, _ = finished
    before = (folder / "model/checkpoint-last.pth").read_bytes()
    (folder / "index.html").unlink()
    again = call(own_images.main, *flags(root, folder))
    assert again.code == 0, again.err
    assert "1 of 3" not in again.out
    assert (folder / "index.html").exists()
    assert (folder / "model/checkpoint-last.pth").read_bytes() == before
    other = tmp_path / "photos"
    shutil.copytree(root, other)
    assert "is of other photographs" in call(own_images.main, *flags(other, folder)).error()
    assert "of other --tokenizer_steps" in call(own_images.main, *flags(root, folder, "--tokenizer_steps", "2")).error()


def test_longer_training_goes_on_and_draws_anew(
    finished: tuple[Path, Path, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_images, "carry_out", carry_out_here)
    root, folder, _ = finished
    shutil.copytree(folder, tmp_path / "made")
    record = (folder / "own.json").read_text().replace(str(folder), str(tmp_path / "made"))
    (tmp_path / "made/own.json").write_text(record)
    again = call(own_images.main, *flags(root, tmp_path / "made", "--model_steps", "4", "--samples_per_class", "1"))
    assert again.code == 0, again.err
    assert "1 of 3" not in again.out
    assert "2 of 3, model" in again.out
    assert "3 of 3, samples" in again.out
    assert torch.load(tmp_path / "made/model/checkpoint-last.pth", weights_only=True)["epoch"] == 4
    assert len(list((tmp_path / "made/samples").glob("[0-9]*.png"))) == 3


def test_what_was_removed_is_made_again(
    finished: tuple[Path, Path, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All images; one that is gone shifts no other's class."""
    monkeypatch.setattr(own_images, "carry_out", carry_out_here)
    root, folder, _ = finished
    made = shutil.copytree(folder, tmp_path / "made")
    (made / "own.json").write_text((folder / "own.json").read_text().replace(str(folder), str(made)))
    expected = json.loads((folder / "results.json").read_text())["drawn_accuracy"]
    shutil.rmtree(made / "samples")
    again = call(own_images.main, *flags(root, made))
    assert again.code == 0, again.err
    assert "3 of 3, samples" in again.out
    assert json.loads((made / "results.json").read_text())["drawn_accuracy"] == expected
    seen: list[list[int]] = []
    monkeypatch.setattr(
        "experiments.own_page.recognition", lambda images, drawn, labels: seen.append(labels.tolist()) or NOTHING
    )
    (made / "samples/000001.png").rename(made / "samples/000000 copy.png")
    assert call(own_images.main, *flags(root, made)).code == 0
    assert seen == [[0, 2, 0, 1, 2]]
    for file in (made / "samples").glob("0*[0-9].png"):
        file.unlink()
    assert "holds no images; remove it" in call(own_images.main, *flags(root, made)).error()


def test_a_folder_that_was_moved_goes_on(finished: tuple[Path, Path, Outcome], tmp_path: Path) -> None:
    root, made, _ = finished
    moved = Path(shutil.copytree(made, tmp_path / "moved"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_images, "carry_out", lambda task, title: pytest.fail(title))  # nothing is left to do
        outcome = call(own_images.main, *flags(root, moved))
    assert outcome.code == 0, outcome.err
    assert str(moved / "model") in (moved / "index.html").read_text()


def test_steps_decide_epochs() -> None:
    """As many as reach the steps, whatever the number of photographs."""
    for count, epochs in ((486, (36, 172)), (40, (250, 1200)), (100_000, (1, 1))):
        tasks = own_tasks(OwnArgs(data_path="photos"), count, 12)
        words = [task.arguments for task in tasks][:2]
        assert tuple(int(each[each.index("--epochs") + 1]) for each in words) == epochs


def test_photographs_in_an_archive_are_told_from_others(tmp_path: Path) -> None:
    root = write_photographs(tmp_path / "photos", count=2)
    archive = shutil.make_archive(str(tmp_path / "photos"), "zip", root)
    before = listing_sha256(open_dataset("folder", archive, 32))
    assert (
        before
        == listing_sha256(open_dataset("folder", archive, 32))
        != listing_sha256(open_dataset("folder", str(root), 32))
    )
    images = open_dataset("folder", archive, 32)
    images.labels[0] = 1  # as a table says it, once it is corrected
    assert listing_sha256(images) != before
    (root / "blue ball/0.png").unlink()
    shutil.make_archive(str(tmp_path / "photos"), "zip", root)
    assert listing_sha256(open_dataset("folder", archive, 32)) != before


def test_recognition_is_of_the_photographs_own_classes(tmp_path: Path) -> None:
    images = open_dataset("folder", str(write_photographs(tmp_path)), 32)
    plain = torch.tensor(list(COLOURS.values()), dtype=torch.uint8)[:, :, None, None].expand(-1, -1, 32, 32)
    labels = np.arange(3)
    assert recognition(images, plain, labels)["drawn_accuracy"] == 1
    assert recognition(images, plain, labels[::-1].copy())["drawn_accuracy"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("drawn", "classes", "loss", "fewest", "said"),
    [
        (0.12, 10, 6.0, 40, "has hardly learned your classes: train the model longer"),
        (0.5, 10, 8.2, 40, "loss is near that of guessing"),
        (0.9, 10, 6.0, 40, "the pictures show"),
        (0.95, 2, 6.0, 40, "the pictures show"),
        (0.52, 2, 6.0, 40, "has hardly learned"),
        (0.9, 10, 6.0, 3, "A class has 3 photographs, which is few"),
    ],
)
def test_the_verdict_follows_the_numbers(drawn: float, classes: int, loss: float, fewest: int, said: str) -> None:
    results = {"drawn_accuracy": drawn, "chance": 1 / classes, "held_out_accuracy": 0.95, "fewest_images": fewest}
    sentences = verdict(results | {"loss": loss, "loss_of_guessing": 8.318})
    assert f"takes {drawn:.1%} of the drawn images for their class; guessing has {1 / classes:.1%}" in sentences[0]
    assert said in sentences[-1]
    assert "unseen" not in "".join(
        verdict(results | {"held_out_accuracy": None, "loss": loss, "loss_of_guessing": 8.3})
    )


def test_a_photograph_that_cannot_be_read_and_odd_names(tmp_path: Path) -> None:
    """It is skipped, as in training; names may hold anything."""
    root = write_photographs(tmp_path / "my photos", count=12)
    (root / "red brick").rename(root / 'Кошка, <b>"x"')
    (root / "blue ball/0.png").write_text("no picture")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_images, "carry_out", carry_out_here)
        patch.chdir(tmp_path)
        outcome = call(own_images.main, *flags(Path("my photos"), Path("made")))
        assert outcome.code == 0, outcome.err
        patch.chdir(root)
        again = call(own_images.main, *flags(root, tmp_path / "made"))
    assert "1 of 3" not in again.out
    page = (tmp_path / "made/index.html").read_text()
    assert "<b>" not in page
    assert "Кошка" in page


@pytest.mark.processes
def test_commands_are_the_projects_wherever_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others have programs and folders of the same names."""
    for name in ("main.py", "main_sample.py", "sampling.py", "training.py"):
        (tmp_path / name).write_text("raise SystemExit('not the project')")
    monkeypatch.chdir(tmp_path)
    args = OwnArgs(data_path=str(tmp_path / "nowhere"), output_dir=str(tmp_path / "made"))
    for task in own_tasks(args, 36, 3):
        first, *_ = task.arguments
        assert Path(first).is_absolute()
        carry_out(replace(task, arguments=(first, "--help")), "")


def test_mistakes(tmp_path: Path) -> None:
    assert "name your photographs by --data_path" in call(own_images.main).error()
    assert "no image folder at" in call(own_images.main, *flags(tmp_path / "nowhere", tmp_path / "made")).error()
    write_pictures(tmp_path / "one", {"ant": 3})
    assert "has one class" in call(own_images.main, *flags(tmp_path / "one", tmp_path / "made")).error()
    assert "model_steps is 0" in call(own_images.main, *flags(tmp_path, tmp_path, "--model_steps", "0")).error()
    assert not (tmp_path / "made").exists()
    write_photographs(tmp_path / "photos")
    inside = call(own_images.main, *flags(tmp_path / "photos", tmp_path / "photos/own")).error()
    assert "lies among the photographs" in inside
    assert not (tmp_path / "photos/own").exists()
