"""The sampling command line: published samples from start to end, files, seeds, labels, mistakes."""

import json
import os
import shutil
import string
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

import main_sample
from models import sample
from models.checkerboard.config import CheckerboardConfig, CheckerboardDrawing
from models.checkerboard.model import Checkerboard
from models.config import LlamaGenVQConfig
from models.draw import DRAWING_VERSION, image_seed
from models.llamagen_vq import LlamaGenVQ
from models.loading.autoencoder import open_autoencoder, save_autoencoder
from models.loading.checkpoint import CHECKPOINT_NAME, CONFIG_NAME
from models.loading.identity import model_sha256
from runtime.config import dataclass_from_dict
from sampling import job
from sampling.options import SampleArgs
from tests.command_factory import ROOT, Outcome, call, save_run, start_python
from tests.factory import Reference, load_reference, tiny_model
from tests.limits import largest_file

TINY = "tests/fixtures/tiny-2x"
NAMES = ["zero", "name, with comma", "two", "three"]


def draw(folder: Path, *flags: str, checkpoint: str | Path = ROOT / TINY) -> Outcome:
    """Sample into ``folder``, in this process; it must succeed."""
    outcome = call(main_sample.main, "--checkpoint", str(checkpoint), "--output_dir", str(folder), *flags)
    assert outcome.code == 0, outcome.err
    return outcome


def refusal(*argv: str) -> str:
    """The one line that a mistake is answered with, in this process."""
    return call(main_sample.main, *argv).error()


def read_settings(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "samples.json").read_text())


def drawn_labels(folder: Path) -> list[int]:
    return [image["label"] for image in read_settings(folder)["images"]]


def read_png(path: Path) -> np.ndarray:
    """(H, W, 3) bytes."""
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.array(image)


def pngs(folder: Path) -> list[bytes]:
    """Content of the single images, in order."""
    return [path.read_bytes() for path in sorted(folder.glob("[0-9]*.png"))]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# The published samples, the first in a process of its own


@dataclass(frozen=True)
class Run:
    """A run of the program with the settings of a reference, whose numbers have a prefix."""

    reference: Reference
    prefix: str
    checkpoint: Path
    folder: Path
    outcome: Outcome

    def expected(self, kind: str, side: int) -> Tensor:
        return self.reference[f"{self.prefix}_{kind}_{side}"]

    @property
    def sides(self) -> list[int]:
        return self.reference["scale_sizes"].tolist()

    @property
    def num_steps(self) -> int:
        return 1 + int(self.expected("step", self.sides[-1]).max())


@pytest.fixture(
    scope="module",
    params=[pytest.param(("tiny-2x", False), marks=pytest.mark.processes), ("tiny-2x", True), ("tiny-4x", False)],
    ids=["2x", "2x-ema", "4x"],
)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    name, use_ema = request.param
    reference, folder = load_reference(name), tmp_path_factory.mktemp("samples") / "new"
    checkpoint = f"tests/fixtures/{name}/{CHECKPOINT_NAME}"
    names = ("cfg", "cfg_start_step", "steps_per_scale", "temperature")
    flags = [word for name in names for word in (f"--{name}", str(reference.settings[name]))]
    flags += ["--use_ema"] * use_ema
    flags += ["--checkpoint", checkpoint, "--labels", "0,1,2,3", "--dtype", "float32", "--device", "cpu"]
    flags += ["--save_codes", "--maps", "--animation", "--output_dir", str(folder)]
    if request.param == ("tiny-2x", False):
        outcome = start_python("main_sample.py", *flags)
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(ROOT)
            outcome = call(main_sample.main, *flags)
    assert outcome.code == 0, outcome.err
    return Run(reference, "ema_sample" if use_ema else "sample", ROOT / checkpoint, folder, outcome)


