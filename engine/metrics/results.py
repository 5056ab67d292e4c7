"""Result files: one is found again by what decides its figures, and never written over by other figures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.metrics.files import write_json

RESULT_NAME, SAMPLES_NAME = "result.json", "samples"


def find_result(file: Path, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result in a file, if its ``run`` was of these settings; a damaged one is none."""
    if not file.exists():
        return None
    try:
        result = json.loads(file.read_text())
        found = result["run"].keys() and result["run"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return result if all(name in found and found[name] == value for name, value in wanted.items()) else None


def write_result(file: Path, result: Mapping[str, Any]) -> None:
    """Write a result whole; an earlier one keeps its figures under another name."""
    if file.exists():
        file.rename(next(p for i in range(1, 10**6) if not (p := file.with_stem(f"{file.stem}.{i}")).exists()))
    write_json(file, result)
