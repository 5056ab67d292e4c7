"""``benchmarks.device``: it runs with few packages, finds faults, and bears rows that fail or do not fit."""

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import device, device_job
from benchmarks.device_checks import checks_of
from benchmarks.device_job import Report
from benchmarks.device_plan import GOALS, SECTIONS, Row, rows_to_measure
from benchmarks.device_rows import peak_of
from models.config import FAMILIES, AutoencoderPaths, GeneratorConfig, family_of
from models.family import Generator
from models.transformer import KVCache
from runtime.config import dataclass_from_dict, read_yaml
from tests.command_factory import ROOT, call, start_python
from tests.factory import CPU

CONFIGS = {"S": "config_256_S", "L": "config_256_L", "LlamaGen-L": "llamagen_L", "RandAR-L": "randar_L"}
SMALL = ("--device", "cpu", "--small")
WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Lacking(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        missing = name.partition(".")[0] in ("yaml", "torchvision", "PIL", "timm", "scipy", "pytest", "matplotlib")
        return None if missing else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Lacking
from benchmarks.device import main
from runtime.command import run
run(main)
"""


def config_of(section: dict[str, Any]) -> GeneratorConfig:
    return dataclass_from_dict(family_of(section).load("config"), section, "model")


@pytest.mark.quick
@pytest.mark.parametrize("name", SECTIONS)
def test_models_and_training_batches_are_those_of_the_configurations(name: str) -> None:
    content = read_yaml(ROOT / f"configs/{CONFIGS[name]}.yaml")
    assert replace(config_of(content["model"]), autoenc=AutoencoderPaths()) == config_of(SECTIONS[name])
    trained = {row.batch for row in rows_to_measure(False, True) if (row.work, row.model) == ("training", name)}
    assert trained <= {content["args"]["batch_size"]}


@pytest.mark.quick
def test_every_combination_is_a_row() -> None:
    rows = rows_to_measure(small=False, compiled=True)
    assert len(set(rows)) == len(rows)
    sampled = {(row.model, row.batch, row.dtype, row.mode) for row in rows if row.work == "sampling"}
    for model in ("S", "L"):
        for batch in (1, 16, 64, 256):
            for dtype in ("float32", "bfloat16"):
                assert {(model, batch, dtype, mode) for mode in ("eager", "compiled")} <= sampled
    assert {row.mode for row in rows_to_measure(False, compiled=False)} == {"eager"}


@pytest.mark.processes
def test_all_of_it_without_packages_that_a_bare_machine_lacks(tmp_path: Path) -> None:
    """Uncompiled, which takes minutes; the tests of each family's sampler compile."""
    path = tmp_path / "new/device.json"
    outcome = start_python("-c", WITHOUT, *SMALL, "--output", str(path), TORCHDYNAMO_DISABLE="1")
    assert outcome.code == 0, outcome.err + outcome.out
    found = json.loads(path.read_text())
    assert [check["name"] for check in found["checks"] if not check["passed"]] == []
    assert len(found["checks"]) == 2 + 7 * len(FAMILIES)
    assert [(row["work"], row["model"], row["batch"], row["dtype"], row["mode"]) for row in found["rows"]] == [
        (row.work, row.model, row.batch, row.dtype, row.mode) for row in rows_to_measure(small=True, compiled=True)
    ]
    for row in found["rows"]:
        assert row["images_a_second"] * row["seconds_an_image"] == pytest.approx(1)
        assert row["kernels"] > 100
        assert row["model"].startswith("tiny ")
        assert not {"idle", "peak_bytes"} & row.keys()  # which say something of a GPU alone
        if row["work"] == "sampling":
            seconds = row["drawing_seconds"] + row["decoding_seconds"]
            assert row["images_a_second"] == pytest.approx(row["batch"] / seconds)
        else:
            assert row["operations"] > 1e7


@pytest.mark.quick
def test_rows_that_do_not_fit_into_the_time_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    path.write_text("earlier")
    flags = ("--compiled", "false", "--minutes", "0.01", "--output", str(path))
    outcome = call(device.main, *SMALL, *flags)
    assert outcome.code == 0, outcome.err
    rows = json.loads(path.read_text())["rows"]
    assert all("skipped" in row for row in rows)
    assert f"{len(rows)} of {len(rows)} rows were skipped" in outcome.out
    assert (tmp_path / "device.1.json").read_text() == "earlier"


@pytest.mark.quick
@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to"), "out_of_memory", 0),
        (RuntimeError("a kernel is broken"), "failed", 1),
    ],
)
def test_a_row_that_fails_is_reported_and_the_next_goes_on(
    error: Exception, kind: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Row] = []

    def measure(row: Row, *rest: Any) -> dict[str, float]:
        measured.append(row)
        if len(measured) == 2:
            raise error
        return {"images_a_second": 3.0}

    monkeypatch.setattr(device_job, "measure", measure)
    monkeypatch.setattr(device_job, "checks_of", lambda *args: [])
    outcome = call(device.main, *SMALL, "--output", str(tmp_path / "device.json"))
    assert outcome.code == code, outcome.err
    rows = json.loads((tmp_path / "device.json").read_text())["rows"]
    assert measured == rows_to_measure(small=True, compiled=True)
    assert [str(error).split(".")[0] == row.get(kind) for row in rows] == [i == 1 for i in range(len(rows))]


