"""Arrays in files, mapped into memory and shared by processes."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def make_array(path: Path, dtype: type, shape: Sequence[int]) -> None:
    """Make a file of an array of zeros, its space on the disk taken: a disk that fills up later would kill the process.

    Raises:
        OSError: the disk is full.
    """
    np.lib.format.open_memmap(path, "w+", dtype, tuple(shape))
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def open_array(path: Path) -> np.ndarray:
    """Map the array of a file into memory, to read and write.

    Raises:
        ValueError, EOFError: it is damaged or too short; NumPy would fill it up with zeros.
    """
    np.load(path, mmap_mode="r")
    return np.load(path, mmap_mode="r+")