def test_images_are_the_published_ones_to_one_level(run: Run) -> None:
    expected = run.expected("image", run.sides[-1]).permute(0, 2, 3, 1).numpy()
    expected = (np.clip((expected + 1) / 2, 0, 1) * 255).astype(np.uint8).astype(int)
    images = np.stack([read_png(run.folder / f"{i:06d}.png") for i in range(4)])
    assert images.shape == expected.shape
    assert abs(images - expected).max() <= 1
    assert images.std() > 10  # not one flat colour
    grid = read_png(run.folder / "grid.png")
    for i, image in enumerate(images):  # two columns, every pixel four times, a caption below
        top, left = i // 2 * 156, i % 2 * 135
        assert (grid[top : top + 128 : 4, left : left + 128 : 4] == image).all()


def test_codes_are_the_published_ones(run: Run) -> None:
    model = run.reference.model(use_ema=run.prefix == "ema_sample")
    with np.load(run.folder / "codes.npz") as codes:
        assert set(codes) == {"labels", *(f"codes_{side}" for side in run.sides)}
        assert codes["labels"].tolist() == [0, 1, 2, 3]
        for side in run.sides:
            image = model.decode(torch.from_numpy(codes[f"codes_{side}"]))
            tolerance = 5e-3 if side == 1 else 2e-4  # GroupNorm over one location amplifies rounding
            torch.testing.assert_close(image, run.expected("image", side), atol=tolerance, rtol=0)


def test_maps_are_the_published_ones(run: Run) -> None:
    with np.load(run.folder / "maps.npz") as maps:
        assert set(maps) == {f"{kind}_{side}" for kind in ("step", "entropy", "probability") for side in run.sides}
        for side in run.sides:
            for kind in ("step", "entropy"):
                assert torch.equal(torch.from_numpy(maps[f"{kind}_{side}"]), run.expected(kind, side)), (kind, side)
            assert (maps[f"probability_{side}"] == 1).all()  # of a likeliest code, by convention


def test_every_picture_is_written_and_nothing_else(run: Run) -> None:
    images = [f"{prefix}{i:06d}.png" for prefix in ("", "maps_") for i in range(4)]
    others = ["grid.png", "entropy_by_step.png", "animation.gif", "codes.npz", "maps.npz", "samples.json"]
    assert sorted(path.name for path in run.folder.iterdir()) == sorted(images + others)
    for name in (*images[4:], "entropy_by_step.png"):
        with Image.open(run.folder / name) as figure:
            assert min(figure.size) > 300, name
            assert len(figure.convert("L").getcolors()) > 20, name


def test_a_picture_says_how_it_was_drawn(run: Run) -> None:
    settings = read_settings(run.folder)
    for index, own in enumerate(settings["images"]):
        with Image.open(run.folder / f"{index:06d}.png") as image:
            about = json.loads(image.text["parameters"])
        assert (about["seed"], about["label"]) == (own["seed"], own["label"])
        assert about["model_sha256"] == settings["model_sha256"]
        assert about["cfg"] == settings["cfg"]
        assert not {"output_dir", "checkpoint", "images"} & about.keys()  # which say nothing of it elsewhere


def test_animation_has_a_frame_a_step(run: Run) -> None:
    with Image.open(run.folder / "animation.gif") as animation:
        assert animation.n_frames == run.num_steps


def test_settings_are_all_recorded(run: Run) -> None:
    recorded = read_settings(run.folder)
    given = run.reference.settings
    expected = asdict(
        SampleArgs(
            checkpoint=str(run.checkpoint.relative_to(ROOT)),
            use_ema=run.prefix == "ema_sample",
            labels="0,1,2,3",
            dtype="float32",
            device="cpu",
            batch_size=16,
            output_dir=str(run.folder),
            save_codes=True,
            maps=True,
            animation=True,
        )
    )
    names = ("cfg", "cfg_start_step", "steps_per_scale")
    expected |= asdict(CheckerboardDrawing(temperature=0.0, **{name: given[name] for name in names}))
    assert {key: recorded[key] for key in expected} == expected
    assert recorded["model_sha256"] == model_sha256(run.reference.model(use_ema=run.prefix == "ema_sample"))
    assert recorded["drawing_version"] == DRAWING_VERSION
    assert (recorded["resolved_dtype"], recorded["resolved_device"]) == ("float32", "cpu")
    assert recorded["torch"] == torch.__version__.split("+")[0]
    assert recorded["images"] == [{"file": f"{i:06d}.png", "label": i, "class": None, "seed": i} for i in range(4)]


