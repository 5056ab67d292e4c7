"""The training loop: learning rate, optimizer, accumulation, golden losses, precision, stopping and going on."""

import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data.batches import EpochBatches
from models import load_checkpoint
from models.checkerboard.config import CheckerboardConfig, CheckerboardDrawing
from models.checkerboard.model import Checkerboard
from models.family import Loss, StepContext
from models.loading.state import read_torch_file
from runtime.config import parse_config
from runtime.errors import UserError
from runtime.stopping import Stopped
from tests.training_factory import (
    GOLDEN,
    GOLDEN_FLAGS,
    ROOT,
    NaNTask,
    QuietTask,
    SignalTask,
    assert_same_state,
    assert_same_training,
    fresh_model,
    golden_run,
    losses,
    read_events,
    read_log,
    tiny_trainer,
    without_noise,
)
from training.generator import GeneratorTask
from training.options import TrainArgs
from training.run_folder import begin_run
from training.task import step_context
from training.trainer import Trainer

CPU = torch.device("cpu")
LAST = "checkpoint-last.pth"

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 epochs, 10 steps each."""
    folder = tmp_path_factory.mktemp("plain")
    tiny_trainer(folder, epochs=4).fit()
    return folder


# Learning rate and optimizer


def trainer_of(name: str, folder: Path) -> Trainer:
    """A trainer with the schedule of one of our configurations, 16 steps an epoch."""
    argv = ["--config", str(ROOT / "configs" / f"{name}.yaml")]
    sections = {"model": CheckerboardConfig, "args": (TrainArgs, CheckerboardDrawing)}
    settings, _ = parse_config(argv, "", "", sections)
    args, _ = settings["args"]
    schedule = {key: getattr(args, key) for key in ("lr", "lr_drops", "warmup_epochs", "epochs")}
    return tiny_trainer(folder, num_images=16 * 8, **schedule)


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        (
            "config_256_S",
            {0: 0, 1 / 16: 6.25e-6, 0.25: 2.5e-5, 15 / 16: 9.375e-5, 1: 1e-4, 1.5: 1e-4, 99.9375: 1e-4}
            | {100: 3.162278e-5, 104.5: 3.162278e-5, 105: 1.0000002e-5, 109.9375: 1.0000002e-5},
        ),
        ("config_512_S_2x", {0.5: 5e-5, 1: 1e-4, 5.9375: 1e-4, 6: 3.162278e-5, 8: 1.0000002e-5, 9.9375: 1.0000002e-5}),
        ("config_256_L", {0: 0, 0.5: 2.5e-5, 1: 5e-5, 150.25: 5e-5, 199.9375: 5e-5, 200: 1e-5, 204.9375: 1e-5}),
    ],
)
def test_published_schedules(name: str, rates: dict[float, float], tmp_path: Path) -> None:
    trainer = trainer_of(name, tmp_path)
    assert trainer.state.steps_per_epoch == 16
    for epoch, rate in rates.items():
        trainer.state.epoch, trainer.state.step_in_epoch = int(epoch), round(epoch % 1 * 16)
        assert trainer.state.learning_rate == pytest.approx(rate, rel=1e-6, abs=0)


def test_the_rate_is_set_on_every_step_and_logged(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, epochs=3, lr=1e-2, warmup_epochs=1.5, lr_drops={1.8: 0.2, 2: 0.5})
    used: list[float] = []
    trainer.state.optimizer.register_step_pre_hook(
        lambda optimizer, args, kwargs: used.append({group["lr"] for group in optimizer.param_groups}.pop())
    )
    trainer.fit()
    epochs = np.arange(30) / 10
    expected = 1e-2 * np.minimum(epochs / 1.5, 1) * np.select([epochs >= 2, epochs >= 1.8], [0.1, 0.2], 1)
    np.testing.assert_allclose(used, expected, rtol=1e-12)
    log = read_log(tmp_path)
    np.testing.assert_allclose([log[step]["lr"] for step in range(1, 31)], expected, rtol=1e-6)
    np.testing.assert_allclose([log[step]["epoch"] for step in range(1, 31)], epochs + 0.1)


@pytest.mark.parametrize("epochs", [1, 4, 100])
def test_drops_at_shares_of_the_run_follow_its_length(epochs: int) -> None:
    args = TrainArgs(epochs=epochs, lr=1.0, warmup_epochs=0.0, lr_drops={0.5: 0.1, 0.75: 0.1})
    rates = [args.lr_at(share * epochs, 16) for share in (0, 0.49, 0.5, 0.74, 0.75, 0.99)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_no_warm_up_starts_at_the_full_rate(tmp_path: Path) -> None:
    assert tiny_trainer(tmp_path, lr=1e-2, warmup_epochs=0).state.learning_rate == 1e-2


def test_biases_and_one_dimensional_parameters_do_not_decay(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, weight_decay=0.03, betas=(0.8, 0.9))
    decayed = {
        id(p) for group in trainer.state.optimizer.param_groups if group["weight_decay"] for p in group["params"]
    }
    everything = {id(p) for group in trainer.state.optimizer.param_groups for p in group["params"]}
    assert {group["weight_decay"] for group in trainer.state.optimizer.param_groups} == {0.0, 0.03}
    assert {group["betas"] for group in trainer.state.optimizer.param_groups} == {(0.8, 0.9)}
    assert isinstance(trainer.state.optimizer, torch.optim.AdamW)
    assert everything == {id(p) for p in trainer.state.module.parameters()}
    for name, parameter in trainer.state.module.named_parameters():
        assert (id(parameter) in decayed) == (parameter.ndim > 1 and not name.endswith("bias")), name


def test_gradients_are_clipped_to_the_norm(tmp_path: Path) -> None:
    norms: dict[float, list[float]] = {}
    for clip in (0.0, 0.05):
        trainer = tiny_trainer(tmp_path / str(clip), epochs=1, clip_grad=clip, log_freq=3)
        norms[clip] = []
        trainer.state.optimizer.register_step_pre_hook(
            lambda optimizer, args, kwargs, clip=clip, module=trainer.state.module: norms[clip].append(
                torch.stack([p.grad.norm() for p in module.parameters()]).norm().item()
            )
        )
        trainer.fit()
        logged = [metrics["grad_norm"] for metrics in read_log(tmp_path / str(clip)).values()]
        assert min(logged) > 0.05  # before clipping
        if not clip:
            np.testing.assert_allclose(logged, [*norms[clip][2::3], norms[clip][-1]], rtol=1e-5)
    assert max(norms[0.05]) < 0.05 * (1 + 1e-4)
    assert min(norms[0.0]) > 0.05


def test_gradients_are_measured_and_left_as_they_are(tmp_path: Path) -> None:
    """In the steps that are logged as in the others, without clipping."""
    trainer, writes = tiny_trainer(tmp_path, epochs=1, log_freq=2), []
    trainer.state.optimizer.register_step_pre_hook(
        lambda optimizer, args, kwargs: writes.append({p.grad._version for p in trainer.state.module.parameters()})
    )
    trainer.fit()
    assert len(writes) == 10
    assert all(count == writes[0] for count in writes)


# Losses


def test_the_golden_loss_curve(tmp_path: Path) -> None:
    """Training as it was when the file was made; it says how to make it anew."""
    golden = json.loads(GOLDEN.read_text())
    assert golden["flags"] == list(GOLDEN_FLAGS)
    curve = golden_run(tmp_path)
    assert curve.keys() == golden["loss_by_step"].keys()
    for step, loss in golden["loss_by_step"].items():
        assert curve[step] == pytest.approx(loss, rel=1e-3), f"step {step}; {golden['remark']}"
    assert curve["60"] < 0.7 * curve["5"]


def test_the_first_loss_is_that_of_knowing_nothing(plain: Path) -> None:
    assert losses(plain)[0] == pytest.approx(math.log(64), rel=1e-5)


def test_logged_losses_are_means_since_the_last_entry(plain: Path, tmp_path: Path) -> None:
    """The last step of a run is logged too, and a run that goes on counts from it."""
    for epochs in (2, 4):
        tiny_trainer(tmp_path, log_freq=6, epochs=epochs).fit()
    each, log = losses(plain), read_log(tmp_path)
    ends = [6, 12, 18, 20, 24, 30, 36, 40]
    assert list(log) == ends
    means = [np.mean(each[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
    np.testing.assert_allclose([metrics["loss"] for metrics in log.values()], means, rtol=1e-6)


def test_the_log_has_every_metric_of_every_scale(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, log_freq=5).fit()
    events = read_events(tmp_path)
    assert events[0]["event"] == "start"
    assert (events[0]["step"], events[0]["ranks"], events[0]["dtype"]) == (0, 1, "torch.float32")
    assert [entry["step"] for entry in events[1:]] == [5, 10, 15, 20]
    scales = [f"{kind}_scale_{side}" for side in (1, 2, 4) for kind in ("loss", "accuracy")]
    for entry in events[1:]:
        assert sorted(entry) == sorted(["step", "epoch", "loss", "lr", "grad_norm", "time", *scales])
    assert list(tmp_path.glob("events.out.tfevents.*"))


# Accumulation


def test_accumulation_equals_a_larger_batch(tmp_path: Path) -> None:
    whole = tiny_trainer(tmp_path / "whole", without_noise(), batch_size=8)
    parts = tiny_trainer(tmp_path / "parts", without_noise(), batch_size=4, accum_steps=2)
    assert whole.state.steps_per_epoch == parts.state.steps_per_epoch == 10
    for trainer in (whole, parts):
        trainer.fit()
    np.testing.assert_allclose(losses(tmp_path / "parts"), losses(tmp_path / "whole"), rtol=1e-5)
    for (name, one), other in zip(whole.state.module.named_parameters(), parts.state.module.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_smaller_batches_of_a_step_see_the_images_of_a_larger_one(num_ranks: int) -> None:
    common = {"num_images": 83, "num_crops": 10, "seed": 3, "epoch": 2}
    whole = list(EpochBatches(**common, batch_size=16))
    ranks = [
        EpochBatches(**common, batch_size=4 // num_ranks, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)
    ]
    seen = [pair for batches in zip(*ranks, strict=True) for batch in batches for pair in batch]
    for step, batch in enumerate(whole):
        assert seen[16 * step : 16 * step + 16] == batch


def test_each_batch_of_a_step_has_noise_of_its_own() -> None:
    draws = {
        (seed, step, batch): torch.rand(3, generator=step_context(seed, step, batch, CPU).rank_rng)
        for seed in (0, 1)
        for step in (0, 1)
        for batch in (0, 1)
    }
    assert len({tuple(values.tolist()) for values in draws.values()}) == 8
    shared = [step_context(0, 5, batch, CPU).step_rng.random() for batch in (0, 1)]
    assert shared[0] == shared[1]


# Precision


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_follows_float32(dtype: str, plain: Path, tmp_path: Path) -> None:
    mixed = tiny_trainer(tmp_path, dtype=dtype)
    assert mixed.state.scaler.is_enabled() == (dtype == "float16")
    mixed.fit()
    expected, found = losses(plain)[:20], losses(tmp_path)
    np.testing.assert_allclose(found, expected, rtol=0.02)
    assert found != expected
    assert found[-1] < 0.75 * found[0]
    assert {parameter.dtype for parameter in mixed.state.module.parameters()} == {torch.float32}
    expected, found = ([metrics["grad_norm"] for metrics in read_log(run).values()][:20] for run in (plain, tmp_path))
    np.testing.assert_allclose(found, expected, rtol=0.1)  # without the loss's scale
    assert read_events(tmp_path)[0]["dtype"] == f"torch.{dtype}"


def test_float16_skips_a_step_whose_gradients_overflow(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, epochs=1, dtype="float16")
    trainer.state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=10**6)
    trainer.fit()
    assert all(parameter.isfinite().all() for parameter in trainer.state.module.parameters())
    assert trainer.state.scaler.get_scale() < 2.0**40
    assert all(map(math.isfinite, losses(tmp_path)))


# Averaged weights


def test_averaged_weights_follow_the_model(tmp_path: Path) -> None:
    """The average of a warm-up with decay 1 - (1 + t) ** (-2/3), updated after every step."""
    trainer = tiny_trainer(tmp_path, epochs=2, ema=True, ema_decay=0.9)
    weights: list[Tensor] = []
    update = trainer.state.ema.update

    def record(module: Checkerboard, step: int) -> None:
        weights.append(module.lm_head.weight.detach().clone())
        update(module, step=step)

    trainer.state.ema.update = record
    trainer.fit()
    average = weights[0]
    for step, weight in enumerate(weights):
        decay = min(0.9, 1 - max(1, step) ** (-2 / 3))  # timm counts the first two steps as the first
        average = decay * average + (1 - decay) * weight
    averaged = trainer.state.ema.module.lm_head.weight
    torch.testing.assert_close(averaged, average)
    assert (averaged - weights[-1]).norm() < 0.5 * (averaged - weights[0]).norm()
    assert trainer.trained is trainer.state.ema.module
    assert not trainer.trained.training


def test_averaged_weights_load(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, epochs=1, ema=True, ema_decay=0.9)
    begin_run(tmp_path, trainer.state.module.autoencoder)
    trainer.fit()
    for use_ema, trained in ((False, trainer.state.module), (True, trainer.state.ema.module)):
        assert_same_state(dict(load_checkpoint(tmp_path, use_ema).state_dict()), dict(trained.state_dict()))
    assert not torch.equal(trainer.state.module.lm_head.weight, trainer.state.ema.module.lm_head.weight)


# Stopping and going on


NOISY = {"ema": True, "accum_steps": 2, "batch_size": 4, "clip_grad": 0.5, "log_freq": 3, "epochs": 3}


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    """SIGTERM within step 13 of 30, between two log entries and within the second epoch."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    tiny_trainer(whole, **NOISY).fit()
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stop:
        tiny_trainer(stopped, task=SignalTask, **NOISY).fit()
    assert stop.value.signal_number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is handler
    saved = read_torch_file(stopped / LAST)
    assert (saved["step"], saved["epoch"], saved["step_in_epoch"]) == (14, 1, 4)
    torch.rand(7)  # the global state on going on is another
    tiny_trainer(stopped, **NOISY).fit()
    assert_same_training(whole, stopped)
    assert read_log(whole) == read_log(stopped)
    assert [event["step"] for event in read_events(stopped) if "event" in event] == [0, 14]


