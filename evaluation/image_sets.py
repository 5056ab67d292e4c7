"""A set of images to compare, the reference or the samples: features, statistics, and what is doubtful about it.

Letters: N images, H, W their sides in pixels, S that of squares, D features, K classes.
"""

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from tqdm import tqdm

from data.crops import center_crop
from evaluation.features.network import Network
from evaluation.image_files import DAMAGE, IMAGES, FolderImages, Images, open_images, read_image
from evaluation.metrics import NEIGHBOURS, Statistics, statistics_of
from runtime import distributed
from runtime.errors import UserError
from runtime.files import whole
from sampling.folder import NPZ_NAME, SETTINGS_NAME

CACHE_VERSION = 1  # of the arrays in a cache; part of its name
Arrays = dict[str, np.ndarray]


@dataclass
class ImageSet:
    """What a comparison needs of images, or of statistics alone, which have the first five attributes."""

    path: Path
    sha256: str  # of the file, or of all files of the folder and their names
    statistics: list[Statistics | None]  # of each kind of features; None of those that a file of statistics lacks
    stored: bool  # the statistics are from the file, not from its images
    settings: Mapping[str, Any] | None  # what main_sample.py recorded of the samples, if it drew them
    shape: tuple[int, int, int] | None = None  # (N, H, W)
    features: np.ndarray | None = None  # (N, D) float32, if they are needed
    digests: np.ndarray | None = None  # (N,) uint64, a hash of each image
    labels: np.ndarray | None = None  # (N,) class of each image as the network counts them; None if not known
    label_warnings: Sequence[str] = ()  # why they are not, if files say something of them
    warnings: Sequence[str] = ()  # what is doubtful about it

    @property
    def num_images(self) -> int | None:
        return None if self.shape is None else self.shape[0]


def load_image_set(
    path: Path, network: Network, batch_size: int, cache: bool = False, features: bool = True, all_ranks: bool = False
) -> ImageSet:
    """Read an npz, a folder of images, or a file of statistics, computing what it does not store.

    Args:
        cache: keep what is computed in a file beside ``path``, and take it from there the next time.
        features: False leaves them out, and reads no images if the file stores its statistics.
        all_ranks: the other ranks call ``compute_features`` of the same images meanwhile; not with ``cache``.
    """
    images, suffixes = open_images(path), network.key_suffixes
    statistics = [images.statistics(suffix) for suffix in suffixes]
    stored = statistics[0] is not None
    if images.shape is None and not stored:
        raise UserError(f"{path} holds statistics of another network's features, and no images to compute them from")
    settings = _settings(images.path)
    drawn = settings.pop("images", [])
    found = ImageSet(images.path, images.sha256, statistics, stored, settings or None)
    if stored and (images.shape is None or not features):
        return found
    _check_count(images)
    arrays = _cached_features(images, network, batch_size) if cache else {}
    arrays = arrays or compute_features(images, network, batch_size, all_ranks)
    if not stored:
        found.statistics = [Statistics.of_names(arrays, suffix) for suffix in suffixes]
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
    index_of = {key: index for index, name in enumerate(class_names) for key in (index, name)}
    folders = isinstance(images, FolderImages) and not drawn
    if not named or (folders and not index_of.keys() & set(named)):  # folders that are no classes
        return None, []
    strange = next((name for name in named if name not in index_of), None)
    if strange is not None:
        return None, [f"{images.path}: class {strange} is none of the classifier's: {', '.join(class_names)}"]
    if len(named) != images.shape[0]:
        return None, [f"{images.path}: {len(named)} labels of {images.shape[0]} images are no use"]
    return np.array([index_of[name] for name in named]), []


def check_reference(path: Path, suffix: str) -> None:
    """Refuse what has neither images nor statistics whose keys end so, before anything is spent on samples."""
    images = open_images(path)
    if images.shape is not None:
        _check_count(images)
    elif images.statistics(suffix) is None:
        raise UserError(f"{path} holds neither images nor statistics of the features that are to be compared")


def _check_count(images: Images) -> None:
    if images.shape[0] <= NEIGHBOURS:
        raise UserError(f"{images.path} holds {images.shape[0]} images; give at least {NEIGHBOURS + 1}, better 50000")


