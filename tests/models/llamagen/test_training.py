"""Training: the published trajectory, dropout and dropped labels and paths, averages, stages and going on in them."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from models.family import Generator, Loss, StepContext
from models.llamagen.config import LlamaGenDrawing
from models.llamagen.model import LlamaGen
from models.llamagen.patches import pair_rotation
from models.transformer import SameRotation
from runtime.command import Stopped
from runtime.errors import UserError
from tests.factory import CPU, load_reference, random_codes
from tests.llamagen_factory import REFERENCES, TINY_GPT, tiny_gpt
from tests.training_factory import DigitCodes, assert_same_training, losses, read_log, tiny_args
from training.generator import GeneratorTask
from training.task import step_context
from training.trainer import Trainer

pytestmark = pytest.mark.quick
slow = pytest.mark.skipif("RUN_SLOW" not in os.environ, reason="compiles C++ for up to a minute; set RUN_SLOW=1")
LABELS = torch.tensor([3, 7, 3])


class Task(GeneratorTask):
    """Draws no grids; keeps the patch side of every step."""

    def __init__(self, module: Generator, *settings: Any) -> None:
        super().__init__(module, *settings)
        self.sides: list[int] = []
        plain_loss = module.training_loss

        def training_loss(codes: Sequence[Tensor], labels: Tensor, context: StepContext) -> Loss:
            self.sides.append(context.patch_side)
            return plain_loss(codes, labels, context)

        module.training_loss = training_loss

    def show(self, module: Generator, folder: Path, name: str) -> Iterator[dict[str, float]]:
        return iter(())


def trainer_of(folder: Path, model: LlamaGen, data: Dataset, task: type[Task] = Task, **args: Any) -> Trainer:
    """``args`` are fields of TrainArgs."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = tiny_args(**args)
    return Trainer(task(model, settings, LlamaGenDrawing()), data, settings, folder, CPU, {})


# The published recipe


class OneBatch(Dataset):
    """The same batch in every step."""

    num_crops = 1

    def __init__(self, codes: Tensor, labels: Tensor, steps: int) -> None:
        self.batch, self.count = ([codes], labels), steps * len(labels)

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, items: list[tuple[int, int]]) -> tuple[list[Tensor], Tensor]:
        return self.batch

    def collate(self, batch: tuple[list[Tensor], Tensor]) -> tuple[list[Tensor], Tensor]:
        return batch


@pytest.mark.parametrize("name", REFERENCES)
def test_twelve_steps_of_the_published_training(name: str, tmp_path: Path) -> None:
    """Loss, gradient, rate and side of each, through two stages of tiny-npp; the weights at the end."""
    reference = load_reference(name)
    recipe, loaded = reference.settings["training"], reference.model()
    model = LlamaGen(replace(loaded.config, dropout=0.0, label_drop=0.0))
    model.load_state_dict(loaded.state_dict())
    data = OneBatch(reference["codes"], reference["labels"], recipe["steps_per_epoch"])
    args = {key: recipe[key] for key in ("lr", "weight_decay", "epochs")} | {"betas": tuple(recipe["betas"])}
    args |= {"clip_grad": recipe["max_grad_norm"], "batch_size": len(reference["labels"]), "warmup_epochs": 0}
    if "warmup_epochs" in recipe:
        stages = ("patch_level", "epoch_rate", "warmup_epochs", "decay_ratio", "end_lr")
        args |= {"schedule": "stages"} | {key: recipe[key] for key in stages}
    trainer, rates = trainer_of(tmp_path, model, data, **args), []
    trainer.state.optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    trainer.fit()
    log = read_log(tmp_path)
    np.testing.assert_allclose([log[step]["loss"] for step in range(1, 13)], reference["train_loss"], atol=2e-5, rtol=0)
    norms = [log[step]["grad_norm"] for step in range(1, 13)]
    np.testing.assert_allclose(norms, reference["train_grad_norm"], rtol=1e-4)
    np.testing.assert_allclose(rates, reference["train_lr"], rtol=1e-9, atol=0)
    assert trainer.task.sides == reference["train_side"].tolist()
    weights = dict(model.named_parameters())
    expected = {key.removeprefix("train_norm/"): v for key, v in reference.expected.items() if "train_norm/" in key}
    assert len(expected) == 9
    for key, norm in expected.items():
        assert weights[key].norm().item() == pytest.approx(norm.item(), rel=1e-4), key


