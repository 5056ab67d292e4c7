"""One side of a comparison, the reference or the samples: features, statistics, and what is doubtful about it.

Letters: N images, H, W their sides in pixels, D features, S spatial ones, K classes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from engine.metrics.batches import DAMAGE, Images, open_images, resolve, stored_statistics
from engine.metrics.files import hash_file, write_arrays
from engine.metrics.neighbours import NEIGHBOURS
from engine.metrics.statistics import Statistics, statistics_of
from engine.sample_folder import NPZ_NAME, SETTINGS_NAME
from models.errors import UserError

FEW = 2048  # images; with fewer than features the covariance is singular
CACHE_VERSION = 1  # of the arrays in a cache; part of its name


class Inception(Protocol):
    """A backend.

    Attributes:
        sha256: of its weights.
        versions: of the libraries that compute it.
        class_weights: (D, K) float32, from features to logits.
    """

    sha256: str
    versions: dict[str, str]
    class_weights: np.ndarray

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features (B, D) and spatial ones (B, S), float32, of images (B, H, W, 3) uint8."""

    def squared_distances(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """(n, m) float32 of features (n, D), (m, D)."""


@dataclass(frozen=True)
class Side:
    """What a comparison needs of one side.

    Attributes:
        path: of the images or statistics.
        sha256: of the file, or of all files of the folder and their names.
        shape: (N, H, W) of the images; None without.
        features: (N, D) float32; None without images.
        statistics: of the features.
        spatial: of the spatial features; None for a statistics file without them.
        stored: the statistics are from the file, not from its images.
        digests: (N,) uint64, a hash of each image; None without images.
        warnings: what is doubtful about it.
        settings: what main_sample.py recorded of the samples, if it drew them.
    """

    path: Path
    sha256: str
    shape: tuple[int, int, int] | None
    features: np.ndarray | None
    statistics: Statistics
    spatial: Statistics | None
    stored: bool
    digests: np.ndarray | None
    warnings: list[str]
    settings: Mapping[str, Any] | None

    @property
    def num_images(self) -> int | None:
        return None if self.shape is None else self.shape[0]


def load_side(
    path: Path, inception: Inception, batch_size: int, use_cache: bool = False, need_features: bool = True
) -> Side:
    """Read one side, computing what it does not store.

    Args:
        path: npz, folder of images, or statistics file.
        inception: computes the features.
        batch_size: images whose features are computed at once.
        use_cache: keep what is computed in a file beside ``path``, and take it from there the next time.
        need_features: False reads no images if the file stores its statistics.

    Raises:
        UserError: there is nothing of the sort, or too few images.
    """
    statistics, spatial = stored_statistics(path, "mu", "sigma"), stored_statistics(path, "mu_s", "sigma_s")
    stored = statistics is not None
    images = open_images(path) if need_features or not stored else None
    path, arrays = resolve(path), {}
    if images is not None:
        if images.shape[0] <= NEIGHBOURS:
            raise UserError(f"{path} holds {images.shape[0]} images; give at least {NEIGHBOURS + 1}, better 50000")
        arrays = _cached_features(images, inception, batch_size) if use_cache else {}
        arrays = arrays or compute_features(images, inception, batch_size)
    if not stored:
        statistics, spatial = (Statistics(arrays[f"mu{end}"], arrays[f"sigma{end}"]) for end in ("", "_s"))
    return Side(
        path=path,
        sha256=hash_file(path) if images is None else images.sha256,
        shape=None if images is None else images.shape,
        features=arrays.get("features"),
        statistics=statistics,
        spatial=spatial,
        stored=stored,
        digests=arrays.get("digests"),
        warnings=doubts_of(path, images, arrays, stored),
        settings=_recorded_settings(path),
    )


def compute_features(images: Images, inception: Inception, batch_size: int) -> dict[str, np.ndarray]:
    """``features`` (N, D), ``mu``, ``sigma``, ``mu_s``, ``sigma_s``, ``digests`` (N,), ``grey`` and ``warnings``."""
    num_images, first, found, digests, grey = images.shape[0], 0, (), [], True
    with tqdm(desc="features", total=num_images, unit="image") as bar:
        for batch in images.batches(batch_size):
            new = inception(batch)
            found = found or tuple(np.empty((num_images, array.shape[1]), dtype=np.float32) for array in new)
            for whole, array in zip(found, new, strict=True):
                whole[first : first + len(batch)] = array
            first += len(batch)
            digests += [int.from_bytes(blake2b(image, digest_size=8).digest(), "little") for image in batch]
            grey = grey and bool((batch == batch[..., :1]).all())
            bar.update(len(batch))
    features, spatial = found
    return {
        "features": features,
        **_named(statistics_of(features), ""),
        **_named(statistics_of(spatial), "_s"),
        "digests": np.array(digests, dtype=np.uint64),
        "grey": np.array(grey),
        "warnings": np.array(images.warnings(), dtype=np.str_),
    }


def _named(statistics: Statistics, end: str) -> dict[str, np.ndarray]:
    return {f"mu{end}": statistics.mean, f"sigma{end}": statistics.covariance}


def _cached_features(images: Images, inception: Inception, batch_size: int) -> dict[str, np.ndarray]:
    """As ``compute_features``, from a file beside the images if there is one of them and of this graph; else made."""
    key = sha256(
        f"{CACHE_VERSION} {images.sha256} {inception.sha256} {sorted(inception.versions)}".encode()
    ).hexdigest()
    place = images.path.resolve()
    path = place.with_name(f"{place.name}.features-{key[:16]}.npz")
    if path.exists():
        try:
            with np.load(path) as file:
                return dict(file)
        except (*DAMAGE, KeyError):
            print(f"{path} is damaged; computing it again")
    arrays = compute_features(images, inception, batch_size)
    try:
        write_arrays(path, arrays)
    except OSError as error:
        print(f"the features of {images.path} are not kept for the next time: {error.strerror}")
    return arrays


def doubts_of(path: Path, images: Images | None, arrays: Mapping[str, np.ndarray], stored: bool) -> list[str]:
    """Warnings on one side: of its files, and what ``compute_features`` found."""
    if images is None:
        return []
    found, num_images = list(map(str, arrays["warnings"])), images.shape[0]
    if num_images < FEW and not stored:
        found.append(
            f"{num_images} images are fewer than {FEW}: FID and sFID are far too high and compare with nothing"
        )
    if images.shape[1] != images.shape[2]:
        found.append(f"images of {images.shape[2]} x {images.shape[1]} pixels are stretched to squares")
    if arrays["grey"]:
        found.append("all images are greyscale (their channels are equal); Inception was made for colour")
    num_doubles = num_images - len(np.unique(arrays["digests"]))
    if num_doubles:
        found.append(f"{num_doubles} of {num_images} images are exact duplicates of others")
    return [f"{path}: {doubt}" for doubt in found]


def _recorded_settings(path: Path) -> dict[str, Any] | None:
    """What lies beside samples in samples.json, without the list of all images."""
    record = (path if path.is_dir() else path.parent) / SETTINGS_NAME
    if not record.is_file() or (path.is_file() and path.name != NPZ_NAME):
        return None
    try:
        settings = json.loads(record.read_text())
    except ValueError as error:
        raise UserError(f"{record} is damaged ({error}); remove it to evaluate without settings") from error
    return {name: value for name, value in settings.items() if name != "images"}
