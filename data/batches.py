"""Which images and crops a training step sees: a pure function of seed, epoch and step, so any step can be redone."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


def mix_seed(*parts: int) -> int:
    """One well-mixed seed below 2**63 of several non-negative numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


class EpochBatches(Sampler):
    """Batches of (index, crop) pairs for one rank and epoch, counted from 0, after the ``start`` that are done.

    Every image comes once in a random order with a random crop. The remainder that does not fill a batch on every rank
    is left out, so all ranks run the same number of steps.
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
        pairs = np.stack([rng.permutation(num_images), rng.integers(num_crops, size=num_images)], axis=1)
        rows = num_images // (batch_size * num_ranks)
        shape = (rows, num_ranks, batch_size, 2)
        self.batches = pairs[: rows * num_ranks * batch_size].reshape(shape)[start:, rank]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.batches:
            yield [tuple(pair) for pair in batch.tolist()]
