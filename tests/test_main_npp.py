"""Next Patch Prediction by main.py, from a folder of codes: killed at the borders of its stages, and refused."""

from pathlib import Path

import numpy as np
import pytest

import main
from models.loading.autoencoder import save_autoencoder
from runtime.config import write_yaml
from tests.command_factory import call
from tests.factory import FIXTURES, tiny_autoencoder
from tests.training_factory import (
    assert_same_training,
    exit_codes,
    main_command,
    read_events,
    read_log,
    start_process,
)

IMAGES, SIDE, STEPS = 40, 4, 5  # steps of an epoch
STAGES = [4] * 3 * STEPS + [2] * 3 * STEPS + [1] * 6 * STEPS  # sides of the steps of 12 epochs


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with codes of 40 images and ``npp.yaml``, which trains on them."""
    root, rng = tmp_path_factory.mktemp("npp"), np.random.default_rng(0)
    save_autoencoder(tiny_autoencoder(), root / "autoenc")
    for kind, arrays in (
        ("codes", rng.integers(64, size=(IMAGES, 1, 2, SIDE * SIDE))),
        ("labels", np.ones((IMAGES, 1))),
    ):
        (root / f"codes/imagenet16_{kind}").mkdir(parents=True)
        for n, array in enumerate(arrays.astype(np.int64)):
            np.save(root / f"codes/imagenet16_{kind}/{n}.npy", array)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    weights = {"checkpoint_path": str(root / "autoenc/autoencoder.safetensors")}
    model = {"architecture": "llamagen", "img_size": 16, "num_classes": 10, "vocab_size": 64, "llama_config": size}
    args = {"epochs": 12, "patch_level": 3, "schedule": "stages", "warmup_epochs": 0.5, "batch_size": 8, "lr": 3e-3}
    args |= {
        "code_paths": [str(root / "codes")],
        "num_workers": 0,
        "device": "cpu",
        "dtype": "float32",
        "ema": True,
        "ema_warmup": False,
    }
    args |= {"log_freq": 1, "eval_freq": 0, "save_minutes": 0.0}
    write_yaml(root / "npp.yaml", {"model": model | {"autoenc": weights}, "args": args})
    return root


def flags(root: Path, folder: Path, *more: str) -> list[str]:
    return ["--config", str(root / "npp.yaml"), "--output_dir", str(folder), *more]


@pytest.mark.processes
def test_a_run_killed_at_the_borders_of_its_stages_comes_to_the_same_end(root: Path, tmp_path: Path) -> None:
    """By the same command, until nothing is left to do."""
    outcome = call(main.main, *flags(root, tmp_path / "whole"))
    assert outcome.code == 0, outcome.err
    for border in (STAGES.index(2), STAGES.index(1)):
        process = start_process(tmp_path / "out.txt", main_command, flags(root, tmp_path / "killed"))
        log = tmp_path / "killed/log.jsonl"
        while process.is_alive() and not (log.exists() and f'"step": {border},' in log.read_text()):
            process.join(0.001)
        process.kill()
        assert exit_codes([process]) == [-9]
    outcome = call(main.main, *flags(root, tmp_path / "killed"))
    assert outcome.code == 0, outcome.err
    starts = [event["step"] for event in read_events(tmp_path / "killed") if "event" in event]
    assert len(starts) == 3
    assert starts[0] == 0 < starts[1] < starts[2] < len(STAGES)
    assert_same_training(tmp_path / "whole", tmp_path / "killed")
    assert read_log(tmp_path / "killed") == read_log(tmp_path / "whole")


def test_the_share_of_tokens_is_that_of_what_was_trained(root: Path, tmp_path: Path) -> None:
    """Also of a run that goes on with other stages: an epoch of single codes, one of patches of 2 x 2, two of codes."""
    for stages in (["--epochs", "1", "--patch_level", "1"], ["--epochs", "4", "--patch_level", "2"]):
        outcome = call(main.main, *flags(root, tmp_path / "run", *stages))
        assert outcome.code == 0, outcome.err
    shares = [entry.get("tokens_share") for entry in read_log(tmp_path / "run").values()]
    batches = [1.0] * STEPS + [0.25] * STEPS + [1.0] * 2 * STEPS
    assert shares[:STEPS] == [None] * STEPS
    assert shares[STEPS:] == pytest.approx([sum(batches[:n]) / n for n in range(STEPS, 4 * STEPS)])


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--patch_level", "5"], "patch_level is 5; it must be at most 4, and 1 for single codes alone"),
        (
            ["--patch_level", "4"],
            "patch_level 4 begins with patches of side 8, which do not divide the grid of 4 x 4 codes; lower",
        ),
        (["--epoch_rate", "0"], "epoch_rate is 0.0; it must lie above 0 and be at most 1"),
        (["--weights_init", str(FIXTURES / "tiny-2x")], "has no weights that fit this model; name a checkpoint of a"),
        (["--use_cache"], "code_paths are codes already; set use_cache false"),
        (["--code_paths", "[nowhere]"], "no folder nowhere/imagenet16_codes; name the one that holds it"),
        (["--vocab_size", "65"], "vocab_size is 65, but the autoencoder has 64 codes"),
        (["--cfg_interval", "-2"], "cfg_interval is -2"),
        (["--cfg_start_step", "2"], "--cfg_start_step belongs to architecture checkerboard"),
        (["--attention", "flex"], "llamagen has the attention sdpa alone"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_a_mistake_is_answered_by_one_line(words: list[str], answer: str, root: Path, tmp_path: Path) -> None:
    assert answer in call(main.main, *flags(root, tmp_path / "run", *words)).error()


def test_a_checkerboard_does_not_learn_from_patches(tmp_path: Path) -> None:
    words = ["--config", "configs/quickstart.yaml", "--output_dir", str(tmp_path / "run"), "--patch_level", "2"]
    words += ["--cached_path", str(tmp_path / "cached")]
    assert call(main.main, *words).error() == "checkerboard does not learn from patches of codes; set patch_level 1"