def compute_features(images: Images, network: Network, batch_size: int, all_ranks: bool = False) -> Arrays:
    """``features`` (N, D), ``mu`` and ``sigma`` of each kind, ``digests`` (N,), ``grey``, ``warnings``.

    On all ranks, each computes the features of its share of the batches; all are gathered, and rank 0 returns them.
    """
    num_images, digests, grey = images.shape[0], [], True
    rank, num_ranks = (distributed.rank(), distributed.num_ranks()) if all_ranks else (0, 1)
    found: list[np.ndarray] = []  # of each kind of features
    with tqdm(desc="features", total=num_images, unit="image", leave=None, disable=rank > 0) as bar:
        for i, batch in enumerate(images.batches(batch_size)):
            mine = i % num_ranks == rank
            if mine or i == 0:  # every rank learns the widths
                new, first = network(batch), i * batch_size
                found = found or [np.zeros((num_images, array.shape[1]), dtype=np.float32) for array in new]
                for all_rows, rows in zip(found, new, strict=True):
                    all_rows[first : first + len(batch)] = rows * mine
            digests += [int.from_bytes(blake2b(image, digest_size=8).digest(), "little") for image in batch]
            grey = grey and bool((batch == batch[..., :1]).all())
            bar.update(len(batch))
    for array in found if num_ranks > 1 else []:
        distributed.add_up(torch.from_numpy(array))  # the rows of other ranks are 0
    if rank:
        return {}
    arrays = {"features": found[0], "digests": np.array(digests, dtype=np.uint64), "grey": np.array(grey)}
    for suffix, features in zip(network.key_suffixes, found, strict=True):
        arrays |= statistics_of(features).named(suffix)
    return arrays | {"warnings": np.array(images.warnings(), dtype=np.str_)}


def _cached_features(images: Images, network: Network, batch_size: int) -> Arrays:
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


def warnings_of(images: Images, arrays: Arrays, network: Network, stored: bool = False) -> list[str]:
    """What is doubtful about images: of their files, and by what ``compute_features`` found."""
    found, (num_images, height, width) = list(map(str, arrays["warnings"])), images.shape
    if num_images < network.few and not stored:
        few = f"{num_images} images are fewer than {network.few}"
        found.append(f"{few}: Fréchet distances are far too high and compare with nothing")
    if height != width:
        found.append(f"images of {width} x {height} pixels are stretched to squares")
    if network.side is not None and (height, width) != (network.side, network.side):
        found.append(f"images of {width} x {height} pixels are read at {network.side} x {network.side}")
    if arrays["grey"] and network.colour:
        found.append(f"all images are greyscale (their channels are equal); {network.kind} was made for colour")
    num_doubles = num_images - len(np.unique(arrays["digests"]))
    if num_doubles:
        found.append(f"{num_doubles} of {num_images} images are exact duplicates of others")
    return [f"{images.path}: {warning}" for warning in found]


def _settings(path: Path) -> dict[str, Any]:
    """What main_sample.py wrote beside samples that it drew; nothing beside others."""
    record = (path if path.is_dir() else path.parent) / SETTINGS_NAME
    if not record.is_file() or (path.is_file() and path.name != NPZ_NAME):
        return {}
    try:
        return dict(json.loads(record.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{record} is damaged ({error}); remove it to evaluate without settings") from error


def make_reference(folder: Path, target: Path, size: int, network: Network, batch_size: int) -> list[str]:
    """Write the centre crops of all images of a folder, and their statistics, in the format of the ADM evaluator's.

    ``target``, which must be new, becomes an npz of ``arr_0`` (N, size, size, 3) uint8, ``mu``, ``sigma`` and
    Inception's ``mu_s``, ``sigma_s``. Returns what is doubtful about the images.
    """
    if target.exists():
        raise UserError(f"{target} exists; name another file, or remove it")
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name one of images")
    with whole(target) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open(f"{IMAGES}.npy", "w", force_zip64=True) as file:
            crops = CroppedImages(folder, size, file)
            _check_count(crops)
            arrays = compute_features(crops, network, batch_size)
        for name in (f"{kind}{suffix}" for suffix in network.key_suffixes for kind in ("mu", "sigma")):
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, arrays[name])
    return warnings_of(crops, arrays, network)


class CroppedImages(FolderImages):
    """A folder's images of any sizes, each as its centre crop, which is also written to a file as an array."""

    def __init__(self, path: Path, size: int, file: IO[bytes]) -> None:
        super().__init__(path)
        self.shape, self._file = (len(self.files), size, size), file

    def batches(self, size: int) -> Iterator[np.ndarray]:
        header = {"descr": "|u1", "fortran_order": False, "shape": (*self.shape, 3)}
        np.lib.format.write_array_header_1_0(self._file, header)
        for batch in super().batches(size):
            self._file.write(batch.data)
            yield batch

    def _read(self, path: Path) -> tuple[np.ndarray, str]:
        image, mode = read_image(path)
        return np.array(center_crop(image, self.shape[1])), mode
