"""Installed, in place or as a copy, every program is there and works from any directory."""

import shutil
import subprocess
import tomllib
import zipfile
from pathlib import Path
from pkgutil import resolve_name

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from runtime.files import PROJECT, located
from tests.command_factory import start_python

pytestmark = pytest.mark.quick
SETTINGS = tomllib.loads((PROJECT / "pyproject.toml").read_text())


@pytest.mark.parametrize("script", SETTINGS["project"]["scripts"].values())
def test_every_console_script_is_there(script: str) -> None:
    assert callable(resolve_name(script))


def test_every_package_and_program_is_installed() -> None:
    setuptools = SETTINGS["tool"]["setuptools"]
    places = {file.parent.relative_to(PROJECT) for file in tracked() if file.suffix == ".py"}
    packages = {".".join(place.parts) for place in places if place.parts and place.parts[0] != "tests"}
    assert packages | {"configs", "configs.study"} == set(setuptools["packages"])
    assert {path.stem for path in PROJECT.glob("*.py")} == set(setuptools["py-modules"])


def tracked() -> list[Path]:
    """All files of the project."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    return [PROJECT / name for name in listed.split("\0") if name]


@pytest.mark.processes
def test_a_copy_that_is_installed_draws_by_what_ships(tmp_path: Path) -> None:
    """``pip install .``: a wheel has all modules, configurations and small weights."""
    for file in tracked():
        if file.relative_to(PROJECT).parts[0] not in ("tests", "docs"):
            target = tmp_path / "project" / file.relative_to(PROJECT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    build = "from setuptools import build_meta; build_meta.build_wheel('..')"
    built = start_python("-c", build, folder=tmp_path / "project")
    assert built.code == 0, built.err
    shutil.rmtree(tmp_path / "project")
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()
    for call in (
        (
            "main_sample",
            "--checkpoint",
            "pretrained_models/digits-checkerboard",
            "--labels",
            "3",
            "--output_dir",
            "out",
        ),
        ("main", "--config", "configs/quickstart.yaml", "--print_config"),
    ):
        outcome = start_python(
            "-m", *call, "--device", "cpu", folder=tmp_path / "empty", PYTHONPATH=str(tmp_path / "site")
        )
        assert outcome.code == 0, outcome.err
    assert (tmp_path / "empty/out/grid.png").is_file()


@pytest.mark.parametrize("file", sorted(path.name for path in PROJECT.glob("requirements*.txt")))
def test_known_good_versions_are_of_all_that_is_required(file: str) -> None:
    lines = (PROJECT / "constraints.txt").read_text().splitlines()
    known = {canonicalize_name(name): number for name, _, number in (line.partition("==") for line in lines)}
    for line in (PROJECT / file).read_text().splitlines():
        if line and not line.startswith(("#", "-r")):
            required = Requirement(line)
            assert required.specifier.contains(known[canonicalize_name(required.name)]), line


def test_what_is_not_here_may_be_in_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert located("configs/quickstart.yaml") == PROJECT / "configs/quickstart.yaml"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/quickstart.yaml").touch()
    assert located("configs/quickstart.yaml") == Path("configs/quickstart.yaml")
    assert located("nowhere") == Path("nowhere")


@pytest.mark.processes
def test_programs_work_from_any_directory(tmp_path: Path) -> None:
    """Shipped configurations and weights are found; what is written lies here."""
    flags = ["--config", "configs/quickstart.yaml", "--labels", "3", "--device", "cpu", "--output_dir", "here"]
    outcome = start_python(str(PROJECT / "main_sample.py"), *flags, folder=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "with a random autoencoder" not in outcome.out
    assert (tmp_path / "here/grid.png").is_file()


@pytest.mark.processes
def test_ctrl_c_while_a_program_is_still_importing_ends_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise KeyboardInterrupt")
    outcome = start_python(str(PROJECT / "evaluator.py"), folder=tmp_path, PYTHONPATH=str(tmp_path))
    assert outcome.err == "interrupted\n"
    assert outcome.code in (130, -2)
