"""How likely given codes are to a model, and how far its confidence can be trusted, by teacher forcing.

Letters: B images, L codes of an image, V codes to choose from.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from data.images import CroppedImages, check_num_classes, open_dataset
from data.options import DatasetName
from models.family import Generator
from runtime.errors import UserError

NUM_BINS = 15  # of confidence, equally wide


def held_out_images(model: Generator, dataset: DatasetName, data_path: str) -> CroppedImages:
    """Centre crops of the images in val/ or test/, at a model's size; UserError if they are not of its classes."""
    images = open_dataset(dataset, data_path, model.config.img_size, "val")
    if model.config.class_cond:
        check_num_classes(images.name, images.class_keys, model.config.num_classes)
        if model.class_names not in (None, images.class_names):
            raise UserError(f"the model was trained on other classes than those of {images.name}; name its data")
    return CroppedImages(images, model.config.img_size, "center")


def evenly_spaced(
    crops: CroppedImages, count: int, batch_size: int, share: tuple[int, int] = (0, 1)
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of pixels (B, 3, H, W) and labels (B,) of so many images; UserError if some could not be read.

    A ``share`` (i, n) is every n-th batch from the i-th on.
    """
    first, ranks = share
    for numbers in torch.arange(count).split(batch_size)[first::ranks]:
        yield crops.collate([crops[int(i) * len(crops) // count, 0] for i in numbers])
    crops.check_all_readable()


def held_out_codes(
    model: Generator, crops: CroppedImages, count: int, batch_size: int, share: tuple[int, int] = (0, 1)
) -> list[tuple[list[Tensor], Tensor]]:
    """Codes (B, S, S) of each scale, and labels (B,), on the model's device, of the batches of ``evenly_spaced``."""
    batches = evenly_spaced(crops, count, batch_size, share)
    with torch.inference_mode():
        return [(model.tokenize(pixels.to(model.device)), labels.to(model.device)) for pixels, labels in batches]


class CodeScores:
    """Sums up batches: mean nats a token, accuracy of the likeliest code, expected calibration error (ECE).

    ECE: tokens are put into bins by the probability of their likeliest code; it is the mean, over tokens, of how far
    the mean probability of a bin lies from its accuracy (Guo et al. 2017).
    """

    def __init__(self) -> None:
        self.nats, self.count = 0.0, 0
        self.bins = torch.zeros(2, NUM_BINS, dtype=torch.float64)  # sum of confidence, correct ones

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Logits (B, L, V) of codes (B, L)."""
        logits = logits.flatten(0, 1).float()
        targets = targets.flatten()
        self.nats += float(F.cross_entropy(logits, targets, reduction="sum"))
        self.count += len(targets)
        confidence, likeliest = logits.softmax(-1).max(-1)
        # Bins are open below and closed above, as (0, 1/15]; the first holds 0 too.
        number = ((confidence * NUM_BINS).ceil().long() - 1).clamp(0, NUM_BINS - 1).cpu()
        values = torch.stack([confidence, (likeliest == targets).float()])
        self.bins.index_add_(1, number, values.cpu().double())  # MPS has no float64

    def results(self) -> dict[str, float]:
        """``nats_per_token``, ``perplexity``, ``accuracy`` and ``ece``, the last two from 0 to 1."""
        nats = self.nats / self.count
        confidence, correct = self.bins
        return {
            "nats_per_token": nats,
            "perplexity": math.exp(nats),
            "accuracy": float(correct.sum() / self.count),
            "ece": float((confidence - correct).abs().sum() / self.count),
        }
