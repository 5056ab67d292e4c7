"""A .zip as a tree of files and folders, which ``data.files`` lists as it lists those on the disk."""

import re
import stat
import zlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile, ZipFile, ZipInfo

from runtime.errors import UserError

UTF_8 = 1 << 11  # the flag of a name in UTF-8
UNICODE_PATH, UNICODE_PATH_HEADER = 0x7075, 5  # a field beside the name, which repeats it in UTF-8 after so many bytes


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


class Archive(NamedTuple):
    """The tree of an archive, how many entries were left out by kind, and what of the names a user may not expect."""

    root: ZipEntry
    left_out: Counter[str]
    remarks: list[str]


def read_zip(archive: Path) -> Archive:
    """An archive's tree. Left out are links, and paths that lead out of the archive.

    UserError: it is damaged or cut off, or has two files of one path.
    """
    try:
        with ZipFile(archive) as opened:
            listed = opened.infolist()
    except (BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{archive} is no whole .zip ({error}); fetch or pack it again") from error
    root, left_out, guessed = ZipEntry(archive), Counter[str](), []
    for info in listed:
        path, known = _path_of(info)
        guessed += [] if known else [path]
        names = path.split("/")
        if ".." in names or names[0] == "" or re.fullmatch("[A-Za-z]:", names[0]):
            left_out["paths that lead out of the archive"] += 1
        elif stat.S_ISLNK(info.external_attr >> 16):
            left_out["links"] += 1
        else:
            _add(root, [name for name in names if name not in ("", ".")], info, is_folder=names[-1] == "")
    told = f"{archive}: the encoding of names such as {guessed[0]} is not said, and taken for cp437" if guessed else ""
    return Archive(root, left_out, [told] if told else [])


def _path_of(info: ZipInfo) -> tuple[str, bool]:
    """A member's path, with / between its names, and whether its encoding is known, and not cp437 for want of another.

    Info-ZIP writes UTF-8 beside the name. macOS writes it as the name, but does not say so.
    """
    path, known = info.orig_filename, True
    if not info.flag_bits & UTF_8:
        name = path.encode("cp437")  # as which it was read
        try:
            path = (_unicode_path(info.extra, name) or name).decode("utf-8")
        except UnicodeDecodeError:
            known = False
    return path.partition("\0")[0].replace("\\", "/"), known


def _unicode_path(extra: bytes, name: bytes) -> bytes:
    """The path that a field beside the name repeats, if it is of this name; else nothing."""
    while len(extra) >= 4:
        kind, size = (int.from_bytes(extra[i : i + 2], "little") for i in (0, 2))
        content, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == UNICODE_PATH and int.from_bytes(content[1:UNICODE_PATH_HEADER], "little") == zlib.crc32(name):
            return content[UNICODE_PATH_HEADER:]
    return b""


def _add(root: ZipEntry, names: list[str], info: ZipInfo, is_folder: bool) -> None:
    """Put a file or folder into the tree, with the folders above it."""
    folder = root
    for name in names if is_folder else names[:-1]:
        path = f"{folder.path}/{name}".lstrip("/")
        folder = folder.entries.setdefault(name, ZipEntry(root.archive, path))
    if not names or (is_folder and folder.is_dir()):
        return
    path = f"{folder.path}/{names[-1]}".lstrip("/")
    if folder.is_file() or names[-1] in folder.entries:
        raise UserError(f"{root.archive} holds {path} twice; pack it again")
    encrypted = bool(info.flag_bits & 1)
    member = Member(info.header_offset, info.compress_size, info.file_size, info.CRC, info.compress_type, encrypted)
    folder.entries[names[-1]] = ZipEntry(root.archive, path, member)
