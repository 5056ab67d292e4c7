"""What a run goes on from: kept checkpoints, and every global random state."""

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runtime.files import whole


def keep_copy(path: Path, copy: Path) -> None:
    """Keep a checkpoint under another name before the next one takes its place."""
    with whole(copy) as temporary:
        try:
            temporary.hardlink_to(path)
        except OSError:  # a file system without links
            shutil.copyfile(path, temporary)


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
