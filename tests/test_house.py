"""Limits that keep the code readable: of files, classes and functions outside the tests."""

import ast
import subprocess

import pytest

from tests.command_factory import ROOT

MAX_FILE, MAX_CLASS, MAX_FUNCTION = 400, 250, 60  # lines

pytestmark = pytest.mark.quick


def test_files_classes_and_functions_fit_their_limits() -> None:
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    files = [ROOT / name for name in listed.split() if not name.startswith("tests/")]
    files = files or [path for path in ROOT.rglob("*.py") if not {"tests", ".venv"} & set(path.parts)]  # no git here
    assert len(files) > 50
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
