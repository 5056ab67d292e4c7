"""A family that the shared code has never heard of: it trains, resumes, is sampled, edited, drawn and measured."""

import csv
import json
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

import evaluator
import main
import main_sample
from benchmarks.sampling import BenchmarkArgs
from benchmarks.sampling_job import Case, measure_times
from evaluation import run as evaluate
from experiments import sweep
from models import load_checkpoint, sample
from models.config import FAMILIES
from models.family import Loss, StepContext
from models.loading.autoencoder import save_autoencoder
from models.sampling import checked_drawing
from models.scales import join_scales
from runtime.config import write_yaml
from runtime.errors import UserError
from tests.command_factory import Outcome, call
from tests.factory import CPU, FIXTURES, random_codes, randomize, tiny_autoencoder
from tests.pictures import picture
from tests.tiny_family import DIRECTIONS, FAMILY, NEIGHBOURS, Direction, Tiny, TinyConfig
from tests.training_factory import (
    FEW_DIGITS,
    assert_same_training,
    exit_codes,
    read_events,
    read_log,
    start_process,
    start_ranks,
)
from training import export
from training.task import step_context

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "pretrained_models" / "classifiers" / "digits-train.npz"
STEPS = 30  # of an epoch: 1,500 digits, 50 a step
EDGE = 4  # side of the code map; 8 px images of 2 px a code


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """The family is known while these tests run; fewer digits than usual are scored after training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "tiny", FAMILY)
        patch.setattr("training.job.NUM_SCORED_DIGITS", FEW_DIGITS)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``tiny.yaml``, which trains on codes of digits."""
    root = tmp_path_factory.mktemp("family")
    save_autoencoder(tiny_autoencoder(ch_mult=(1, 1)), root / "autoenc")
    model = {
        "architecture": "tiny",
        "img_size": 8,
        "num_classes": 10,
        "autoenc": {"checkpoint_path": str(root / "autoenc" / "autoencoder.safetensors")},
    }
    args = {
        "dataset": "digits",
        "crop": "center",
        "create_cache": True,
        "use_cache": True,
        "cache_scales": "model",
        "cached_path": str(root / "cached"),
        "epochs": 2,
        "batch_size": 50,
        "lr": 0.01,
        "ema": True,
        "device": "cpu",
        "dtype": "float32",
        "num_workers": 0,
        "log_freq": 1,
        "cfg": 1.0,
        "direction": "columns",
    }
    write_yaml(root / "tiny.yaml", {"model": model, "args": args})
    return root


def train(root: Path, folder: Path, *flags: str) -> Outcome:
    return call(main.main, "--config", str(root / "tiny.yaml"), "--output_dir", str(folder), *flags)


@pytest.fixture(scope="module")
def trained(root: Path) -> tuple[Path, Outcome]:
    """A run folder of two epochs, and what was printed on the way."""
    outcome = train(root, root / "trained")
    assert outcome.code == 0, outcome.err
    return root / "trained", outcome


@pytest.fixture(scope="module")
def run(trained: tuple[Path, Outcome]) -> Path:
    return trained[0]


def tiny(**overrides: Any) -> Tiny:
    """A model in eval mode whose every weight is random."""
    torch.manual_seed(0)
    model = Tiny(TinyConfig(**({"img_size": 8, "num_classes": 10} | overrides)), tiny_autoencoder(ch_mult=(1, 1)))
    randomize(model, std=0.5)
    return model.eval()


# The contract


@pytest.mark.quick
@pytest.mark.parametrize("direction", DIRECTIONS)
@torch.no_grad()
def test_sampling_equals_teacher_forcing(direction: Direction) -> None:
    """Guided: the probability of each drawn code and the entropy are those of one pass over the drawn codes."""
    model, labels, cfg = tiny(), torch.tensor([3, 7]), 1.5
    out = sample(model, labels, seeds=[1, 2], cfg=cfg, direction=direction)
    cond, uncond = (model(out.codes, each, direction)[0] for each in (labels, torch.full_like(labels, 10)))
    probs = (cond + cfg * (cond - uncond)).softmax(-1)
    order = model.order(direction)
    chosen = probs.gather(-1, join_scales(out.codes)[:, order, None]).squeeze(-1)
    torch.testing.assert_close(join_scales(out.probability)[:, order], chosen, atol=1e-5, rtol=0)
    torch.testing.assert_close(join_scales(out.entropy)[:, order], torch.special.entr(probs).sum(-1), atol=1e-4, rtol=0)
    assert torch.equal(join_scales(out.step)[:, order], torch.arange(EDGE * EDGE).expand(2, -1))
    assert model.num_steps(checked_drawing(model, {})) == EDGE * EDGE


