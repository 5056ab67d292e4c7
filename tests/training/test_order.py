"""The adaptive order of RandAR's CIFAR-10 baseline: which locations move, how many, and a run that goes on."""

from typing import Any

import pytest
import torch

from evaluation.likelihood import CodeScores
from models.family import StepContext
from models.llamagen.config import LlamaConfig
from models.randar.config import RandARConfig
from models.randar.model import RandAR
from runtime.errors import UserError
from tests.factory import randomize, tiny_autoencoder
from training import order
from training.options import TrainArgs
from training.task import step_context

pytestmark = pytest.mark.quick
SIZE = LlamaConfig(hidden_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=1)


def model(**overrides: Any) -> RandAR:
    """Of 4 x 4 codes out of 64, of digits of 8 px."""
    torch.manual_seed(0)
    config = {"img_size": 8, "num_classes": 10, "vocab_size": 64, "llama_config": SIZE}
    made = RandAR(RandARConfig(**(config | overrides)), tiny_autoencoder(ch_mult=(1, 1)))
    randomize(made)
    return made.train()


def digits() -> TrainArgs:
    return TrainArgs(dataset="digits", adaptive_order=True, device="cpu")


def at(step: int, batch: int = 0) -> StepContext:
    return step_context(0, step, batch, torch.device("cpu"))


@pytest.mark.parametrize("share", [0.0, 0.05, 0.25, 0.6, 0.99, 1.0])
def test_so_many_places_of_raster_order_are_permuted(share: float) -> None:
    drawn = model().draw_order(400, torch.Generator().manual_seed(1), share)
    raster = torch.arange(16).expand(400, -1)
    assert torch.equal(drawn.sort(dim=1).values, raster)
    moved = (drawn != raster).sum(1)
    count = int(share * 16)
    assert moved.max() <= count
    if count > 3:  # a permutation of n leaves one in place on average
        assert (moved.float().mean() - (count - 1)).abs() < 0.2
        assert (drawn != raster).float().mean(0).min() > 0.5 * (count - 1) / 16  # anywhere


def test_the_share_follows_the_calibration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "FIRST_STEPS", 40)
    monkeypatch.setattr(order, "EVERY", 20)
    errors = iter([0.02, 0.2, 0.01])
    adaptive = order.AdaptiveOrder(model(), digits())
    monkeypatch.setattr(adaptive, "_calibration_error", lambda: next(errors))
    shares = [adaptive.share_of(at(step)) for step in (0, 20, 39, 40, 41, 59, 60, 79, 80, 81)]
    assert shares == pytest.approx([1.0, 1.0, 1.0, 0.4, 0.4, 0.4, 1.0, 1.0, 0.2, 0.2])
    assert adaptive.share_of(at(100, batch=1)) == pytest.approx(0.2)  # of a step's first batch alone


def test_the_error_is_that_of_held_out_codes_in_raster_order() -> None:
    trained = model()
    adaptive = order.AdaptiveOrder(trained, digits())
    codes, labels = (torch.cat(parts) for parts in zip(*((maps[-1], of) for maps, of in adaptive.batches), strict=True))
    assert len(codes) == len(labels) > 100
    found = adaptive._calibration_error()
    assert trained.training
    scores = CodeScores()
    with torch.no_grad():
        logits, _ = trained.eval()([codes], labels)
    scores.add(logits, codes.flatten(1))
    assert found == pytest.approx(scores.results()["ece"], rel=1e-4)


def test_it_needs_a_random_order_and_images() -> None:
    with pytest.raises(UserError, match="adaptive_order needs architecture randar and scan_order random"):
        order.AdaptiveOrder(model(scan_order="raster"), digits())
    with pytest.raises(UserError, match="adaptive_order measures on held-out images"):
        TrainArgs(adaptive_order=True, code_paths=("codes",))


def test_scores_against_their_definition() -> None:
    """Of three tokens of two codes: confidences 0.9 (right), 0.9 (wrong) and 0.6 (right)."""
    scores = CodeScores()
    probs = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4]])
    scores.add(probs[:2].log()[None], torch.tensor([[0, 0]]))
    scores.add(probs[2:].log()[None], torch.tensor([[0]]))
    nats = -(torch.tensor([0.9, 0.1, 0.6]).log().mean())
    found = scores.results()
    assert found["nats_per_token"] == pytest.approx(float(nats))
    assert found["perplexity"] == pytest.approx(float(nats.exp()))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["ece"] == pytest.approx((abs(1.8 - 1) + abs(0.6 - 1)) / 3)