def test_embeddings_and_head_decay_and_norms_do_not(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, tiny_gpt(), DigitCodes(80, [4]), weight_decay=0.05)
    groups = trainer.state.optimizer.param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert all(group["eps"] == 1e-8 for group in groups)
    for key, parameter in trainer.state.module.named_parameters():
        assert (id(parameter) in decayed) == ("norm" not in key), key


def test_averages_without_warm_up_begin_at_the_first_step(tmp_path: Path) -> None:
    """As the published ones, whose decay is the same after every step."""
    model = tiny_gpt()
    args = {"ema": True, "ema_decay": 0.9, "ema_warmup": False, "epochs": 1}
    trainer = trainer_of(tmp_path, model, DigitCodes(40, [4]), **args)
    average, update = model.output.weight.detach().clone(), trainer.state.ema.update

    def record(module: LlamaGen, **settings: Any) -> None:
        average.lerp_(module.output.weight.detach(), 0.1)
        update(module, **settings)

    trainer.state.ema.update = record
    trainer.fit()
    torch.testing.assert_close(trainer.state.ema.module.output.weight, average)
    assert (average - model.output.weight).norm() > 0.01 * average.norm()


# Dropout


def loss_of(model: LlamaGen, step: int, batch: int = 0) -> float:
    """Of random codes, as in this step of a run."""
    codes = random_codes(model, batch=3)
    with torch.no_grad():
        return model.training_loss(codes, LABELS, step_context(0, step, batch, CPU)).value.item()


@pytest.mark.parametrize("noise", [{"dropout": 0.1, "label_drop": 0.0}, {"dropout": 0.0, "drop_path_rate": 0.5}])
def test_noise_follows_from_the_step(noise: dict[str, float]) -> None:
    """Whatever was drawn before; the global generator is left as it was."""
    model = tiny_gpt(**noise).train()
    losses = [loss_of(model, step) for step in (0, 1, 2)]
    torch.rand(7)
    state = torch.get_rng_state()
    assert [loss_of(model, step) for step in (2, 1, 0)] == losses[::-1]
    assert torch.equal(torch.get_rng_state(), state)
    assert len({*losses, loss_of(model, 0, batch=1), loss_of(model.eval(), 0)}) == 5


def test_tokens_and_the_class_are_dropped_together() -> None:
    model, codes = tiny_gpt(dropout=0.25).train(), random_codes(tiny_gpt(), batch=50)[0]
    kept = model.eval().inputs(codes, torch.full((50,), 3))
    dropped = model.train().inputs(codes, torch.full((50,), 3))
    for part in (slice(0, 1), slice(1, None)):  # the class token, the codes
        zeros = dropped[:, part] == 0
        assert 0.2 < zeros.float().mean() < 0.3
        torch.testing.assert_close(dropped[:, part][~zeros], kept[:, part][~zeros] / 0.75)


def branches_of(model: LlamaGen, index: int) -> tuple[Tensor, Tensor]:
    """(B, T, D) what a layer adds after attention and after its feed-forward layer, where both of these give ones."""
    layer, x = model.layers[index].train(), torch.randn(400, 4, 32)
    rotation = SameRotation(tuple(part[:4] for part in pair_rotation(4, 16, CPU)))
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: torch.ones_like(output))
        for module in (layer.attention, layer.feed_forward)
    ]
    between: list[Tensor] = []
    hooks.append(layer.ffn_norm.register_forward_pre_hook(lambda module, inputs: between.append(inputs[0])))
    out = layer(x, rotation, index, "causal", None, 0)
    for hook in hooks:
        hook.remove()
    return between[0] - x, out - between[0]


