"""Print what an error report should tell: the system, this environment's packages, and what it can compute on.

    python -m runtime.environment

A package that is missing or too old is a line with the mend.
"""

import importlib.metadata
import platform
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import PROJECT
from runtime.command import run
from runtime.config import parse_flags

if TYPE_CHECKING:
    from packaging.requirements import Requirement

NAME = "progressive-checkerboard"
OPTIONAL = {"requirements-demo.txt": "the page in the browser"}  # what a file of packages is for


@dataclass(frozen=True)
class EnvironmentArgs:
    """It has no options."""


def main(argv: Sequence[str]) -> None:
    parse_flags(argv, "runtime.environment", __doc__, EnvironmentArgs)
    print(f"Python {platform.python_version()}, {platform.platform()}, in {PROJECT}")
    for line in (*_packages(), *_devices(), *_places()):
        print(line)


def _packages() -> Iterator[str]:
    """A line for each package that the project needs, and for those that a part of it needs."""
    for requirement in needed(PROJECT / "requirements.txt"):
        yield state_of(requirement, "needed", "requirements.txt")
    for name, purpose in OPTIONAL.items():
        for requirement in needed(PROJECT / name):
            yield state_of(requirement, f"for {purpose}", name)


def needed(path: Path) -> "list[Requirement]":
    """What a file of packages lists; of an installed project, which has no such file, what it depends on."""
    from packaging.requirements import Requirement  # which may be missing itself

    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        return [Requirement(line) for line in lines if line.strip() and not line.startswith(("#", "-"))]
    if path.name != "requirements.txt":
        return []
    return [Requirement(line) for line in importlib.metadata.requires(NAME) or ()]


def state_of(requirement: "Requirement", purpose: str, path: str) -> str:
    """A package's version, or what is wrong with it."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{requirement.name} missing, {purpose}: pip install -r {path}"
    if requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} {version}"
    return f"{requirement.name} {version}, but {requirement.specifier} is {purpose}: pip install -r {path}"


def _devices() -> Iterator[str]:
    """What torch computes on, or why it cannot be loaded."""
    try:
        import_module("torch")
    except Exception as error:  # a broken installation raises anything
        yield f"torch cannot be loaded: {error}"
        return
    try:
        yield from _devices_of_torch()
    except RuntimeError as error:  # of a driver that does not fit
        yield f"torch cannot use what is there: {error}"


def _devices_of_torch() -> Iterator[str]:
    import torch

    from runtime.device import describe_machine, dtype_name, pick_dtype

    kinds = ["cpu", *(["mps"] if torch.backends.mps.is_available() else [])]
    for name in [*(f"cuda:{i}" for i in range(torch.cuda.device_count())), *kinds]:
        device = torch.device(name)
        memory = ""
        if device.type == "cuda":
            memory = f", {torch.cuda.get_device_properties(device).total_memory / 1e9:.0f} GB"
        dtype = dtype_name(pick_dtype("auto", device, trains=True))
        yield f"{name}: {describe_machine(device)}{memory}, trains in {dtype}"
    if torch.version.cuda is not None and not torch.cuda.is_available():
        yield f"this torch is made for CUDA {torch.version.cuda}, and sees no GPU"


def _places() -> Iterator[str]:
    """Free disk, and the weights at hand."""
    yield f"{shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB free in {Path.cwd()}"
    folder = PROJECT / "pretrained_models"
    kinds = (".safetensors", ".pth", ".pt", ".npz")
    names = sorted({path.relative_to(folder).parts[0] for path in folder.rglob("*") if path.suffix in kinds})
    yield f"in {folder.name}: {', '.join(names) or 'nothing'}"


if __name__ == "__main__":
    run(main)
