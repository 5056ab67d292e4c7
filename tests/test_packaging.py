"""``pip install -e .`` offers every program, and programs work from any directory."""

import tomllib
from pathlib import Path
from pkgutil import resolve_name

import pytest

from runtime.files import PROJECT, located
from tests.command_factory import start_python

pytestmark = pytest.mark.quick
SETTINGS = tomllib.loads((PROJECT / "pyproject.toml").read_text())


@pytest.mark.parametrize("script", SETTINGS["project"]["scripts"].values())
def test_every_console_script_is_there(script: str) -> None:
    assert callable(resolve_name(script))


def test_every_package_and_program_is_installed() -> None:
    setuptools = SETTINGS["tool"]["setuptools"]
    packages = {path.parent.name for path in PROJECT.glob("*/__init__.py")} - {"tests"}
    assert packages | {"pretrained_models"} == set(setuptools["packages"])
    assert {path.stem for path in PROJECT.glob("*.py")} == set(setuptools["py-modules"])


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
