"""One side of a comparison, the reference or the samples: features, statistics, and what is doubtful about it.

Letters: N images, H, W their sides in pixels, D features, S spatial ones, K classes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from evaluation.class_labels import read_labels
from evaluation.features.network import Network
from evaluation.image_files import DAMAGE, Images, hash_of, open_images, resolve, stored_statistics
from evaluation.metrics import Statistics, statistics_of
from evaluation.neighbours import NEIGHBOURS
from runtime import distributed
from runtime.errors import UserError
from runtime.files import whole
from sampling.names import NPZ_NAME, SETTINGS_NAME

CACHE_VERSION = 1  # of the arrays in a cache; part of its name
Arrays = tuple[np.ndarray, ...]  # one of each kind of features


@dataclass(frozen=True)
class Side:
    """What a comparison needs of one side.

    Attributes:
        path: of the images or statistics.
        sha256: of the file, or of all files of the folder and their names.
        shape: (N, H, W) of the images; None without.
        features: (N, D) float32; None without images.
        statistics: of the features.
        spatial: of the spatial features; None for a statistics file or a network without them.
        stored: the statistics are from the file, not from its images.
        digests: (N,) uint64, a hash of each image; None without images.
        labels: (N,) class of each image as the network counts them; None if they are not known.
        warnings: what is doubtful about it.
        label_doubts: why ``labels`` are not known, if files say something of them.
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
    labels: np.ndarray | None
    warnings: list[str]
    label_doubts: list[str]
    settings: Mapping[str, Any] | None

    @property
    def num_images(self) -> int | None:
        return None if self.shape is None else self.shape[0]


def load_side(
    path: Path,
    network: Network,
    batch_size: int,
    use_cache: bool = False,
    need_features: bool = True,
    all_ranks: bool = False,
) -> Side:
    """Read one side, computing what it does not store.

    Args:
        path: npz, folder of images, or statistics file.
        network: computes the features.
        batch_size: images whose features are computed at once.
        use_cache: keep what is computed in a file beside ``path``, and take it from there the next time.
        need_features: False reads no images if the file stores its statistics.
        all_ranks: called on every rank, each of which computes a share of the features.

    Raises:
        UserError: there is nothing of the sort, or too few images.
    """
    found = [stored_statistics(path, f"mu{end}", f"sigma{end}") for end in network.ends]
    stored = found[0] is not None
    images = open_images(path) if need_features or not stored else None
    if images is None and not stored:
        raise UserError(f"{path} holds statistics of another network's features, and no images to compute them from")
    path, arrays = resolve(path), {}
    if images is not None:
        _check_count(path, images)
        arrays = _cached_features(images, network, batch_size) if use_cache else {}
        arrays = arrays or compute_features(images, network, batch_size, all_ranks)
    if not stored:
        found = [Statistics(arrays[f"mu{end}"], arrays[f"sigma{end}"]) for end in network.ends]
    record = _record(path)
    drawn = [] if record is None else record.get("images", [])
    labels, label_doubts = (None, []) if images is None else read_labels(images, drawn, network.class_names)
    return Side(
        path=path,
        sha256=hash_of(path, images),
        shape=None if images is None else images.shape,
        features=arrays.get("features"),
        statistics=found[0],
        spatial=found[1] if len(found) > 1 else None,
        stored=stored,
        digests=arrays.get("digests"),
        labels=labels,
        warnings=doubts_of(path, images, arrays, network, stored),
        label_doubts=label_doubts,
        settings=None if record is None else {name: v for name, v in record.items() if name != "images"},
    )


def check_reference(path: Path, end: str) -> Images | None:
    """Refuse what cannot be a reference, before anything is spent on samples.

    Args:
        path: npz, folder of images, or statistics file.
        end: what the names of mean and covariance end with, as ``network.ends`` has it.

    Returns:
        Its images; None if it holds statistics alone.

    Raises:
        UserError: it has neither images nor these statistics, or too few images.
    """
    images = open_images(path)
    if images is None and stored_statistics(path, f"mu{end}", f"sigma{end}") is None:
        raise UserError(f"{path} holds neither images nor statistics of the features that are to be compared")
    if images is not None:
        _check_count(path, images)
    return images


def _check_count(path: Path, images: Images) -> None:
    if images.shape[0] <= NEIGHBOURS:
        raise UserError(f"{path} holds {images.shape[0]} images; give at least {NEIGHBOURS + 1}, better 50000")


