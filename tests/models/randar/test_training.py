"""Training: orders, dropout, dropped labels, the learning rate, and going on exactly.

Letters: B batch, L locations, D width.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from models.family import Generator, Loss, StepContext
from models.randar.config import RandARDrawing
from models.randar.model import RandAR
from runtime.command import Stopped
from runtime.errors import UserError
from tests.factory import CPU, random_codes
from tests.randar_factory import TINY_GPT, L, tiny_randar
from tests.training_factory import DigitCodes, assert_same_training, losses, read_log, tiny_args
from training.generator import GeneratorTask
from training.options import TrainArgs
from training.schedules import cosine_factor
from training.task import step_context
from training.trainer import Trainer

pytestmark = pytest.mark.quick
LABELS = torch.tensor([3, 7, 3])


def orders_of(model: RandAR, context: StepContext, batch: int = 3) -> Tensor | None:
    """The orders (B, L) that a step of training takes; None is raster order."""
    seen: list[Tensor | None] = []
    in_order = model.in_order

    def keep(codes: Sequence[Tensor], order: Tensor | None) -> Tensor:
        seen.append(order)
        return in_order(codes, order)

    model.in_order = keep
    model.training_loss(random_codes(model, batch), torch.full((batch,), 3), context)
    model.in_order = in_order
    return seen[-1]


def loss_of(model: RandAR, step: int, batch: int = 0) -> float:
    """Of random codes, as in this step of a run."""
    with torch.no_grad():
        return model.training_loss(random_codes(model, 3), LABELS, step_context(0, step, batch, CPU)).value.item()


# Orders


def test_every_image_and_step_has_an_order_of_its_own() -> None:
    """By the rank's generator alone, whatever was drawn before; the global one is left as it was."""
    model = tiny_randar().train()
    torch.rand(7)
    state = torch.get_rng_state()
    found = [orders_of(model, step_context(0, *place, CPU)) for place in ((0, 0), (1, 0), (0, 1), (0, 0))]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found[0], found[3])
    rows = torch.cat(found[:3])
    assert torch.equal(rows.sort(dim=1).values, torch.arange(L).expand(9, -1))
    assert len({tuple(row) for row in rows.tolist()}) == 9


def test_orders_are_uniform() -> None:
    """Each location comes at each place as often: 2,000 images, 125 expected."""
    order = orders_of(tiny_randar(), step_context(0, 0, 0, CPU), batch=2000)
    counts = torch.stack([torch.bincount(order[:, place], minlength=L) for place in range(L)])
    chi_square = ((counts - 125).square() / 125).sum().item()
    assert abs(chi_square - 225) < 6 * math.sqrt(2 * 225)


@pytest.mark.parametrize("share", [0.0, 0.03, 0.25, 0.6, 1.0])
def test_a_share_of_raster_order_is_permuted(share: float) -> None:
    """As the adaptive recipe of the baseline does: other places for each image, the rest stays where it is."""
    model, rng = tiny_randar(), torch.Generator().manual_seed(0)
    order = model.draw_order(500, rng, share)
    assert torch.equal(order.sort(dim=1).values, torch.arange(L).expand(500, -1))
    moved, count = order != torch.arange(L), int(share * L)
    assert moved.sum(1).max() == (count if count > 1 else 0)
    if count > 1:  # of a permutation of n, one stays on average
        assert moved.float().sum(1).mean().item() == pytest.approx(count - 1, abs=0.2)
        assert moved.float().mean(0).std() < 0.05  # every place as often
    assert model.draw_order(3, rng, share).shape == (3, L)
    assert tiny_randar(scan_order="raster").draw_order(3, rng, share) is None


def test_a_raster_model_is_trained_in_raster_order() -> None:
    model = tiny_randar(scan_order="raster", dropout=0.0, label_drop=0.0).train()
    assert orders_of(model, step_context(0, 0, 0, CPU)) is None
    codes = random_codes(model, 3)
    loss = model.training_loss(codes, LABELS, step_context(0, 0, 0, CPU))
    logits, value = model(codes, LABELS)
    torch.testing.assert_close(loss.value, value, atol=0, rtol=1e-6)
    hits = (logits.argmax(-1) == codes[0].flatten(1)).float().mean()
    assert loss.metrics()["accuracy"].item() == pytest.approx(hits.item())


def test_accuracy_is_of_the_codes_as_drawn() -> None:
    model, context = tiny_randar(dropout=0.0, label_drop=0.0).train(), step_context(0, 4, 0, CPU)
    codes, order = random_codes(model, 3), orders_of(model, step_context(0, 4, 0, CPU))
    loss = model.training_loss(codes, LABELS, context)
    logits, value = model(codes, LABELS, order)
    torch.testing.assert_close(loss.value, value, atol=0, rtol=1e-6)
    hits = (logits.argmax(-1) == codes[0].flatten(1).gather(1, order)).float().mean()
    assert loss.metrics()["accuracy"].item() == pytest.approx(hits.item())