def test_the_run_says_what_it_does(run: Run) -> None:
    model = run.reference.model()
    sizes = [sum(p.numel() for p in module.parameters()) / 1e6 for module in (model, model.autoencoder)]
    *remark, first, last = run.outcome.out.splitlines()
    assert len(remark) <= 1  # on averaged weights
    assert first == (
        f"{sizes[0]:.1f}M parameters + {sizes[1]:.1f}M autoencoder; "
        f"4 images of 32 px in {run.num_steps} steps, 4 at once; float32 on cpu"
    )
    assert last.endswith(f"s an image; {run.folder}/grid.png")
    assert "Warning" not in run.outcome.err


# Seeds and precision


def assert_same_images(folder: Path, other: Path, first: int = 0) -> None:
    """The images of ``folder`` are those of ``other`` from ``first`` on: codes exactly, pixels to one level.

    Convolutions round differently by batch size (7e-6 measured), which may cut off a level.
    """
    with np.load(folder / "codes.npz") as codes, np.load(other / "codes.npz") as others:
        assert all(np.array_equal(codes[key], others[key][first:]) for key in codes)
    for i in range(len(pngs(folder))):
        pixels, expected = (read_png(path) for path in (folder / f"{i:06d}.png", other / f"{first + i:06d}.png"))
        assert abs(pixels.astype(int) - expected).max() <= 1


def test_an_image_follows_from_its_seed_whatever_its_batch(tmp_path: Path) -> None:
    for batch_size in ("3", "16"):
        draw(tmp_path / batch_size, "--labels", "3,3,3,5,5,5,3", "--save_codes", "--batch_size", batch_size)
    assert_same_images(tmp_path / "3", tmp_path / "16")
    assert len(set(pngs(tmp_path / "16"))) == 7


def test_the_same_command_gives_the_same_files(tmp_path: Path) -> None:
    for name in ("one", "other"):
        draw(tmp_path / name, "--labels", "3,3,5", "--batch_size", "2")
    assert pngs(tmp_path / "one") == pngs(tmp_path / "other")


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_recorded_seeds_draw_the_same_images_again(seed: int, tmp_path: Path) -> None:
    draw(tmp_path / "new", "--labels", "3,3,5", "--seed", str(seed), "--save_codes")
    images = read_settings(tmp_path / "new")["images"]
    assert [image["seed"] for image in images] == [image_seed(seed, i) for i in range(3)]
    with np.load(tmp_path / "new/codes.npz") as codes:
        for i, image in enumerate(images):
            out = sample(load_reference("tiny-2x").model(), [image["label"]], seeds=[image["seed"]])
            assert np.array_equal(out.codes[-1][0], codes["codes_8"][i])


def test_neighbouring_seeds_share_no_image(tmp_path: Path) -> None:
    for seed in ("0", "1"):
        draw(tmp_path / seed, "--labels", "3", "--num_samples", "20", "--seed", seed)
    assert len({*pngs(tmp_path / "0"), *pngs(tmp_path / "1")}) == 40


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gives_finite_images(dtype: str, tmp_path: Path) -> None:
    flags = ("--dtype", dtype, "--decoder_dtype", dtype, "--maps", "--animation", "--save_codes")
    draw(tmp_path / "new", "--labels", "0", *flags)
    settings = read_settings(tmp_path / "new")
    assert settings["resolved_dtype"] == settings["resolved_decoder_dtype"] == dtype
    assert read_png(tmp_path / "new/000000.png").std() > 10
    with np.load(tmp_path / "new/maps.npz") as maps:
        assert all(np.isfinite(maps[key]).all() for key in maps)
    with np.load(tmp_path / "new/codes.npz") as codes:
        images = load_reference("tiny-2x").model().decode(torch.from_numpy(codes["codes_8"]))
    assert images.isfinite().all()
    assert images.std() > 0.1


# What images are of


def negate_the_decoder(folder: Path) -> None:
    autoencoder = open_autoencoder(folder / "autoenc")
    with torch.no_grad():
        autoencoder.decoder.conv_out.weight.neg_()
    save_autoencoder(autoencoder, folder / "autoenc")


