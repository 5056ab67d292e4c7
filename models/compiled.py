"""Compiled sampling steps, one graph for each set of shapes, eager where there are more than can be kept."""

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

MAX_GRAPHS = 64  # of one step in one process, each for some shapes and settings


@lru_cache
def compiled_step(step: Callable[..., None], device_type: str) -> Callable[..., None]:
    """A step that draws, compiled whole; CUDA graphs on CUDA. Beyond ``MAX_GRAPHS`` it runs eagerly, with a warning."""
    config = torch._dynamo.config
    config.recompile_limit = max(MAX_GRAPHS, config.recompile_limit)
    config.accumulated_recompile_limit = max(4 * MAX_GRAPHS, config.accumulated_recompile_limit)
    mode = "reduce-overhead" if device_type == "cuda" else None
    compiled = torch.compile(step, fullgraph=True, dynamic=False, mode=mode)

    def run(*args: Any) -> None:
        try:
            compiled(*args)
        except torch._dynamo.exc.FailOnRecompileLimitHit:
            warnings.warn(
                f"more than {config.recompile_limit} sets of shapes were compiled in this process; others are drawn "
                "uncompiled, which is slower",
                stacklevel=2,
            )
            step(*args)

    return run