# Dropout


def test_noise_follows_from_the_step() -> None:
    model = tiny_randar(scan_order="raster", dropout=0.1, label_drop=0.0).train()
    found = [loss_of(model, step) for step in (0, 1, 2)]
    torch.rand(7)
    state = torch.get_rng_state()
    assert [loss_of(model, step) for step in (2, 1, 0)] == found[::-1]
    assert torch.equal(torch.get_rng_state(), state)
    assert len({*found, loss_of(model, 0, batch=1), loss_of(model.eval(), 0)}) == 5


def test_tokens_of_codes_are_dropped_and_no_others() -> None:
    """Neither the class token nor an instruction; number by number."""
    model, seen = tiny_randar(dropout=0.25), []
    hook = model.layers[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    codes, labels = random_codes(model, 50), torch.full((50,), 3)
    for training in (False, True):
        model.train(training)(codes, labels)
    hook.remove()
    kept, dropped = seen
    assert kept.shape == (50, 2 * L, 32)
    assert torch.equal(dropped[:, 0], kept[:, 0])
    assert torch.equal(dropped[:, 1::2], kept[:, 1::2])
    zeros = dropped[:, 2::2] == 0
    assert 0.22 < zeros.float().mean() < 0.28
    torch.testing.assert_close(dropped[:, 2::2][~zeros], kept[:, 2::2][~zeros] / 0.75)


def test_labels_are_dropped_in_training_alone() -> None:
    model, seen = tiny_randar(dropout=0.0, label_drop=0.3), []
    codes, labels = [torch.zeros(1000, 4, 4, dtype=torch.long)], torch.arange(1000) % 10
    embed = model.embed_labels
    model.embed_labels = lambda labels: seen.append(labels) or embed(labels)
    for training in (True, False):
        model.train(training).training_loss(codes, labels, step_context(0, 0, 0, CPU))
    dropped = seen[0] == 10
    assert 0.25 < dropped.float().mean() < 0.35
    assert torch.equal(seen[0][~dropped], labels[~dropped])
    assert torch.equal(seen[1], labels)


# How the loss is computed


def gradients(model: RandAR, **how: Any) -> list[Tensor]:
    model.prepare_training(**{"attention": "sdpa", "compiled": False, "activation_checkpointing": False} | how)
    model.train().training_loss(random_codes(model, 3), LABELS, step_context(0, 5, 0, CPU)).value.backward()
    return [parameter.grad for parameter in model.parameters()]


def test_activation_checkpointing_has_no_effect_on_numbers() -> None:
    """Each layer is computed again, with what it dropped the first time."""
    runs: list[Any] = []
    checkpointed = tiny_randar(dropout=0.3)
    checkpointed.layers[0].register_forward_pre_hook(lambda module, inputs: runs.append(module))
    plain = gradients(tiny_randar(dropout=0.3))
    for one, other in zip(plain, gradients(checkpointed, activation_checkpointing=True), strict=True):
        torch.testing.assert_close(other, one, atol=1e-6, rtol=1e-5)
    assert len(runs) == 2


def test_compiling_changes_no_gradient() -> None:
    """Traced and differentiated as ever; only the slow last part, writing C++, is left out."""
    quiet = {"dropout": 0.0, "llama_config": replace(TINY_GPT, num_hidden_layers=1)}
    with patch("torch.compile", side_effect=partial(torch.compile, backend="aot_eager")) as compiled:
        found = gradients(tiny_randar(**quiet), compiled=True)
    assert compiled.called
    for one, other in zip(gradients(tiny_randar(**quiet)), found, strict=True):
        torch.testing.assert_close(other, one, atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_autocast_to_bfloat16_follows_float32() -> None:
    """The loss itself is of float32 logits."""
    model = tiny_randar(dropout=0.0, label_drop=0.0).train()
    exact = loss_of(model, 0)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.training_loss(random_codes(model, 3), LABELS, step_context(0, 0, 0, CPU)).value
    assert rounded.dtype == torch.float32
    assert 0 < abs(rounded.item() - exact) < 0.02 * exact


def test_flex_attention_is_refused() -> None:
    with pytest.raises(UserError, match=r"^randar has the attention sdpa alone"):
        GeneratorTask(tiny_randar(), tiny_args(attention="flex"), RandARDrawing())


def test_embeddings_head_and_instruction_decay_and_norms_do_not(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, tiny_randar(), weight_decay=0.05)
    groups = trainer.state.optimizer.param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    for key, parameter in trainer.state.module.named_parameters():
        assert (id(parameter) in decayed) == ("norm" not in key), key
    assert id(trainer.state.module.pos_instruct_embeddings) in decayed


# The learning rate


def published_rate(iteration: int, warmup: int, total: int, lr: float = 4e-4) -> float:
    """As formats.md R4 says it: linear from 0, then along a half cosine to 5 %; iterations count from 0."""
    if iteration < warmup:
        return lr * iteration / warmup
    r = (1 + math.cos(math.pi * (iteration - warmup) / (total - warmup))) / 2
    return lr * (0.05 * (1 - r) + r)


@pytest.mark.parametrize(("epochs", "warmup_epochs", "steps"), [(8, 1.0, 5), (36, 5.0, 10), (4, 0.5, 20), (6, 0.0, 7)])
def test_the_published_rates(epochs: int, warmup_epochs: float, steps: int) -> None:
    args = tiny_args(schedule="cosine", epochs=epochs, warmup_epochs=warmup_epochs, lr=4e-4, end_lr=2e-5)
    rates = [args.lr_at(step / steps, steps) for step in range(epochs * steps + 1)]
    warmup = round(warmup_epochs * steps)
    expected = [published_rate(step, warmup, epochs * steps) for step in range(epochs * steps + 1)]
    np.testing.assert_allclose(rates, expected, rtol=1e-9, atol=1e-18)
    assert rates[-1] == pytest.approx(2e-5)
    assert args.lr_at(epochs + 3.5, steps) == pytest.approx(2e-5)  # of a run that went on
    if warmup:
        assert rates[0] == 0


def test_a_warm_up_of_the_whole_run_never_falls() -> None:
    """As the command line of the baseline has it, whose iterations end where the warm-up does."""
    rates = [cosine_factor(step / 5, epochs=4, warmup_epochs=4.0, end_factor=0.05) for step in range(20)]
    assert rates == pytest.approx([step / 20 for step in range(20)])
    assert cosine_factor(4.0, epochs=4, warmup_epochs=5.0, end_factor=0.05) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({"schedule": "cosine", "decay_ratio": 0.3}, "^decay_ratio means nothing with schedule cosine"),
        ({"schedule": "cosine", "lr_drops": {3: 0.1}}, "^lr_drops means nothing with schedule cosine"),
        ({"schedule": "cosine", "end_lr": -1e-5}, "^end_lr is -1e-05"),
        ({"schedule": "cosine", "lr": 0.0}, "^lr is 0; schedule cosine needs a learning rate above 0"),
    ],
    ids=str,
)
def test_settings_of_the_schedule_that_make_no_sense_are_refused(settings: dict[str, Any], answer: str) -> None:
    with pytest.raises(UserError, match=answer):
        TrainArgs(**settings)