def swap_the_order(folder: Path) -> None:
    config = yaml.safe_load((folder / CONFIG_NAME).read_text())
    config["model"]["scan_order"] = "raster"
    (folder / CONFIG_NAME).write_text(yaml.safe_dump(config))


def change_a_weight(folder: Path) -> None:
    edit_checkpoint(folder, lambda checkpoint: checkpoint["model"]["lm_head.bias"].neg_())


@pytest.mark.parametrize("change", [negate_the_decoder, swap_the_order, change_a_weight, None])
@pytest.mark.parametrize("complete", [True, False])
def test_images_of_another_model_are_never_mixed(
    change: Callable[[Path], None] | None, complete: bool, tmp_path: Path
) -> None:
    """A changed file of a checkpoint in its place, or other weights of it."""
    run, folder = save_run(tmp_path / "run", tiny_model(), ema=True), tmp_path / "new"
    draw(folder, "--labels", "1,2", checkpoint=run)
    assert "holds these samples already" in draw(folder, "--labels", "1,2", checkpoint=run).out
    before = pngs(folder)
    if not complete:
        (folder / "000001.png").unlink()
    flags = () if change else ("--use_ema",)
    if change:
        change(run)
    outcome = draw(folder, "--labels", "1,2", *flags, checkpoint=run)
    assert f"the earlier samples in {folder} are now in {folder}.1" in outcome.out
    assert pngs(tmp_path / "new.1") == before[: 1 + complete]
    assert not set(pngs(folder)) & set(before)


def test_a_model_that_went_elsewhere_is_the_same(tmp_path: Path) -> None:
    run, folder = save_run(tmp_path / "run", tiny_model()), tmp_path / "new"
    draw(folder, "--labels", "1,2", checkpoint=run)
    run.rename(tmp_path / "moved")
    edit_checkpoint(tmp_path / "moved", lambda checkpoint: checkpoint.update(optimizer=None))
    assert "holds these samples already" in draw(folder, "--labels", "1,2", checkpoint=tmp_path / "moved").out


# Numbers that are none


def test_weights_that_are_not_finite_draw_nothing(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ROOT / TINY, tmp_path / "tiny"))
    edit_checkpoint(folder, lambda checkpoint: checkpoint["model"]["lm_head.bias"].fill_(float("nan")))
    message = refusal("--checkpoint", str(folder), "--labels", "1", "--output_dir", str(tmp_path / "new"))
    assert message.startswith(f"{folder / CHECKPOINT_NAME} holds numbers that are not finite, first in lm_head.bias;")
    assert not (tmp_path / "new").exists()


def test_too_little_precision_is_said_and_float32_draws(tmp_path: Path) -> None:
    folder, new = Path(shutil.copytree(ROOT / TINY, tmp_path / "tiny")), tmp_path / "new"
    key = "llama.layers.0.feed_forward.w2.weight"
    edit_checkpoint(folder, lambda checkpoint: checkpoint["model"][key].mul_(1e6))
    message = refusal("--checkpoint", str(folder), "--output_dir", str(new), "--dtype", "float16", "--temperature", "0")
    assert message == (
        "the logits are not finite from step 0 on, at the scale of side 1; draw with --dtype float32, or take another "
        "checkpoint"
    )
    assert not pngs(new)
    draw(new, "--dtype", "float32", "--num_samples", "2", checkpoint=folder)
    assert len(pngs(new)) == 2


# The output folder


def test_an_earlier_run_is_moved_aside_and_nothing_else(tmp_path: Path) -> None:
    folder, kept = tmp_path / "new", {}
    for i in range(3):
        outcome = draw(folder, "--num_samples", str(3 - i), "--save_codes", "--seed", str(10 * i))
        assert (f"the earlier samples in {folder} are now in {folder}.{i}" in outcome.out) == (i > 0)
        (folder / "notes.txt").write_text(f"mine {i}")
        kept[i] = {name: content for name, content in contents(folder).items() if name != "notes.txt"}
        for earlier in range(i):
            assert contents(tmp_path / f"new.{earlier + 1}") == kept[earlier]
    assert sorted(kept[2]) == ["000000.png", "codes.npz", "grid.png", "samples.json"]
    assert (folder / "notes.txt").read_text() == "mine 2"


