"""Several ranks, real processes over gloo: they compute what one would, and none waits for another in vain."""

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.loading.state import read_torch_file
from runtime import distributed
from runtime.command import run
from runtime.errors import UserError
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
    start_process,
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
    names = ["digits_0001.txt", "digits_0002.txt", "epoch_0001.png", "epoch_0002.png"]
    assert sorted(path.name for path in (folder / "samples").iterdir()) == names
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


# Ranks that do not come


ALONE = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.quick
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"WORLD_SIZE": None, "MASTER_ADDR": None, "MASTER_PORT": None}, "WORLD_SIZE, MASTER_ADDR, MASTER_PORT;"),
        ({"MASTER_PORT": ""}, "not MASTER_PORT;"),
        ({"RANK": "abc"}, "RANK is abc; it must be a whole number"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE is -1; it must be a whole number"),
        ({"RANK": "2"}, "RANK is 2, but WORLD_SIZE is 2"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT is 70000"),
    ],
)
def test_variables_that_no_torchrun_has_set(
    changes: dict[str, str | None], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (ALONE | changes).items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words) as error:
        distributed.set_up(torch.device("cpu"))
    assert "torchrun" in str(error.value)
    assert "unset RANK" in str(error.value)


@pytest.mark.quick
def test_a_gpu_needs_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ALONE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(UserError, match="not LOCAL_RANK"):
        distributed.set_up(torch.device("cuda"))
    monkeypatch.setenv("LOCAL_RANK", str(torch.cuda.device_count()))
    with pytest.raises(UserError, match="one process for each GPU"):
        distributed.set_up(torch.device("cuda"))


def impatient(work: Callable[[], None], start: float = 60.0, patience: float = 60.0) -> None:
    """A command line that does ``work`` after joining other ranks, and says early that it waits."""
    distributed.SILENT, distributed.START, distributed.PATIENCE = 0.2, start, patience

    def main(argv: Sequence[str]) -> None:
        distributed.set_up(torch.device("cpu"))
        work()
        distributed.tear_down()

    run(main)


def free_port() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def text_of(folder: Path, rank: int) -> str:
    path = folder / f"rank{rank}.txt"
    return path.read_text() if path.exists() else ""


def wait_for_text(folder: Path, rank: int, text: str) -> None:
    start = time.monotonic()
    while text not in text_of(folder, rank):
        assert time.monotonic() - start < 60, text_of(folder, rank)
        time.sleep(0.05)


@pytest.mark.ranks
@pytest.mark.parametrize(("rank", "whom"), [(0, "1 of 2 processes at"), (1, "rank 0 at")])
def test_a_rank_without_the_others_gives_up(rank: int, whom: str, tmp_path: Path) -> None:
    where = ALONE | {"RANK": str(rank), "MASTER_PORT": free_port()}
    process = start_process(tmp_path / "rank0.txt", impatient, print, 1.0, **where)
    assert exit_codes([process]) == [2]
    said, gave_up = text_of(tmp_path, 0).splitlines()
    whom += f" 127.0.0.1:{where['MASTER_PORT']}"
    assert said == f"rank {rank} waits for {whom} (for up to 1 seconds)"
    assert gave_up.startswith(f"error: rank {rank} waited 1 seconds for {whom}; start all processes")


@pytest.mark.ranks
def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        where = ALONE | {"MASTER_PORT": str(server.getsockname()[1])}
        process = start_process(tmp_path / "rank0.txt", impatient, print, **where)
        assert exit_codes([process]) == [2]
    line = text_of(tmp_path, 0).splitlines()[-1]
    assert line.startswith(f"error: rank 0 cannot use 127.0.0.1:{where['MASTER_PORT']}")
    assert "set another MASTER_PORT" in line


@pytest.mark.ranks
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -15), (signal.SIGINT, 130)])
def test_a_signal_ends_the_wait_for_the_others(number: signal.Signals, code: int, tmp_path: Path) -> None:
    where = ALONE | {"MASTER_PORT": free_port()}
    process = start_process(tmp_path / "rank0.txt", impatient, print, **where)
    wait_for_text(tmp_path, 0, "waits for")
    start = time.monotonic()
    os.kill(process.pid, number)
    assert exit_codes([process]) == [code]
    assert time.monotonic() - start < 5


def late_rank(action: Callable[[], None]) -> None:
    """Rank 0 does something else first, while the others wait for its cache."""
    if distributed.is_main():
        action()
    assert distributed.from_main(distributed.rank(), "the cache") == 0
    distributed.barrier()


def start_late(folder: Path, action: Callable[[], None], patience: float = 60.0) -> list[Any]:
    return start_ranks(folder, 3, impatient, partial(late_rank, action), 60.0, patience)


@pytest.mark.ranks
def test_a_wait_says_once_for_whom(tmp_path: Path) -> None:
    assert exit_codes(start_late(tmp_path, partial(time.sleep, 2))) == [0, 0, 0]
    texts = [text_of(tmp_path, rank).splitlines() for rank in range(3)]
    texts = [[line for line in text if " processes at " not in line] for text in texts]  # of a slow start
    assert texts[0] == []
    lines = [line for text in texts for line in text]
    assert [re.sub(r"rank . waits", "rank 1 waits", line) for line in lines] == [
        "rank 1 waits for rank 0: the cache (for up to 1 minutes)"
    ] * len(lines)
    assert 1 <= len(lines) <= 2  # the second where the first of those that wait came after it


@pytest.mark.ranks
def test_a_rank_that_does_not_come_is_waited_for_so_long(tmp_path: Path) -> None:
    processes = start_late(tmp_path, partial(time.sleep, 600), patience=1.0)
    assert exit_codes(processes[1:]) == [2, 2]
    processes[0].kill()
    for rank in (1, 2):
        assert "for rank 0: the cache; look at what that rank does" in text_of(tmp_path, rank).splitlines()[-1]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise UserError("no room for the cache")


@pytest.mark.ranks
@pytest.mark.parametrize(("action", "code"), [(die, -9), (fail, 2)])
def test_a_rank_that_ended_is_not_waited_for(action: Callable[[], None], code: int, tmp_path: Path) -> None:
    start = time.monotonic()
    assert exit_codes(start_late(tmp_path, action)) == [code, 1, 1]
    assert time.monotonic() - start < 30
    for rank in (1, 2):
        assert text_of(tmp_path, rank).splitlines()[-1].startswith("error: another rank ended or cannot be reached (")
    if code == 2:
        assert text_of(tmp_path, 0).splitlines()[-1] == "error: no room for the cache"


@pytest.mark.ranks
def test_a_signal_ends_a_wait_for_a_rank(tmp_path: Path) -> None:
    processes = start_late(tmp_path, partial(time.sleep, 600))
    wait_for_text(tmp_path, 1, "waits for rank 0")
    start = time.monotonic()
    os.kill(processes[1].pid, signal.SIGINT)
    os.kill(processes[2].pid, signal.SIGTERM)
    assert exit_codes(processes[1:]) == [130, -15]
    assert time.monotonic() - start < 5
    processes[0].kill()


@pytest.mark.parametrize(
    ("here", "names", "several"), [("4", "abcd", False), ("2", "aaaa", True), ("", "aaaa", False), (None, "aaab", True)]
)
def test_ranks_elsewhere_are_on_other_machines(
    here: str | None, names: str, several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if here is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    monkeypatch.setattr(distributed, "num_ranks", lambda: 4)
    monkeypatch.setattr(distributed, "everyones", lambda own: list(names))
    assert distributed.on_several_machines() == several