# Faults are found


def failed_checks() -> Iterator[str]:
    for check in checks_of(CPU, compiled=False):
        if not check.difference() <= check.tolerance:
            yield check.name


@pytest.mark.quick
def test_a_device_that_computes_otherwise_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    original = copy.deepcopy

    @torch.no_grad()
    def otherwise(model: Generator) -> Generator:
        model = original(model)
        for parameter in model.parameters():
            parameter.mul_(1.001)
        return model

    monkeypatch.setattr(copy, "deepcopy", otherwise)
    assert {f"{family}: {name}" for family in FAMILIES for name in ("logits", "gradients")} <= set(failed_checks())


@pytest.mark.quick
def test_a_cache_that_forgets_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    original = KVCache.append

    def forget(self: KVCache, layer: int, start: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = original(self, layer, start, k, v)
        return keys, values * (torch.arange(values.shape[2]) >= start)[:, None]

    monkeypatch.setattr(KVCache, "append", forget)
    assert set(failed_checks()) == {f"{name}: sampling - teacher forcing" for name in FAMILIES}


@pytest.mark.quick
def test_a_check_that_breaks_is_one_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(KVCache, "append", broken)
    flags = ("--compiled", "false", "--minutes", "0.01", "--output", str(tmp_path / "device.json"))
    outcome = call(device.main, *SMALL, *flags)
    assert outcome.code == 1
    assert outcome.out.count("(no such kernel)") == 2 * len(FAMILIES)  # both checks that draw
    assert f"{2 * len(FAMILIES)} of " in outcome.out


# Conclusions


@pytest.mark.quick
def test_goals_are_compared_with_the_best_row_of_theirs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    report = Report(tmp_path / "device.json")
    row = {"work": "sampling", "model": "L", "batch": 1, "dtype": "bfloat16", "seconds_an_image": 0.2}
    large = row | {"batch": 64, "images_a_second": 160.0, "idle": 0.2}
    report.rows = [row, row | {"seconds_an_image": 0.08}, row | {"model": "S", "seconds_an_image": 0.01}, large]
    device_job.conclude(report, device.BenchmarkArgs())
    said = capsys.readouterr().out.splitlines()
    assert [line.rpartition(": ")[2] for line in said[: len(GOALS)]] == ["0.08, met", "160, met", "0.2, missed"]
    report.rows = []
    device_job.conclude(report, device.BenchmarkArgs())
    assert capsys.readouterr().out.count("not measured") == len(GOALS)


@pytest.mark.quick
def test_a_row_may_take_as_long_as_the_longest_like_it(tmp_path: Path) -> None:
    report, row = Report(tmp_path / "device.json"), Row("sampling", "L", 1, "bfloat16", "compiled")
    guess = report.expected(row)
    report.seconds = {replace(row, mode="eager"): 500.0}
    assert report.expected(row) == guess
    report.seconds |= {replace(row, model="S"): 40.0, replace(row, model="S", batch=64): 30.0}
    assert report.expected(row) == 40
    report.seconds |= {replace(row, batch=64): 90.0}
    assert (report.expected(row), report.expected(replace(row, model="S"))) == (90, 40)


@pytest.mark.quick
def test_peaks_of_cards_that_are_known() -> None:
    assert peak_of("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert peak_of("NVIDIA H100 PCIe", "float32") == 51e12
    assert peak_of("NVIDIA A100-SXM4-80GB", "bfloat16") == 312e12
    assert peak_of("NVIDIA GeForce RTX 4090", "bfloat16") is None
