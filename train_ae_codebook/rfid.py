"""rFID: the Fréchet distance between Inception's features of full-size images and of their reconstructions.

Letters: N images, B of a batch, H, W their sides in pixels.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from data.crops import to_uint8
from data.images import CroppedImages
from evaluation.compare import with_count
from evaluation.features.network import Network
from evaluation.image_sets import compute_features, doubts_of
from evaluation.metrics import Statistics, frechet_distance
from models.autoencoder import Autoencoder
from runtime.errors import UserError
from train_ae_codebook.measure import BATCH, held_out_batches


class EightBitImages:
    """Images as engine/metrics takes them, evenly spaced over a data set of crops.

    Args:
        data: the crops.
        count: N.
        autoencoder: its reconstructions are taken instead; None takes the images as they are.
    """

    def __init__(self, data: CroppedImages, count: int, autoencoder: Autoencoder | None = None) -> None:
        self.data, self.autoencoder = data, autoencoder
        self.path = Path("originals" if autoencoder is None else "reconstructions")
        self.shape = (count, data.size, data.size)

    @torch.no_grad()
    def batches(self, size: int) -> Iterator[np.ndarray]:
        """(B, H, W, 3) uint8, at most ``size`` at once."""
        for images in held_out_batches(self.data, self.shape[0], size):
            if self.autoencoder is not None:
                latents = self.autoencoder.encode(images.to(self.autoencoder.quantize.embedding.device))
                images = self.autoencoder.decode(self.autoencoder.quantize_latents(latents))
            yield np.ascontiguousarray(to_uint8(images).permute(0, 2, 3, 1).cpu().numpy())

    def warnings(self) -> list[str]:
        return []


def measure_rfid(
    autoencoder: Autoencoder, data: CroppedImages, count: int, inception: Network
) -> tuple[str, float, list[str]]:
    """The distance's name, which tells the number of images below 50,000, its value, and what is doubtful about it.

    Raises:
        UserError: one image has no covariance.
    """
    if count < 2:
        raise UserError("rFID needs at least 2 images; raise num_images, or leave the Inception weights out")
    sides, doubts = [], []
    for images in (EightBitImages(data, count), EightBitImages(data, count, autoencoder)):
        found = compute_features(images, inception, BATCH)
        sides.append(Statistics(found["mu"], found["sigma"]))
        doubts += doubts_of(images.path, images, found, inception, stored=False)
    return with_count("rFID", count), frechet_distance(*sides), doubts
