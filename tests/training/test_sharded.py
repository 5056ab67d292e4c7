"""Training that is shared out over ranks: the same as without, on any number of ranks; and its export."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models import load_checkpoint, sample
from models.loading.checkpoint import CHECKPOINT_NAME
from runtime.errors import UserError
from tests.command_factory import call
from tests.factory import assert_near
from tests.training_factory import (
    exit_codes,
    losses,
    main_command,
    read_log,
    start_ranks,
    tiny_args,
    tiny_command,
    tiny_trainer,
)
from training import export

STEPS = 300  # images of a step, over all ranks
NO_NOISE = {"label_drop": 0.0, "random_replace": 0.0, "random_block_size": False}


def run(root: Path, folder: Path, ranks: int, **settings: Any) -> None:
    """A run of main.py on digits, 5 steps an epoch whatever the number of ranks."""
    settings = {"epochs": 2, "batch_size": STEPS // ranks} | NO_NOISE | settings
    argv = tiny_command(root, folder, **settings)
    folder.mkdir(exist_ok=True)
    assert exit_codes(start_ranks(folder, ranks, main_command, argv)) == [0] * ranks, (folder / "rank0.txt").read_text()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders ``ddp`` and ``sharded`` of two ranks each, and ``half``, which is ``sharded`` after one epoch."""
    root = tmp_path_factory.mktemp("sharded")
    run(root, root / "ddp", 2)
    run(root, root / "sharded", 2, shard=True, epochs=1)
    shutil.copytree(root / "sharded", root / "half")
    run(root, root / "sharded", 2, shard=True)
    return root


@pytest.mark.ranks
def test_losses_and_weights_are_those_without_sharding(root: Path) -> None:
    np.testing.assert_allclose(losses(root / "sharded"), losses(root / "ddp"), rtol=2e-5)
    norms = [[step["grad_norm"] for step in read_log(root / name).values()] for name in ("sharded", "ddp")]
    np.testing.assert_allclose(*norms, rtol=1e-3)
    joined, whole = (load_checkpoint(root / name) for name in ("sharded", "ddp"))
    for key, weight in whole.state_dict().items():
        assert_near(joined.state_dict()[key], weight, atol=1e-3)
    assert joined.class_names == whole.class_names


@pytest.mark.ranks
def test_mixed_precision_rounds_what_it_rounds_without_sharding(root: Path, tmp_path: Path) -> None:
    for name in ("whole", "sharded"):
        run(root, tmp_path / name, 1, shard=name == "sharded", epochs=1, dtype="bfloat16")
    np.testing.assert_allclose(losses(tmp_path / "sharded")[0], losses(tmp_path / "whole")[0], rtol=1e-6)
    np.testing.assert_allclose(losses(tmp_path / "sharded"), losses(tmp_path / "whole"), rtol=5e-5)


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [1, 4])
def test_another_number_of_ranks_goes_on(root: Path, tmp_path: Path, ranks: int) -> None:
    shutil.copytree(root / "half", tmp_path / "run")
    run(root, tmp_path / "run", ranks, shard=True)
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(root / "sharded"), rtol=1e-4)


@pytest.mark.ranks
def test_a_run_that_was_not_finished_exports_to_one_file(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "half", tmp_path / "run")
    (tmp_path / "run" / CHECKPOINT_NAME).unlink()  # the weights are joined at the end alone
    outcome = call(export.main, "--checkpoint", str(tmp_path / "run"), "--output_dir", str(tmp_path / "exported"))
    assert outcome.code == 0, outcome.err
    exported, joined = load_checkpoint(tmp_path / "exported"), load_checkpoint(root / "half")
    assert all(torch.equal(value, joined.state_dict()[key]) for key, value in exported.state_dict().items())
    assert torch.equal(*(sample(model, [3], seeds=[1]).codes[-1] for model in (exported, joined)))


@pytest.mark.ranks
def test_damaged_shares_are_one_line(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "half", tmp_path / "run")
    (tmp_path / "run" / CHECKPOINT_NAME).unlink()
    with pytest.raises(UserError, match=r"training\.export --checkpoint"):
        load_checkpoint(tmp_path / "run")
    next((tmp_path / "run/checkpoint-last.sharded").glob("*.distcp")).unlink()
    outcome = call(export.main, "--checkpoint", str(tmp_path / "run"), "--output_dir", str(tmp_path / "exported"))
    assert "is damaged" in outcome.error()


@pytest.mark.ranks
def test_going_on_leaves_no_older_weights_behind(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "half", tmp_path / "run")
    (tmp_path / "run" / CHECKPOINT_NAME).unlink()
    run(root, tmp_path / "run", 1, shard=True, epochs=1)  # a kill had cut the joining off
    assert (tmp_path / "run" / CHECKPOINT_NAME).exists()
    run(root, tmp_path / "run", 1, shard=True)
    joined = load_checkpoint(tmp_path / "run").state_dict()
    for key, weight in load_checkpoint(root / "sharded").state_dict().items():
        assert_near(joined[key], weight, atol=1e-3)


@pytest.mark.ranks
def test_shares_that_cannot_be_written_are_one_line(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "half", tmp_path / "run")
    (tmp_path / "run/checkpoint-last.sharded.partial").touch()  # where a folder is to be made
    argv = tiny_command(root, tmp_path / "run", epochs=2, batch_size=STEPS, shard=True, **NO_NOISE)
    assert exit_codes(start_ranks(tmp_path, 1, main_command, argv)) == [2]
    out = (tmp_path / "rank0.txt").read_text()
    assert "error: could not write" in out
    assert "Traceback" not in out
    before, after = (path / "checkpoint-last.sharded/place.pth" for path in (root / "half", tmp_path / "run"))
    assert after.read_bytes() == before.read_bytes()


@pytest.mark.ranks
def test_a_finished_run_leaves_nothing_in_a_new_folder(root: Path, tmp_path: Path) -> None:
    folder, resumed = tmp_path / "run", {"shard": True, "resume": str(root / "half")}
    run(root, folder, 1, epochs=1, **resumed)
    assert not (folder / CHECKPOINT_NAME).exists()
    run(root, folder, 1, epochs=2, **resumed)
    assert (folder / CHECKPOINT_NAME).exists()


@pytest.mark.ranks
def test_there_must_be_a_run_to_resume(root: Path, tmp_path: Path) -> None:
    argv = tiny_command(
        root, tmp_path / "run", batch_size=STEPS, shard=True, resume=str(tmp_path / "nowhere"), **NO_NOISE
    )
    assert exit_codes(start_ranks(tmp_path, 1, main_command, argv)) == [2]
    assert "no sharded run at" in (tmp_path / "rank0.txt").read_text()


@pytest.mark.ranks
def test_one_kind_of_run_does_not_go_on_with_the_other(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "half", tmp_path / "run")
    with pytest.raises(UserError, match="add --shard"):
        tiny_trainer(tmp_path / "run").fit()


@pytest.mark.quick
@pytest.mark.parametrize("settings", [{"ema": True}, {"keep_freq": 1}])
def test_what_it_cannot_do_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="shard neither averages weights nor keeps checkpoints"):
        tiny_args(shard=True, **settings)


@pytest.mark.quick
def test_it_needs_torchrun(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="start with torchrun"):
        tiny_trainer(tmp_path / "run", shard=True)
