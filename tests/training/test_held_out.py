"""The loss of held-out images while a model trains."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from evaluation.likelihood import evenly_spaced, held_out_images
from models.checkerboard.config import CheckerboardDrawing as Drawing
from runtime import distributed
from runtime.errors import UserError
from tests.factory import randomize
from tests.training_factory import exit_codes, fresh_model, start_ranks, tiny_args, tiny_trainer
from training.held_out import HeldOutLoss

pytestmark = pytest.mark.quick
ARGS = tiny_args(dataset="digits", val_images=20, batch_size=8)


def model(**overrides: bool) -> torch.nn.Module:
    torch.manual_seed(0)
    made = fresh_model(**overrides)
    randomize(made)
    return made.eval()


def test_it_is_the_likelihood_of_the_same_images() -> None:
    """Of a model whose blocks are the same in training: 8 steps a scale."""
    scored = model(random_block_size=False)
    ((pixels, labels),) = evenly_spaced(held_out_images(scored, "digits", ""), 20, 20)
    with torch.no_grad():
        logits, codes = scored.score(scored.tokenize(pixels), labels, drawing=Drawing(steps_per_scale=8))
    expected = float(F.cross_entropy(logits.flatten(0, 1), codes.flatten()))
    assert HeldOutLoss(scored, ARGS).measure(scored) == pytest.approx(expected, rel=1e-5)


def test_it_is_the_same_each_time_and_of_the_weights_given() -> None:
    measured, other = model(), model()
    randomize(other)
    held_out = HeldOutLoss(measured, ARGS)
    torch.manual_seed(1)
    first = held_out.measure(measured)
    assert held_out.measure(measured) == first
    assert held_out.measure(other) != first


def test_a_run_logs_it_and_is_otherwise_the_same(tmp_path: Path) -> None:
    losses = []
    for folder, args in (
        (tmp_path / "a", {"val_images": 20, "eval_freq": 1, "dataset": "digits"}),
        (tmp_path / "b", {}),
    ):
        tiny_trainer(folder, **args).fit()
        entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        losses.append([entry["loss"] for entry in entries if "loss" in entry])
        found = {entry["epoch"]: entry["val_loss"] for entry in entries if "val_loss" in entry}
        assert list(found) == ([1, 2] if args else [])
    assert losses[0] == losses[1]
    assert found == {} or found[2] < found[1]


def measure_on_rank(expected: float) -> None:
    """For ``start_ranks``."""
    distributed.set_up(torch.device("cpu"))
    measured = model()
    assert HeldOutLoss(measured, ARGS).measure(measured) == pytest.approx(expected, rel=1e-6)
    distributed.tear_down()


@pytest.mark.ranks
def test_ranks_share_the_images(tmp_path: Path) -> None:
    measured = model()
    expected = HeldOutLoss(measured, ARGS).measure(measured)
    assert exit_codes(start_ranks(tmp_path, 2, measure_on_rank, expected)) == [0, 0], (
        tmp_path / "rank1.txt"
    ).read_text()


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(UserError, match="297 images are held out; lower it"):
        HeldOutLoss(model(), tiny_args(dataset="digits", val_images=298))
    for given in ({"code_paths": ("codes",)}, {"shard": True}):
        with pytest.raises(UserError, match="leave"):
            tiny_args(val_images=8, **given)
    with pytest.raises(UserError, match="must not be negative"):
        tiny_args(val_images=-1)
