"""Drawing many images: the one path for pictures, grids, scores and runs of 50,000, on one rank or many."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from data.crops import to_uint8
from models.config import Drawing
from models.family import Generator, Samples
from runtime import distributed
from runtime.errors import UserError
from sampling.folder import SampleFolder


@dataclass(frozen=True)
class Constraint:
    """What stays of an image that is edited, at each scale.

    Attributes:
        mask: (S, S) of each scale, True where the code stays.
        codes: (S, S) of each scale.
    """

    mask: list[Tensor]
    codes: list[Tensor]

    def of_batch(self, batch: int) -> tuple[list[Tensor], list[Tensor]]:
        """Mask and codes for so many images, (B, S, S) of each scale."""
        return tuple([scale.expand(batch, -1, -1) for scale in maps] for maps in (self.mask, self.codes))


@dataclass(frozen=True)
class Request:
    """Which images to draw; image i has label ``labels[i]`` and seed ``seed + i``, wherever it is drawn.

    Attributes:
        labels: class index of each image.
        drawing: settings.
        seed: of image 0.
        batch_size: images at once on each rank.
        compiled: compile the steps.
        constraint: what stays, if images are edited.
    """

    labels: Sequence[int]
    drawing: Drawing
    seed: int = 0
    batch_size: int = 16
    compiled: bool = False
    constraint: Constraint | None = None


def draw_many(
    model: Generator, request: Request, indices: Sequence[int] | None = None
) -> Iterator[tuple[list[int], Samples]]:
    """Draw the images of these indices (all by default), a batch at a time, on the CPU once drawn.

    Every batch but that of a request smaller than one has the same size: the last is filled up with repeats, which are
    dropped, so that nothing is compiled or captured twice and rounding is the same for all.
    """
    indices = list(range(len(request.labels))) if indices is None else list(indices)
    batch = min(request.batch_size, -(-len(request.labels) // distributed.num_ranks()))
    sampler = model.sampler(batch, request.drawing, request.compiled)
    keep = (None, None) if request.constraint is None else request.constraint.of_batch(batch)
    for first in range(0, len(indices), batch):
        wanted = indices[first : first + batch]
        filled = wanted + wanted[-1:] * (batch - len(wanted))
        labels = torch.tensor([request.labels[i] for i in filled])
        yield wanted, sampler(labels, [request.seed + i for i in filled], *keep).first(len(wanted))


def draw_into(
    folder: SampleFolder, model: Generator, request: Request, change: Callable[[Tensor], Tensor] = lambda pixels: pixels
) -> int:
    """Draw the images that a prepared folder lacks, on all ranks; rank 0 then sees all of them and can finish it.

    Args:
        folder: rank 0 prepared it, and all ranks know; a lock keeps other programs out.
        model: draws.
        request: all images of the folder.
        change: what to do to uint8 images (B, 3, H, W) before they are stored.

    Returns:
        How many images were drawn, by all ranks.

    Raises:
        UserError: they could not be stored, or some are gone again.
    """
    folder.look()
    # As rank 0 saw it, before anyone adds: another machine may see less, and shares would overlap or leave gaps.
    todo = distributed.from_main(folder.todo)
    mine = todo[distributed.rank() :: distributed.num_ranks()].tolist()
    with tqdm(
        desc="sampling",
        total=len(request.labels),
        initial=len(request.labels) - len(todo),
        unit="image",
        leave=None,
        disable=not distributed.is_main(),
    ) as bar:
        before = folder.num_stored() - bar.n

        def show() -> None:
            if not bar.disable:  # to count what all ranks have stored takes time
                bar.update(folder.num_stored() - before - bar.n)

        with folder.writing():
            for indices, out in draw_many(model, request, mine):
                folder.add(indices, change(to_uint8(out.images)), out)
                show()
        show()
    distributed.barrier()  # all have written their files
    if distributed.is_main():
        folder.look()
        if len(folder.todo):
            raise UserError(f"{folder.path} still lacks {len(folder.todo)} images; run the same command again to go on")
    return len(todo)


def draw_on_all_ranks(model: Generator, request: Request) -> Tensor | None:
    """(N, 3, H, W) images of a small request, shared between ranks and gathered on rank 0; None on the others."""
    mine = range(len(request.labels))[distributed.rank() :: distributed.num_ranks()]
    drawn: dict[int, Tensor] = {}
    for indices, out in draw_many(model, request, mine):
        drawn |= zip(indices, out.images, strict=True)
    shares = distributed.everyones(drawn)
    if not distributed.is_main():
        return None
    gathered = {i: image for share in shares for i, image in share.items()}
    return torch.stack([gathered[i] for i in range(len(request.labels))])
