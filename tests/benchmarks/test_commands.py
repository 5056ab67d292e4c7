"""The tables that benchmarks print, on tiny input."""

import re
from pathlib import Path

import pytest
import yaml

from benchmarks import cache, device, sampling, training
from benchmarks.sampling import BenchmarkArgs
from benchmarks.sampling_job import COLUMNS, Case, measure_memory, measure_times
from tests.command_factory import ROOT, call


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's, with a smaller transformer."""
    path = tmp_path_factory.mktemp("benchmarks") / "config_tiny.yaml"
    model = yaml.safe_load((ROOT / "configs/quickstart.yaml").read_text())["model"]
    model["llama_config"] |= {"hidden_size": 64, "num_hidden_layers": 2}
    path.write_text(yaml.safe_dump({"model": model}))
    return path


def test_a_row_of_sampling(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    args = BenchmarkArgs(drawing={"steps_per_scale": 1}, repeats=1, device="cpu")
    case = Case(str(config), "float32", 2, "eager", args)
    times, memory = measure_times(case), measure_memory(case)
    row = dict(zip(COLUMNS, (*times[:-1], *memory, times[-1]), strict=True))
    assert (row["model"], row["batch"], row["dtype"], row["mode"]) == ("tiny", "2", "float32", "eager")
    assert len(row["by scale s"].split()) == 4
    assert sum(map(float, row["by scale s"].split())) == pytest.approx(float(row["drawing s"]), abs=0.03)
    slower = measure_times(Case(str(config), "float32", 2, "eager", BenchmarkArgs(repeats=1, device="cpu")))
    assert int(slower[COLUMNS.index("operations")]) > 1.5 * int(row["operations"])  # 13 steps instead of 4


@pytest.mark.quick
@pytest.mark.parametrize(("name", "side"), [("checkerboard_2x", 2), ("npp", 3)])
def test_patches_that_a_model_does_not_learn_from_are_refused(name: str, side: int) -> None:
    """A checkerboard has none, and a grid of 8 x 8 codes has none of side 3."""
    flags = ["--config", str(ROOT / f"configs/study/{name}.yaml"), "--patch_side", str(side), "--device", "cpu"]
    assert f"does not learn from patches of side {side}" in call(training.main, *flags).error()


def test_the_parts_of_a_training_step(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    outcome = call(training.main, "--config", str(config), "--steps", "1", "--batch_size", "2", "--device", "cpu")
    assert outcome.code == 0, outcome.err
    shares = {name: float(share) for name, share in re.findall(r"([a-z ]+): .* ([\d.]+)%", outcome.out)}
    shares = {name.strip(): share for name, share in shares.items()}
    assert list(shares) == ["forward", "backward", "optimizer", "step", "matrix products"]
    assert sum(shares[name] for name in ("forward", "backward", "optimizer")) == pytest.approx(100, abs=0.2)
    assert 0 < shares["matrix products"] < 100


def test_rows_of_the_cache(tmp_path: Path) -> None:
    flags = ("--images", "2000", "--stored_images", "100", "--batches", "3", "--batch_size", "20")
    outcome = call(cache.main, *flags, "--folder", str(tmp_path))
    assert outcome.code == 0, outcome.err
    sparse, *stored = (line[20:].split() for line in outcome.out.splitlines() if line.startswith(("sparse", "stored")))
    assert sparse[:3] == ["2000", "0.03", "0.00"]  # images, GB of the files, GB on the disk
    assert [row[0] for row in stored] == ["100"] * len(stored)
    assert all(float(row[-1]) > 0 for row in (sparse, *stored))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("main", "flags", "answer"),
    [
        (sampling.main, ("--modes", "[fast]"), "modes is fast; it must be one of eager, compiled"),
        (sampling.main, ("--repeats", "0"), "repeats is 0; it must be at least 1"),
        (training.main, ("--config", "nowhere.yaml"), "no such file: nowhere.yaml"),
        (cache.main, ("--images", "0"), "images is 0; it must be at least 1"),
        (device.main, ("--minutes", "0"), "minutes is 0.0; it must be above 0"),
        (device.main, ("--output", "table.txt"), "output is table.txt; name a file that ends in .json"),
    ],
)
def test_a_mistake_is_answered_by_one_line(main: object, flags: tuple[str, ...], answer: str) -> None:
    assert answer in call(main, *flags).error()
