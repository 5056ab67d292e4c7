"""RandAR by the command lines: training from folders of codes, drawing, editing anywhere, twice the side, mistakes."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import main
import main_sample
from evaluation import run as evaluate
from models import load_checkpoint, sample
from models.draw import image_seed
from models.loading.autoencoder import save_autoencoder
from models.loading.checkpoint import CONFIG_NAME
from runtime.config import read_yaml, write_yaml
from tests.command_factory import call, draw_two, read_pixels, save_run, start_python
from tests.factory import FIXTURES, tiny_autoencoder
from tests.randar_factory import tiny_randar
from tests.training_factory import assert_same_training, read_log

PIXELS, SIDE = 32, 8  # of an image, and of its grid of codes
SEEDS = [image_seed(0, i) for i in range(2)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a model of random weights."""
    model = tiny_randar(autoencoder=tiny_autoencoder(), img_size=PIXELS)
    return save_run(tmp_path_factory.mktemp("randar") / "run", model)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with codes of 40 images and ``randar.yaml``, which trains on them."""
    root, rng = tmp_path_factory.mktemp("training"), np.random.default_rng(0)
    save_autoencoder(tiny_autoencoder(), root / "autoenc")
    for kind, arrays in (("codes", rng.integers(64, size=(40, 1, 2, 16))), ("labels", np.ones((40, 1)))):
        (root / f"codes/imagenet16_{kind}").mkdir(parents=True)
        for n, array in enumerate(arrays.astype(np.int64)):
            np.save(root / f"codes/imagenet16_{kind}/{n}.npy", array)
    size = {"hidden_size": 32, "intermediate_size": 96, "num_attention_heads": 2, "num_hidden_layers": 2}
    model = {"architecture": "randar", "img_size": 16, "num_classes": 10, "vocab_size": 64, "llama_config": size}
    model |= {"autoenc": {"checkpoint_path": str(root / "autoenc/autoencoder.safetensors")}}
    args = {"epochs": 2, "schedule": "cosine", "warmup_epochs": 0.5, "end_lr": 1e-4, "batch_size": 8, "lr": 3e-3}
    args |= {"code_paths": [str(root / "codes")], "num_workers": 0, "device": "cpu", "log_freq": 1, "eval_freq": 0}
    write_yaml(root / "randar.yaml", {"model": model, "args": args | {"steps": 5}})
    return root


def images_of(folder: Path) -> np.ndarray:
    return np.stack([read_pixels(folder / f"{i:06d}.png") for i in range(2)])


def as_bytes(model: Any, images: torch.Tensor) -> np.ndarray:
    return model.to_uint8(images).permute(0, 2, 3, 1).numpy()


# Training


@pytest.mark.parametrize("scan_order", ["random", "raster"])
def test_a_run_of_each_order_is_drawn_and_goes_on(scan_order: str, root: Path, tmp_path: Path) -> None:
    words = ["--config", str(root / "randar.yaml"), "--scan_order", scan_order]
    for name, epochs in (("whole", ["2"]), ("halves", ["1", "2"])):
        for each in epochs:  # the rate of the first epoch depends on the number of epochs, unless it is constant
            more = ("--output_dir", str(tmp_path / name), "--epochs", each, "--schedule", "drops", "--end_lr", "1e-5")
            outcome = call(main.main, *words, *more)
            assert outcome.code == 0, outcome.err
    assert_same_training(tmp_path / "whole", tmp_path / "halves")
    assert read_log(tmp_path / "whole") == read_log(tmp_path / "halves")
    assert len(read_log(tmp_path / "whole")) == 10
    model = load_checkpoint(tmp_path / "whole")
    assert model.config.scan_order == scan_order
    outcome = draw_two(tmp_path / "whole", tmp_path / "drawn", "--steps", "4")
    assert "in 4 steps" in outcome.out
    out = sample(model, [3, 1], steps=4, seeds=SEEDS)
    np.testing.assert_array_equal(images_of(tmp_path / "drawn"), as_bytes(model, out.images))


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--weights_init", str(FIXTURES / "tiny-2x")], "has no weights that fit this model; name a checkpoint of a"),
        (["--scan_order", "scan"], "scan_order"),
        (["--steps", "17"], "steps is 17, but an image has 16 codes; set 1 to 16, or -1 for one code a step"),
        (["--patch_level", "2"], "randar does not learn from patches of codes; set patch_level 1"),
        (["--attention", "flex"], "randar has the attention sdpa alone"),
        (["--vocab_size", "65"], "vocab_size is 65, but the autoencoder has 64 codes"),
        (["--schedule", "cosine", "--lr_drops", "{1: 0.1}"], "lr_drops means nothing with schedule cosine"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_a_mistake_in_training_is_answered_by_one_line(
    words: list[str], answer: str, root: Path, tmp_path: Path
) -> None:
    said = call(main.main, "--config", str(root / "randar.yaml"), "--output_dir", str(tmp_path / "run"), *words).error()
    assert answer in said


def test_published_weights_start_a_run(root: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    save_file(tiny_randar().state_dict(), weights / "randar.safetensors")
    section = {"architecture": "randar", "img_size": 64, "llama_config": {"num_attention_heads": 2}}
    write_yaml(weights / CONFIG_NAME, {"model": section})
    words = ["--config", str(root / "randar.yaml"), "--output_dir", str(tmp_path / "run"), "--epochs", "1"]
    outcome = call(main.main, *words, "--weights_init", str(weights))
    assert outcome.code == 0, outcome.err
    fits = len(tiny_randar().state_dict())
    assert f"{fits} of {fits} tensors start from {weights / 'randar.safetensors'}" in outcome.out + outcome.err


# Drawing


def test_images_of_the_settings_and_what_is_told_of_them(run: Path, tmp_path: Path) -> None:
    settings = {"steps": 9, "cfg": 2.0, "cfg_schedule": "constant"}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    outcome = draw_two(run, tmp_path, *words, "--maps", "--animation", "--save_codes")
    assert "in 9 steps" in outcome.out
    model = load_checkpoint(run)
    out = sample(model, [3, 1], seeds=SEEDS, **settings)
    np.testing.assert_array_equal(images_of(tmp_path), as_bytes(model, out.images))
    with np.load(tmp_path / "codes.npz") as codes:
        np.testing.assert_array_equal(codes["codes_8"], out.codes[0].numpy())
    with np.load(tmp_path / "maps.npz") as maps:
        np.testing.assert_array_equal(maps["step_8"], out.step[0].numpy())
    with Image.open(tmp_path / "animation.gif") as gif:
        assert gif.n_frames == 9


def test_images_of_twice_the_side(run: Path, tmp_path: Path) -> None:
    """Stored, shown step by step and recorded as such; another setting is another run."""
    words = ("--upscale", "2", "--steps", "12")
    outcome = draw_two(run, tmp_path / "big", *words, "--maps", "--animation", "--save_codes")
    model = load_checkpoint(run)
    out = sample(model, [3, 1], seeds=SEEDS, upscale=2, steps=12)
    steps = int(out.step[0].max()) + 1
    assert f"2 images of {2 * PIXELS} px in {steps} steps" in outcome.out
    np.testing.assert_array_equal(images_of(tmp_path / "big"), as_bytes(model, out.images))
    with np.load(tmp_path / "big/codes.npz") as codes:
        np.testing.assert_array_equal(codes["codes_16"], out.codes[0].numpy())
    with Image.open(tmp_path / "big/animation.gif") as gif:
        assert gif.n_frames == steps
    assert (
        "holds these samples already"
        in draw_two(run, tmp_path / "big", *words, "--maps", "--animation", "--save_codes").out
    )
    draw_two(run, tmp_path / "resized", *words, "--resize_to", "20", "--format", "npz")
    with np.load(tmp_path / "resized/samples.npz") as samples:
        assert samples["arr_0"].shape == (2, 20, 20, 3)


def edit_files(folder: Path, mask: np.ndarray) -> tuple[str, ...]:
    """An image and a mask as files, and the flags that name them."""
    pixels = np.random.default_rng(0).integers(256, size=(PIXELS, PIXELS, 3), dtype=np.uint8)
    for name, array in (("image", pixels), ("mask", mask)):
        Image.fromarray(array).save(folder / f"{name}.png")
    return ("--edit", str(folder / "image.png"), "--mask", str(folder / "mask.png"))


def test_editing_sees_what_is_kept_on_every_side(run: Path, tmp_path: Path) -> None:
    """The middle is drawn anew, given all around it; other labels draw other middles."""
    mask = np.zeros((PIXELS, PIXELS), np.uint8)
    mask[8:24, 8:24] = 255
    files = edit_files(tmp_path, mask)
    draw_two(run, tmp_path / "edit", *files, "--save_codes", "--steps", "5")
    pixels, edited = read_pixels(tmp_path / "image.png"), images_of(tmp_path / "edit")
    for image in edited:
        np.testing.assert_array_equal(image[mask == 0], pixels[mask == 0])
        assert (image[mask > 0] != pixels[mask > 0]).any()
    model = load_checkpoint(run)
    (codes,) = model.tokenize(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1)
    kept = torch.ones(1, SIDE, SIDE, dtype=torch.bool)
    kept[:, 2:6, 2:6] = False
    how = {"seeds": SEEDS, "steps": 5, "keep": [kept.expand(2, -1, -1)], "keep_codes": [codes.expand(2, -1, -1)]}
    out = sample(model, [3, 1], **how)
    with np.load(tmp_path / "edit/codes.npz") as drawn:
        np.testing.assert_array_equal(drawn["codes_8"], out.codes[0].numpy())
        assert (drawn["codes_8"][0] != drawn["codes_8"][1]).any()


def test_a_mask_that_keeps_nothing_draws_the_image_of_the_seed(run: Path, tmp_path: Path) -> None:
    files = edit_files(tmp_path, np.full((PIXELS, PIXELS), 255, np.uint8))
    draw_two(run, tmp_path / "edit", *files, "--steps", "5")
    draw_two(run, tmp_path / "free", "--steps", "5")
    np.testing.assert_array_equal(images_of(tmp_path / "edit"), images_of(tmp_path / "free"))


@pytest.mark.parametrize("upscale", ["1", "2"])
def test_samples_are_measured(upscale: str, run: Path, tmp_path: Path) -> None:
    words = ["--checkpoint", str(run), "--features", "digits", "--num_samples", "8", "--steps", "6"]
    outcome = call(evaluate.main, *words, "--upscale", upscale, "--output_dir", str(tmp_path / "run"))
    assert outcome.code == 0, outcome.err
    with np.load(tmp_path / "run/samples/samples.npz") as samples:
        assert samples["arr_0"].shape == (8, int(upscale) * PIXELS, int(upscale) * PIXELS, 3)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--steps", "65"], "steps is 65, but an image has 64 codes; set 1 to 64, or -1 for one code a step"),
        (["--steps", "-2"], "steps is -2, but an image has 64 codes"),
        (["--upscale", "2", "--steps", "257"], "steps is 257, but an image has 256 codes"),
        (["--upscale", "3"], "upscale is 3; it must be 1 or 2"),
        (["--cfg", "-0.5"], "cfg is -0.5; it must not be negative, 0 for no guidance"),
        (["--cfg_schedule", "cosine"], "cfg_schedule"),
        (["--spatial_cfg", "-1"], "spatial_cfg is -1.0"),
        (["--spatial_ratio", "1.5"], "spatial_ratio is a probability; 1.5 does not lie between 0 and 1"),
        (["--cfg_interval", "3"], "cfg_interval means nothing to randar, which has cfg, "),
        (["--use_ema"], "holds no EMA weights; leave out use_ema"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_in_drawing_is_answered_by_one_line(words: list[str], answer: str, run: Path, tmp_path: Path) -> None:
    said = call(main_sample.main, "--checkpoint", str(run), "--output_dir", str(tmp_path / "drawn"), *words).error()
    assert answer in said
    assert not (tmp_path / "drawn").exists()


def test_what_cannot_be_drawn_at_twice_the_side_is_answered_by_one_line(run: Path, tmp_path: Path) -> None:
    mask = np.zeros((PIXELS, PIXELS), np.uint8)
    mask[8:24, 8:24] = 255
    files = edit_files(tmp_path, mask)
    words = ("--output_dir", str(tmp_path / "drawn"), "--upscale", "2", "--labels", "3")
    said = call(main_sample.main, "--checkpoint", str(run), *words, *files).error()
    assert said.startswith("upscale 2 draws whole images; leave out what is to be kept (--edit), or draw at upscale 1")
    model = tiny_randar(autoencoder=tiny_autoencoder(), scan_order="raster")
    raster = save_run(tmp_path / "raster", model)
    said = call(main_sample.main, "--checkpoint", str(raster), *words).error()
    assert said == "upscale 2 draws in random order; it needs a model of that order, and no draw_order raster"
    assert not list((tmp_path / "drawn").glob("*.png"))


# Files


class Payload:
    """Unpickling it runs a command that makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"mkdir {self.marker}",)


