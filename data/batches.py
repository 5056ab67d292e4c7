"""Which images and crops a training step sees: a pure function of seed, epoch and step, so any step can be redone."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


def mix_seed(*parts: int) -> int:
    """One well-mixed seed below 2**63 of several non-negative numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


class EpochBatches(Sampler):
    """Batches of (index, crop) pairs for one epoch and rank.

    Every image comes once in a random order with a random crop. The remainder that does not fill a batch on every rank
    is left out, so all ranks run the same number of steps.

    Args:
        num_images: images in the dataset.
        num_crops: crops to choose from.
        batch_size: images a batch, on each rank.
        seed: of the run.
        epoch: counted from 0.
        start: batches of this epoch that are already done.
        rank: of this process.
        num_ranks: processes in all.
    """

    def __init__(
        self,
        num_images: int,
        num_crops: int,
        batch_size: int,
        seed: int,
        epoch: int,
        start: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        rng = np.random.default_rng((seed, epoch))
        order = rng.permutation(num_images)
        crops = rng.integers(num_crops, size=num_images)
        rows = num_images // (batch_size * num_ranks)
        shape = (rows, num_ranks, batch_size)
        self.indices = order[: np.prod(shape)].reshape(shape)[start:, rank]
        self.crops = crops[: np.prod(shape)].reshape(shape)[start:, rank]

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for indices, crops in zip(self.indices, self.crops, strict=True):
            yield list(zip(indices.tolist(), crops.tolist(), strict=True))