@pytest.mark.quick
@pytest.mark.parametrize("direction", DIRECTIONS)
@torch.no_grad()
def test_a_code_reaches_the_neighbours_after_it_alone(direction: Direction) -> None:
    model, L = tiny(), EDGE * EDGE
    sequence = join_scales(random_codes(model, batch=1)).repeat(L, 1)
    changed = (sequence + torch.eye(L, dtype=torch.long)) % 64
    labels = torch.full((L,), 3)
    before, after = (model([s.view(L, EDGE, EDGE)], labels, direction)[0] for s in (sequence, changed))
    differs = (before != after).any(-1)  # (changed location, token)
    for token, location in enumerate(model.order(direction).tolist()):
        place = divmod(location, EDGE)
        for other in range(L):
            line, along = (b - a for a, b in zip(place, divmod(other, EDGE), strict=True))
            told = (line, along) if direction == "rows" else (along, line)
            assert differs[other, token] == (told in NEIGHBOURS)


@pytest.mark.quick
def test_the_steps_randomness_decides_the_loss() -> None:
    model = tiny(label_drop=0.5).train()
    codes, labels = random_codes(model, batch=8), torch.arange(8)

    def loss_of(seed: int, step: int, batch: int) -> Loss:
        return model.training_loss(codes, labels, step_context(seed, step, batch, CPU))

    assert torch.equal(loss_of(0, 1, 0).value, loss_of(0, 1, 0).value)
    assert len({loss_of(0, step, 0).value.item() for step in range(8)}) == 8
    assert loss_of(0, 1, 0).value != loss_of(0, 1, 1).value  # of one direction: other labels are dropped
    loss = loss_of(0, 1, 0)
    assert loss.metrics().keys() == {"accuracy"}
    loss.value.backward()
    loss_of(0, 2, 0).value.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


# Training


def test_it_trains_by_main(trained: tuple[Path, Outcome]) -> None:
    folder, outcome = trained
    log = read_log(folder)
    assert list(log) == list(range(1, 2 * STEPS + 1))
    assert log[1]["loss"] == pytest.approx(np.log(64), rel=1e-3)  # the head starts at 0
    assert np.mean([log[step]["loss"] for step in range(2 * STEPS - 4, 2 * STEPS + 1)]) < 0.8 * log[1]["loss"]
    assert log[2 * STEPS]["accuracy"] > log[1]["accuracy"]
    assert (folder / "samples" / "epoch_0002.png").exists()
    assert "scales 4;" in outcome.out
    assert "drawn digits, by the classifier" in outcome.out
    assert "architecture: tiny" in (folder / "config.yaml").read_text()
    assert "direction: columns" in (folder / "config.yaml").read_text()


