"""A reference set of one's own images, in the format of the ADM evaluator's.

Letters: N images, B of a batch, S side of their square crops in pixels.
"""

import zipfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import IO

import numpy as np

from data.crops import center_crop
from data.files import read_image
from data.images import open_dataset
from data.labelled_images import LabelledImages
from evaluation.features.network import Network
from evaluation.image_files import COUNT, IMAGES, FolderImages, Images, lossy_warnings
from evaluation.image_sets import check_count, compute_features, warnings_of
from evaluation.options import EvaluatorArgs
from runtime.errors import UserError
from runtime.files import prepare_output, whole


def open_crops(args: EvaluatorArgs) -> Images:
    """The images to make a reference of. UserError if they cannot be used, before anything is spent on them."""
    target, place = Path(args.reference), Path(args.make_reference)
    if target.exists():
        raise UserError(f"{target} exists; name another file, or remove it")
    prepare_output(target)
    if args.split is not None:
        images = open_dataset(args.dataset, args.make_reference, args.image_size, args.split)
        crops: Images = DatasetCrops(images, place, args.image_size)
    elif place.is_dir():
        crops = FolderCrops(place, args.image_size)
    else:
        raise UserError(
            f"{place} is no folder of images; with --split train or --split val it may be whatever main.py takes as "
            "--data_path"
        )
    check_count(crops)
    return crops


def make_reference(crops: Images, target: Path, network: Network, batch_size: int) -> list[str]:
    """Write images and their statistics to a new file, and return what is doubtful about them.

    It becomes an npz of ``arr_0`` (N, S, S, 3) uint8, ``num_images``, ``mu``, ``sigma`` and Inception's ``mu_s``,
    ``sigma_s``.
    """
    with whole(target) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open(f"{IMAGES}.npy", "w", force_zip64=True) as file:
            arrays = compute_features(WrittenImages(crops, file), network, batch_size)
        names = [f"{name}{suffix}" for suffix, name in product(network.key_suffixes, ("mu", "sigma"))]
        for name, array in [(COUNT, np.array(crops.shape[0])), *((name, arrays[name]) for name in names)]:
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array)
    return warnings_of(crops, arrays, network)


class FolderCrops(FolderImages):
    """Centre crops of a folder's images of any sizes, at any depth."""

    def __init__(self, path: Path, size: int) -> None:
        super().__init__(path)
        self.shape = len(self.files), size, size

    def _read(self, path: Path) -> tuple[np.ndarray, str]:
        image, mode = read_image(path)
        return np.array(center_crop(image, self.shape[1])), mode


class DatasetCrops(Images):
    """Centre crops of the images of a data set, which lie at a ``path``."""

    def __init__(self, images: LabelledImages, path: Path, size: int) -> None:
        self.images, self.path, self.shape = images, path, (len(images), size, size)

    def batches(self, size: int) -> Iterator[np.ndarray]:
        for first in range(0, len(self.images), size):
            indices = range(len(self.images))[first : first + size]
            yield np.stack([center_crop(self.images.read(index), self.shape[1]) for index in indices])

    def warnings(self) -> list[str]:
        return lossy_warnings(self.images.keys)

    def left_out(self) -> str:
        return "; ".join(self.images.remarks)


class WrittenImages(Images):
    """Images that are also written to a file, as an array, while they are read."""

    def __init__(self, images: Images, file: IO[bytes]) -> None:
        self.path, self.shape, self._images, self._file = images.path, images.shape, images, file

    def batches(self, size: int) -> Iterator[np.ndarray]:
        header = {"descr": "|u1", "fortran_order": False, "shape": (*self.shape, 3)}
        np.lib.format.write_array_header_1_0(self._file, header)
        for batch in self._images.batches(size):
            self._file.write(batch.data)
            yield batch

    def warnings(self) -> list[str]:
        return self._images.warnings()
