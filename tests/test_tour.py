"""The tour runs as it stands, shows what it says, and ships with the pictures of a run."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from tests.command_factory import ROOT

TOUR = ROOT / "docs/tour.ipynb"
MAX_BYTES = 1_000_000
PATIENCE = 300  # seconds for a cell


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook: NotebookNode) -> str:
    return "".join(o.text for cell in code_cells(notebook) for o in cell.outputs if o.output_type == "stream")


def num_pictures(notebook: NotebookNode) -> list[int]:
    """How many each cell shows."""
    return [sum("image/png" in output.get("data", {}) for output in cell.outputs) for cell in code_cells(notebook)]


@pytest.fixture(scope="module")
def stored() -> NotebookNode:
    return nbformat.read(TOUR, as_version=4)


@pytest.mark.processes
def test_it_runs(stored: NotebookNode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a kernel of its own, where it lies; the true class has the lowest loss, and what ships is what a run shows."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    fresh = nbformat.from_dict(stored)
    for cell in code_cells(fresh):
        cell.outputs, cell.execution_count = [], None
    NotebookClient(fresh, timeout=PATIENCE, resources={"metadata": {"path": str(TOUR.parent)}}).execute()
    assert re.search(r"^3: \d\.\d\d nats a code  <- lowest$", printed(fresh), flags=re.MULTILINE)
    assert num_pictures(fresh) == num_pictures(stored)
    assert sum(num_pictures(fresh)) >= 6


@pytest.mark.quick
def test_what_ships_was_run_in_order_and_is_small(stored: NotebookNode) -> None:
    assert [cell.execution_count for cell in code_cells(stored)] == list(range(1, len(code_cells(stored)) + 1))
    assert not [
        o for cell in code_cells(stored) for o in cell.outputs if o.output_type == "error" or "stderr" in o.values()
    ]
    assert TOUR.stat().st_size < MAX_BYTES
    for target in re.findall(r"\]\(([^)\s]+)\)", "".join(cell.source for cell in stored.cells)):
        assert (TOUR.parent / target).is_file(), target
