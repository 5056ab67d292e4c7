"""What an error report should tell: python -m runtime.environment."""

import importlib.metadata
import sys
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from runtime.environment import main, needed, state_of
from runtime.files import PROJECT
from tests.command_factory import call

pytestmark = pytest.mark.quick


def test_the_packages_are_those_of_the_file_with_their_versions() -> None:
    outcome = call(main)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    wanted = [line.split(">=")[0] for line in (PROJECT / "requirements.txt").read_text().splitlines() if ">=" in line]
    assert f"torch {torch.__version__.partition('+')[0]}" in lines[1]
    assert [line.split(" ")[0] for line in lines[1 : 1 + len(wanted)]] == wanted
    assert f"packaging {importlib.metadata.version('packaging')}" in lines
    assert any(line.startswith("cpu: ") and "trains in " in line for line in lines)
    assert "cifar10-checkerboard" in lines[-1]


def test_what_is_missing_or_too_old_is_said_with_the_mend() -> None:
    assert state_of(Requirement("no-such-package>=2"), "needed", "requirements.txt") == (
        "no-such-package missing, needed: pip install -r requirements.txt"
    )
    version = importlib.metadata.version("packaging")
    assert state_of(Requirement("packaging>=999"), "needed", "requirements.txt") == (
        f"packaging {version}, but >=999 is needed: pip install -r requirements.txt"
    )


def test_a_broken_torch_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    outcome = call(main)
    assert outcome.code == 0
    assert "torch cannot be loaded" in outcome.out
    assert "GB free in" in outcome.out


def test_what_reads_the_list_may_be_missing_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    assert "run pip install -r requirements.txt" in call(main).error()


def test_packages_of_an_installed_project_are_those_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["torch>=2.14"])
    assert [str(requirement) for requirement in needed(tmp_path / "requirements.txt")] == ["torch>=2.14"]
    assert needed(tmp_path / "requirements-demo.txt") == []
