"""What computes features.

Letters: B images, H, W their sides in pixels, D features, S spatial ones, K classes, n, m images of a block.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np


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

    kind: str
    sha256: str
    versions: dict[str, str]
    class_weights: np.ndarray
    class_names: Sequence[str] = ()
    key_suffixes: tuple[str, ...]
    few: int
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
