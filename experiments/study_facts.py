"""What the study has measured, as its JSON lines say it: one fact a line (docs/study.md)."""

import json
import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.study_plan import usual_epochs
from runtime.errors import UserError
from runtime.files import write_text

Line = dict[str, Any]
REAL = {"real": "real test images", "reconstructed": "reconstructed"}  # pictures of no model
TIME = "time"  # kind of a fact that needs no training
Key = tuple[str, int, int]  # configuration, seed, epochs
NAMES = {
    "checkerboard_2x": "checkerboard 2x",
    "checkerboard_4x": "checkerboard 4x",
    "checkerboard_single": "checkerboard, single scale",
    "random_2x": "random order 2x",
    "raster_2x": "raster order 2x",
    "llamagen": "LlamaGen",
    "npp": "NPP",
    "randar_random": "RandAR, random order",
    "randar_raster": "RandAR, raster order",
}


def read_lines(path: Path) -> list[Line]:
    """The facts of a file of the study."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file, of results of experiments.study")
    if not path.is_file():
        raise UserError(f"no such file: {path}; name the results of experiments.study")
    try:
        lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
        if all(isinstance(line["kind"], str) and line["model"] in NAMES and _is_whole(line) for line in lines):
            return lines
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{path} holds other lines than those of experiments.study; name its results, or a new file")


def write_lines(path: Path, lines: Sequence[Line]) -> None:
    """Write facts, in the place of older ones of the same models; those of other models stay.

    Times of drawing give way to times alone, and other facts to others.
    """
    older = read_lines(path) if path.exists() else []
    own = {(_key(line), line["kind"] == TIME) for line in lines}
    kept = [line for line in older if (_key(line), line["kind"] == TIME) not in own]
    ordered = sorted([*lines, *kept], key=lambda line: _place(_key(line)))
    write_text(path, "".join(json.dumps(line) + "\n" for line in ordered))


def picture_file(results: Path, config: str, seed: int, epochs: int) -> Path:
    """Where a row of a model's images lies."""
    return picture_folder(results) / f"{config}_seed{seed}_{epochs}epochs.png"


def picture_folder(results: Path) -> Path:
    """Beside the facts."""
    return results.with_name(f"{results.stem}_pictures")


def by_model(lines: Iterable[Line], kind: str) -> dict[Key, list[Line]]:
    """The lines of a kind, by model, in the order of ``NAMES``."""
    found: dict[Key, list[Line]] = defaultdict(list)
    for line in lines:
        if line["kind"] == kind:
            found[_key(line)].append(line)
    return dict(sorted(found.items(), key=lambda item: _place(item[0])))


def keys(lines: Iterable[Line]) -> list[Key]:
    """The models that there are facts of, in the order of ``NAMES``."""
    return sorted({_key(line) for line in lines}, key=_place)


def name_of(config: str, seed: int, epochs: int) -> str:
    """What figures and tables call a model; other epochs than its configuration's are part of the name."""
    trained = "" if epochs == usual_epochs(config) else f", {epochs} epoch{'s' if epochs > 1 else ''}"
    return NAMES[config] + (f", seed {seed}" if seed else "") + trained


def drawing_seconds(lines: Iterable[Line]) -> dict[tuple[str, int, int], float]:
    """Seconds an image by configuration, steps, and images at once."""
    times = (line for line in lines if line["kind"] == TIME)
    return {(line["model"], line["steps"], line["batch_size"]): line["seconds"] for line in times}


def warn_of_mixtures(lines: Sequence[Line]) -> None:
    """Say so where facts stand side by side that do not compare."""
    for kind, name in {"step": "a training step", TIME: "drawing"}.items():
        machines = sorted({line["machine"] for line in lines if line["kind"] == kind})
        if len(machines) > 1:
            said = "; ".join(machines)
            warnings.warn(f"times of {name} are of several machines, and do not compare: {said}", stacklevel=2)
    counts = sorted({line["num_samples"] for line in lines if line["kind"] == "samples"})
    if len(counts) > 1:
        shown = " and ".join(map(str, counts))
        warnings.warn(f"distances are of {shown} images, and fall with their number", stacklevel=2)


def _is_whole(line: Line) -> bool:
    return isinstance(line["seed"], int) and isinstance(line["epochs"], int)


def _key(line: Line) -> Key:
    return line["model"], line["seed"], line["epochs"]


def _place(key: Key) -> tuple[int, int, int]:
    """By which models are ordered."""
    config, seed, epochs = key
    return list(NAMES).index(config), seed, epochs


def quiet_minutes(lines: Sequence[Line], course: Line) -> np.ndarray:
    """Minutes of a training at each point of its course, at the measured pace of a step; NaN where none was measured.

    They compare models; the minutes that the trainings took beside other work do not.
    """
    steps = {(_key(line), line["patch_side"]): line for line in lines if line["kind"] == "step"}
    known = [steps.get((_key(course), side)) for side in course["side"]]
    an_image = [math.nan if step is None else step["seconds"] / step["batch_size"] for step in known]
    return (an_image * np.diff(course["images_seen"], prepend=0)).cumsum() / 60
