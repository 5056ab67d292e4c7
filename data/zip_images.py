"""Class folders in a .zip, or in train.zip and val.zip, read in place.

``zipfile`` lists the archive. Images are read by their place in it: ZipFile keeps half a gigabyte for a million images,
and one that is open when a process forks shares its position with the other.
"""

import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED

import numpy as np

from data.class_folders import ClassFolders, read_class_folders, read_split
from data.files import UnreadableImageError, left_out_text, subfolders
from data.labelled_images import StoredImages
from data.splits import NAMES, Split, choose_split
from data.zip_entries import Archive, Member, ZipEntry, read_zip
from runtime.errors import UserError

HEADER = 30  # bytes before the name of a member, as it stands before its bytes; its length and that of more end it
RAW = -15  # zlib's word for DEFLATE without a header


class ZipImages(StoredImages):
    """Images in an archive, ``keys`` being their paths below the folder of the classes."""

    def __init__(self, name: str, found: ClassFolders) -> None:
        self.archive, self.folder = found.folder.archive, str(found.folder)
        members = [found.folder.find(key).member for key in found.keys]
        wrong = next(
            (i for i, m in enumerate(members) if m.encrypted or m.method not in (ZIP_STORED, ZIP_DEFLATED)), -1
        )
        if wrong >= 0:
            how = "is encrypted" if members[wrong].encrypted else "is packed in an uncommon way"
            raise UserError(f"{self.folder}/{found.keys[wrong]} {how}; unpack the archive, or pack it again without")
        self.members = np.array(members, np.int64)  # (N, fields of Member)
        super().__init__(name, found.keys, found.labels, found.class_keys)

    def file_of(self, index: int) -> Path:
        return self.archive

    def title(self, index: int) -> str:
        return f"{self.folder}/{self.keys[index]}"

    def fetch(self, index: int) -> bytes:
        member = Member(*self.members[index].tolist())
        with self.archive.open("rb") as file:
            file.seek(member.offset)
            header = file.read(HEADER)
            file.seek(sum(int.from_bytes(header[i : i + 2], "little") for i in (26, 28)), 1)
            content = file.read(member.packed)
        if member.method == ZIP_DEFLATED:
            content = zlib.decompressobj(RAW).decompress(content, member.size + 1)
        if len(content) != member.size or zlib.crc32(content) != member.crc:
            raise UnreadableImageError(f"{self.title(index)} is damaged; fetch or pack the archive again")
        return content


def open_zip(archive: Path, name: str, held_out: bool) -> ZipImages:
    """A split of class folders in an archive, which a single folder may wrap."""
    read = read_zip(archive)
    inner = _unwrapped(read.root)
    return _images(name, read_class_folders(inner, held_out), read, inner)


def open_zips(folder: Path, archives: Mapping[str, Path], name: str, held_out: bool) -> ZipImages:
    """A split of class folders in an archive of its own, by the archives of splits in a folder."""
    chosen = choose_split(folder, archives, held_out, "{}.zip")
    read = read_zip(chosen.taken)
    inner = _unwrapped(read.root, of_one_split=True)
    other = chosen.training is not chosen.taken
    training = _unwrapped(read_zip(chosen.training).root, of_one_split=True) if other else inner
    return _images(name, read_split(Split(inner, training, chosen.remarks)), read, inner)


def _unwrapped(root: ZipEntry, of_one_split: bool = False) -> ZipEntry:
    """The one folder of an archive if it only wraps the others; one called as a split does if all is of one split."""
    folders = subfolders(root).files
    if len(folders) != 1 or (folders[0].name.lower() in NAMES and not of_one_split):
        return root
    inner = subfolders(folders[0])
    return folders[0] if inner.files and not inner.left_out["images outside of class folders"] else root


def _images(name: str, found: ClassFolders, read: Archive, inner: ZipEntry) -> ZipImages:
    """The images; remarks on what was left out in the archive and above the classes, and on what wraps them."""
    images, left_out = ZipImages(name, found), read.left_out
    for folder in dict.fromkeys((read.root, inner)):
        left_out += Counter() if folder is found.folder else subfolders(folder).left_out
    text = left_out_text(left_out)
    images.remarks = [*found.remarks, *read.remarks, *([f"{images.archive}: {text}"] if text else [])]
    unwrapped = inner is not read.root and inner is found.folder  # without splits, which no class holds
    if unwrapped and inner.name.lower() not in NAMES:
        images.remarks.append(
            f"{images.archive}: {inner.name}/ is taken for a wrapper of the class folders in it; if it is the one "
            "class itself, pack it within a folder train"
        )
    return images
