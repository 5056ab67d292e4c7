"""Result files: one is found again by what decides its figures, and never written over by other figures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from runtime.files import write_json

RESULT_NAME, SAMPLES_NAME = "result.json", "samples"


def find_result(file: Path, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result in a file, if its ``run`` was of these settings; a damaged one is none."""
    if not file.exists():
        return None
    try:
        result = json.loads(file.read_text())
        found = dict(result["run"])
    except (ValueError, KeyError, TypeError):
        return None
    return result if all(name in found and found[name] == value for name, value in wanted.items()) else None


def write_result(file: Path, result: Mapping[str, Any]) -> None:
    """Write a result whole; an earlier one keeps its figures under another name."""
    move_aside(file)
    write_json(file, result)


def move_aside(file: Path) -> None:
    """Give an earlier file of this name, if there is one, another name, and say which."""
    if file.exists():
        aside = next(p for i in range(1, 10**6) if not (p := file.with_stem(f"{file.stem}.{i}")).exists())
        file.rename(aside)
        tqdm.write(f"the earlier {file} is now {aside.name}")