def test_the_current_folder_may_be_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name, seed in (("new", "0"), ("new.1", "1")):
        draw(Path(), "--num_samples", "1", "--seed", seed)
        assert "samples.json" in contents(tmp_path / name)


def test_a_folder_of_other_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.png").write_bytes(b"mine")
    message = refusal("--checkpoint", str(ROOT / TINY), "--output_dir", str(tmp_path))
    assert message == f"{tmp_path} holds holiday.png, which no run of ours is known by; name another --output_dir"
    assert contents(tmp_path) == {"holiday.png": b"mine"}


def test_files_of_other_kinds_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    draw(tmp_path, "--num_samples", "1")
    assert contents(tmp_path)["notes.txt"] == b"mine"


def test_without_output_dir_the_time_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(main_sample.main, "--checkpoint", str(ROOT / TINY), "--num_samples", "1").code == 0
    (folder,) = (tmp_path / "samples").iterdir()
    assert len(folder.name) == len("20260131-120000")
    assert set(folder.name) <= set(string.digits + "-")
    assert "grid.png" in contents(folder)


@pytest.mark.parametrize("given", [True, False])
def test_an_error_leaves_no_empty_folder(given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    flags = ("--output_dir", str(tmp_path / "samples/new")) if given else ()
    message = refusal("--checkpoint", str(ROOT / TINY), "--num_samples", "1", "--format", "npz", *flags)
    assert "free space or name another --output_dir" in message
    assert not list((tmp_path / "samples").iterdir())
    (tmp_path / "mine").mkdir()
    refusal("--checkpoint", str(ROOT / TINY), "--num_samples", "1", "--format", "npz", "--output_dir", "mine")
    assert (tmp_path / "mine").is_dir()  # was there before


def test_jobs_of_one_second_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "datetime", SimpleNamespace(now=lambda: datetime(2026, 1, 31, 12)))
    for seed in ("0", "1", "2"):
        argv = ("--checkpoint", str(ROOT / TINY), "--num_samples", "1", "--seed", seed)
        assert call(main_sample.main, *argv).code == 0
    folders = sorted((tmp_path / "samples").iterdir())
    assert [folder.name for folder in folders] == ["20260131-120000", "20260131-120000.1", "20260131-120000.2"]
    assert [read_settings(folder)["seed"] for folder in folders] == [0, 1, 2]


def test_a_checkpoint_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(ROOT))
    draw(tmp_path / "new", "--num_samples", "1", checkpoint=f"~/{TINY}")


def test_after_a_full_disk_the_same_command_works(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with largest_file(5000):
        message = refusal("--checkpoint", str(ROOT / TINY), "--num_samples", "4", "--output_dir", str(folder))
    assert "File too large" in message
    draw(folder, "--num_samples", "4")
    assert len(pngs(folder)) == 4


@pytest.fixture
def unwritable(tmp_path: Path) -> Path:
    """A folder that nobody may write to; for root, who may write everywhere, one of the kernel's."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    if not os.access(folder, os.W_OK):
        return folder
    if not Path("/proc/self").is_dir():
        pytest.skip("root can write to every folder here")
    return Path("/proc/self")


@pytest.mark.parametrize("place", ["a file", "below a file", "unwritable", "below unwritable"])
def test_an_output_dir_that_cannot_be_written_is_refused_before_drawing(
    place: str, tmp_path: Path, unwritable: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    folder = {
        "a file": file,
        "below a file": file / "new",
        "unwritable": unwritable,
        "below unwritable": unwritable / "new",
    }[place]
    outcome = call(main_sample.main, "--checkpoint", str(ROOT / TINY), "--output_dir", str(folder))
    assert str(folder) in outcome.error()
    assert "sampling: " not in outcome.err  # no progress
    assert file.read_text() == "mine"


# Labels


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of ours whose classes have names."""
    model = tiny_model(num_classes=len(NAMES))
    model.class_names = NAMES
    return save_run(tmp_path_factory.mktemp("run") / "named", model)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("two,Three,0", [2, 3, 0]),
        ('0,"name, with comma"', [0, 1]),
        ("name", [1]),  # one of several names of a class
        (" 3 , zero ", [3, 0]),
        ("0\ntwo,1\n", [0, 2, 1]),  # a file's lines
        ("[1,,2,]", [1, 2]),
    ],
)
def test_labels_by_name(text: str, labels: list[int], named: Path, tmp_path: Path) -> None:
    draw(tmp_path / "new", "--labels", text, checkpoint=named)
    assert drawn_labels(tmp_path / "new") == labels
    assert [image["class"] for image in read_settings(tmp_path / "new")["images"]] == [NAMES[i] for i in labels]


