"""The file that a run goes on from: whole after a kill or on a full disk, and refused by a run that is another."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.checkerboard.model import Checkerboard
from models.loading.state import read_torch_file
from runtime.errors import UserError
from runtime.stopping import Stopped
from tests.factory import FIXTURES
from tests.limits import largest_file
from tests.training_factory import (
    QuietTask,
    SignalTask,
    assert_same_state,
    assert_same_training,
    fresh_model,
    start_process,
    tiny_trainer,
)

LAST = "checkpoint-last.pth"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run stopped within its second epoch; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Stopped):
        tiny_trainer(folder, task=SignalTask).fit()
    return folder


# What a file holds


@pytest.mark.quick
def test_a_state_survives_a_file(stopped: Path, tmp_path: Path) -> None:
    """Loaded and saved again, everything is the same to the last bit."""
    trainer = tiny_trainer(tmp_path)
    trainer.state.load(stopped / LAST)
    assert (trainer.state.step, trainer.state.epoch, trainer.state.step_in_epoch) == (14, 1, 4)
    trainer.save()
    assert_same_state(*(read_torch_file(folder / LAST) for folder in (tmp_path, stopped)))


@pytest.mark.quick
def test_weight_decay_and_betas_follow_the_command_line_when_going_on(stopped: Path, tmp_path: Path) -> None:
    state = tiny_trainer(tmp_path, weight_decay=0.3, betas=(0.5, 0.6)).state
    state.load(stopped / LAST)
    assert {group["weight_decay"] for group in state.optimizer.param_groups} == {0.0, 0.3}
    assert {tuple(group["betas"]) for group in state.optimizer.param_groups} == {(0.5, 0.6)}
    assert state.optimizer.state_dict()["state"][0]["step"] == 14


@pytest.mark.quick
def test_each_weight_keeps_its_moments_when_weight_decay_is_left_out_or_comes(tmp_path: Path) -> None:
    """timm makes one group where there is no decay, and two, in another order, where there is some."""
    kept, file = [], tmp_path / LAST
    for weight_decay in (0.01, 0.0, 0.3):
        state = tiny_trainer(tmp_path, weight_decay=weight_decay).state
        if not kept:
            for parameter in state.module.parameters():
                parameter.grad = torch.randn_like(parameter)
            state.update(1e-3)
        else:
            state.load(file)
        kept.append([state.optimizer.state[parameter]["exp_avg"] for parameter in state.module.parameters()])
        state.save(file)
        assert {group["weight_decay"] for group in state.optimizer.param_groups} == {0.0, weight_decay}
    for moments in kept[1:]:
        assert all(torch.equal(first, then) for first, then in zip(kept[0], moments, strict=True))


@pytest.mark.quick
def test_a_file_of_one_group_is_gone_on_from(tmp_path: Path) -> None:
    """As runs without weight decay had it: all weights in one, in the order of the module."""
    trainer = tiny_trainer(tmp_path, weight_decay=0.0)
    state, file = trainer.state, tmp_path / LAST
    for parameter in state.module.parameters():
        parameter.grad = torch.randn_like(parameter)
    state.update(1e-3)
    trained = [parameter for parameter in state.module.parameters() if parameter.requires_grad]
    moments = [state.optimizer.state[parameter]["exp_avg"] for parameter in trained]
    state.optimizer.load_state_dict(state.optimizer.state_dict())
    state.save(file)
    content = read_torch_file(file)
    content["optimizer"] = {
        "state": {number: state.optimizer.state[parameter] for number, parameter in enumerate(trained)},
        "param_groups": [{**content["optimizer"]["param_groups"][0], "params": list(range(len(trained)))}],
    }
    torch.save(content, tmp_path / "old.pth")  # another, since what was read is mapped to memory
    other = tiny_trainer(tmp_path, weight_decay=0.0).state
    other.load(tmp_path / "old.pth")
    parameters = (parameter for parameter in other.module.parameters() if parameter.requires_grad)
    found = [other.optimizer.state[parameter]["exp_avg"] for parameter in parameters]
    assert all(torch.equal(first, then) for first, then in zip(moments, found, strict=True))


# Kills and full disks


class BallastTask(QuietTask):
    """Makes checkpoints of 8 MB, which take a while to write; every number says at which step."""

    def state(self) -> dict[str, Any]:
        return {"ballast": torch.full((2_000_000,), float(self.step))}


def save_on_and_on(folder: Path) -> None:
    """For ``start_process``."""
    trainer = tiny_trainer(folder, task=BallastTask)
    for step in range(1, 10_000):
        trainer.task.step = trainer.state.step = step
        trainer.save()


@pytest.mark.processes
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """Killed until it happened three times that a file was half written; what stays there is no harm."""
    path, output, half_written = tmp_path / LAST, tmp_path / "output.txt", 0
    for delay in np.random.default_rng(0).uniform(0, 0.05, 30):
        process = start_process(output, save_on_and_on, tmp_path)
        while not path.exists():
            process.join(0.001)
            assert process.is_alive(), output.read_text()
        process.join(delay)
        process.kill()
        process.join()
        saved = read_torch_file(path)
        assert saved["step"] > 0
        assert (saved["task"]["ballast"] == saved["step"]).all()
        half_written += any(left.stat().st_size < path.stat().st_size for left in tmp_path.glob(".*.pth"))
        path.unlink()
        if half_written == 3:
            break
    assert half_written == 3
    output.unlink()
    tiny_trainer(tmp_path).save()
    assert [file.name for file in tmp_path.iterdir()] == [LAST]


@pytest.mark.quick
def test_a_full_disk_stops_the_run_with_the_old_checkpoint(tmp_path: Path) -> None:
    whole, full = tmp_path / "whole", tmp_path / "full"
    tiny_trainer(full, epochs=1).fit()
    before = (full / LAST).read_bytes()
    with largest_file(len(before) // 2), pytest.raises(UserError, match=f"could not write {full / LAST} "):
        tiny_trainer(full).fit()
    assert (full / LAST).read_bytes() == before
    assert [path.name for path in full.glob(".*")] == []
    for folder in (full, whole):
        tiny_trainer(folder).fit()
    assert_same_training(whole, full)


# Refusals


@pytest.mark.quick
@pytest.mark.parametrize(
    ("args", "answer"),
    [
        ({"batch_size": 4}, "stopped inside an epoch with"),
        ({"accum_steps": 2}, "stopped inside an epoch with"),
        ({"num_images": 96}, "stopped inside an epoch with"),
        ({"seed": 5}, "stopped inside an epoch with"),
        ({"ema": True}, "was trained without ema; keep it so"),
        ({"model": {"num_classes": 11}}, "is of no run of this model; name one, or start from its weights"),
        ({"model": {"scale_ratio": 4.0}}, "is of no run of this model"),
        ({"class_keys": ["ant", "bee"]}, "was trained on other classes than the data's"),
    ],
)
def test_what_cannot_go_on_is_refused(args: dict[str, Any], answer: str, stopped: Path) -> None:
    def task(model: Checkerboard, *settings: Any) -> QuietTask:
        return QuietTask(model, *settings, class_keys)

    model, class_keys = fresh_model(**args.pop("model", {})), args.pop("class_keys", None)
    before = (stopped / LAST).read_bytes()
    with pytest.raises(UserError, match=answer) as refused:
        tiny_trainer(stopped, model, task, **args).fit()
    assert str(stopped / LAST) in str(refused.value)
    assert (stopped / LAST).read_bytes() == before


@pytest.mark.quick
def test_averages_are_not_dropped(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, ema=True).save()
    with pytest.raises(UserError, match="was trained with ema; keep it so"):
        tiny_trainer(tmp_path).fit()


@pytest.mark.quick
def test_a_new_run_goes_on_from_a_run_alone(tmp_path: Path) -> None:
    """A published checkpoint holds weights and no more."""
    for path, answer in (
        (FIXTURES / "tiny-2x", "is of no run of this model; name one, or start from its weights by weights_init"),
        ("nowhere", "no checkpoint at nowhere"),
    ):
        with pytest.raises(UserError, match=answer):
            tiny_trainer(tmp_path, resume=str(path)).fit()


@pytest.mark.quick
def test_a_damaged_checkpoint_is_named(stopped: Path, tmp_path: Path) -> None:
    content = (stopped / LAST).read_bytes()
    (tmp_path / LAST).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"checkpoint-last\.pth is truncated"):
        tiny_trainer(tmp_path).fit()
