"""Several ranks, real processes over gloo: they compute what one would, and none waits for another in vain."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.loading.state import read_torch_file
from runtime import distributed
from tests.training_factory import (
    BlocksTask,
    NaNTask,
    QuietTask,
    SignalTask,
    assert_same_training,
    exit_codes,
    losses,
    main_command,
    read_events,
    read_log,
    start_ranks,
    tiny_command,
    tiny_trainer,
    train_rank,
    without_noise,
)
from training.task import step_context

NO_NOISE = {"label_drop": 0.0, "random_replace": 0.0}
LAST = "checkpoint-last.pth"


def train_on_two(
    folder: Path, task: type[QuietTask] = QuietTask, model: dict[str, Any] | None = None, **args: Any
) -> list[int | None]:
    """Exit codes of a run of two ranks of batch 4."""
    folder.mkdir(exist_ok=True)
    return exit_codes(start_ranks(folder, 2, train_rank, folder, task, {"batch_size": 4} | args, model or {}))


def errors(folder: Path) -> list[list[str]]:
    """Lines of each rank's output that are neither progress nor a library's warning."""
    texts = [(folder / f"rank{rank}.txt").read_text().replace("\r", "\n") for rank in range(2)]
    return [[line for line in text.splitlines() if re.match(r"error:|Traceback|stopped", line)] for text in texts]


@pytest.mark.ranks
def test_two_ranks_follow_one_of_twice_the_batch(tmp_path: Path) -> None:
    one = tiny_trainer(tmp_path / "one", without_noise(), BlocksTask)
    one.fit()
    assert train_on_two(tmp_path / "two", BlocksTask, NO_NOISE) == [0, 0]
    assert len(losses(tmp_path / "two")) == 20
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-4)
    single, double = read_log(tmp_path / "one"), read_log(tmp_path / "two")
    for step, metrics in single.items():
        assert metrics.keys() == double[step].keys()
        for name, value in metrics.items():  # means over ranks, accuracies and learning rate among them
            assert double[step][name] == pytest.approx(value, rel=1e-3, abs=1e-6), name
    saved = [read_torch_file(tmp_path / name / LAST) for name in ("one", "two")]
    for key, weight in saved[0]["model"].items():
        torch.testing.assert_close(saved[1]["model"][key], weight, rtol=0, atol=1e-4)
    assert [s["step"] for s in saved] == [20, 20]

    blocks = [json.loads((tmp_path / "two" / f"blocks{rank}.json").read_text()) for rank in range(2)]
    assert blocks[0] == blocks[1] == json.loads(json.dumps(one.task.blocks))


@pytest.mark.ranks
def test_accumulation_on_two_ranks(tmp_path: Path) -> None:
    """Gradients are averaged over ranks with the last batch of a step alone."""
    tiny_trainer(tmp_path / "one", without_noise(), epochs=1, batch_size=8).fit()
    two = train_on_two(tmp_path / "two", model=NO_NOISE, epochs=1, batch_size=2, accum_steps=2)
    assert two == [0, 0]
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-4)


@pytest.mark.ranks
def test_a_signal_to_one_rank_stops_both_and_both_go_on(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    noisy = {"ema": True, "epochs": 4, "log_freq": 3}
    assert train_on_two(whole, **noisy) == [0, 0]
    assert train_on_two(stopped, SignalTask, **noisy) == [128 + 15] * 2
    assert errors(stopped) == [["stopped; the checkpoint is written, and the same command goes on from it"]] * 2
    assert 13 < read_torch_file(stopped / LAST)["step"] < 40
    assert train_on_two(stopped, **noisy) == [0, 0]
    assert_same_training(whole, stopped)
    expected = read_log(whole)
    assert read_log(stopped) == {step: pytest.approx(metrics, rel=1e-6) for step, metrics in expected.items()}


@pytest.mark.ranks
@pytest.mark.parametrize("log_freq", [1, 10])
def test_a_loss_that_is_not_finite_on_one_rank_stops_both(log_freq: int, tmp_path: Path) -> None:
    """By step 8 the averaged gradients have spoilt rank 0 as well; the first bad step is named all the same."""
    assert train_on_two(tmp_path, NaNTask, num_images=40, epochs=4, log_freq=log_freq) == [2, 2]
    for lines in errors(tmp_path):
        assert len(lines) == 1
        assert "error: the loss or a weight is not finite at step 7 (rank 1, learning rate 3.00e-03)" in lines[0]
    saved = read_torch_file(tmp_path / LAST)
    assert saved["step"] == 5
    assert all(value.isfinite().all() for value in saved["model"].values())


@pytest.mark.ranks
def test_the_command_on_two_ranks_shares_one_run_folder(tmp_path: Path) -> None:
    """From making the cache to the samples; then once more, to go on with another epoch."""
    folder = tmp_path / "run"
    for epochs in (1, 2):
        argv = tiny_command(tmp_path, folder, epochs=epochs, batch_size=250, log_freq=2)
        assert exit_codes(start_ranks(tmp_path, 2, main_command, argv)) == [0, 0], (tmp_path / "rank0.txt").read_text()
    assert [path.name for path in (tmp_path / "cached").iterdir()] == ["digits-8-center"]
    files = sorted(path.name for path in folder.iterdir() if not path.name.startswith("events.out"))
    assert files == ["autoenc", LAST, "config.yaml", "log.jsonl", "samples"]
    assert len(list(folder.glob("events.out.tfevents.*"))) == 2  # one a start, by rank 0
    starts = [entry for entry in read_events(folder) if "event" in entry]
    assert [(entry["step"], entry["ranks"]) for entry in starts] == [(0, 2), (3, 2)]
    assert list(read_log(folder)) == [2, 3, 4, 6]
    assert sorted(path.name for path in (folder / "samples").iterdir()) == ["epoch_0001.png", "epoch_0002.png"]
    outputs = [(tmp_path / f"rank{rank}.txt").read_text() for rank in range(2)]
    assert "on 2 ranks" in outputs[0]
    assert "drawn digits, by the classifier" in outputs[0]
    assert "on 2 ranks" not in outputs[1]
    assert "drawn digits, by the classifier" not in outputs[1]


def gather(folder: Path) -> None:
    """Exercise every collective and the randomness of a step; for ``start_ranks``."""
    distributed.set_up(torch.device("cpu"))
    rank = distributed.rank()
    distributed.barrier()
    context = step_context(0, 5, 0, torch.device("cpu"))
    results = {
        "num_ranks": distributed.num_ranks(),
        "is_main": distributed.is_main(),
        "from_main": distributed.from_main({"from": rank}),
        "everyones": distributed.everyones(rank * 10),
        "add_up": distributed.add_up(torch.tensor([1.0, float(rank)])).tolist(),
        "step_rng": context.step_rng.random(),
        "rank_rng": torch.rand((), generator=context.rank_rng).item(),
    }
    distributed.tear_down()
    (folder / f"results{rank}.json").write_text(json.dumps(results))


@pytest.mark.ranks
def test_collectives_and_randomness(tmp_path: Path) -> None:
    assert exit_codes(start_ranks(tmp_path, 3, gather, tmp_path)) == [0, 0, 0]
    results = [json.loads((tmp_path / f"results{rank}.json").read_text()) for rank in range(3)]
    for rank, result in enumerate(results):
        assert (result["num_ranks"], result["is_main"]) == (3, rank == 0)
        assert result["from_main"] == {"from": 0}
        assert result["everyones"] == [0, 10, 20]
        assert result["add_up"] == [3.0, 3.0]
    assert len({result["step_rng"] for result in results}) == 1  # block sizes
    assert len({result["rank_rng"] for result in results}) == 3  # dropped labels, replaced codes


@pytest.mark.quick
def test_collectives_of_one_process() -> None:
    assert (distributed.rank(), distributed.num_ranks(), distributed.is_main()) == (0, 1, True)
    assert distributed.everyones("mine") == ["mine"]
    assert distributed.from_main("mine") == "mine"
    assert distributed.add_up(torch.ones(2)).tolist() == [1, 1]
    distributed.barrier()
    assert distributed.set_up(torch.device("cpu")) == torch.device("cpu")
    distributed.tear_down()