def test_the_classes_of_a_checkpoint_are_listed(named: Path, tmp_path: Path) -> None:
    outcome = call(
        main_sample.main, "--checkpoint", str(named), "--list_classes", "--output_dir", str(tmp_path / "new")
    )
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines() == [f"{label}: {name}" for label, name in enumerate(NAMES)]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("thre", "no class is called thre; did you mean three?"),
        ("0,Zerro", "no class is called Zerro; did you mean zero?"),
        ("qqqqqqq", "no class is called qqqqqqq; known are 0: zero; 1: name; 2: two; 3: three"),
        ("4", "label 4 is out of range; this model has classes 0 to 3"),
        ("-1", "label -1 is out of range; this model has classes 0 to 3"),
        ("", 'labels is empty; give indices or names, as in 207,"tabby cat"'),
    ],
)
def test_labels_that_are_no_class(text: str, answer: str, named: Path, tmp_path: Path) -> None:
    assert refusal("--checkpoint", str(named), "--output_dir", str(tmp_path / "new"), "--labels", text) == answer
    assert not (tmp_path / "new").exists()


def test_a_model_without_class_names_takes_indices_alone() -> None:
    answer = "no class is called cat; this model has no class names"
    assert refusal("--checkpoint", str(ROOT / TINY), "--labels", "cat") == answer


@pytest.mark.parametrize(
    ("flags", "labels"),
    [((), [0, 1, 2, 3]), (("--num_samples", "6"), [0, 1, 2, 3, 0, 1]), (("--num_samples", "2"), [0, 1])],
)
def test_without_labels_classes_take_turns(
    flags: Sequence[str], labels: Sequence[int], named: Path, tmp_path: Path
) -> None:
    draw(tmp_path / "new", *flags, checkpoint=named)
    assert drawn_labels(tmp_path / "new") == labels
    assert len(pngs(tmp_path / "new")) == len(labels)


def test_an_unconditional_model_of_data_that_has_classes(tmp_path: Path) -> None:
    """Trained with num_classes 0; no image is said to be of the first class."""
    model = tiny_model(class_cond=False, num_classes=0)
    model.class_names = ["cat", "dog"]
    folder = save_run(tmp_path / "run", model)
    draw(tmp_path / "all", checkpoint=folder)
    draw(tmp_path / "some", "--num_samples", "3", checkpoint=folder)
    assert len(pngs(tmp_path / "all")) == 16
    assert [image["class"] for image in read_settings(tmp_path / "some")["images"]] == [None] * 3


def test_an_unconditional_model(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "run", tiny_model(class_cond=False))
    draw(tmp_path / "new", "--num_samples", "3", "--cfg", "0", checkpoint=folder)
    assert len(set(pngs(tmp_path / "new"))) == 3
    assert [image["class"] for image in read_settings(tmp_path / "new")["images"]] == [None] * 3
    outcome = draw(tmp_path / "guided", "--num_samples", "3", "--cfg", "2", checkpoint=folder)
    assert "warning: cfg has no effect on a model without classes\n" in outcome.err
    for guided, plain in zip(
        *(sorted((tmp_path / name).glob("[0-9]*.png")) for name in ("guided", "new")), strict=True
    ):
        assert np.array_equal(read_png(guided), read_png(plain))
    (tmp_path / "labels.txt").write_text("1\n")
    for flags in (("--labels", "1"), ("--labels", "10"), ("--label_file", str(tmp_path / "labels.txt"))):
        message = refusal("--checkpoint", str(folder), "--output_dir", str(tmp_path / "other"), *flags)
        assert message == "this model was trained without classes; leave out --labels and --label_file"
        assert not (tmp_path / "other").exists()


