"""What the project keeps in the user's cache folder: downloaded files, and features of references."""

import os
from collections.abc import Collection
from pathlib import Path

import numpy as np

from evaluation.image_files import DAMAGE
from runtime.errors import UserError
from runtime.files import whole

Arrays = dict[str, np.ndarray]


def cache_folder(*names: str) -> Path:
    """``progressive-checkerboard/NAMES`` in $XDG_CACHE_HOME or ~/.cache, made if need be. UserError if it cannot be."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError as error:
        raise UserError("there is no home folder to keep files in; set XDG_CACHE_HOME to a folder") from error
    folder = base.joinpath("progressive-checkerboard", *names)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; set XDG_CACHE_HOME to a folder that can be written to") from error
    return folder


def kept_features(key: str, names: Collection[str], count: int) -> Arrays | None:
    """The arrays of these names, ``features`` of ``count`` images among them, that ``keep_features`` wrote under a key.

    None if they are not there; also, which is said, if they are damaged or not finite.
    """
    try:
        file = _feature_file(key)
        if not file.exists():
            return None
        with np.load(file) as content:
            arrays = dict(content)
    except (UserError, OSError):  # no home, or nothing may be read there
        return None
    except DAMAGE:
        arrays = {}
    finite = all(np.isfinite(array).all() for array in arrays.values() if array.dtype.kind == "f")
    if set(arrays) == set(names) and arrays["features"].shape[:1] == (count,) and finite:
        return arrays
    print(f"{file} is damaged; computing it again")
    return None


def keep_features(key: str, arrays: Arrays) -> None:
    """Write arrays for the next time; a UserError says why that cannot be."""
    with whole(_feature_file(key)) as temporary:
        np.savez(temporary, **arrays)


def _feature_file(key: str) -> Path:
    return cache_folder("features") / f"{key}.npz"
