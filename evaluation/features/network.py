"""What computes features, the choice of it, and weights that others publish.

Letters: B images, H, W their sides in pixels, D features, S spatial ones, K classes, n, m images of a block.
"""

import json
import os
import shutil
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from evaluation.options import NetworkArgs
from runtime import distributed
from runtime.errors import UserError
from runtime.files import hash_file, whole, write_json

TIMEOUT_S = 30  # of a download
SPATIAL_CHANNELS = 7  # of Inception's spatial features


class Network(ABC):
    """What computes features: Inception in TensorFlow or torch, or a classifier of ours."""

    kind: str  # what messages call it
    sha256: str  # of its weights
    versions: Mapping[str, str]  # of the libraries that compute it
    class_weights: np.ndarray  # (D, K) float32, from features to logits
    class_names: Sequence[str] = ()  # none if its classes are not those of any samples
    key_suffixes: Sequence[str]  # of the keys of mean and covariance in files of statistics, for each kind of features
    few: int  # with fewer images than features the covariance is singular
    colour = True  # whether it was made for colour
    side: int | None = None  # of the images that it reads, in pixels; None if images of all sizes are enlarged

    @abstractmethod
    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """Features (B, D), and spatial ones (B, S) if it has them, float32, of images (B, H, W, 3) uint8."""


class Inception(Network):
    """Inception, whoever computes it; precision and recall are measured by its features."""

    kind, key_suffixes, few = "Inception", ("", "_s"), 2048

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
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # or TensorFlow reports every CPU feature it found
    try:
        from evaluation.features.inception_tf import TensorFlowInception
    except ImportError as error:
        raise UserError(f"TensorFlow is missing ({error}); pip install -r requirements.txt") from error
    return TensorFlowInception(args.inception_graph)


def load_on_all_ranks(args: NetworkArgs, device: torch.device) -> Network | None:
    """As ``load_network``: on rank 0, and where torch computes on the others too, once nothing is left to download.

    TensorFlow takes all GPUs that it finds, so one process has it. UserError on every rank, if one lacks anything.
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


def fetched(url: str, flag: str) -> Path:
    """The file of a URL in the user's cache, fetched the first time; ``flag`` names a copy instead.

    UserError if it cannot be fetched, or is not the file that was fetched.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "progressive-checkerboard"
    path = cache / url.rpartition("/")[2]
    record = path.with_name(f"{path.name}.json")
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with whole(path) as temporary:
            try:
                _download(url, temporary)
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                raise UserError(
                    f"the Inception weights cannot be downloaded ({getattr(error, 'reason', error)}); fetch {url} "
                    f"(96 MB) by hand and put it at {path}, or name a copy with {flag}"
                ) from error
        write_json(record, {"url": url, "sha256": hash_file(path)})
    elif record.exists() and json.loads(record.read_text())["sha256"] != hash_file(path):  # none: put there by hand
        raise UserError(f"{path} is not the file that was fetched; remove it and {record.name} to fetch it again")
    return path


def _download(url: str, path: Path) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response, path.open("wb") as file:
        shutil.copyfileobj(response, file)
        expected = response.headers["Content-Length"]
        if expected is not None and file.tell() != int(expected):
            raise urllib.error.URLError(f"{file.tell()} of {expected} bytes arrived")