def compute_features(
    images: Images, network: Network, batch_size: int, all_ranks: bool = False
) -> dict[str, np.ndarray]:
    """``features`` (N, D), ``mu`` and ``sigma`` of each of ``network.ends``, ``digests`` (N,), ``grey``, ``warnings``.

    On all ranks, each computes the features of its share of the batches, and all get those of all.
    """
    num_images, first, digests, grey = images.shape[0], 0, [], True
    rank, num_ranks = (distributed.rank(), distributed.num_ranks()) if all_ranks else (0, 1)
    found: Arrays = ()
    with tqdm(desc="features", total=num_images, unit="image", leave=None, disable=rank > 0) as bar:
        for i, batch in enumerate(images.batches(batch_size)):
            if i % num_ranks == rank:
                new = network(batch)
                found = found or tuple(np.zeros((num_images, array.shape[1]), dtype=np.float32) for array in new)
                for whole, array in zip(found, new, strict=True):
                    whole[first : first + len(batch)] = array
            first += len(batch)
            digests += [int.from_bytes(blake2b(image, digest_size=8).digest(), "little") for image in batch]
            grey = grey and bool((batch == batch[..., :1]).all())
            bar.update(len(batch))
    if all_ranks:
        found = _share(found, num_images)
    statistics = {}
    for end, array in zip(network.ends, found, strict=True):
        statistics |= _named(statistics_of(array), end)
    return {
        "features": found[0],
        **statistics,
        "digests": np.array(digests, dtype=np.uint64),
        "grey": np.array(grey),
        "warnings": np.array(images.warnings(), dtype=np.str_),
    }


def _share(found: Arrays, num_images: int) -> Arrays:
    """What all ranks computed, each a share of the rows, those of others being 0; one may have had none to compute."""
    widths = next(filter(None, distributed.everyones([array.shape[1] for array in found])))
    found = found or tuple(np.zeros((num_images, width), dtype=np.float32) for width in widths)
    for array in found:
        distributed.add_up(torch.from_numpy(array))
    return found


def _named(statistics: Statistics, end: str) -> dict[str, np.ndarray]:
    return {f"mu{end}": statistics.mean, f"sigma{end}": statistics.covariance}


def _cached_features(images: Images, network: Network, batch_size: int) -> dict[str, np.ndarray]:
    """As ``compute_features``, from a file beside the images if there is one of them and of this graph; else made."""
    key = sha256(f"{CACHE_VERSION} {images.sha256} {network.sha256} {sorted(network.versions)}".encode()).hexdigest()
    place = images.path.resolve()
    path = place.with_name(f"{place.name}.features-{key[:16]}.npz")
    if path.exists():
        try:
            with np.load(path) as file:
                return dict(file)
        except (*DAMAGE, KeyError):
            print(f"{path} is damaged; computing it again")
    arrays = compute_features(images, network, batch_size)
    try:
        with whole(path) as temporary:
            np.savez(temporary, **arrays)
    except UserError as error:
        print(f"the features of {images.path} are not kept for the next time: {error}")
    return arrays


def doubts_of(
    path: Path, images: Images | None, arrays: Mapping[str, np.ndarray], network: Network, stored: bool
) -> list[str]:
    """Warnings on one side: of its files, and what ``compute_features`` found."""
    if images is None:
        return []
    found, (num_images, height, width) = list(map(str, arrays["warnings"])), images.shape
    if num_images < network.few and not stored:
        found.append(
            f"{num_images} images are fewer than {network.few}: Fréchet distances are far too high and compare with "
            "nothing"
        )
    if height != width:
        found.append(f"images of {width} x {height} pixels are stretched to squares")
    if network.side is not None and (height, width) != (network.side, network.side):
        found.append(f"images of {width} x {height} pixels are read at {network.side} x {network.side}")
    if arrays["grey"] and network.colour:
        found.append(f"all images are greyscale (their channels are equal); {network.kind} was made for colour")
    num_doubles = num_images - len(np.unique(arrays["digests"]))
    if num_doubles:
        found.append(f"{num_doubles} of {num_images} images are exact duplicates of others")
    return [f"{path}: {doubt}" for doubt in found]


def _record(path: Path) -> dict[str, Any] | None:
    """What main_sample.py wrote beside samples that it drew."""
    record = (path if path.is_dir() else path.parent) / SETTINGS_NAME
    if not record.is_file() or (path.is_file() and path.name != NPZ_NAME):
        return None
    try:
        return dict(json.loads(record.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{record} is damaged ({error}); remove it to evaluate without settings") from error
