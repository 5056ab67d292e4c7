"""The loss of held-out images while a model trains."""

import random

import torch

from data.images import CroppedImages
from evaluation.likelihood import held_out_codes, held_out_images
from models.family import Generator, StepContext
from runtime import distributed
from runtime.errors import UserError
from training.options import TrainArgs


def check_held_out(model: Generator, args: TrainArgs) -> CroppedImages:
    """The images that are held out; UserError if they are fewer than are asked for, or of other classes."""
    crops = held_out_images(model, args.dataset, args.data_path)
    if args.val_images > len(crops):
        raise UserError(f"val_images is {args.val_images}, but {len(crops)} images are held out; lower it")
    return crops


class HeldOutLoss:
    """Mean training loss of evenly spaced held-out images, each time by the same blocks and orders, labels kept.

    Made and used on all ranks, of which each encodes and scores a share of the batches.
    """

    def __init__(self, model: Generator, args: TrainArgs) -> None:
        crops = check_held_out(model, args)
        share = distributed.rank(), distributed.num_ranks()
        self.batches = held_out_codes(model, crops, args.val_images, args.batch_size, share)

    @torch.no_grad()
    def measure(self, model: Generator, shuffled: float = 1.0) -> float:
        """Nats a token, on all ranks; of a family that learns from patches, of single codes.

        ``shuffled`` is as of a ``StepContext``: what training does now.
        """
        total = torch.zeros(2, dtype=torch.float64)  # sum over images, their number
        for i, (codes, labels) in enumerate(self.batches):
            number = i * distributed.num_ranks() + distributed.rank()
            rng = torch.Generator(model.device).manual_seed(number)
            context = StepContext(number, 0.0, 0, random.Random(number), rng, shuffled=shuffled, logs=False)
            loss = model.training_loss(codes, labels, context).value
            total += torch.tensor([float(loss) * len(labels), len(labels)])
        distributed.add_up(total)
        return float(total[0] / total[1])
