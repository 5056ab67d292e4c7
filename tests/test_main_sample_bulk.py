"""Sampling many images by the command line: killed and continued, on one rank and two; npz; labels; lists; editing.

A process that is to be killed gets stuck while it writes: at a known image, its file half written.
"""

import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock, Timeout
from PIL import Image, ImageDraw

import main_sample
from models import sample
from models.checkerboard.model import Checkerboard
from models.class_names import imagenet_names
from models.draw import image_seed
from models.family import Samples
from runtime.command import INTERRUPTED, run
from runtime.errors import UserError
from sampling import bulk, job
from sampling import maps as visualize
from sampling.bulk import Request, draw_many
from sampling.folder import SampleFolder, image_name
from sampling.labels import parse_labels, read_labels
from tests.command_factory import PATIENCE, ROOT, call
from tests.factory import load_reference, tiny_model
from tests.pictures import picture
from tests.test_main_sample import TINY, contents, draw, drawn_labels, pngs, read_png, read_settings, refusal
from tests.training_factory import exit_codes, start_ranks

COUNT, STUCK_AT = 23, 8  # images, and the first that a stuck process does not finish
MANY = ("--num_samples", str(COUNT), "--save_codes")
IN_ORDER = range(COUNT)
NAMES = [f"{i:06d}.png" for i in IN_ORDER]
IN_TURN = [i % 10 for i in IN_ORDER]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "new"
    draw(folder, *MANY)
    assert len(set(pngs(folder))) == COUNT
    return folder


def command(folder: Path, *flags: str) -> list[str]:
    return ["--checkpoint", str(ROOT / TINY), "--output_dir", str(folder), *MANY, *flags]


def draw_on_rank(argv: Sequence[str], gets_stuck: bool) -> None:
    """``python main_sample.py ARGV``, for ``start_ranks``; it may get stuck while it writes."""
    store = SampleFolder._store

    def stuck(self: SampleFolder, indices: list[int], *args: Any) -> None:
        if max(indices) >= STUCK_AT:
            (self.mine / image_name(indices[0])).write_bytes(b"half a picture")
            time.sleep(PATIENCE)
        store(self, indices, *args)

    if gets_stuck:
        SampleFolder._store = stuck
    sys.argv = ["main_sample.py", *argv]
    run(main_sample.main)


