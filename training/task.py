"""What a trainer knows of the thing that it trains."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from data.batches import mix_seed
from models.family import Loss, StepContext
from runtime import distributed


class Task(Protocol):
    """Something to train."""

    module: nn.Module  # whose parameters are trained and saved
    precision: torch.dtype | None = None  # that the task insists on, if any
    starts_by: str = "weights_init"  # the option that names weights to start from

    def loss(self, batch: Any, context: StepContext) -> Loss:
        """The loss of a batch, and what else is logged of it."""

    def show(self, module: nn.Module, folder: Path, name: str) -> Iterator[dict[str, float]]:
        """Called on all ranks: draw with a (possibly averaged) module, write ``folder / name...``, yield metrics."""

    def describe(self) -> dict[str, Any]:
        """Plain entries for the checkpoint, such as the configuration."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold, beside the module, for a run to go on exactly: of most tasks nothing."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what ``state`` gave to the checkpoint that a run goes on from."""


class LossModule(nn.Module):
    """A task's loss as a forward pass, which DistributedDataParallel needs to see."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.module = task.module
        self.forward = task.loss


def step_context(
    seed: int, step: int, batch: int, device: torch.device, epoch: float = 0.0, logs: bool = True
) -> StepContext:
    """Where a batch of this rank stands, and the random generators that follow from that and the run's seed."""
    rank_rng = torch.Generator(device).manual_seed(mix_seed(seed, step, batch, distributed.rank()))
    return StepContext(step, epoch, batch, random.Random(mix_seed(seed, step)), rank_rng, logs=logs)
