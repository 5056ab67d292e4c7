"""LlamaGen's family by the command lines: files of theirs alone, pictures, editing, another size, measuring."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import main_sample
from evaluation import run as evaluate
from models import load_checkpoint, sample
from models.draw import image_seed
from runtime.config import write_yaml
from tests.command_factory import call, draw_two, read_pixels, save_run
from tests.factory import tiny_autoencoder
from tests.llamagen_factory import tiny_gpt

SIDE = 32  # pixels of an image, of 8 x 8 codes
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a model of random weights."""
    model = tiny_gpt(autoencoder=tiny_autoencoder(), img_size=SIDE)
    return save_run(tmp_path_factory.mktemp("llamagen") / "run", model)


def test_images_and_pictures_are_rounded_to_bytes_and_not_cut_off(run: Path, tmp_path: Path) -> None:
    """The published rule, 127.5 x + 128."""
    draw_two(run, tmp_path, "--cfg", "1.5", "--cfg_interval", "3", "--maps", "--animation", "--save_codes")
    out = sample(load_checkpoint(run), [3, 1], cfg=1.5, cfg_interval=3, seeds=[image_seed(0, i) for i in range(2)])
    expected = (127.5 * out.images + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    images = np.stack([read_pixels(tmp_path / f"{i:06d}.png") for i in range(2)])
    np.testing.assert_array_equal(images, expected)
    with np.load(tmp_path / "codes.npz") as codes:
        np.testing.assert_array_equal(codes["codes_8"], out.codes[0].numpy())
    assert {"maps.npz", "maps_000001.png", "entropy_by_step.png"} <= {path.name for path in tmp_path.iterdir()}
    with Image.open(tmp_path / "animation.gif") as gif:
        assert gif.n_frames == 64


def test_every_byte_comes_back(run: Path) -> None:
    """As an animation of stored images needs it, whichever the rule."""
    levels = torch.arange(256)
    for model in (load_checkpoint(run), load_checkpoint(Path(__file__).parent / "fixtures/tiny-2x")):
        assert torch.equal(model.to_uint8((levels + 0.25) / 127.5 - 1).long(), levels)
    assert load_checkpoint(run).to_uint8(torch.tensor([-3, -1, -0.5 / 127.5, 0, 1, 3])).tolist() == [
        *(0, 0, 127, 128, 255, 255)
    ]


def test_images_are_stored_at_another_size(run: Path, tmp_path: Path) -> None:
    """Bicubic without antialiasing, of floats that are not clamped yet; another size is another run."""
    outcome = draw_two(run, tmp_path / "small", "--resize_to", "20", "--animation")
    assert "2 images of 20 px in 64 steps" in outcome.out
    out = sample(load_checkpoint(run), [3, 1], cfg=1.0, seeds=[image_seed(0, i) for i in range(2)])
    small = F.interpolate(out.images, (20, 20), mode="bicubic", align_corners=False, antialias=False)
    expected = (127.5 * small + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(np.stack([read_pixels(tmp_path / f"small/{i:06d}.png") for i in range(2)]), expected)
    draw_two(run, tmp_path / "small")
    assert read_pixels(tmp_path / "small/000000.png").shape == (SIDE, SIDE, 3)
    assert read_pixels(tmp_path / "small.1/000000.png").shape == (20, 20, 3)
    draw_two(run, tmp_path / "same", "--resize_to", str(SIDE))
    np.testing.assert_array_equal(read_pixels(tmp_path / "same/000000.png"), read_pixels(tmp_path / "small/000000.png"))


def test_editing_keeps_what_the_mask_leaves_black(run: Path, tmp_path: Path) -> None:
    """The kept codes are fed: what is drawn after them follows from them. The upper left quarter is drawn anew."""
    pixels = np.random.default_rng(0).integers(256, size=(SIDE, SIDE, 3), dtype=np.uint8)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:16, :16] = 255
    for name, array in (("image", pixels), ("mask", mask)):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    files = ("--edit", str(tmp_path / "image.png"), "--mask", str(tmp_path / "mask.png"))
    draw_two(run, tmp_path / "edit", *files, "--save_codes")
    edited = read_pixels(tmp_path / "edit/000001.png")
    np.testing.assert_array_equal(edited[mask == 0], pixels[mask == 0])
    assert (edited[mask > 0] != pixels[mask > 0]).any()
    model = load_checkpoint(run)
    (codes,) = model.tokenize(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1)
    kept = torch.ones(8, 8, dtype=torch.bool)
    kept[:4, :4] = False
    with np.load(tmp_path / "edit/codes.npz") as drawn:
        np.testing.assert_array_equal(drawn["codes_8"][:, kept.numpy()], codes[:, kept].expand(2, -1).numpy())
    said = call(main_sample.main, "--checkpoint", str(run), *files, "--resize_to", "20").error()
    assert said.startswith("--resize_to means nothing with --edit")


def test_a_file_of_theirs_in_a_folder_of_its_own(run: Path, tmp_path: Path) -> None:
    """As download.sh leaves it, but for heads that only published sizes tell; codes alone make no images."""
    model = load_checkpoint(run)
    torch.save({"model": model.state_dict(), "steps": 7}, tmp_path / "c2i_B_256.pt")
    section = {"architecture": "llamagen", "img_size": SIDE, "llama_config": {"num_attention_heads": 2}}
    write_yaml(tmp_path / "config.yaml", {"model": section | {"autoenc": {"checkpoint_path": None}}})
    loaded = load_checkpoint(tmp_path)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    target = ("--output_dir", str(tmp_path / "drawn"))
    for program in (main_sample, evaluate):
        flags = () if program is main_sample else ("--features", "digits", "--num_samples", "8")
        said = call(program.main, "--checkpoint", str(tmp_path), *target, *flags).error()
        assert said.startswith("this model has no autoencoder, so it draws codes and no images; fetch LlamaGen's by ")
        assert not (tmp_path / "drawn").exists()
    shutil.copytree(run / "autoenc", tmp_path / "autoenc")
    (weights,) = tmp_path.glob("autoenc/*.safetensors")
    weights = {"checkpoint_path": f"autoenc/{weights.name}"}
    write_yaml(tmp_path / "config.yaml", {"model": section | {"autoenc": weights}})
    draw_two(tmp_path, tmp_path / "theirs")
    draw_two(run, tmp_path / "ours")
    np.testing.assert_array_equal(
        read_pixels(tmp_path / "theirs/000001.png"), read_pixels(tmp_path / "ours/000001.png")
    )


def test_random_weights_without_an_autoencoder_at_hand(tmp_path: Path) -> None:
    """One of as many codes as the model has takes its place."""
    sizes = {"img_size": 32, "vocab_size": 100, "num_classes": 10, "llama_config": TINY}
    section = {"architecture": "llamagen", **sizes, "autoenc": {"checkpoint_path": "nowhere/vq_ds16_c2i.pt"}}
    write_yaml(tmp_path / "tiny.yaml", {"model": section})
    words = ("--config", str(tmp_path / "tiny.yaml"), "--labels", "7", "--output_dir", str(tmp_path / "noise"))
    outcome = call(main_sample.main, *words)
    assert outcome.code == 0, outcome.err
    assert "with a random autoencoder: expect noise" in outcome.out
    assert read_pixels(tmp_path / "noise/000000.png").shape == (32, 32, 3)


def test_samples_are_measured_at_another_size(run: Path, tmp_path: Path) -> None:
    """A result is of one size: another is measured anew, and the same is found again."""
    words = ["--checkpoint", str(run), "--features", "digits", "--num_samples", "8", "--cfg", "1"]
    words += ["--output_dir", str(tmp_path / "run")]
    for size in ("24", "24", None):
        outcome = call(evaluate.main, *words, *(() if size is None else ("--resize_to", size)))
        assert outcome.code == 0, outcome.err
        with np.load(tmp_path / "run/samples/samples.npz") as samples:
            assert samples["arr_0"].shape == (8, int(size or SIDE), int(size or SIDE), 3)
    assert json.loads((tmp_path / "run/result.1.json").read_text())["run"]["resize_to"] == 24
    assert json.loads((tmp_path / "run/result.json").read_text())["run"]["resize_to"] is None
    assert not (tmp_path / "run/result.2.json").exists()


def test_settings_of_the_checkerboard_are_refused(run: Path) -> None:
    said = call(main_sample.main, "--checkpoint", str(run), "--cfg_start_step", "3").error()
    assert said == "cfg_start_step means nothing to llamagen, which has cfg, temperature, top_k, top_p, cfg_interval"
    assert "cfg is -0.5" in call(main_sample.main, "--checkpoint", str(run), "--cfg", "-0.5").error()
    assert "cfg_interval is -2" in call(main_sample.main, "--checkpoint", str(run), "--cfg_interval", "-2").error()
    assert "resize_to is 0" in call(main_sample.main, "--checkpoint", str(run), "--resize_to", "0").error()
