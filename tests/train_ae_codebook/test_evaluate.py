"""Figures of an autoencoder by scale against formulas of their own, and the command that prints them.

Letters: B batch, C code dimension, S side of a code map, V codes.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import evaluator
from data.images import CroppedImages, open_dataset
from evaluation.compare import with_count
from evaluation.features.shipped import statistics_file
from models.autoencoder import Autoencoder, resize_image
from models.loading.autoencoder import export_autoencoder, open_autoencoder
from tests.codebook_factory import digits
from tests.command_factory import ROOT, call
from tests.evaluation.fake_inception import FakeInception
from tests.factory import randomize, tiny_autoencoder
from train_ae_codebook.evaluate import main
from train_ae_codebook.measure import ScaleMetrics, held_out_batches, measure_rfid, measure_scales, table


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    """Stride 2, 64 codes, random."""
    made = tiny_autoencoder(ch_mult=(1, 1))
    with torch.random.fork_rng():
        torch.manual_seed(2)
        randomize(made, std=0.05)
    return made


def ssim(one: Tensor, other: Tensor) -> float:
    """Wang et al.'s mean over uniform windows of 7 pixels, sample covariances, of images (3, H, W) in [-1, 1]."""
    windows = [F.unfold(image[:, None], 7) for image in (one.double(), other.double())]  # (3, 49, windows)
    means = [w.mean(1) for w in windows]
    variances = [w.var(1) for w in windows]
    covariance = ((windows[0] - means[0][:, None]) * (windows[1] - means[1][:, None])).sum(1) / 48
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    luminance = (2 * means[0] * means[1] + c1) / (means[0] ** 2 + means[1] ** 2 + c1)
    return (luminance * (2 * covariance + c2) / (variances[0] + variances[1] + c2)).mean().item()


def test_figures_are_those_of_independent_formulas(autoencoder: Autoencoder) -> None:
    images = torch.stack([digits("val", 40)[(i, 0)][0] for i in range(40)])
    measured, num_used = measure_scales(autoencoder, iter(images.split(17)), (1, 2, 4), with_ssim=True)
    assert list(measured) == [1, 2, 4]
    seen: set[int] = set()
    for side, figures in measured.items():
        small = resize_image(images, 2 * side)
        with torch.no_grad():
            z = autoencoder.encode(small).permute(0, 2, 3, 1).reshape(-1, 8)
            codebook = F.normalize(autoencoder.quantize.embedding, dim=-1)
            distances, codes = torch.cdist(z, codebook).min(1)
            rebuilt = autoencoder.decode(codes.view(40, side, side)).clamp(-1, 1)
        psnr = [10 * math.log10(4 / (a - b).square().mean().item()) for a, b in zip(small, rebuilt, strict=True)]
        seen |= set(codes.tolist())
        shares = np.bincount(codes, minlength=64) / len(codes)
        entropy = -sum(share * math.log(share) for share in shares if share > 0)
        assert figures.psnr == pytest.approx(np.mean(psnr), rel=1e-5)
        assert figures.l1 == pytest.approx((small - rebuilt).abs().mean().item(), rel=1e-5)
        assert figures.quantization_error == pytest.approx(distances.square().mean().item() / 8, rel=1e-4)
        assert figures.usage == (shares > 0).mean()
        assert figures.perplexity == pytest.approx(math.exp(entropy), rel=1e-5)
        if side == 4:
            expected = np.mean([ssim(a, b) for a, b in zip(small, rebuilt, strict=True)])
            assert figures.ssim == pytest.approx(expected, abs=1e-4)
        else:
            assert figures.ssim is None
    assert num_used == len(seen)


def test_an_exact_reconstruction_has_100_db(autoencoder: Autoencoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoder, "decode", lambda codes: torch.zeros(2, 3, 8, 8))
    figures = measure_scales(autoencoder, iter([torch.zeros(2, 3, 8, 8)]), (4,), with_ssim=True)[0][4]
    assert (figures.psnr, figures.ssim, figures.l1) == (pytest.approx(100), pytest.approx(1), 0)


def test_held_out_images_are_spread_evenly() -> None:
    data = digits("val", 90)
    batches = list(held_out_batches(data, 45))
    assert [len(batch) for batch in batches] == [32, 13]
    assert torch.equal(torch.cat(batches)[7], data[(14, 0)][0])
    assert len(torch.cat(list(held_out_batches(data, 1000)))) == 90