def test_stops_and_saves_at_every_step_change_nothing(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    tiny_trainer(whole, epochs=1, ema=True).fit()
    for _ in range(10):
        trainer = tiny_trainer(stopped, epochs=1, ema=True, save_minutes=0.0)
        trainer.stop.number = signal.SIGINT
        with pytest.raises(Stopped):
            trainer.fit()
    tiny_trainer(stopped, epochs=1, ema=True).fit()
    assert_same_training(whole, stopped)
    assert read_log(whole) == read_log(stopped)


def test_random_orders_go_on_too(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    tiny_trainer(whole, fresh_model(scan_order="random")).fit()
    with pytest.raises(Stopped):
        tiny_trainer(stopped, fresh_model(scan_order="random"), SignalTask).fit()
    tiny_trainer(stopped, fresh_model(scan_order="random")).fit()
    assert_same_training(whole, stopped)


def test_a_finished_run_stays_as_it_is(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in plain.rglob("*") if path.is_file()}
    again = tiny_trainer(plain, epochs=4)
    assert not again.fit()
    assert {path: path.read_bytes() for path in plain.rglob("*") if path.is_file()} == before
    assert again.state.step == 40
    assert f"going on from {plain / LAST}: epoch 4, step 40" in capsys.readouterr().out


def test_more_epochs_with_larger_steps_go_on_from_a_finished_run(tmp_path: Path) -> None:
    """As the L model's last epochs do (configs/config_256_L.yaml)."""
    tiny_trainer(tmp_path, epochs=1).fit()
    trainer = tiny_trainer(tmp_path, epochs=2, accum_steps=5)
    trainer.fit()
    assert (trainer.state.step, trainer.state.epoch) == (10 + 2, 2)
    assert trainer.state.optimizer.state_dict()["state"][0]["step"] == 12


def stop_within_an_epoch(folder: Path) -> None:
    with pytest.raises(Stopped):
        tiny_trainer(folder, task=SignalTask).fit()


@pytest.mark.parametrize("name", ["", LAST])
def test_a_new_run_goes_on_from_another(name: str, tmp_path: Path) -> None:
    """A run's own checkpoint comes first, so that the same command goes on with the new run."""
    old, new = tmp_path / "old", tmp_path / "new"
    stop_within_an_epoch(old)
    before = (old / LAST).read_bytes()
    stopping = tiny_trainer(new, resume=str(old / name))
    stopping.stop.number = signal.SIGTERM
    with pytest.raises(Stopped):
        stopping.fit()
    assert read_torch_file(new / LAST)["step"] == 15
    tiny_trainer(new, resume=str(old / name)).fit()
    assert (old / LAST).read_bytes() == before
    tiny_trainer(old).fit()
    assert_same_training(old, new)
    assert [event["step"] for event in read_events(new) if "event" in event] == [14, 15]


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    class Impatient(QuietTask):
        def loss(self, batch: list[Any], context: StepContext) -> Loss:
            if context.step == 2:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
            return super().loss(batch, context)

    before = signal.getsignal(signal.SIGINT)  # ignored in a shell's background
    with pytest.raises(KeyboardInterrupt):
        tiny_trainer(tmp_path, task=Impatient).fit()
    assert not (tmp_path / LAST).exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_may_go_on_in_another_precision(plain: Path, tmp_path: Path) -> None:
    """Every change to and from float16, which alone saves a scale of the loss."""
    for epochs, dtype in enumerate(("float32", "float16", "float32", "bfloat16"), start=1):
        tiny_trainer(tmp_path, epochs=epochs, dtype=dtype).fit()
    dtypes = [event["dtype"] for event in read_events(tmp_path) if "event" in event]
    assert dtypes[1::2] == ["torch.float16", "torch.bfloat16"]
    np.testing.assert_allclose(losses(tmp_path), losses(plain), rtol=0.03)


# Losses that are not finite


@pytest.mark.parametrize("log_freq", [1, 4, 1000])
def test_a_loss_that_is_not_finite_stops_before_anything_bad_is_saved(log_freq: int, tmp_path: Path) -> None:
    """5 steps an epoch: the loss of step 7, counted from 0, lies within the second."""
    trainer = tiny_trainer(tmp_path, task=NaNTask, num_images=40, epochs=4, ema=True, log_freq=log_freq)
    with pytest.raises(UserError, match=r"not finite at step 7 \(rank 0, learning rate 3.00e-03\)") as stop:
        trainer.fit()
    assert "\n" not in str(stop.value)
    saved = read_torch_file(tmp_path / LAST)
    assert (saved["step"], saved["epoch"]) == (5, 1)
    for state in (saved["model"], saved["model_ema"], saved["optimizer"]["state"][0]):
        assert all(value.isfinite().all() for value in state.values())
    going_on = tiny_trainer(tmp_path, num_images=40, epochs=4, ema=True)
    going_on.fit()
    assert going_on.state.step == 20


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    """The last loss of an epoch is finite, its gradient is not."""

    class BadGradient(QuietTask):
        def loss(self, batch: list[Any], context: StepContext) -> Loss:
            loss = super().loss(batch, context)
            weight = self.module.lm_head.weight
            bad = (weight - weight.detach()).square().sum().sqrt()  # 0, with a gradient of 0 / 0
            return Loss(loss.value + bad if context.step == 9 else loss.value, loss.metrics)

    tiny_trainer(tmp_path, num_images=40, epochs=1).fit()
    with pytest.raises(UserError, match="not finite at step 9 "):
        tiny_trainer(tmp_path, task=BadGradient, num_images=40, epochs=3).fit()
    saved = read_torch_file(tmp_path / LAST)
    assert saved["step"] == 5
    assert all(value.isfinite().all() for value in saved["model"].values())


# Files beside the checkpoint


def test_checkpoints_are_kept_as_often_as_asked(tmp_path: Path) -> None:
    """Copies, which outlive the checkpoints that come after."""
    tiny_trainer(tmp_path, num_images=16, epochs=5, keep_freq=2).fit()
    kept = {path.name: read_torch_file(path) for path in tmp_path.glob("*.pth")}
    assert {name: saved["epoch"] for name, saved in kept.items()} == {
        LAST: 5,
        "checkpoint-0002.pth": 2,
        "checkpoint-0004.pth": 4,
    }
    tiny_trainer(tmp_path / "whole", num_images=16, epochs=4).fit()
    assert_same_state(kept["checkpoint-0004.pth"]["model"], read_torch_file(tmp_path / "whole" / LAST)["model"])


def test_kept_checkpoints_are_no_links(tmp_path: Path) -> None:
    """What is written over the last checkpoint, or another disk that it lies on, leaves them as they are."""
    run, disk = tmp_path / "run", tmp_path / "disk.pth"
    run.mkdir()
    (run / LAST).symlink_to(disk)
    tiny_trainer(run, num_images=16, epochs=2, keep_freq=1).fit()
    kept = [run / f"checkpoint-000{epoch}.pth" for epoch in (1, 2)]
    assert [read_torch_file(path)["epoch"] for path in kept] == [1, 2]
    shutil.copyfile(kept[0], run / LAST)  # back to the first
    assert [read_torch_file(path)["epoch"] for path in (disk, *kept)] == [1, 1, 2]
    kept[0].unlink()  # as a kill before the copy leaves it
    kept[1].write_bytes(b"of the run that was given up")
    tiny_trainer(run, num_images=16, epochs=2, keep_freq=1).fit()
    assert [read_torch_file(path)["epoch"] for path in kept] == [1, 2]


def test_grids_are_drawn_as_often_as_asked(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, task=GeneratorTask, num_images=16, epochs=5, eval_freq=3).fit()
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["epoch_0003.png", "epoch_0005.png"]


def test_a_checkpoint_describes_itself(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, epochs=1)
    trainer.state.module.class_names = [f"digit {i}" for i in range(10)]
    trainer.fit()
    saved = torch.load(tmp_path / LAST, weights_only=True)
    assert saved["config"]["llama_config"]["hidden_size"] == 32
    assert saved["args"]["betas"] == [0.9, 0.95]
    assert saved["class_names"][3] == "digit 3"


def test_too_few_images_for_one_step_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="20 images do not fill one step of 32; lower batch_size or accum_steps"):
        tiny_trainer(tmp_path, num_images=20, batch_size=8, accum_steps=4)