@pytest.mark.parametrize("program", ["main_sample", "evaluate", "main"])
def test_a_train_state_that_would_run_code_is_refused(program: str, root: Path, tmp_path: Path) -> None:
    content = {"model": tiny_randar().state_dict(), "train_steps": 3, "config": Payload(tmp_path / "marker")}
    torch.save(content, tmp_path / "train_state.pt")
    words = ("--checkpoint", str(tmp_path), "--output_dir", str(tmp_path / "out"))
    if program == "main":
        config = ("--config", str(root / "randar.yaml"), "--output_dir", str(tmp_path / "out"))
        outcome = call(main.main, *config, "--weights_init", str(tmp_path))
    elif program == "evaluate":
        outcome = call(evaluate.main, *words, "--features", "digits", "--num_samples", "8")
    else:
        outcome = call(main_sample.main, *words)
    assert outcome.error().startswith(f"{tmp_path / 'train_state.pt'} was refused: it holds posix.system; only tensors")
    assert not (tmp_path / "marker").exists()


@pytest.mark.processes
def test_a_missing_tokenizer_is_a_warning_of_one_line(tmp_path: Path) -> None:
    content = read_yaml(FIXTURES / "tiny-randar" / CONFIG_NAME)
    write_yaml(tmp_path / CONFIG_NAME, content | {"vq_ckpt": "nowhere/vq.pt"})
    weights = tiny_randar(
        img_size=96, llama_config=load_checkpoint(FIXTURES / "tiny-randar").config.llama_config
    ).state_dict()
    save_file(weights, tmp_path / "a.safetensors")
    outcome = start_python("main_sample.py", "--checkpoint", str(tmp_path), "--output_dir", str(tmp_path / "drawn"))
    warning, error = outcome.err.splitlines()
    assert warning.startswith("warning: no tokenizer at nowhere/vq.pt, which ")
    assert warning.endswith("names as vq_ckpt: codes can be drawn, but no images")
    assert error.startswith("error: this model has no autoencoder, so it draws codes and no images")
    assert outcome.code == 2
