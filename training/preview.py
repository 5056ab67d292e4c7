"""FID and the rest while a model trains: samples drawn and their features computed on all ranks."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from evaluation.compare import compare, doubts
from evaluation.features.network import InceptionTraits, Network
from evaluation.image_sets import Side, check_reference, load_side
from evaluation.neighbours import check_order
from models.family import Generator
from runtime import distributed
from runtime.errors import UserError
from sampling.bulk import Request, draw_into
from sampling.folder import SampleFolder
from sampling.names import NPZ_NAME

FIRST_SEED = 1_000_000  # other images than those of the grids
BATCH_SIZE = 64  # images whose features are computed at once


class Evaluation:
    """Measures a model against a reference; of the reference, features are computed once, on rank 0.

    Made and used on all ranks.

    Args:
        reference: npz, folder of images or statistics file, as evaluator.py takes it.
        weights: of torch-fidelity's Inception; None takes the copy in the user's cache, downloaded once.
        device: of the Inception network.

    Raises:
        UserError: the reference is none.
    """

    def __init__(self, reference: str, weights: str | None, device: torch.device) -> None:
        self.reference_path = Path(reference)
        check_reference(self.reference_path, InceptionTraits.ends[0])
        self.reference: Side | None = None
        self.inception = _load_on_all_ranks(weights, device)

    def measure(self, model: Generator, request: Request, folder: Path) -> dict[str, float]:
        """Figures of the request's images by name, on rank 0.

        The images pass through ``folder``, which is removed, also before: what a killed run left there may be of other
        weights.
        """
        if self.inception is None:
            return {}
        size = model.config.img_size
        images = SampleFolder(folder, (len(request.labels), size, size, 3), "npz")
        if distributed.is_main():
            shutil.rmtree(folder, ignore_errors=True)
            images.prepare({"labels": list(request.labels), "seed": request.seed})
        distributed.barrier()
        draw_into(images, model, request)
        if distributed.is_main():
            images.finish(request.labels)
        distributed.barrier()
        samples = load_side(folder / NPZ_NAME, self.inception, BATCH_SIZE, all_ranks=True)
        figures: dict[str, float] = {}
        if distributed.is_main():
            figures = self._compare(samples)
            shutil.rmtree(folder)
        distributed.barrier()
        return figures

    def _compare(self, samples: Side) -> dict[str, float]:
        if self.reference is None:
            check_order(self.inception.squared_distances, self.inception.class_weights.shape[0])
            self.reference = load_side(self.reference_path, self.inception, BATCH_SIZE, use_cache=True)
        figures = compare(self.reference, samples, self.inception).labelled(samples.num_images)
        _warn(doubts(self.reference, samples, self.inception))
        figures = {name: value for name, value in figures.items() if value is not None}
        print(", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
        return figures


def _load_on_all_ranks(weights: str | None, device: torch.device) -> Network | None:
    """The network, on rank 0 first, which may have to download it; None everywhere if any rank lacks it."""
    network = _load(weights, device) if distributed.is_main() else None
    if distributed.from_main(network is not None) and not distributed.is_main():
        network = _load(weights, device)
    return network if all(distributed.everyones(network is not None)) else None


def _load(weights: str | None, device: torch.device) -> Network | None:
    """The network, or None with one warning if its weights cannot be had: training goes on without."""
    from evaluation.features.inception_torch import TorchInception

    try:
        return TorchInception(None if weights is None else Path(weights), device)
    except UserError as error:
        if weights is not None:
            raise
        _warn([f"no FID during training: {error}"])
        return None


def _warn(texts: Sequence[str]) -> None:
    for text in texts:
        print(f"warning: {text}", file=sys.stderr)
