"""A set of images to compare, the reference or the samples: features, statistics, and what is doubtful about it.

Letters: N images, H, W their sides in pixels, S that of squares, D features, K classes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from data.loading import one_ahead
from evaluation.cache_folder import Arrays, keep_features, kept_features
from evaluation.features.network import Network, library_versions
from evaluation.image_files import FolderImages, Images, open_images
from evaluation.metrics import NEIGHBOURS, VERSION, Statistics, statistics_of
from runtime import distributed
from runtime.errors import UserError
from runtime.files import composed
from runtime.progress import Progress
from sampling.folder import NPZ_NAME, SETTINGS_NAME

Origin = Literal["computed", "stored", "of another program"]


@dataclass
class ImageSet:
    """What a comparison needs of images, or of statistics alone, which lack shape, features, digests and labels."""

    path: Path
    sha256: str  # of the file, or of all files of the folder and their names
    statistics: list[Statistics | None]  # of each kind of features; None of those that a file of statistics lacks
    origin: Origin  # of the statistics: computed from images, or stored in the file by a program of ADM's format
    settings: Mapping[str, Any] | None  # what main_sample.py recorded of the samples, if it drew them
    shape: tuple[int, int, int] | None = None  # (N, H, W)
    features: np.ndarray | None = None  # (N, D) float32, if they are needed
    digests: np.ndarray | None = None  # (N,) uint64, a hash of each image
    labels: np.ndarray | None = None  # (N,) class of each image as the network counts them; None if not known
    label_warnings: Sequence[str] = ()  # why they are not, if files say something of them
    warnings: Sequence[str] = ()  # what is doubtful about it
    num_stored: int | None = None  # images that the stored statistics are of, if the file says it

    @property
    def num_images(self) -> int | None:
        return self.num_stored if self.shape is None else self.shape[0]


def load_image_set(
    path: Path, network: Network, batch_size: int, cache: bool = False, features: bool = True, all_ranks: bool = False
) -> ImageSet:
    """Read an npz, a folder of images, or a file of statistics, computing what it does not store.

    Args:
        cache: keep what is computed in the user's cache folder, and take it from there the next time.
        features: False leaves them out, and reads no images if the file stores its statistics.
        all_ranks: the other ranks call ``compute_features`` of the same images meanwhile; not with ``cache``.
    """
    images = open_images(path)
    statistics = [images.statistics(suffix) for suffix in network.key_suffixes]
    stored = statistics[0] is not None
    _check_content(images, statistics[0], network.class_weights.shape[0])
    settings = _settings(images.path)
    drawn = settings.pop("images", [])
    origin: Origin = "stored" if stored else "computed"
    if images.of_another_program:
        origin = "of another program"
    found = ImageSet(images.path, images.sha256, statistics, origin, settings or None, num_stored=images.num_stored)
    if origin == "of another program":
        found.warnings = [
            f"{images.path}: these statistics are of another program: FID is comparable only if its Inception weights "
            "and its resizing are ADM's; there is no sFID, precision or recall"
        ]
    if stored and (images.shape is None or not features):
        found.warnings = [*found.warnings, *few_warnings(images, network, stored)]
        return found
    arrays = (_cached_features if cache else compute_features)(images, network, batch_size, all_ranks)
    if not stored:
        found.statistics = [Statistics.of_names(arrays, suffix) for suffix in network.key_suffixes]
    found.shape, found.digests = images.shape, arrays["digests"]
    found.features = arrays["features"] if features else None
    found.labels, found.label_warnings = read_labels(images, drawn, network.class_names)
    found.warnings = warnings_of(images, arrays, network, stored)
    return found


def read_labels(
    images: Images, drawn: Sequence[Mapping[str, Any]], class_names: Sequence[str]
) -> tuple[np.ndarray | None, list[str]]:
    """Class (N,) of each image as its place in ``class_names``, None if unsaid, and what is wrong with what is said.

    Files say it by name or index: samples.json, which has ``drawn`` of each image, arr_1 of an npz, or class folders.
    """
    if not class_names:
        return None, []
    try:
        named = [entry["label"] if entry["class"] is None else entry["class"] for entry in drawn] or images.labels()
    except (KeyError, TypeError):
        return None, [f"{images.path}: its samples.json does not say the classes"]
    if drawn and None in named:
        return None, [f"{images.path}: its model was trained without classes"]
    named = [composed(name) if isinstance(name, str) else name for name in named]
    index_of = {key: index for index, name in enumerate(class_names) for key in (index, composed(name))}
    folders = isinstance(images, FolderImages) and not drawn
    if not named or (folders and not index_of.keys() & set(named)):  # folders that are no classes
        return None, []
    strange = next((name for name in named if name not in index_of), None)
    if strange is not None:
        return None, [f"{images.path}: class {strange} is none of the classifier's: {', '.join(class_names)}"]
    if len(named) != images.shape[0]:
        return None, [f"{images.path}: {len(named)} labels of {images.shape[0]} images are no use"]
    return np.array([index_of[name] for name in named]), []


def check_images(path: Path) -> None:
    """Refuse what is no image set, before anything is spent on it."""
    images = open_images(path)
    if images.shape is not None:
        check_count(images)


def check_reference(path: Path, suffix: str, width: int | None = None) -> None:
    """Refuse what has neither images nor statistics whose keys end so, of ``width`` features if that is known."""
    images = open_images(path)
    _check_content(images, images.statistics(suffix), width)


def _check_content(images: Images, statistics: Statistics | None, width: int | None) -> None:
    if images.shape is not None:
        check_count(images)
    if statistics is None and images.of_another_program:
        raise UserError(
            f"{images.path} holds statistics of Inception's features that another program wrote (mu, sigma), not of a "
            "classifier's; leave --features out, or name images"
        )
    if statistics is None and images.shape is None:
        raise UserError(
            f"{images.path} holds statistics of another network's features, and no images to compute these from; name "
            "images, or statistics of this network"
        )
    if statistics is not None and width is not None and len(statistics.mean) != width:
        raise UserError(
            f"{images.path} holds statistics of {len(statistics.mean)} features, but this network has {width}; name "
            "images, or statistics of this network"
        )


def check_count(images: Images) -> None:
    """UserError if there are too few (N,) for the neighbours that precision and recall look at."""
    if images.shape[0] <= NEIGHBOURS:
        raise UserError(f"{images.path} holds {images.shape[0]} images; give at least {NEIGHBOURS + 1}, better 50000")


def compute_features(images: Images, network: Network, batch_size: int, all_ranks: bool = False) -> Arrays:
    """``features`` (N, D), ``mu`` and ``sigma`` of each kind, ``digests`` (N,), ``grey``, ``warnings``.

    On all ranks, each computes the features of its share of the batches; all are gathered, and rank 0 returns them.
    """
    num_images, digests, grey = images.shape[0], [], True
    rank, num_ranks = (distributed.rank(), distributed.num_ranks()) if all_ranks else (0, 1)
    found: list[np.ndarray] = []  # of each kind of features
    with Progress(desc="features", total=num_images, unit="image", leave=None, disable=rank > 0) as bar:
        for i, batch in enumerate(one_ahead(images.batches(batch_size))):
            mine = i % num_ranks == rank
            if mine or i == 0:  # every rank learns the widths
                new, first = network(batch), i * batch_size
                found = found or [np.zeros((num_images, array.shape[1]), dtype=np.float32) for array in new]
                for all_rows, rows in zip(found, new, strict=True) if mine else ():
                    all_rows[first : first + len(batch)] = rows
            if rank == 0:
                digests += [int.from_bytes(blake2b(image, digest_size=8).digest(), "little") for image in batch]
                grey = grey and bool((batch == batch[..., :1]).all())
            bar.update(len(batch))
    if num_ranks > 1:
        distributed.barrier("features")  # sums are less patient; rank 0 may compute those of the reference before
    for array in found if num_ranks > 1 else []:
        distributed.add_up(torch.from_numpy(array))  # the rows of other ranks are 0
    for array in found:  # on all ranks, so that none waits for one that ended
        strange = np.flatnonzero(~np.isfinite(array).all(axis=1))
        if len(strange):
            raise UserError(
                f"{images.path}: the features of {len(strange)} images are not finite, first those of image "
                f"{strange[0]}; get the file of the {network.kind} network again"
            )
    if rank:
        return {}
    arrays = {"features": found[0], "digests": np.array(digests, dtype=np.uint64), "grey": np.array(grey)}
    for suffix, features in zip(network.key_suffixes, found, strict=True):
        arrays |= statistics_of(features).named(suffix)
    return arrays | {"warnings": np.array(images.warnings(), dtype=np.str_)}


def _cached_features(images: Images, network: Network, batch_size: int, all_ranks: bool = False) -> Arrays:
    """As ``compute_features``, from the user's cache folder if it has those of the same images and network."""
    identity = [VERSION, images.sha256, network.sha256, library_versions(network)]
    key = sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    names = {"features", "digests", "grey", "warnings"}
    names |= {f"{name}{suffix}" for name in ("mu", "sigma") for suffix in network.key_suffixes}
    arrays = kept_features(key, names, images.shape[0])
    if arrays is None:
        arrays = compute_features(images, network, batch_size, all_ranks)
        try:
            keep_features(key, arrays)
        except UserError as error:
            print(f"the features of {images.path} are not kept for the next time: {error}")
    return arrays


