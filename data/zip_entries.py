"""A .zip as a tree of files and folders, which ``data.files`` lists as it lists those on the disk."""

import stat
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile, ZipFile, ZipInfo

from runtime.errors import UserError


class Member(NamedTuple):
    """Where the bytes of a file are in its archive, and how they are packed."""

    offset: int  # of what precedes them: a header of 30 bytes, then names
    packed: int  # bytes in the archive
    size: int  # bytes unpacked
    crc: int
    method: int
    encrypted: bool


class ZipEntry:
    """A file or folder of an archive; the archive itself is a folder. It answers what ``os.DirEntry`` does."""

    __slots__ = ("archive", "entries", "member", "path")

    def __init__(self, archive: Path, path: str = "", member: Member | None = None) -> None:
        self.archive, self.path, self.member = archive, path, member
        self.entries: dict[str, ZipEntry] = {}  # of a folder, by name

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2] or self.archive.name

    def __str__(self) -> str:
        return f"{self.archive}/{self.path}" if self.path else str(self.archive)

    def is_dir(self) -> bool:
        return self.member is None

    def is_file(self) -> bool:
        return self.member is not None

    def is_symlink(self) -> bool:
        return False

    def find(self, path: str) -> "ZipEntry":
        """What is at a path below this folder."""
        found = self
        for name in path.split("/"):
            found = found.entries[name]
        return found


def read_zip(archive: Path) -> tuple[ZipEntry, Counter[str]]:
    """An archive's tree, and how many entries were left out by kind: links, and paths that lead out of the archive.

    UserError: it is damaged or cut off, or has two files of one path.
    """
    try:
        with ZipFile(archive) as opened:
            listed = opened.infolist()
    except (BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{archive} is no whole .zip ({error}); fetch or pack it again") from error
    root, left_out = ZipEntry(archive), Counter[str]()
    for info in listed:
        names = info.filename.split("/")
        if ".." in names or names[0] == "" or names[0].endswith(":"):
            left_out["paths that lead out of the archive"] += 1
        elif stat.S_ISLNK(info.external_attr >> 16):
            left_out["links"] += 1
        else:
            _add(root, [name for name in names if name not in ("", ".")], info)
    return root, left_out


def _add(root: ZipEntry, names: list[str], info: ZipInfo) -> None:
    """Put a file or folder into the tree, with the folders above it."""
    folder = root
    for name in names if info.is_dir() else names[:-1]:
        path = f"{folder.path}/{name}".lstrip("/")
        folder = folder.entries.setdefault(name, ZipEntry(root.archive, path))
    if not names or (info.is_dir() and folder.is_dir()):
        return
    if folder.is_file() or names[-1] in folder.entries:
        raise UserError(f"{root.archive} holds {info.filename} twice; pack it again")
    encrypted = bool(info.flag_bits & 1)
    member = Member(info.header_offset, info.compress_size, info.file_size, info.CRC, info.compress_type, encrypted)
    folder.entries[names[-1]] = ZipEntry(root.archive, info.filename, member)
