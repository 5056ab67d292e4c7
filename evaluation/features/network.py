"""What computes features, and the choice of it.

Letters: B images, H, W their sides in pixels, D features, S spatial ones, K classes, n, m images of a block.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch

from evaluation.options import NetworkArgs
from runtime import distributed
from runtime.errors import UserError


class Network(ABC):
    """What computes features: Inception in TensorFlow or torch, or a classifier of ours.

    Attributes:
        kind: what messages call it.
        sha256: of its weights.
        versions: of the libraries that compute it.
        class_weights: (D, K) float32, from features to logits.
        class_names: of its classes; none if they are not those of any samples.
        key_suffixes: what the keys of mean and covariance end with in files of statistics, for each kind of features.
        few: images below which metrics are not to be compared.
        colour: whether it was made for colour.
        side: of the images that it reads, in pixels; None if images of all sizes are enlarged.
    """

    class_names: Sequence[str] = ()
    colour: bool = True
    side: int | None = None

    @abstractmethod
    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """Features (B, D), and spatial ones (B, S) if it has them, float32, of images (B, H, W, 3) uint8."""


class Inception(Network):
    """Inception, whoever computes it; precision and recall are measured by its features."""

    kind, key_suffixes = "Inception", ("", "_s")
    few = 2048  # with fewer images than features the covariance is singular

    @abstractmethod
    def squared_distances(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """(n, m) float32 of features (n, D), (m, D)."""


def load_network(args: NetworkArgs, device: torch.device) -> Network:
    """What ``args`` name; the libraries of others are not imported."""
    if args.features != "inception":
        from evaluation.features.classifier import Classifier

        return Classifier(args.features, device)
    if args.backend == "torch":
        from evaluation.features.inception_torch import TorchInception

        return TorchInception(args.inception_weights, device)
    from evaluation.features.inception_tf import TensorFlowInception

    return TensorFlowInception(args.inception_graph)


def load_on_all_ranks(args: NetworkArgs, device: torch.device) -> Network | None:
    """As ``load_network``: on rank 0, and where torch computes on the others too, once nothing is left to download.

    TensorFlow takes all GPUs that it finds, so one process has it.

    Raises:
        UserError: on every rank, if one of them lacks anything.
    """
    network = error = None
    for on_main in (True, False):
        if distributed.is_main() is on_main and (on_main or args.in_torch):
            try:
                network = load_network(args, device)
            except UserError as found:
                error = str(found)
        errors = list(filter(None, distributed.everyones(error)))
        if errors:
            raise UserError(errors[0])
    return network