def test_the_table_has_a_line_a_scale() -> None:
    figures = ScaleMetrics(psnr=20.123, ssim=None, l1=0.1, quantization_error=0.012345, usage=0.5, perplexity=7.0)
    assert table({1: figures}).splitlines() == [
        "| scale | psnr | ssim | l1 | quantization_error | usage | perplexity |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| 1 | 20.12 | - | 0.1000 | 0.01235 | 50.0% | 7.0 |",
    ]


def test_the_command_prints_and_writes(autoencoder: Autoencoder, tmp_path: Path) -> None:
    export_autoencoder(autoencoder, tmp_path / "ae")
    flags = {"autoencoder": tmp_path / "ae", "dataset": "digits", "img_size": 8, "num_images": 20, "device": "cpu"}
    flags |= {"output_file": tmp_path / "new" / "figures.json", "grid": tmp_path / "grid" / "g.png"}
    outcome = call(main, *(word for name, value in flags.items() for word in (f"--{name}", str(value))))
    assert outcome.code == 0, outcome.err
    written = json.loads((tmp_path / "new" / "figures.json").read_text())
    assert list(written["scales"]) == ["1", "2", "4"]
    assert (written["images"], written["n_embed"], written["settings"]["split"]) == (20, 64, "val")
    by_side = {int(side): ScaleMetrics(**figures) for side, figures in written["scales"].items()}
    *lines, last = outcome.out.splitlines()[1:]
    assert lines == table(by_side).splitlines()
    assert last == f"{written['used_codes']} of 64 codes occur at some scale"
    assert outcome.out.startswith(f"{tmp_path / 'ae'} on 20 images (val) of digits\n")
    images = torch.cat(list(held_out_batches(digits("val", 297), 20)))
    assert by_side[4] == measure_scales(autoencoder, iter([images]), (4,), with_ssim=True)[0][4]
    with Image.open(tmp_path / "grid" / "g.png") as picture:
        assert picture.height == 6 * 66 + 2
        assert picture.width > 16 * 66 + 2 + 50  # captions


# What a small classifier makes of reconstructions