def test_branches_are_dropped_out_number_by_number() -> None:
    for branch in branches_of(tiny_gpt(dropout=0.25), 1):
        assert 0.23 < (branch.abs() < 0.1).float().mean() < 0.27
        torch.testing.assert_close(branch.max(), torch.tensor(1 / 0.75), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("layers", "shares"), [(3, [0.0, 0.3, 0.6]), (1, [0.0])])
def test_paths_are_dropped_image_by_image(layers: int, shares: list[float]) -> None:
    """More and more from none at the first layer to the rate at the last; nothing else is dropped but tokens."""
    size = replace(TINY_GPT, num_hidden_layers=layers)
    model = tiny_gpt(llama_config=size, dropout=0.5, drop_path_rate=0.6)
    for index, share in enumerate(shares):
        attended, fed = branches_of(model, index)
        for branch in (attended, fed):
            of_image = branch[:, :1, :1]
            torch.testing.assert_close(branch, of_image.expand_as(branch), atol=1e-5, rtol=0)
            dropped = of_image.abs() < 0.1
            assert dropped.float().mean() == pytest.approx(share, abs=0.08 if share else 0)
            torch.testing.assert_close(of_image[~dropped], torch.full_like(of_image[~dropped], 1 / (1 - share)))
        if share:
            assert not torch.equal(attended[:, 0, 0].abs() < 0.1, fed[:, 0, 0].abs() < 0.1)  # each on its own
    zeros = model.train().inputs(random_codes(model, batch=20)[0], torch.full((20,), 3)) == 0
    assert 0.45 < zeros.float().mean() < 0.55


def test_labels_are_dropped_in_training_alone() -> None:
    model, seen = tiny_gpt(dropout=0.0, label_drop=0.3), []
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


def gradients(model: LlamaGen, **how: Any) -> list[Tensor]:
    model.prepare_training(**{"attention": "sdpa", "compiled": False, "activation_checkpointing": False} | how)
    model.train().training_loss(random_codes(model, batch=3), LABELS, step_context(0, 5, 0, CPU)).value.backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("noise", [{"dropout": 0.3}, {"drop_path_rate": 0.8}], ids=["dropout", "drop path"])
def test_activation_checkpointing_drops_the_same_again(noise: dict[str, float]) -> None:
    runs: list[nn.Module] = []
    checkpointed = tiny_gpt(**noise)
    checkpointed.layers[0].register_forward_pre_hook(lambda module, inputs: runs.append(module))
    for one, other in zip(
        gradients(tiny_gpt(**noise)), gradients(checkpointed, activation_checkpointing=True), strict=True
    ):
        torch.testing.assert_close(other, one, atol=1e-6, rtol=1e-5)
    assert len(runs) == 2


def test_compiling_changes_no_gradient() -> None:
    """Traced and differentiated as ever; only the slow last part, writing C++, is left out."""
    quiet = {"dropout": 0.0}
    with patch("torch.compile", side_effect=partial(torch.compile, backend="aot_eager")) as compiled:
        found = gradients(tiny_gpt(**quiet), compiled=True)
    assert compiled.called
    for one, other in zip(gradients(tiny_gpt(**quiet)), found, strict=True):
        torch.testing.assert_close(other, one, atol=1e-6, rtol=1e-4)


@slow
def test_compiling_to_the_end_changes_no_gradient() -> None:
    for one, other in zip(
        gradients(tiny_gpt(dropout=0.0)), gradients(tiny_gpt(dropout=0.0), compiled=True), strict=True
    ):
        torch.testing.assert_close(other, one, atol=1e-6, rtol=1e-4)


def test_flex_attention_is_refused() -> None:
    with pytest.raises(UserError, match=r"^llamagen has the attention sdpa alone"):
        GeneratorTask(tiny_gpt(), tiny_args(attention="flex"), LlamaGenDrawing())


# Stages of a run


