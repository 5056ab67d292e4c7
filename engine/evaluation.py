"""FID and the rest while a model trains: samples drawn on all ranks, compared with a reference on rank 0."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from engine import distributed
from engine.bulk import Request, draw_many
from engine.images import to_uint8
from engine.metrics.evaluate import compare, doubts
from engine.metrics.sides import Inception, Side, load_side
from engine.sample_folder import NPZ_NAME, SampleFolder, prepare_folder
from models.checkerboard import Checkerboard
from models.errors import UserError

FIRST_SEED = 1_000_000  # other images than those of the grids
BATCH_SIZE = 64  # images whose features are computed at once


class Evaluation:
    """Measures a model against a reference; of the reference, features are computed once.

    Args:
        reference: npz, folder of images or statistics file, as evaluator.py takes it.
        weights: of torch-fidelity's Inception; None takes the copy in the user's cache, downloaded once.
        device: of the Inception network.
    """

    def __init__(self, reference: str, weights: str | None, device: torch.device) -> None:
        self.reference_path = Path(reference)
        self.reference: Side | None = None
        self.inception = _load(weights, device) if distributed.is_main() else None

    def measure(self, model: Checkerboard, request: Request, folder: Path) -> dict[str, float]:
        """Figures of the request's images by name, on rank 0; the images pass through ``folder``, which is removed."""
        if not distributed.from_main(self.inception is not None):
            return {}
        size = model.config.img_size
        if distributed.is_main():
            shape = (len(request.labels), size, size, 3)
            prepare_folder(folder, {"labels": list(request.labels), "seed": request.seed}, shape, "npz", {})
        distributed.barrier()
        with SampleFolder(folder) as images:
            mine = images.todo[distributed.rank() :: distributed.num_ranks()].tolist()
            distributed.barrier()  # all have seen what is missing before anyone adds to it
            for indices, out in draw_many(model, request, mine):
                images.add(indices, to_uint8(out.images), out)
        distributed.barrier()
        figures: dict[str, float] = {}
        if distributed.is_main():
            images.finish(request.labels, images.duplicates())
            figures = self._compare(folder / NPZ_NAME)
            shutil.rmtree(folder)
        distributed.barrier()
        return figures

    def _compare(self, samples_path: Path) -> dict[str, float]:
        if self.reference is None:
            self.reference = load_side(self.reference_path, self.inception, BATCH_SIZE, use_cache=True)
        samples = load_side(samples_path, self.inception, BATCH_SIZE)
        figures = compare(self.reference, samples, self.inception).labelled(samples.num_images)
        _warn(doubts(self.reference, samples))
        figures = {name: value for name, value in figures.items() if value is not None}
        print(", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
        return figures


def _load(weights: str | None, device: torch.device) -> Inception | None:
    """The network, or None with one warning if its weights cannot be had: training goes on without."""
    from engine.metrics.inception_torch import TorchInception  # torch-fidelity is imported where it is asked for

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
