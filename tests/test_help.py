"""--help comes before anything heavy is imported, and drawing imports no more than it needs."""

import re
import sys
from pathlib import Path

import pytest

import main_sample
from tests.command_factory import ROOT, call, start, start_python

COMMANDS = (
    *("main.py", "main_sample.py", "evaluator.py", "-m evaluation.run", "-m training.export"),
    "-m runtime.environment",
    *("train_ae_codebook/main.py", "-m train_ae_codebook.main", "train_ae_codebook/evaluate.py"),
    *("-m experiments.sweep", "-m experiments.compare", "-m experiments.curves", "-m experiments.mixing"),
    "-m experiments.orders",
    *(
        "-m experiments.study",
        "-m experiments.study_figures",
        "-m experiments.study_tables",
        "-m experiments.study_times",
    ),
    *("-m experiments.train_classifier", "benchmarks/sampling.py", "-m benchmarks.sampling"),
    *("-m benchmarks.training", "-m benchmarks.cache", "-m benchmarks.reading", "-m demo"),
)


def imported_by(*command: str) -> tuple[set[str], str]:
    """The modules that a command imports, and what it prints."""
    outcome = start_python("-X", "importtime", *command)
    assert outcome.code == 0, outcome.err
    return set(re.findall(r"\| +([\w.]+)$", outcome.err, flags=re.MULTILINE)), outcome.out


@pytest.mark.processes
@pytest.mark.parametrize("command", COMMANDS)
def test_help_does_not_wait_for_torch(command: str) -> None:
    imported, out = imported_by(*command.split(), "--help")
    assert out.startswith("usage: ")
    assert "runtime.config" in imported
    slow = {"torch", "torchvision", "tensorflow", "sklearn", "scipy", "matplotlib", "timm", "pyarrow", "gradio"}
    assert not imported & slow


def test_a_default_that_differs_between_families_is_told_of_each() -> None:
    text = " ".join(call(main_sample.main, "--help").out.split())
    assert "or checkerboard 1.5, llamagen 1.0, randar 3.0)" in text
    assert text.count("options:") == 1


@pytest.mark.processes
@pytest.mark.parametrize("script", ["run_evaluator.sh", "experiments/study.sh", "pretrained_models/download.sh"])
def test_a_script_finds_the_project_through_a_link(script: str, tmp_path: Path) -> None:
    (tmp_path / "further").mkdir()
    (tmp_path / "there.sh").symlink_to(ROOT / script)
    (tmp_path / "further/here.sh").symlink_to("../there.sh")
    outcome = start("bash", "here.sh", "--help", folder=tmp_path / "further", PYTHON=sys.executable)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("usage: ")


@pytest.mark.processes
@pytest.mark.parametrize("fixture", ["tiny-2x", "tiny-randar"])
def test_drawing_does_not_wait_for_what_it_can_do_without(fixture: str, tmp_path: Path) -> None:
    """These took as long to import as torch itself."""
    checkpoint = ("--checkpoint", f"tests/fixtures/{fixture}", "--num_samples", "2", "--output_dir", str(tmp_path))
    imported, _ = imported_by("main_sample.py", *checkpoint, "--device", "cpu")
    assert "torch" in imported
    assert not imported & {"torchvision", "torch._dynamo", "sympy", "timm", "scipy", "matplotlib"}
    assert (tmp_path / "grid.png").exists()