def test_it_stops_at_a_signal_and_goes_on_bit_by_bit(
    root: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(13, monkeypatch, lambda: signal.raise_signal(signal.SIGTERM))
    assert train(root, tmp_path / "stopped").code == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert train(root, tmp_path / "stopped").code == 0
    assert [entry["step"] for entry in read_events(tmp_path / "stopped") if entry.get("event") == "start"] == [0, 14]
    assert_same_training(run, tmp_path / "stopped")


@pytest.mark.processes
def test_it_is_killed_and_goes_on_bit_by_bit(root: Path, run: Path, tmp_path: Path) -> None:
    """In the second epoch, whose steps are done again."""
    process = start_process(tmp_path / "output.txt", train_until_killed, root, tmp_path / "killed")
    assert exit_codes([process]) == [-signal.SIGKILL], (tmp_path / "output.txt").read_text()
    assert train(root, tmp_path / "killed").code == 0
    assert_same_training(run, tmp_path / "killed")
    assert read_log(tmp_path / "killed") == read_log(run)  # those that were logged twice were the same, too


def train_until_killed(root: Path, folder: Path) -> None:
    """For ``start_process``."""
    FAMILIES["tiny"] = FAMILY
    at_step(STEPS + 5, pytest.MonkeyPatch(), lambda: os.kill(os.getpid(), signal.SIGKILL))
    train(root, folder)


def at_step(step: int, patch: pytest.MonkeyPatch, act: Any) -> None:
    """Let something happen within a step of training."""
    training_loss = Tiny.training_loss

    def acting(self: Tiny, codes: Sequence[Tensor], labels: Tensor, context: StepContext) -> Loss:
        if context.step == step:
            act()
        return training_loss(self, codes, labels, context)

    patch.setattr(Tiny, "training_loss", acting)


def test_a_new_run_starts_from_its_weights(root: Path, run: Path, tmp_path: Path) -> None:
    outcome = train(root, tmp_path / "fine", "--weights_init", str(run), "--epochs", "1", "--lr", "0")
    assert f"9 of 9 tensors start from {run}" in outcome.out.replace("/checkpoint-last.pth", "")
    assert read_log(tmp_path / "fine")[1]["loss"] < 0.85 * read_log(run)[1]["loss"]
    outcome = train(root, tmp_path / "wide", "--weights_init", str(run), "--epochs", "1", "--width", "32")
    assert "has no weights that fit this model" in outcome.error()


# Sampling


def drawn(run: Path, folder: Path, *flags: str) -> Outcome:
    outcome = call(main_sample.main, "--checkpoint", str(run), "--device", "cpu", "--output_dir", str(folder), *flags)
    assert outcome.code == 0, outcome.err
    return outcome


def test_bulk_samples_do_not_depend_on_the_batch(run: Path, tmp_path: Path) -> None:
    for size in ("7", "50"):
        drawn(run, tmp_path / size, "--num_samples", "100", "--format", "npz", "--batch_size", size, "--save_codes")
    for name in ("samples.npz", "codes.npz"):
        one, other = (np.load(tmp_path / size / name) for size in ("7", "50"))
        assert all(np.array_equal(one[key], other[key]) for key in one)
    settings = json.loads((tmp_path / "7" / "samples.json").read_text())
    assert (settings["direction"], settings["cfg"]) == ("columns", 1.0)  # as the run's previews

    model = load_checkpoint(run)
    out = sample(model, [0, 1, 2], seeds=[0, 1, 2])
    assert model.class_names == [str(digit) for digit in range(10)]
    with np.load(tmp_path / "7" / "codes.npz") as codes:
        assert np.array_equal(codes["codes_4"][:3], out.codes[0].numpy())
    averaged = sample(load_checkpoint(run, use_ema=True), [0, 1, 2], seeds=[0, 1, 2])
    assert not torch.equal(averaged.codes[0], out.codes[0])


def sample_rank(argv: Sequence[str]) -> None:
    """``python main_sample.py ARGV`` on a rank, for ``start_ranks``."""
    FAMILIES["tiny"] = FAMILY
    main_sample.main(argv)


@pytest.mark.ranks
def test_two_ranks_draw_the_same_images(run: Path, tmp_path: Path) -> None:
    flags = ("--num_samples", "25", "--format", "npz", "--batch_size", "4", "--device", "cpu")
    argv = ("--checkpoint", str(run), *flags, "--output_dir", str(tmp_path / "two"))
    assert exit_codes(start_ranks(tmp_path, 2, sample_rank, argv)) == [0, 0], (tmp_path / "rank0.txt").read_text()
    drawn(run, tmp_path / "one", *flags)
    one, two = (np.load(tmp_path / name / "samples.npz") for name in ("one", "two"))
    assert all(np.array_equal(one[key], two[key]) for key in ("arr_0", "arr_1"))


def test_its_own_setting_is_a_flag(run: Path, tmp_path: Path) -> None:
    drawn(run, tmp_path / "columns", "--direction", "columns", "--save_codes", "--labels", "3,4")
    out = sample(load_checkpoint(run), [3, 4], seeds=[0, 1], direction="columns")
    with np.load(tmp_path / "columns" / "codes.npz") as codes:
        assert np.array_equal(codes["codes_4"], out.codes[0].numpy())


def test_maps_and_an_animation(run: Path, tmp_path: Path) -> None:
    drawn(run, tmp_path / "maps", "--labels", "3,4", "--maps", "--animation", "--save_codes", "--direction", "rows")
    with np.load(tmp_path / "maps" / "maps.npz") as maps:
        assert set(maps) == {"step_4", "entropy_4", "probability_4"}
        assert np.array_equal(maps["step_4"][0].ravel(), np.arange(EDGE * EDGE))
    with Image.open(tmp_path / "maps" / "animation.gif") as animation:
        assert 2 <= animation.n_frames <= EDGE * EDGE  # equal ones are shown as one, for longer
    assert (tmp_path / "maps" / "maps_000001.png").exists()
    assert (tmp_path / "maps" / "entropy_by_step.png").exists()


def test_an_image_is_edited(run: Path, tmp_path: Path) -> None:
    picture(8, 8, seed=1).save(tmp_path / "image.png")
    mask = Image.new("L", (8, 8))
    ImageDraw.Draw(mask).rectangle((0, 0, 7, 3), fill=255)  # the upper half is drawn anew
    mask.save(tmp_path / "mask.png")
    edit = ("--edit", str(tmp_path / "image.png"), "--mask", str(tmp_path / "mask.png"))
    drawn(run, tmp_path / "edited", *edit, "--labels", "1,2,3", "--save_codes")
    with np.load(tmp_path / "edited" / "codes.npz") as codes:
        lower = codes["codes_4"][:, EDGE // 2 :]
        assert (lower == lower[0]).all()
        assert len({image.tobytes() for image in codes["codes_4"]}) == 3
    with Image.open(tmp_path / "image.png") as before, Image.open(tmp_path / "edited" / "000000.png") as after:
        assert np.array_equal(np.array(before)[4:], np.array(after)[4:])


def test_random_weights_of_a_configuration(root: Path, tmp_path: Path) -> None:
    flags = ("--config", str(root / "tiny.yaml"), "--labels", "1", "--output_dir", str(tmp_path / "noise"))
    assert "expect noise" in call(main_sample.main, *flags).out
    assert (tmp_path / "noise" / "000000.png").exists()


# What it is measured by


def test_it_is_sampled_and_evaluated_in_one_command(run: Path, tmp_path: Path) -> None:
    flags = ("--features", "digits", "--num_samples", "100", "--device", "cpu", "--direction", "columns")
    command = ("--checkpoint", str(run), *flags, "--output_dir", str(tmp_path / "result"))
    outcome = call(evaluate.main, *command)
    assert outcome.code == 0, outcome.err
    result = json.loads((tmp_path / "result" / "result.json").read_text())
    assert result["run"]["direction"] == "columns"
    assert result["steps"] == EDGE * EDGE
    assert 0 < result["FD-digits-100"] < 1000
    assert 0 <= result["Class accuracy"] <= 1
    with np.load(tmp_path / "result" / "samples" / "samples.npz") as samples:
        assert samples["arr_0"].shape == (100, 8, 8, 3)

    samples = tmp_path / "result" / "samples" / "samples.npz"
    outcome = call(evaluator.main, str(DIGITS), str(samples), *flags[:2], "--output_file", str(tmp_path / "again.json"))
    assert outcome.code == 0, outcome.err
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["FD-digits-100"] == pytest.approx(result["FD-digits-100"], rel=1e-6)


def test_a_sweep_over_its_own_setting(run: Path, tmp_path: Path) -> None:
    flags = ("--features", "digits", "--num_samples", "20", "--device", "cpu", "--cfg", "0,2")
    command = ("--checkpoint", str(run), *flags, "--direction", "rows,columns", "--output_dir", str(tmp_path))
    outcome = call(sweep.main, *command)
    assert outcome.code == 0, outcome.err
    with (tmp_path / "sweep.csv").open() as table:
        rows = [(row["cfg"], row["direction"]) for row in csv.DictReader(table)]
    assert sorted(rows) == [("0.0", "columns"), ("0.0", "rows"), ("2.0", "columns"), ("2.0", "rows")]
    assert (tmp_path / "sweep.png").exists()


def test_a_row_of_the_benchmark(root: Path) -> None:
    args = BenchmarkArgs(drawing={"direction": "columns"}, repeats=1, device="cpu")
    name, batch, _, mode, *_, by_scale = measure_times(Case(str(root / "tiny.yaml"), "float32", 2, "eager", args))
    assert (name, batch, mode) == ("tiny", "2", "eager")
    assert float(by_scale) >= 0  # of one scale


# What is refused


def refusal(program: Any, *argv: str) -> str:
    return call(program, *argv).error()


def test_settings_of_another_family_are_refused(root: Path, run: Path, tmp_path: Path) -> None:
    target = ("--output_dir", str(tmp_path / "refused"))
    said = refusal(main_sample.main, "--checkpoint", str(run), "--steps_per_scale", "4", *target)
    assert said == "steps_per_scale means nothing to tiny, which has cfg, temperature, top_k, top_p, direction"
    said = refusal(main_sample.main, "--checkpoint", str(FIXTURES / "tiny-2x"), "--direction", "rows", *target)
    assert said.startswith("direction means nothing to checkerboard, which has cfg, ")
    assert (
        "--steps_per_scale belongs to architecture checkerboard"
        in train(root, tmp_path / "refused", "--steps_per_scale", "4").error()
    )
    with pytest.raises(UserError, match="cfg_start_step means nothing to tiny"):
        sample(tiny(), [1], cfg_start_step=3)
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (("--direction", "diagonals"), "direction is diagonals; it must be one of rows, columns"),
        (("--cfg", "[1, 2]"), "cfg has 2 values; give one number, or one for each of the scales 4"),
        (("--temperature", "-1"), "temperature is -1.0"),
        (("--labels", "11"), "label 11 is out of range"),
    ],
)
def test_impossible_settings_are_refused(flags: Sequence[str], answer: str, run: Path, tmp_path: Path) -> None:
    target = ("--output_dir", str(tmp_path / "refused"))
    assert refusal(main_sample.main, "--checkpoint", str(run), *flags, *target).startswith(answer)


