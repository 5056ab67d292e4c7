"""What computes features, the choice of it, and weights that others publish.

Letters: B images, H, W their sides in pixels, D features, S spatial ones, K classes, n, m images of a block.
"""

import os
import platform
import re
import shutil
import sys
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import torch

from evaluation.cache_folder import cache_folder
from evaluation.options import NetworkArgs
from runtime import distributed
from runtime.errors import UserError
from runtime.files import hash_file, read_json, whole, write_json

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


def too_little_memory(count: int) -> UserError:
    return UserError(
        f"the device has too little memory for the features of {count} images at once; end what else uses it, or lower "
        "the --batch_size of evaluator.py"
    )


def load_network(args: NetworkArgs, device: torch.device) -> Network:
    """What ``args`` name; the libraries of others are not imported."""
    if args.features != "inception":
        from evaluation.features.classifier import Classifier

        return Classifier(args.features, device)
    # TensorFlow reports every CPU feature that it found, and as an error that there is no GPU.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2" if torch.cuda.is_available() else "3")
    library = "torch_fidelity" if args.backend == "torch" else "tensorflow"
    try:
        with _quiet():
            if library == "tensorflow" and find_spec("triton") is not None:
                import_module("triton")  # what torch would import later; after TensorFlow it crashes
            import_module(library)
    except Exception as error:  # of a library that does not fit the others, an import raises anything
        raise UserError(f"{library} cannot be loaded ({error}); pip install -r requirements.txt") from error
    if args.backend == "torch":
        from evaluation.features.inception_torch import TorchInception

        return TorchInception(args.inception_weights, device, args.inception_sha256)
    from evaluation.features.inception_tf import TensorFlowInception

    network = TensorFlowInception(args.inception_graph, args.inception_sha256)
    if torch.cuda.is_available() and not network.on_gpu:
        print(
            "warning: TensorFlow sees no GPU and computes on the CPU, which takes long; --backend torch takes the GPU",
            file=sys.stderr,
        )
    return network


def library_versions(network: Network) -> dict[str, str]:
    """Of all that reads images and computes features and metrics."""
    common = {name: version(name) for name in ("numpy", "pillow", "torch")}
    return {"python": platform.python_version()} | common | network.versions


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
        errors = list(filter(None, distributed.everyones(error, "the network")))
        if errors:
            raise UserError(errors[0])
    return network


def inception_file(copy: str | Path | None, url: str, flag: str, pinned: str | None) -> tuple[Path, str]:
    """Inception's file and its SHA-256: a copy that the user named by ``flag``, or the one of a URL.

    UserError if its SHA-256 is not the one that the user pinned.
    """
    path = downloaded(url, flag, pinned) if copy is None else Path(copy)
    found = hash_file(path)
    if pinned is not None and found != pinned.lower():
        raise UserError(f"{path} has SHA-256 {found}, not the {pinned} of --inception_sha256; name another file")
    return path, found


def downloaded(url: str, flag: str, expected: str | None = None) -> Path:
    """The file of a URL in the user's cache folder, fetched the first time; ``flag`` names a copy instead.

    UserError if it cannot be fetched, is not the file that was fetched, or not the one that is expected by its SHA-256,
    whose first digits a name may carry, as in ``weights-6726825d.pth``.
    """
    path = cache_folder() / url.rpartition("/")[2]
    record = path.with_name(f"{path.name}.json")
    in_name = re.search(r"-([0-9a-f]{8})\.", path.name)
    digits = (expected or (in_name[1] if in_name else "")).lower()
    if not path.exists():
        with whole(path) as temporary:
            try:
                _download(url, temporary)
            except (urllib.error.URLError, TimeoutError, ConnectionError, HTTPException) as error:
                raise UserError(
                    f"the Inception weights cannot be downloaded ({getattr(error, 'reason', error)}); fetch {url} "
                    f"(96 MB) by hand and put it at {path}, or name a copy with {flag}"
                ) from error
            sha256 = hash_file(temporary)
            if not sha256.startswith(digits):
                raise UserError(
                    f"what {url} sent has SHA-256 {sha256}, but {digits} is expected; run the same command again, or "
                    f"name a copy with {flag}"
                )
        write_json(record, {"url": url, "sha256": sha256})
        return path
    sha256 = hash_file(path)
    if record.exists() and (read_json(record) or {}).get("sha256") != sha256:  # none: put there by hand
        raise UserError(f"{path} is not the file that was fetched; remove it and {record.name} to fetch it again")
    if not sha256.startswith(digits):
        raise UserError(
            f"{path} has SHA-256 {sha256}, but {digits} is expected; remove it to fetch it again, or name a copy with "
            f"{flag}"
        )
    return path


def _download(url: str, path: Path) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response, path.open("wb") as file:
        shutil.copyfileobj(response, file)
        length = response.headers["Content-Length"]
        if length is not None and file.tell() != int(length):
            raise urllib.error.URLError(f"{file.tell()} of {length} bytes arrived")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what libraries write to stderr, by C++ too, unless an error follows."""
    sys.stderr.flush()
    own = os.dup(2)
    with TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            os.write(own, kept.read())
            raise
        finally:
            os.dup2(own, 2)
            os.close(own)
