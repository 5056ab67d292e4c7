"""Stages of Next Patch Prediction and the learning rate, against the published code and formats.md G5's examples."""

import math
from typing import Any

import numpy as np
import pytest

from runtime.errors import UserError
from tests.factory import load_reference
from tests.llamagen_factory import REFERENCES
from tests.training_factory import tiny_args
from training.options import TrainArgs
from training.schedules import lr_factor, patch_side

pytestmark = pytest.mark.quick
PUBLISHED = [(name, number) for name in REFERENCES for number in range(7)]
STAGES = ("epochs", "patch_level", "epoch_rate")


def sides(epochs: int, patch_level: int, epoch_rate: float = 0.5) -> list[int]:
    """Of every epoch, and of three past the last."""
    return [
        patch_side(epoch, epochs=epochs, patch_level=patch_level, epoch_rate=epoch_rate) for epoch in range(epochs + 3)
    ]


def ends(epochs: int, patch_level: int, epoch_rate: float) -> list[int]:
    """Epochs at which the side halves, and the last."""
    found = sides(epochs, patch_level, epoch_rate)[:epochs]
    return [epoch for epoch in range(1, epochs) if found[epoch] != found[epoch - 1]] + [epochs]


@pytest.mark.parametrize(("name", "number"), PUBLISHED)
def test_published_stages_and_rates(name: str, number: int) -> None:
    reference = load_reference(name)
    settings, expected = reference.settings["schedules"][number], reference[f"schedule_{number}_factor"].numpy()
    stages = {key: settings[key] for key in STAGES}
    found = [patch_side(epoch, **stages) for epoch in range(settings["epochs"])]
    assert found == reference[f"schedule_{number}_side"].tolist()
    assert len(expected) == settings["epochs"] * settings["steps_per_epoch"]
    factors = [lr_factor(step, **settings) for step in range(len(expected))]
    np.testing.assert_allclose(factors, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("epochs", "level", "rate", "expected"),
    [
        (300, 1, 0.5, [300]),
        (300, 0, 0.5, [300]),
        (300, 2, 0.5, [150, 300]),
        (300, 3, 0.5, [75, 150, 300]),
        (300, 4, 0.5, [37, 75, 150, 300]),
        (300, 4, 0.67, [90, 134, 201, 300]),
        (50, 2, 0.58, [28, 50]),  # 50 * 0.58 is 28.999..
    ],
)
def test_stages_of_the_reference(epochs: int, level: int, rate: float, expected: list[int]) -> None:
    assert ends(epochs, level, rate) == expected
    assert sides(epochs, level, rate)[0] == 2 ** (max(1, level) - 1)
    assert sides(epochs, level, rate)[-3:] == [1, 1, 1]


def test_a_stage_may_be_empty() -> None:
    assert sides(3, 4, 0.5) == [2, 1, 1, 1, 1, 1]  # ends 0, 0, 1, 3
    assert sides(2, 3, 1.0) == [4, 4, 1, 1, 1]  # all end together


def test_past_the_end_the_rate_stays() -> None:
    """The published code goes on with lr itself as the factor."""
    settings = {"epochs": 4, "steps_per_epoch": 5, "patch_level": 2, "epoch_rate": 0.5, "lr": 2e-4, "end_lr": 1e-5}
    assert [lr_factor(step, **settings) for step in (20, 21, 1000)] == [0.05] * 3


@pytest.mark.parametrize(("warmup", "decay"), [(0.0, 0.2), (1.0, 0.0), (0.0, 0.0), (0.3, 1.0), (5.0, 0.2), (1.5, 0.7)])
def test_any_warm_up_and_decay_make_a_rate(warmup: float, decay: float) -> None:
    """Between 0 and 1, in every stage alike; with a decay it ends near end_lr."""
    settings = {"epochs": 8, "steps_per_epoch": 5, "patch_level": 2, "epoch_rate": 0.5}
    settings |= {"warmup_epochs": warmup, "decay_ratio": decay}
    factors = [lr_factor(step, **settings) for step in range(40)]
    assert all(0 <= factor <= 1 and math.isfinite(factor) for factor in factors)
    assert factors[:20] == factors[20:]
    assert (factors[0] == 0) == (warmup > 0)
    if decay and warmup < 4 * (1 - decay):
        assert factors[19] == pytest.approx(0.1 + 0.9 / (20 * decay))


def test_a_run_trains_by_them() -> None:
    """Stages follow the epoch, the rate the step."""
    reference = load_reference("tiny-npp")
    settings = reference.settings["schedules"][1]
    given = {key: value for key, value in settings.items() if key != "steps_per_epoch"}
    args, n = tiny_args(schedule="stages", **given), settings["steps_per_epoch"]
    rates = [args.lr_at(step / n, n) for step in range(n * args.epochs)]
    np.testing.assert_allclose(rates, args.lr * reference["schedule_1_factor"].numpy(), rtol=1e-9, atol=0)
    assert [args.patch_side(epoch) for epoch in range(args.epochs)] == reference["schedule_1_side"].tolist()
    constant = tiny_args(warmup_epochs=0, patch_level=2)
    assert {constant.lr_at(step / 3, 3) for step in range(9)} == {constant.lr}


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({"patch_level": 5}, r"^patch_level is 5; it must be at most 4, and 1 for single codes alone$"),
        ({"patch_level": 2, "epoch_rate": 0.0}, r"^epoch_rate is 0.0; it must lie above 0 and be at most 1$"),
        ({"patch_level": 2, "epoch_rate": 1.1}, r"^epoch_rate is 1.1; it must lie above 0 and be at most 1$"),
        ({"patch_level": 2, "epoch_rate": math.nan}, r"^epoch_rate is nan; "),
    ],
)
def test_stages_that_make_no_sense_are_refused(settings: dict[str, Any], answer: str) -> None:
    stages = {"epochs": 4, "patch_level": 1, "epoch_rate": 0.5} | settings
    for call in (
        lambda: patch_side(0, **stages),
        lambda: lr_factor(0, steps_per_epoch=3, **stages),
        lambda: TrainArgs(**settings),
    ):
        with pytest.raises(UserError, match=answer):
            call()


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({"end_lr": 1e-6}, r"^end_lr means nothing with schedule drops"),
        ({"ema_decay": 0.99}, r"^ema_decay means nothing with ema false; set ema true, or set ema_decay 0.9999$"),
        ({"ema_warmup": False}, r"^ema_warmup means nothing with ema false; set ema true, or set ema_warmup true$"),
        ({"decay_ratio": 0.3}, r"^decay_ratio means nothing with schedule drops"),
        (
            {"epoch_rate": 0.6},
            r"^epoch_rate means nothing .* patch_level 1; leave it out, or set epoch_rate 0\.5$",
        ),
        ({"schedule": "stages", "lr_drops": {3: 0.1}}, r"^lr_drops means nothing with schedule stages"),
        ({"schedule": "stages", "end_lr": -1e-6}, r"^end_lr is -1e-06"),
        (
            {"schedule": "stages", "decay_ratio": 1.5},
            r"^decay_ratio is a probability; 1.5 does not lie between 0 and 1$",
        ),
        ({"schedule": "stages", "lr": 0.0}, r"^lr is 0"),
    ],
)
def test_settings_of_a_schedule_that_is_not_used_are_refused(settings: dict[str, Any], answer: str) -> None:
    with pytest.raises(UserError, match=answer):
        TrainArgs(**settings)
