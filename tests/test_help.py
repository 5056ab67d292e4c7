"""--help comes before anything heavy is imported."""

import re

import pytest

from tests.command_factory import start_python

COMMANDS = (
    *("main.py", "main_sample.py", "train_ae_codebook/main.py", "benchmarks/sampling.py"),
    *("-m train_ae_codebook.main", "-m experiments.curves", "-m experiments.mixing", "-m experiments.train_classifier"),
    *("-m benchmarks.sampling", "-m benchmarks.training", "-m benchmarks.cache", "-m training.export"),
)


@pytest.mark.processes
@pytest.mark.parametrize("command", COMMANDS)
def test_help_does_not_wait_for_torch(command: str) -> None:
    outcome = start_python("-X", "importtime", *command.split(), "--help")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("usage: ")
    imported = set(re.findall(r"\| +([\w.]+)$", outcome.err, flags=re.MULTILINE))
    assert "runtime.config" in imported
    assert not imported & {"torch", "torchvision", "tensorflow", "sklearn", "scipy", "matplotlib", "timm"}