STAGED = {"epochs": 4, "patch_level": 3, "epoch_rate": 0.5, "schedule": "stages", "warmup_epochs": 0.2, "ema": True}
BORDERS = (10, 20)  # of 10 steps an epoch, sides 4, 2, 1 and 1


def fresh_gpt() -> LlamaGen:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaGen(tiny_gpt(vocab_size=17).config)


class KilledError(Exception):
    """Stands for SIGKILL: nothing is saved."""


class KillTask(Task):
    """Dies within the first step of the second stage, the first time it comes there."""

    def loss(self, batch: list[Any], context: StepContext) -> Loss:
        if context.step == BORDERS[0]:
            raise KilledError
        return super().loss(batch, context)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("staged")
    trainer = trainer_of(folder, fresh_gpt(), DigitCodes(80, [4]), **STAGED)
    trainer.fit()
    assert trainer.task.sides == [4] * 10 + [2] * 10 + [1] * 20
    rates = [entry["lr"] for entry in read_log(folder).values()]
    assert [step for step, rate in enumerate(rates) if rate == 0] == [0, *BORDERS]
    found = losses(folder)
    assert found[-1] < 0.9 * found[0]
    return folder


def test_a_run_killed_after_a_border_goes_on_as_if_it_had_not_been(undisturbed: Path, tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        trainer_of(tmp_path, fresh_gpt(), DigitCodes(80, [4]), KillTask, **STAGED).fit()
    torch.rand(7)
    resumed = trainer_of(tmp_path, fresh_gpt(), DigitCodes(80, [4]), **STAGED)
    resumed.fit()
    assert resumed.task.sides == [2] * 10 + [1] * 20
    assert_same_training(undisturbed, tmp_path)
    assert read_log(tmp_path) == read_log(undisturbed)


@pytest.mark.parametrize("last", [border + offset for border in BORDERS for offset in (-1, 0)])
def test_a_run_stopped_at_a_border_goes_on_as_if_it_had_not_been(last: int, undisturbed: Path, tmp_path: Path) -> None:
    """After the last step of a stage, or the first of the next."""

    class StopTask(Task):
        def loss(self, batch: list[Any], context: StepContext) -> Loss:
            trainer.stop.number = 15 * (context.step == last)
            return super().loss(batch, context)

    trainer = trainer_of(tmp_path, fresh_gpt(), DigitCodes(80, [4]), StopTask, **STAGED)
    with pytest.raises(Stopped):
        trainer.fit()
    assert trainer.state.step == last + 1
    trainer_of(tmp_path, fresh_gpt(), DigitCodes(80, [4]), **STAGED).fit()
    assert_same_training(undisturbed, tmp_path)
    assert read_log(tmp_path) == read_log(undisturbed)


def test_accuracy_of_a_patch_is_the_share_of_its_codes() -> None:
    model, codes = tiny_gpt(dropout=0.0), random_codes(tiny_gpt(), batch=3)
    for side in (1, 2, 4):
        context = replace(step_context(0, 0, 0, CPU), patch_side=side)
        loss = model.training_loss(codes, LABELS, context)
        logits, value = model(codes, LABELS, patch_size=side)
        likeliest = logits.argmax(-1).unflatten(1, (4 // side, 4 // side))
        hits = likeliest.repeat_interleave(side, 1).repeat_interleave(side, 2) == codes[0]
        assert loss.metrics()["accuracy"].item() == pytest.approx(hits.float().mean().item())
        assert loss.value.item() == value.item()


def test_a_grid_that_a_stage_does_not_divide_is_refused(tmp_path: Path) -> None:
    """In the first step: a side that does not divide it comes before those that do."""
    trainer = trainer_of(tmp_path, fresh_gpt(), DigitCodes(80, [4]), epochs=8, patch_level=4)
    with pytest.raises(
        UserError, match=r"^patches of side 8 do not divide a grid of 4 x 4 codes; choose one that does$"
    ):
        trainer.fit()
    assert trainer.state.step == 0
