"""The one interface of labelled images, and the simplest places of them: files, and memory."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from data.files import UnreadableImageError, damaged, raise_of_machine, read_image
from models.class_names import human_names


class LabelledImages(Dataset):
    """Images with class labels; ``name`` identifies the dataset in caches and logs.

    ``keys`` identify images over runs (a path below the root, or a number), ``class_keys`` classes (folders' names).
    ``remarks`` say what of the data a user may not expect: how it was read, what was left out.
    """

    remarks: Sequence[str] = ()

    def __init__(self, name: str, keys: Sequence[str], labels: Sequence[int], class_keys: Sequence[str]) -> None:
        self.name, self.keys, self.labels, self.class_keys = name, list(keys), list(labels), list(class_keys)
        self.class_names = human_names(self.class_keys)

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: int) -> Image.Image:
        """An image as RGB, of its original size. Raises UnreadableImageError."""
        raise NotImplementedError

    def checksum(self, index: int) -> int:
        """CRC-32 of what is stored, to tell a changed image by. Raises UnreadableImageError."""
        raise NotImplementedError

    def read_with_checksum(self, index: int) -> tuple[Image.Image, int]:
        """Both at once, for less than one after the other."""
        return self.read(index), self.checksum(index)


class StoredImages(LabelledImages):
    """Images as bytes of an image format, in files of their own or in archives.

    Files are opened in the process that reads, so that an object may be forked or pickled.
    """

    def file_of(self, index: int) -> Path:
        """The file that holds an image: its own, or the archive."""
        raise NotImplementedError

    def title(self, index: int) -> str:
        """What messages call an image."""
        raise NotImplementedError

    def fetch(self, index: int) -> bytes:
        """The bytes of an image. Raises what its place raises of a damaged one."""
        raise NotImplementedError

    def content(self, index: int) -> bytes:
        """The bytes of an image. Raises UnreadableImageError."""
        try:
            return self.fetch(index)
        except UnreadableImageError:
            raise
        except Exception as error:  # of damage, decoders raise anything
            raise_of_machine(error, self.title(index))
            raise damaged(self.title(index), error) from error

    def read(self, index: int) -> Image.Image:
        return read_image(self.content(index), name=self.title(index))[0]

    def checksum(self, index: int) -> int:
        return zlib.crc32(self.content(index))

    def read_with_checksum(self, index: int) -> tuple[Image.Image, int]:
        content = self.content(index)
        return read_image(content, name=self.title(index))[0], zlib.crc32(content)


class ImageFiles(StoredImages):
    """Images in files, ``keys`` being their paths below ``root``."""

    def __init__(
        self, name: str, root: Path, keys: Sequence[str], labels: Sequence[int], class_keys: Sequence[str]
    ) -> None:
        self.root = root
        super().__init__(name, keys, labels, class_keys)

    def file_of(self, index: int) -> Path:
        return self.root / self.keys[index]

    def title(self, index: int) -> str:
        return str(self.file_of(index))

    def fetch(self, index: int) -> bytes:
        return self.file_of(index).read_bytes()


class ImageArrays(LabelledImages):
    """Images held in memory, (N, H, W, 3) bytes."""

    def __init__(self, name: str, pixels: np.ndarray, labels: Sequence[int], class_keys: Sequence[str]) -> None:
        self.pixels = pixels
        super().__init__(name, [f"{i:06d}" for i in range(len(pixels))], labels, class_keys)

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def checksum(self, index: int) -> int:
        return zlib.crc32(np.ascontiguousarray(self.pixels[index]))
