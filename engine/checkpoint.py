"""Checkpoints that are always whole: written aside, flushed, then renamed."""

import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.errors import UserError


def save_whole(content: dict[str, Any], path: Path) -> None:
    """Write ``content`` to ``path`` so that a kill or a full disk leaves the file that was there before.

    Raises:
        UserError: the file could not be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"could not write {path} ({error}); the one before is untouched: free some space and run the command again"
        ) from error
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def keep_copy(path: Path, copy: Path) -> None:
    """Keep a checkpoint under another name before the next one takes its place."""
    temporary = copy.with_name(copy.name + ".tmp")
    temporary.unlink(missing_ok=True)
    try:
        temporary.hardlink_to(path)
    except OSError:  # a file system without links
        shutil.copyfile(path, temporary)
    temporary.replace(copy)


def random_states() -> dict[str, Any]:
    """Every global random state, in types that load safely."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
        "python": random.getstate(),
    }


def restore_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    kind, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    random.setstate(states["python"])
