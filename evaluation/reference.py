"""Make a reference set of any folder of images, in the format of the ADM evaluator's.

Letters: N images, S their side in pixels.
"""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from data.crops import center_crop
from evaluation.features.network import Network
from evaluation.image_files import IMAGES, FolderImages, open_image
from evaluation.image_sets import check_count, compute_features, warnings_of
from runtime.errors import UserError
from runtime.files import whole


def make_reference(folder: Path, target: Path, size: int, network: Network, batch_size: int) -> list[str]:
    """Write the centre crops of all images of a folder, and the statistics of their features.

    Args:
        folder: of images, at any depth.
        target: npz to write: ``arr_0`` (N, S, S, 3) uint8, ``mu``, ``sigma`` and Inception's ``mu_s``, ``sigma_s``.
        size: side of the crops, S.
        network: computes the features.
        batch_size: images whose features are computed at once.

    Returns:
        What is doubtful about the images.

    Raises:
        UserError: the target exists, or an image cannot be read.
    """
    if target.exists():
        raise UserError(f"{target} exists; name another file, or remove it")
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name one of images")
    with whole(target) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open(f"{IMAGES}.npy", "w", force_zip64=True) as file:
            crops = CroppedImages(folder, size, file)
            check_count(crops)
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
        header = {"descr": np.dtype(np.uint8).str, "fortran_order": False, "shape": (*self.shape, 3)}
        np.lib.format.write_array_header_1_0(self._file, header)
        for batch in super().batches(size):
            self._file.write(batch.data)
            yield batch

    def _read(self, path: Path) -> tuple[np.ndarray, str]:
        with open_image(path) as image:
            return np.array(center_crop(image.convert("RGB"), self.shape[1])), image.mode
