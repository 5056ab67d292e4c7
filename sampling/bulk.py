"""Drawing many images: the one path for pictures, grids, scores and runs of 50,000, on one rank or many."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.config import Drawing
from models.draw import image_seed
from models.family import Generator, Samples
from models.sampler import Sampler
from runtime import distributed
from runtime.device import DTYPES, pick_dtype
from runtime.errors import UserError
from runtime.progress import Progress
from sampling.folder import SampleFolder
from sampling.options import ModelArgs


@dataclass(frozen=True)
class Constraint:
    """What stays of an image that is edited: (S, S) of each scale."""

    mask: list[Tensor]  # True where the code stays
    codes: list[Tensor]


@dataclass(frozen=True)
class Request:
    """Which images to draw: image i has label ``labels[i]`` and ``image_seed(seed, i)``, wherever it is drawn."""

    labels: Sequence[int]
    drawing: Drawing
    seed: int = 0
    batch_size: int = 16  # images at once on each rank
    compiled: bool = False
    constraint: Constraint | None = None
    resize_to: int | None = None  # side in pixels of what is stored, if not the model's
    sampler: Sampler | None = None  # of ``sampler_of``, to be used again; else drawing makes one

    def num_steps(self, model: Generator) -> int:
        """Steps that each image takes."""
        kept = [] if self.constraint is None else self.constraint.mask
        return model.num_steps(self.drawing, sum(int(mask.sum()) for mask in kept))


def place_model(model: Generator, args: ModelArgs, device: torch.device) -> None:
    """Bring a model to a device, and it and its decoder to their precisions."""
    model.to(device=device, dtype=pick_dtype(args.dtype, device))
    if model.autoencoder is not None:
        model.autoencoder.decode_in(DTYPES[args.decoder_dtype])


def draw_many(
    model: Generator,
    request: Request,
    indices: Sequence[int] | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> Iterator[tuple[list[int], Samples]]:
    """Draw the images of these indices (all by default), a batch at a time; they stay on the model's device.

    Every batch but that of a request smaller than one has the same size: the last is filled up with repeats, which are
    dropped, so that nothing is compiled or captured twice and rounding is the same for all. ``on_step`` is called with
    the number of each step of a batch once it is drawn.
    """
    indices = list(range(len(request.labels))) if indices is None else list(indices)
    sampler = sampler_of(model, request) if request.sampler is None else request.sampler
    batch = sampler.batch
    kept = (request.constraint.mask, request.constraint.codes) if request.constraint else ()
    kept_in_batch = [[scale.expand(batch, -1, -1) for scale in scales] for scales in kept]
    for first in range(0, len(indices), batch):
        wanted = indices[first : first + batch]
        filled = wanted + wanted[-1:] * (batch - len(wanted))
        labels = torch.tensor([request.labels[i] for i in filled])
        for step in sampler.steps(labels, [image_seed(request.seed, i) for i in filled], *kept_in_batch):
            on_step(step)
        yield wanted, sampler.samples().first(len(wanted), model.device)


def sampler_of(model: Generator, request: Request) -> Sampler:
    """What draws the batches of a request on this rank."""
    batch = min(request.batch_size, -(-len(request.labels) // distributed.num_ranks()))
    return model.sampler(batch, request.drawing, request.compiled)


def stored_side(model: Generator, drawing: Drawing, resize_to: int | None) -> int:
    """Side in pixels of the images that a folder of drawn ones holds; UserError if the model makes none."""
    if model.autoencoder is None:
        raise UserError(
            "this model has no autoencoder, so it draws codes and no images; fetch LlamaGen's by bash "
            "pretrained_models/download.sh llamagen, or name one as model.autoenc in the config.yaml beside its weights"
        )
    grown = drawing.sampled_sizes(model.scale_sizes)[-1] // model.scale_sizes[-1]
    return resize_to or grown * model.config.img_size


def resized(images: Tensor, side: int | None) -> Tensor:
    """Images (B, 3, H, W), unclamped floats, at another side as published: bicubic, not antialiased (formats.md G7)."""
    if side in (None, images.shape[-1]):
        return images
    return F.interpolate(images, (side, side), mode="bicubic", align_corners=False, antialias=False)


def draw_into(
    folder: SampleFolder, model: Generator, request: Request, change: Callable[[Tensor], Tensor] | None = None
) -> int:
    """Draw the images that a folder lacks, on all ranks, and return how many; rank 0 then sees all and can finish it.

    Rank 0 has prepared the folder, all ranks know, and a lock keeps other programs out. ``change`` is done to uint8
    images (B, 3, H, W) before they are stored. If they cannot be, or are gone again, that is a UserError.
    """
    folder.look()
    # As rank 0 saw it, before anyone adds: another machine may see less, and shares would overlap or leave gaps.
    todo = distributed.from_main(folder.todo, "a look at the folder of samples")
    mine = todo[distributed.rank() :: distributed.num_ranks()].tolist()
    total, on_main = len(request.labels), distributed.is_main()
    num_steps = request.num_steps(model)
    bar = Progress(
        desc="sampling", total=total, initial=total - len(todo), unit="image", leave=None, disable=not on_main
    )
    with bar:
        before = folder.num_stored() - bar.n

        def show() -> None:
            if on_main:  # to count what all ranks have stored takes time
                bar.update(folder.num_stored() - before - bar.n)

        def show_step(step: int) -> None:
            bar.set_postfix_str(f"step {step + 1} of {num_steps}", refresh=False)
            bar.refresh_at_times()

        with folder.writing():
            for indices, out in draw_many(model, request, mine, show_step):
                pixels = model.to_uint8(resized(out.images, request.resize_to))
                folder.add(indices, pixels if change is None else change(pixels), out)
                show()
        distributed.barrier("images")  # all have written their files
        show()
    if on_main:
        folder.look()
        if len(folder.todo):
            raise UserError(f"{folder.path} still lacks {len(folder.todo)} images; run the same command again to go on")
    return len(todo)


def draw_on_all_ranks(model: Generator, request: Request) -> Tensor | None:
    """(N, 3, H, W) images of a small request, shared between ranks and gathered on rank 0; None on the others."""
    mine = range(len(request.labels))[distributed.rank() :: distributed.num_ranks()]
    drawn: dict[int, Tensor] = {}
    for indices, out in draw_many(model, request, mine):
        drawn |= zip(indices, out.images.cpu(), strict=True)
    shares = distributed.everyones(drawn, "images")
    if not distributed.is_main():
        return None
    gathered = {i: image for share in shares for i, image in share.items()}
    return torch.stack([gathered[i] for i in range(len(request.labels))])