def warnings_of(images: Images, arrays: Arrays, network: Network, stored: bool = False) -> list[str]:
    """What is doubtful about images: of their files, and by what ``compute_features`` found."""
    num_images, height, width = images.shape
    found = [text for text in (images.left_out(), *map(str, arrays["warnings"])) if text]
    if height != width:
        found.append(f"images of {width} x {height} pixels are stretched to squares")
    if network.side is not None and (height, width) != (network.side, network.side):
        found.append(f"images of {width} x {height} pixels are read at {network.side} x {network.side}")
    if arrays["grey"] and network.colour:
        found.append(f"all images are greyscale (their channels are equal); {network.kind} was made for colour")
    num_doubles = num_images - len(np.unique(arrays["digests"]))
    if num_doubles:
        found.append(f"{num_doubles} of {num_images} images are exact duplicates of others")
    return [*few_warnings(images, network, stored), *(f"{images.path}: {warning}" for warning in found)]


def few_warnings(images: Images, network: Network, stored: bool) -> list[str]:
    """Whether too few images make distances doubtful.

    Stored statistics may be of more images than the file holds, as ADM's are of all ImageNet; ``num_images`` says it.
    """
    held = None if images.shape is None else images.shape[0]
    measured = images.num_stored if stored else held
    if measured is None or measured >= network.few:
        return []
    few = f"{measured} images are fewer than {network.few}"
    return [f"{images.path}: {few}: Fréchet distances are far too high and compare with nothing"]


def _settings(path: Path) -> dict[str, Any]:
    """What main_sample.py wrote beside samples that it drew; nothing beside others."""
    record = (path if path.is_dir() else path.parent) / SETTINGS_NAME
    if not record.is_file() or (path.is_file() and path.name != NPZ_NAME):
        return {}
    try:
        return dict(json.loads(record.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{record} is damaged ({error}); remove it to evaluate without settings") from error