# Random weights


@pytest.fixture
def small_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The S configuration with a small transformer, at 64 px, where its autoencoder's weights are missing."""
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load((ROOT / "configs/config_256_S.yaml").read_text())
    content["model"] |= {"img_size": 64}
    content["model"]["llama_config"] |= {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    path = tmp_path / "config_64.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_configuration_draws_from_random_weights(small_config: Path, tmp_path: Path) -> None:
    argv = ("--config", str(small_config), "--labels", "volcano,207", "--output_dir", str(tmp_path / "new"))
    outcome = call(main_sample.main, *argv)
    assert outcome.code == 0, outcome.err
    config = dataclass_from_dict(CheckerboardConfig, yaml.safe_load(small_config.read_text())["model"], "")
    with torch.device("meta"):
        model = Checkerboard(config, LlamaGenVQ(LlamaGenVQConfig()))
    size = sum(p.numel() for p in model.parameters()) / 1e6
    first, second, _ = outcome.out.splitlines()
    assert first == f"random weights of {small_config}, with a random autoencoder: expect noise"
    assert second.startswith(f"{size:.1f}M parameters + 71.8M autoencoder; 2 images of 64 px in 9 steps, 2 at once; ")
    assert read_png(tmp_path / "new/000000.png").shape == (64, 64, 3)
    recorded = read_settings(tmp_path / "new")
    assert recorded["config"] == str(small_config)
    assert [image["label"] for image in recorded["images"]] == [980, 207]
    assert [image["class"] for image in recorded["images"]] == ["volcano", "golden retriever"]
    assert "holds these samples already" in call(main_sample.main, *argv).out
    content = yaml.safe_load(small_config.read_text())
    content["model"]["scan_order"] = "raster"  # changes no weight
    small_config.write_text(yaml.safe_dump(content))
    assert f"the earlier samples in {tmp_path}/new are now in" in call(main_sample.main, *argv).out


# Mistakes


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (("--steps_per_scale", "0"), "steps_per_scale is 0; it must be at least 1"),
        (("--top_p", "0"), "top_p is 0.0; it must be at least 1e-06 and at most 1 (keep all)"),
        (("--top_p", "1.5"), "top_p is 1.5; it must be at least 1e-06"),
        (("--top_k", "-1"), "top_k is -1; it must be 0 (keep all) or more"),
        (("--temperature", "-1"), "temperature is -1.0; it must be 0 (likeliest code), or "),
        (("--cfg_start_step", "-1"), "cfg_start_step is -1; steps count from 0"),
        (("--cfg", "inf"), "cfg is inf; it must be a number, or a list as in '[1, 2, 3]'"),
        (("--cfg", "1e38"), "cfg is 1e+38; it must lie between -1000 and 1000"),
        (("--seed", "-1"), "seed is -1; it must lie between 0 and 2**32 - 1"),
        (("--seed", str(2**32)), "seed is 4294967296; it must lie between 0 and 2**32 - 1"),
        (("--num_samples", "0"), "num_samples is 0; it must be at least 1"),
        (("--batch_size", "0"), "batch_size is 0; it must be at least 1"),
        (("--labels", "10"), "label 10 is out of range; this model has classes 0 to 9"),
        (("--dtype", "bf16"), "dtype is bf16; it must be one of auto, float32, bfloat16, float16"),
        (("--device", "tpu"), "device tpu is unknown; choose auto, cuda, mps or cpu"),
        (("--device", "cpu:x"), "device cpu:x is unknown; give the number of a GPU as in cuda:0"),
        (("--remainder", "drop"), "remainder is drop; it must be one of separate, fold"),
        (("--steps_per_scales", "4"), "unknown option --steps_per_scales; did you mean --steps_per_scale?"),
        (("stray",), "stray belongs to no option; put a value that has spaces in quotes, or see --help"),
        (("--config", "configs/config_256_S.yaml"), "name either a --checkpoint, or a --config for random weights"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_impossible_settings_are_refused(flags: Sequence[str], answer: str, tmp_path: Path) -> None:
    message = refusal("--checkpoint", str(ROOT / TINY), "--output_dir", str(tmp_path / "new"), *flags)
    assert message.startswith(answer)
    assert not (tmp_path / "new").exists()


def test_neither_checkpoint_nor_config_is_refused() -> None:
    assert refusal() == "name either a --checkpoint, or a --config for random weights"


class Payload:
    """Pickled, it would touch a file when read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch '{self.path}'",)


def edit_checkpoint(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite a checkpoint after ``edit`` changed it in place."""
    checkpoint = torch.load(folder / CHECKPOINT_NAME, weights_only=False)  # a file of our own
    edit(checkpoint)
    torch.save(checkpoint, folder / CHECKPOINT_NAME)


def spoil_nothing_but_the_name(folder: Path) -> None:
    (folder / CHECKPOINT_NAME).rename(folder / "epoch-90.bak")


def truncate(folder: Path) -> None:
    content = (folder / CHECKPOINT_NAME).read_bytes()
    (folder / CHECKPOINT_NAME).write_bytes(content[: len(content) // 2])


def drop_a_key(folder: Path) -> None:
    edit_checkpoint(folder, lambda checkpoint: checkpoint["model"].pop("lm_head.weight"))


def plant_code(folder: Path) -> None:
    edit_checkpoint(folder, lambda checkpoint: checkpoint.update(args=Payload(folder / "ran")))


def misspell_a_setting(folder: Path) -> None:
    text = (folder / CONFIG_NAME).read_text()
    (folder / CONFIG_NAME).write_text(text.replace("num_classes", "num_clases"))


def lose_the_config(folder: Path) -> None:
    (folder / CONFIG_NAME).unlink()


@pytest.mark.parametrize(
    ("spoil", "answer"),
    [
        (spoil_nothing_but_the_name, "no checkpoint at {checkpoint}; train one with main.py, or fetch the released"),
        (truncate, "{checkpoint} is truncated or no checkpoint; get it again"),
        (drop_a_key, "{checkpoint} does not fit the model (the file and its configuration are of different models): "
            "missing lm_head.weight"),
        (plant_code, "{checkpoint} was refused: it holds posix.system; only tensors and plain values can load"),
        (misspell_a_setting, "unknown key num_clases in {config}; did you mean num_classes?"),
        (lose_the_config, "no such file: {config}"),
    ],
)  # fmt: skip
def test_damaged_and_hostile_checkpoints_are_refused(
    spoil: Callable[[Path], None], answer: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(ROOT / TINY, tmp_path / "tiny"))
    spoil(folder)
    message = refusal("--checkpoint", str(folder), "--output_dir", str(tmp_path / "new"))
    assert message.startswith(answer.format(checkpoint=folder / CHECKPOINT_NAME, config=folder / CONFIG_NAME))
    assert not (folder / "ran").exists()
    assert not (tmp_path / "new").exists()


def test_averaged_weights_that_are_not_there() -> None:
    folder = ROOT / "tests/fixtures/tiny-4x"
    message = refusal("--checkpoint", str(folder), "--use_ema")
    assert message == f"{folder / CHECKPOINT_NAME} holds no EMA weights; leave out use_ema"


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("model: {img_sise: 64}", "unknown key img_sise in {}; did you mean img_size?"),
        ("model: {img_size: big}", "{}: img_size is big; it must be a whole number"),
        ("model: [", "{} is no valid YAML"),
        ("model: 5", "{} holds 5, not settings"),
        (None, "no such file: {}"),
    ],
)
def test_configurations_that_make_no_model_are_refused(content: str | None, answer: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    if content is not None:
        path.write_text(content)
    assert refusal("--config", str(path)).startswith(answer.format(path))


@pytest.mark.processes
def test_a_process_ends_in_one_line_and_code_2() -> None:
    outcome = start_python("main_sample.py", "--chekpoint", "here")
    assert outcome.error() == "unknown option --chekpoint; did you mean --checkpoint?"