def test_what_it_cannot_do_is_one_sentence(root: Path, run: Path, tmp_path: Path) -> None:
    said = refusal(export.main, "--checkpoint", str(run), "--output_dir", str(tmp_path / "exported"))
    assert said.endswith("is a model of tiny, which has no published layout")
    for flag in ("--compile", "--activation_checkpointing", "--attention=flex"):
        assert train(root, tmp_path / "refused", flag).error().startswith("tiny has neither attention ")
    assert train(root, tmp_path / "refused", "--label_drop", "2").error().startswith("label_drop is a probability")


def test_a_run_of_another_family_is_not_gone_on_with(root: Path, run: Path) -> None:
    before = (run / "checkpoint-last.pth").read_bytes()
    flags = ("--img_size", "8", "--num_classes", "10", "--dataset", "digits", "--output_dir", str(run))
    weights = ("--autoenc.checkpoint_path", str(root / "autoenc" / "autoencoder.safetensors"))
    assert "architecture tiny, not checkerboard" in refusal(main.main, *flags, *weights, "--crop", "center")
    assert (run / "checkpoint-last.pth").read_bytes() == before


@pytest.mark.parametrize("section", ["architecture: tinny", "architecture: 3", "architecture: [tiny]"])
def test_an_unknown_family_is_named(section: str, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text(f"model: {{{section}}}\n")
    said = refusal(main.main, "--config", str(tmp_path / "other.yaml"))
    assert said.endswith("is unknown; known are checkerboard, llamagen, randar, tiny")


@pytest.mark.parametrize("section", ["3", "[1]", "tiny"])
def test_a_model_section_that_is_none_is_refused(section: str, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text(f"model: {section}\n")
    for program in (main.main, main_sample.main):
        said = refusal(program, "--config", str(tmp_path / "other.yaml"))
        assert "not settings" in said