# A run


class Task(GeneratorTask):
    """Draws no grids."""

    def show(self, module: Generator, folder: Path, name: str) -> Iterator[dict[str, float]]:
        return iter(())


SETTINGS = {"epochs": 3, "schedule": "cosine", "warmup_epochs": 0.5, "end_lr": 1.5e-4, "clip_grad": 1.0}


def fresh_randar() -> RandAR:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return RandAR(tiny_randar(vocab_size=17).config)


def trainer_of(
    folder: Path, model: RandAR, task: type[Task] = Task, data: Dataset | None = None, **args: Any
) -> Trainer:
    """``args`` are fields of TrainArgs; by default 10 steps an epoch of digits."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = tiny_args(**args)
    return Trainer(task(model, settings, RandARDrawing()), data or DigitCodes(80, [4]), settings, folder, CPU, {})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("randar")
    trainer = trainer_of(folder, fresh_randar(), **SETTINGS)
    rates: list[float] = []
    trainer.state.optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    trainer.fit()
    np.testing.assert_allclose(rates, [published_rate(step, 5, 30, lr=3e-3) for step in range(30)], rtol=1e-9)
    return folder


def test_a_run_begins_at_ln_v_and_learns(undisturbed: Path) -> None:
    found = losses(undisturbed)
    assert found[0] == pytest.approx(math.log(17), rel=1e-6)
    assert found[-1] < 0.9 * found[0]


@pytest.mark.parametrize("last", [0, 7, 9, 10, 23])
def test_a_run_stopped_anywhere_goes_on_as_if_it_had_not_been(last: int, undisturbed: Path, tmp_path: Path) -> None:
    """With the orders, the dropout and the rate that it would have had."""

    class StopTask(Task):
        def loss(self, batch: list[Any], context: StepContext) -> Loss:
            trainer.stop.number = 15 * (context.step == last)
            return super().loss(batch, context)

    trainer = trainer_of(tmp_path, fresh_randar(), StopTask, **SETTINGS)
    with pytest.raises(Stopped):
        trainer.fit()
    assert trainer.state.step == last + 1
    torch.rand(7)
    trainer_of(tmp_path, fresh_randar(), **SETTINGS).fit()
    assert_same_training(undisturbed, tmp_path)
    assert read_log(tmp_path) == read_log(undisturbed)
