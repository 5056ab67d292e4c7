"""Hashes, and files that appear whole or not at all."""

import errno
import json
import os
import shutil
import socket
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from hashlib import file_digest
from pathlib import Path
from typing import Any
from uuid import uuid4

from tqdm import tqdm

from runtime import PROJECT
from runtime.errors import UserError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write to; what is written there becomes ``path`` at the end, on the disk, or nothing does.

    A kill or a full disk, a UserError, leaves the file that was there before. The suffix, which names the format,
    stays. What killed processes of this machine have left is removed.
    """
    path = path.resolve()  # what a link names is replaced, not the link
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no file that can be replaced; name another")
    start, end = f".{path.stem}.{socket.gethostname()}-", f".tmp{path.suffix}"
    for left in path.parent.glob(f"{start}*{end}"):
        if not _is_running(left.name.removeprefix(start).removesuffix(end)):
            left.unlink(missing_ok=True)
    temporary = path.with_name(f"{start}{os.getpid()}{end}")
    try:
        yield temporary
        flush(temporary)
        temporary.replace(path)
        flush_folder(path.parent)
    except (OSError, RuntimeError) as error:
        full = ("PytorchStreamWriter", "inline_container")  # what torch.save says where a file takes no more
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in full):
            raise
        named = {error.filename, error.filename2} - {None} if isinstance(error, OSError) else None
        if named and not named & {str(temporary), str(path)}:
            raise  # of another file, which was read meanwhile
        mend = "name another file" if getattr(error, "errno", None) == errno.ENAMETOOLONG else "free some space"
        raise UserError(
            f"could not write {path} ({getattr(error, 'strerror', None) or error}); what was there before is "
            f"untouched: {mend} and run the command again"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to, which becomes ``folder`` at the end; UserError at once if something is there.

    It is of this call alone, so that nothing of an earlier one gets into it, and after an error it is removed.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError(f"{folder} is a file or a broken link; name a new folder to export to")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name a new folder to export to")
    folder = folder.resolve()  # what a link names is replaced, not the link
    mounted = os.path.ismount(folder)  # which cannot be replaced
    parent = folder if mounted else folder.parent
    parent.mkdir(parents=True, exist_ok=True)
    partial = parent / f"{folder.name}.{uuid4().hex[:8]}.partial"
    partial.mkdir()
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if mounted:
        for entry in partial.iterdir():
            entry.rename(folder / entry.name)
        partial.rmdir()
        return
    if folder.exists():
        folder.rmdir()  # empty, as checked above
    partial.rename(folder)


def did_you_mean(path: Path) -> str:
    """Names what is there and differs from a missing path in one misspelt name; nothing if there is none."""
    parent = next((parent for parent in path.parents if parent.is_dir()), None)
    if parent is None or path.exists():
        return ""
    missing, *rest = path.relative_to(parent).parts
    names = [entry.name for entry in parent.iterdir()] if os.access(parent, os.R_OK | os.X_OK) else []
    near = [parent.joinpath(name, *rest) for name in get_close_matches(missing, names, cutoff=0.8)]
    return next((f"; did you mean {found}?" for found in near if found.exists()), "")


def prepare_output(path: str | Path | None) -> None:
    """Make the folder of a file that is written after the work; UserError if it could not be. None is no file."""
    if path is None:
        return
    if Path(path).is_dir():
        raise UserError(f"{path} is a folder; name a file")
    try:
        Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); name another file") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The table in a JSON file; None if it is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, FileNotFoundError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def hash_file(path: Path) -> str:
    """SHA-256 in hexadecimal digits."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def located(path: str | Path) -> Path:
    """What a user's path means: ``~`` is the home folder, and what is not here may be in the project."""
    path = Path(os.path.expanduser(path))  # noqa: PTH111 (that of Path is an error where there is no home)
    return PROJECT / path if not path.exists() and (PROJECT / path).exists() else path


def move_aside(path: Path) -> None:
    """Give an earlier file of this name, if there is one, another name, and say which."""
    if path.exists():
        aside = free_name(path)
        path.rename(aside)
        tqdm.write(f"the earlier {path} is now {aside.name}")


def free_name(path: Path) -> Path:
    """``NAME.1.suffix``, or the next number that is free; ``NAME.1`` of a folder, whose name may hold a dot."""
    stem, suffix = (path.name, "") if path.is_dir() else (path.stem, path.suffix)
    return next(p for i in range(1, 10**6) if not (p := path.with_name(f"{stem}.{i}{suffix}")).exists())


def same_settings(found: Mapping[str, Any], wanted: Mapping[str, Any], unimportant: Collection[str] = ()) -> bool:
    """Whether two records of settings say the same, as JSON has it, but for what is unimportant."""
    kept = [{name: v for name, v in settings.items() if name not in unimportant} for settings in (found, wanted)]
    return json.loads(json.dumps(kept[0])) == json.loads(json.dumps(kept[1]))


def composed(name: str) -> str:
    """A name with each accent in one character with its letter (NFC): macOS stores them apart."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def as_text(name: str) -> str:
    """A name that can be shown: what is no text in it, as a file's name may hold, becomes ``?``."""
    return name.encode("utf-8", "replace").decode()


def flush_folder(path: Path) -> None:
    """Have the system write a folder's list of names to the disk, where it can: shared folders refuse."""
    try:
        flush(path)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise


def flush(path: Path) -> None:
    """Have the system write a file to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, OSError) as error:
        return isinstance(error, PermissionError)  # it is another user's
    return True
