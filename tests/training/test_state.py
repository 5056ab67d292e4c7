"""Checkpoints that are always whole: failures while writing, kills, copies, random states."""

import errno
import os
import random
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from models.loading.state import read_torch_file
from runtime.errors import UserError
from tests.training_factory import assert_same_state, start_process
from training.state import keep_copy, random_states, restore_random_states, save_whole

NUM_WEIGHTS = 2_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A checkpoint of step 1."""
    path = tmp_path / "checkpoint-last.pth"
    save_whole(content(1), path)
    return path


def content(step: int, size: int = 1000) -> dict[str, Any]:
    return {"step": step, "weights": torch.full((size,), float(step))}


def assert_holds(path: Path, step: int) -> None:
    """The whole checkpoint of a step and no other file beside it."""
    assert_same_state(read_torch_file(path), content(step))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_new_checkpoint_takes_the_place_of_the_old(path: Path) -> None:
    assert_holds(path, 1)
    save_whole(content(2), path)
    assert_holds(path, 2)


def write_half(saved: Any, file: Any) -> None:
    file.write(b"PK" * 1000)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fail(error: Exception) -> Callable[..., None]:
    def raise_error(*args: Any, **kwargs: Any) -> None:
        raise error

    return raise_error


@pytest.mark.parametrize(
    ("function", "failing"),
    [
        ("torch.save", write_half),
        ("torch.save", fail(OSError(errno.ENOSPC, "No space left on device"))),
        ("torch.save", fail(RuntimeError("PytorchStreamWriter failed writing file"))),
        ("os.fsync", fail(OSError(errno.EIO, "Input/output error"))),
        ("pathlib.Path.replace", fail(OSError(errno.EXDEV, "Invalid cross-device link"))),
    ],
)
def test_a_failure_while_writing_keeps_the_old_checkpoint(
    path: Path, function: str, failing: Callable[..., None]
) -> None:
    before = path.read_bytes()
    with (
        patch(function, failing),
        pytest.raises(UserError, match=f"could not write {path} .*the one before is untouched"),
    ):
        save_whole(content(2), path)
    assert path.read_bytes() == before
    assert_holds(path, 1)


def test_a_file_system_that_takes_no_more_bytes_keeps_the_old_checkpoint(path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match="could not write"):
            save_whole(content(2, NUM_WEIGHTS), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_holds(path, 1)
    save_whole(content(3), path)
    assert_holds(path, 3)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"could not write .*nowhere"):
        save_whole(content(1), tmp_path / "nowhere" / "checkpoint-last.pth")


def save_on_and_on(path: Path) -> None:
    for step in range(1, 500):
        save_whole(content(step, NUM_WEIGHTS), path)


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """Killed until it happened three times that a temporary file was half written; what stays there is no harm."""
    path, temporary = tmp_path / "checkpoint-last.pth", tmp_path / "checkpoint-last.pth.tmp"
    half_written = 0
    for delay in np.random.default_rng(0).uniform(0, 0.02, 20):
        process = start_process(tmp_path / "output.txt", save_on_and_on, path)
        while not (path.exists() and temporary.exists()):
            process.join(0.001)
            assert process.is_alive(), (tmp_path / "output.txt").read_text()
        process.join(delay)
        process.kill()
        process.join()
        saved = read_torch_file(path)
        assert_same_state(saved, content(saved["step"], NUM_WEIGHTS))
        half_written += temporary.exists() and temporary.stat().st_size < path.stat().st_size
        path.unlink()
        if half_written == 3:
            break
    assert half_written == 3
    (tmp_path / "output.txt").unlink()
    save_whole(content(2), path)
    assert_holds(path, 2)


@pytest.mark.parametrize("links", [True, False])
def test_a_kept_copy_outlives_the_next_checkpoint(path: Path, links: bool) -> None:
    copy = path.with_name("checkpoint-0001.pth")
    copy.with_name(copy.name + ".tmp").write_bytes(b"left by a kill")
    with patch("pathlib.Path.hardlink_to", Path.hardlink_to if links else fail(OSError("no links here"))):
        keep_copy(path, copy)
    save_whole(content(2), path)
    assert_same_state(read_torch_file(copy), content(1))
    keep_copy(path, copy)
    assert_same_state(read_torch_file(copy), content(2))
    assert sorted(file.name for file in path.parent.iterdir()) == [copy.name, path.name]


def draws() -> list[float]:
    """A number of every global generator; numpy's and Python's have a normal one in store."""
    return [torch.rand(()).item(), np.random.rand(), np.random.randn(), random.random(), random.gauss(0, 1)]


def test_random_states_survive_a_file(path: Path) -> None:
    draws()
    save_whole({"states": random_states()}, path)
    expected = draws() + draws()
    restore_random_states(read_torch_file(path)["states"])
    assert draws() + draws() == expected
    assert draws() != expected[:5]
