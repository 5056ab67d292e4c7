"""--help comes before anything heavy is imported."""

import re

import pytest

from tests.command_factory import start_python

COMMANDS = (
    *("main.py", "main_sample.py", "evaluator.py", "-m evaluation.run", "-m training.export"),
    *("train_ae_codebook/main.py", "-m train_ae_codebook.main", "train_ae_codebook/evaluate.py"),
    *("-m experiments.sweep", "-m experiments.compare", "-m experiments.curves", "-m experiments.mixing"),
    *("-m experiments.study", "-m experiments.study_figures", "-m experiments.study_tables"),
    *("-m experiments.train_classifier", "benchmarks/sampling.py", "-m benchmarks.sampling"),
    *("-m benchmarks.training", "-m benchmarks.cache", "-m benchmarks.reading", "-m demo"),
)


@pytest.mark.processes
@pytest.mark.parametrize("command", COMMANDS)
def test_help_does_not_wait_for_torch(command: str) -> None:
    outcome = start_python("-X", "importtime", *command.split(), "--help")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("usage: ")
    imported = set(re.findall(r"\| +([\w.]+)$", outcome.err, flags=re.MULTILINE))
    assert "runtime.config" in imported
    slow = {"torch", "torchvision", "tensorflow", "sklearn", "scipy", "matplotlib", "timm", "pyarrow", "gradio"}
    assert not imported & slow