def test_recognition_is_the_evaluator_s_distance_and_the_share_of_right_classes(tmp_path: Path) -> None:
    shipped, count = ROOT / "pretrained_models/digits", 60
    flags = {"autoencoder": shipped, "dataset": "digits", "img_size": 32, "num_images": count, "device": "cpu"}
    flags |= {"features": "digits", "output_file": tmp_path / "figures.json"}
    outcome = call(main, *(word for name, value in flags.items() for word in (f"--{name}", str(value))))
    assert outcome.code == 0, outcome.err
    written = json.loads((tmp_path / "figures.json").read_text())
    data = CroppedImages(open_dataset("digits", "", 32, "val"), 32, "center")
    model = open_autoencoder(shipped)
    chosen = [data[i * 297 // count, 0] for i in range(count)]
    images, labels = torch.stack([image for image, _ in chosen]), [int(label) for _, label in chosen]
    with torch.no_grad():
        rebuilt = model.decode(model.quantize_latents(model.encode(images)))
    for name, pixels in (("originals", images), ("reconstructions", rebuilt)):
        path = save_images(tmp_path / f"{name}.npz", pixels)
        with np.load(path) as file:
            np.savez(path, arr_0=file["arr_0"], arr_1=labels)
        result = tmp_path / f"{name}.json"
        reference = str(statistics_file("digits", "train"))
        assert (
            call(evaluator.main, reference, str(path), "--features", "digits", "--output_file", str(result)).code == 0
        )
        expected = json.loads(result.read_text())
        assert written[name]["FD-digits-60"] == pytest.approx(expected["FD-digits-60"], rel=1e-4)
        assert written[name]["Class accuracy"] == pytest.approx(expected["Class accuracy"])
        assert written[name]["Class accuracy"] > 0.9
        assert f"{name}: FD-digits-60 " in outcome.out


def test_classes_that_the_classifier_does_not_know_are_refused_at_once() -> None:
    flags = ("--autoencoder", str(ROOT / "pretrained_models/digits"), "--dataset", "digits", "--img_size", "32")
    outcome = call(main, *flags, "--features", "cifar10")
    assert "is none of the classifier's: airplane, " in outcome.error()
    assert outcome.out == ""


# rFID


def save_images(path: Path, images: Tensor) -> Path:
    """As evaluator.py takes them: (N, H, W, 3), rounded to bytes."""
    pixels = ((images + 1) * 127.5).clamp(0, 255).round().numpy().astype(np.uint8)
    np.savez(path, arr_0=pixels.transpose(0, 2, 3, 1))
    return path


def test_rfid_is_the_evaluator_s_distance_of_reconstructions(autoencoder: Autoencoder, tmp_path: Path) -> None:
    """By ADM's network (random weights) on files of the same images; N stands in the name, and warnings are said."""
    graph = ROOT / "tests/fixtures/evaluator/classify_image_graph_def.pb"
    export_autoencoder(autoencoder, tmp_path / "ae")
    flags = {"autoencoder": tmp_path / "ae", "dataset": "digits", "img_size": 32, "num_images": 40, "device": "cpu"}
    flags |= {"inception_graph": graph, "output_file": tmp_path / "figures.json"}
    outcome = call(main, *(word for name, value in flags.items() for word in (f"--{name}", str(value))))
    assert outcome.code == 0, outcome.err
    assert "reconstructions: 40 images are fewer than 2048" in outcome.err
    data = CroppedImages(open_dataset("digits", "", 32, "val"), 32, "center")
    images = torch.cat(list(held_out_batches(data, 40)))
    with torch.no_grad():
        rebuilt = autoencoder.decode(autoencoder.quantize_latents(autoencoder.encode(images)))
    paths = [str(save_images(tmp_path / f"{i}.npz", batch)) for i, batch in enumerate((images, rebuilt))]
    expected = tmp_path / "expected.json"
    flags = ("--inception_graph", str(graph), "--no_prec_recall", "--output_file", str(expected))
    assert call(evaluator.main, *paths, *flags).code == 0
    expected = json.loads(expected.read_text())
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written["rFID-40"] == pytest.approx(expected["FID-40"], rel=1e-5)
    assert written["rFID-40"] > 1
    assert written["inception_sha256"] == expected["inception_sha256"]
    assert f"rFID-40: {written['rFID-40']:.6g}" in outcome.out.splitlines()


def test_rfid_of_exact_reconstructions_is_zero(monkeypatch: pytest.MonkeyPatch, autoencoder: Autoencoder) -> None:
    monkeypatch.setattr(autoencoder, "encode", lambda images: images)
    monkeypatch.setattr(autoencoder, "quantize_latents", lambda images: images)
    monkeypatch.setattr(autoencoder, "decode", lambda images: images)
    name, value, _ = measure_rfid(autoencoder, digits("val", 30), 30, FakeInception())
    assert (name, value) == ("rFID-30", pytest.approx(0, abs=1e-6))
    monkeypatch.setattr(autoencoder, "decode", lambda images: -images)
    assert measure_rfid(autoencoder, digits("val", 30), 30, FakeInception())[1] > 0.1


def test_its_name_needs_no_number_from_50000_images_on() -> None:
    assert [with_count("rFID", count) for count in (49_999, 50_000)] == ["rFID-49999", "rFID"]


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        ((), "name the --autoencoder to judge: a folder, or a file of weights"),
        (("--autoencoder", "nowhere"), "no autoencoder weights at nowhere"),
        (("--autoencoder", "docs"), "docs holds neither checkpoint.pth nor autoencoder.safetensors"),
        (("--autoencoder", "pretrained_models/digits", "--img_size", "30"), "img_size 30 is no multiple of"),
        (("--autoencoder", "pretrained_models/digits", "--data_path", "docs", "--dataset", "folder"), "has no val/"),
        (("--autoencoder", "pretrained_models/digits", "--num_images", "-1"), "num_images is -1"),
        (
            (
                "--autoencoder",
                "pretrained_models/digits",
                "--img_size",
                "32",
                "--num_images",
                "1",
                "--features",
                "digits",
            ),
            "at least 2 images",
        ),
        (("--autoencoder", "pretrained_models/digits", "--scale_sizes", "[0]"), "each must be at least 1"),
        (("--autoencoder", "x", "--inception_graph", "a", "--inception_weights", "b"), "name one of them"),
        (("--autoencoder", "pretrained_models/digits", "--img_size", "32", "--inception_graph", "no.pb"), "no.pb"),
        (("--autoencoder", "pretrained_models/digits", "--img_size", "32", "--inception_weights", "no.pth"), "no.pth"),
        (("--autoencoders", "x"), "unknown option --autoencoders; did you mean --autoencoder?"),
    ],
)
def test_a_mistake_is_answered_by_one_line(flags: tuple[str, ...], answer: str) -> None:
    assert answer in call(main, "--dataset", "digits", *flags).error()