def kill_half_way(folder: Path, ranks: int, *flags: str) -> None:
    """Draw into ``folder`` until the images before the stuck ones are done, then kill the last rank without warning."""
    started = start_ranks(folder.parent, ranks, draw_on_rank, command(folder, *flags), True)
    deadline = time.monotonic() + PATIENCE
    while done(folder) < STUCK_AT or not list(folder.glob(".progress/*/*.png")):
        assert all(process.is_alive() for process in started), (folder.parent / "rank0.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for process in reversed(started):
        process.kill()
        process.join()
    assert done(folder) == STUCK_AT


def done(folder: Path) -> int:
    """Images done so far."""
    return sum(int(path.stem.rpartition("-")[2]) for path in folder.glob(".progress/rank*/[!.]*.npz"))


def assert_same_samples(folder: Path, other: Path) -> None:
    found, expected = contents(folder), contents(other)
    assert found.keys() == expected.keys() == {*NAMES, "codes.npz", "grid.png", "samples.json"}
    assert all(found[name] == expected[name] for name in found if name != "samples.json")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The images that are drawn from now on, in this process."""
    indices: list[int] = []

    def noting(
        model: Checkerboard, request: Request, mine: list[int], *more: Any
    ) -> Iterator[tuple[list[int], Samples]]:
        indices.extend(mine)
        return draw_many(model, request, mine, *more)

    monkeypatch.setattr(bulk, "draw_many", noting)
    return indices


# Runs that were killed


@pytest.mark.processes
def test_a_killed_run_goes_on_with_another_batch_size(undisturbed: Path, drawn: list[int], tmp_path: Path) -> None:
    folder = tmp_path / "new"
    kill_half_way(folder, 1, "--batch_size", "4")
    draw(folder, *MANY, "--batch_size", "3")
    assert drawn == list(range(STUCK_AT, COUNT))
    assert_same_samples(folder, undisturbed)
    assert drawn_labels(folder) == IN_TURN


def interrupt(folder: Path, *flags: str) -> None:
    """Draw into ``folder`` until Ctrl-C comes, half-way."""

    def interrupted(
        model: Checkerboard, request: Request, mine: list[int], *more: Any
    ) -> Iterator[tuple[list[int], Samples]]:
        yield from draw_many(model, request, mine[:STUCK_AT])
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "draw_many", interrupted)
        outcome = call(main_sample.main, *command(folder, *flags))
    assert outcome.code == INTERRUPTED
    assert "interrupted; the same command goes on" in outcome.err
    assert done(folder) == STUCK_AT  # all that was drawn


def test_an_interrupted_npz_run_goes_on(undisturbed: Path, drawn: list[int], tmp_path: Path) -> None:
    folder = tmp_path / "new"
    interrupt(folder, "--format", "npz", "--batch_size", "5")
    assert not (folder / "samples.npz").exists()
    draw(folder, *MANY, "--batch_size", "3", "--format", "npz")
    assert drawn == list(range(STUCK_AT, COUNT))
    assert sorted(contents(folder)) == ["codes.npz", "grid.png", "samples.json", "samples.npz"]
    assert [image["file"] for image in read_settings(folder)["images"]] == [None] * COUNT
    with np.load(folder / "samples.npz") as arrays:
        assert np.array_equal(arrays["arr_0"], [read_png(undisturbed / name) for name in NAMES])
        assert arrays["arr_1"].tolist() == IN_TURN
    assert (folder / "codes.npz").read_bytes() == (undisturbed / "codes.npz").read_bytes()


@pytest.mark.ranks
def test_two_ranks_killed_and_continued_by_others_draw_as_one_does(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    kill_half_way(folder, 2, "--batch_size", "4")
    owners = [path.name.partition("-")[0] for path in sorted(folder.glob(".progress/rank*"))]
    assert owners == ["rank0", "rank1"]  # each has a folder of its own
    shutil.copytree(folder, tmp_path / "other")
    draw(folder, *MANY)
    assert_same_samples(folder, undisturbed)
    others = start_ranks(tmp_path, 3, draw_on_rank, command(tmp_path / "other", "--batch_size", "3"), False)
    assert exit_codes(others) == [0, 0, 0], (tmp_path / "rank0.txt").read_text()
    assert_same_samples(tmp_path / "other", undisturbed)


@pytest.mark.parametrize("ended_at", [None, 1, 2, 4])
def test_progress_of_other_settings_is_never_gone_on_with(
    ended_at: int | None, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """samples.json is lost, or the program ends while the earlier run is moved aside."""
    folder = tmp_path / "new"
    interrupt(folder)
    settings = read_settings(folder)
    if ended_at is None:
        (folder / "samples.json").unlink()
    else:
        (folder / "samples.json").write_text(json.dumps(settings | {"seed": 500}))
        rename, moves = Path.rename, iter(range(1, 10**6))

        def ended(path: Path, target: Path) -> Path:
            if next(moves) == ended_at:
                raise KeyboardInterrupt
            return rename(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", ended)
            assert call(main_sample.main, *command(folder)).code == INTERRUPTED
    for path in folder.glob("*.png"):
        Image.new("RGB", (32, 32)).save(path)  # what may not be taken for one of ours
    draw(folder, *MANY)
    assert_same_samples(folder, undisturbed)


def test_deleted_images_of_an_unfinished_run_are_drawn_again(
    undisturbed: Path, drawn: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "new"
    with monkeypatch.context() as patch:
        patch.setattr(job, "_finish", None)  # an error as soon as all are drawn
        with pytest.raises(TypeError):
            draw(folder, *MANY)
    drawn.clear()
    for i in (4, 20):
        (folder / f"{i:06d}.png").unlink()
    draw(folder, *MANY)
    assert drawn == [4, 20]
    assert_same_samples(folder, undisturbed)


def test_a_folder_that_another_process_draws_into_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    with FileLock(folder / ".lock"):
        outcome = call(
            main_sample.main,
            *("--checkpoint", str(ROOT / TINY), "--output_dir", str(folder), "--num_samples", "2"),
        )
    assert outcome.code == 2
    assert f"another process is at work in {folder}; wait for it, or name another output_dir" in outcome.error()
    draw(folder, "--num_samples", "2")
    assert len(pngs(folder)) == 2


def test_a_folder_stays_locked_until_all_files_are_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, held = tmp_path / "new", []

    def finish(images: SampleFolder, labels: Sequence[int]) -> list[list[int]]:
        with pytest.raises(Timeout):
            FileLock(folder / ".lock", timeout=0).acquire()
        held.append(images.num_stored())
        return []

    monkeypatch.setattr(SampleFolder, "finish", finish)
    draw(folder, "--num_samples", "2")
    assert held == [2]


def test_deleted_images_of_a_complete_run_are_drawn_again(tmp_path: Path, drawn: list[int]) -> None:
    folder = tmp_path / "new"
    draw(folder, "--num_samples", "5")
    before = contents(folder)
    drawn.clear()
    for i in (1, 4):
        (folder / f"{i:06d}.png").unlink()
    draw(folder, "--num_samples", "5")
    assert drawn == [1, 4]
    assert contents(folder) == before


@pytest.mark.parametrize("cut_short", [False, True])
@pytest.mark.parametrize(("flags", "lost"), [(["--format", "npz"], "samples.npz"), (["--save_codes"], "codes.npz")])
def test_a_complete_run_that_lost_what_one_file_held_is_drawn_whole(
    flags: list[str], lost: str, cut_short: bool, tmp_path: Path, drawn: list[int]
) -> None:
    folder = tmp_path / "new"
    draw(folder, "--num_samples", "4", *flags)
    before = (folder / lost).read_bytes()
    drawn.clear()
    if cut_short:
        (folder / lost).write_bytes(before[:-10])
    else:
        (folder / lost).unlink()
    draw(folder, "--num_samples", "4", *flags)
    assert drawn == [0, 1, 2, 3]
    assert (folder / lost).stat().st_size == len(before)


def test_a_complete_run_is_left_alone(tmp_path: Path, drawn: list[int]) -> None:
    folder = tmp_path / "new"
    draw(folder, "--num_samples", "3")
    drawn.clear()
    before = contents(folder)
    outcome = draw(folder, "--num_samples", "3", "--batch_size", "1")
    told = f"{folder} holds these samples already; name another --output_dir, or ask for other images"
    assert outcome.out.splitlines()[-1] == told
    assert drawn == []
    assert contents(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


def test_maps_are_of_all_images_and_figures_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visualize, "MAX_FIGURES", 1)
    draw(tmp_path / "many", "--num_samples", "18", "--maps", "--animation")
    assert [path.name for path in (tmp_path / "many").glob("maps_*")] == ["maps_000000.png"]
    model = load_reference("tiny-2x").model()
    last = sample(model, [7], seeds=[image_seed(0, 17)])
    with np.load(tmp_path / "many/maps.npz") as many:
        for i, side in enumerate(model.scale_sizes):
            for name in ("step", "entropy", "probability"):
                found = many[f"{name}_{side}"][17:]
                np.testing.assert_allclose(found, getattr(last, name)[i], rtol=1e-4, atol=1e-5)
    assert (tmp_path / "many/animation.gif").exists()


# Labels


def test_many_images_are_balanced_over_classes(undisturbed: Path) -> None:
    assert drawn_labels(undisturbed) == IN_TURN
    assert [image["seed"] for image in read_settings(undisturbed)["images"]] == list(IN_ORDER)


@pytest.mark.parametrize(
    ("flags", "labels"),
    [
        (("--label_file", "{file}"), [7, 7, 2, 0]),
        (("--label_file", "{file}", "--num_samples", "6"), [7, 7, 2, 0, 7, 7]),
        (("--labels", "5,1,5", "--num_samples", "13"), [5, 1, 5] * 4 + [5]),
        (("--labels", "5,1,5", "--num_samples", "2"), [5, 1]),
    ],
)
def test_chosen_labels_take_turns(flags: Sequence[str], labels: list[int], tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("7\n7\n2\n0\n")
    draw(tmp_path / "new", *(flag.format(file=tmp_path / "labels.txt") for flag in flags))
    assert drawn_labels(tmp_path / "new") == labels


def test_a_name_with_commas_is_one_line_of_a_label_file(tmp_path: Path) -> None:
    model = tiny_model()
    model.class_names = ["cat, tabby", "dog", *map(str, range(8))]
    (tmp_path / "labels.txt").write_text("Cat, tabby\n\ndog\r\ntabby\ndog,cat\n1\n")
    assert read_labels(str(tmp_path / "labels.txt"), model) == [0, 1, 0, 1, 0, 3]
    names = imagenet_names()
    first = [name.partition(",")[0] for name in names]
    of_one = [label for label in range(1000) if first.count(first[label]) == 1]
    (tmp_path / "names.txt").write_text("\n".join(names[label] for label in of_one))
    assert read_labels(str(tmp_path / "names.txt"), tiny_model(num_classes=1000)) == of_one
    assert len(of_one) > 990
    for words in ("1" * 5000, "a" * 200_000):
        with pytest.raises(UserError):
            parse_labels(words, model)


def test_a_list_of_labels_gives_the_images_of_each(undisturbed: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(map(str, IN_TURN)))
    draw(tmp_path / "new", "--label_file", str(tmp_path / "labels.txt"), "--save_codes")
    assert_same_samples(tmp_path / "new", undisturbed)


def test_doubles_are_reported_and_recorded(tmp_path: Path) -> None:
    outcome = draw(tmp_path / "new", "--temperature", "0", "--labels", "1,2,1")
    assert "warning: 2 images have a double, as 0, 2 (all in samples.json)\n" in outcome.err
    assert read_settings(tmp_path / "new")["duplicates"] == [[0, 2]]
    outcome = draw(tmp_path / "other", "--labels", "1,2,1")
    assert "have a double" not in outcome.out
    assert read_settings(tmp_path / "other")["duplicates"] == []


# Lists over scales


@pytest.mark.parametrize("name", ["cfg", "temperature"])
def test_a_list_of_equal_values_is_that_value(name: str, tmp_path: Path) -> None:
    for folder, value in (("single", "0.75"), ("list", "[0.75, 0.75, 0.75, 0.75]"), ("other", "[0.75, 0.75, 2, 2]")):
        draw(tmp_path / folder, "--labels", "1,2", f"--{name}", value)
    single, listed, other = (
        [read_png(file).tolist() for file in sorted((tmp_path / folder).glob("[0-9]*.png"))]
        for folder in ("single", "list", "other")
    )
    assert single == listed
    assert not [image for image in single if image in other]
    assert read_settings(tmp_path / "list")[name] == [0.75] * 4


# Editing


@pytest.fixture
def edit(tmp_path: Path) -> tuple[str, ...]:
    """Flags that edit a picture of 48 by 40 pixels; a box of it is drawn anew."""
    picture(48, 40, seed=1).save(tmp_path / "image.png")
    mask = Image.new("L", (48, 40))
    ImageDraw.Draw(mask).rectangle((0, 0, 23, 19), fill=255)
    mask.save(tmp_path / "mask.png")
    return "--edit", str(tmp_path / "image.png"), "--mask", str(tmp_path / "mask.png")


def test_an_edited_image_is_the_original_outside_the_mask(edit: tuple[str, ...], tmp_path: Path) -> None:
    flags = (*edit, "--labels", "1,1,2", "--save_codes")
    draw(tmp_path / "new", *flags)
    with Image.open(tmp_path / "image.png") as image:  # ADM's crop of 48 x 40 to 32
        original = np.array(image.resize((38, 32), Image.Resampling.BICUBIC).crop((3, 0, 35, 32)))
    for i in range(3):
        drawn = read_png(tmp_path / f"new/{i:06d}.png")
        assert (drawn[16:] == original[16:]).all()
        assert (drawn[:, 16:] == original[:, 16:]).all()
        assert (drawn[:16, :16] != original[:16, :16]).mean() > 0.5
    assert len(set(pngs(tmp_path / "new"))) == 3
    with np.load(tmp_path / "new/codes.npz") as codes:
        assert (codes["codes_8"][:, 4:] == codes["codes_8"][:1, 4:]).all()
        assert (codes["codes_8"][:, :4, :4] != codes["codes_8"][:1, :4, :4]).any()
    before = contents(tmp_path / "new")
    assert "holds these samples already" in draw(tmp_path / "new", *flags).out
    assert contents(tmp_path / "new") == before
    picture(48, 40, seed=2).save(tmp_path / "image.png")  # another image under the same name
    assert "the earlier samples" in draw(tmp_path / "new", *flags).out
    assert contents(tmp_path / "new.1") == before
    draw(tmp_path / "new", *flags, "--blend", "2")
    with Image.open(tmp_path / "image.png") as image:
        original = np.array(image.resize((38, 32), Image.Resampling.BICUBIC).crop((3, 0, 35, 32)))
    blended = read_png(tmp_path / "new/000000.png")
    assert (blended[18:] == original[18:]).all()
    assert (blended[16:18, :16] != original[16:18, :16]).any()


# Mistakes


def refused(folder: Path, *flags: str) -> str:
    message = refusal("--checkpoint", str(ROOT / TINY), "--output_dir", str(folder), *flags)
    assert not folder.exists()
    return message


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (("--labels", "1", "--label_file", "x"), "give --labels or --label_file, not both"),
        (("--label_file", "nowhere.txt"), "no such file: nowhere.txt"),
        (("--cfg", "[1, 2, 3]"), "cfg has 3 values; give one number, or one for each of the scales 1, 2, 4, 8"),
        (("--temperature", "[1]"), "temperature has 1 values; give one number, or one for each of the scales 1, 2, 4"),
        (("--temperature", "[1, 1, -1, 1]"), "temperature is -1.0; it must be 0 (likeliest code), or "),
        (("--cfg", "[1, 2, x, 3]"), "cfg"),
        (("--edit", "image.png"), "give both an image to --edit and its --mask, white where it is drawn anew"),
        (("--mask", "mask.png"), "give both an image to --edit and its --mask"),
        (("--blend", "2"), "--blend means nothing without --edit; leave it out"),
        (("--edit", "nowhere.png", "--mask", "mask.png"), "no such file: nowhere.png"),
        (("--format", "jpg"), "format is jpg; it must be one of png, npz"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_impossible_settings_are_refused(flags: Sequence[str], answer: str, tmp_path: Path) -> None:
    assert refused(tmp_path / "new", *flags).startswith(answer)


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (b"", "labels is empty"),
        (b"1\n11\n", "label 11 is out of range; this model has classes 0 to 9"),
        (b"\xff\xfe\x00", "{file} is no text file; put one index or name on a line"),
    ],
)
def test_label_files_that_make_no_labels(content: bytes, answer: str, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes(content)
    message = refused(tmp_path / "new", "--label_file", str(tmp_path / "labels.txt"))
    assert message.startswith(answer.format(file=tmp_path / "labels.txt"))
