"""What keeps the code readable: limits of files, classes and functions; citations that lead somewhere."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from tests.command_factory import ROOT

MAX_FILE, MAX_CLASS, MAX_FUNCTION = 400, 250, 60  # lines

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def files() -> list[Path]:
    """Of Python, outside the tests."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    found = [ROOT / name for name in listed.split() if not name.startswith("tests/")]
    found = found or [path for path in ROOT.rglob("*.py") if not {"tests", ".venv"} & set(path.parts)]  # no git here
    assert len(found) > 50
    return found


def test_sections_that_are_cited_exist(files: list[Path]) -> None:
    there = set(re.findall(r"^### ([MGR]\d) ", (ROOT / "docs/formats.md").read_text(), flags=re.MULTILINE))
    assert len(there) > 20
    cited = [name for file in files for name in re.findall(r"formats\.md ((?:[MGR]\d(?:, )?)+)", file.read_text())]
    assert len(cited) > 30
    assert {section for names in cited for section in re.findall(r"[MGR]\d", names)} <= there


def test_files_classes_and_functions_fit_their_limits(files: list[Path]) -> None:
    too_long = []
    for file in files:
        text = file.read_text()
        if text.count("\n") > MAX_FILE:
            too_long.append(str(file))
        for node in ast.walk(ast.parse(text)):
            limit = {ast.ClassDef: MAX_CLASS, ast.FunctionDef: MAX_FUNCTION}.get(type(node))
            if limit is not None and node.end_lineno - node.lineno >= limit:
                too_long.append(f"{file}: {node.name}")
    assert not too_long
