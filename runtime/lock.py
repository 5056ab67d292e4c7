"""One program at a time where two would draw, encode or train the same twice, and end each other's files."""

import errno
import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from runtime import distributed
from runtime.errors import UserError

_NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def lock_file(path: Path, busy: str) -> Iterator[None]:
    """Hold a lock on rank 0 for all ranks, or raise a UserError of ``busy`` that names the owner where it is known.

    A killed program leaves no lock behind. Where a file system has no locks, the file itself is one, and names its
    owner: one of this machine that has ended does not count, one of another machine is for the user to judge.
    """
    if not distributed.is_main():
        yield
        return
    in_kernel = _has_locks(path.parent)
    lock = FileLock(path, on_acquired=_sign) if in_kernel else SoftFileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(busy + _owner(path, in_kernel)) from error
    try:
        yield
    finally:
        if in_kernel:
            path.unlink(missing_ok=True)  # while it is held: whoever comes next locks a file of its own
        lock.release()


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other programs out of a folder, which is made if it is missing, as ``lock_file`` does."""
    if distributed.is_main():
        if folder.is_file():
            raise UserError(f"{folder} is a file; name a folder as --output_dir")
        folder.mkdir(parents=True, exist_ok=True)
    busy = f"another process is at work in {folder}; wait for it, or name another output_dir"
    with lock_file(folder / ".lock", busy):
        yield


def _has_locks(folder: Path) -> bool:
    """Whether the file system of a folder has locks, which those of some clusters lack."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _NO_FLOCK  # of any other error, the lock itself says it better
    return True


def _sign(descriptor: int) -> None:
    """Write this process into its lock, as SoftFileLock does."""
    os.truncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n{socket.gethostname()}\n".encode())


def _owner(path: Path, in_kernel: bool) -> str:
    """Who holds a lock that is taken, in brackets, and what to do if that is over."""
    try:
        pid, host, *_ = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except (OSError, ValueError):
        return "" if in_kernel else f" (if none is, remove {path})"
    host = host.partition("?")[0]  # SoftFileLock adds the number of a container
    if host == socket.gethostname():
        return f" (process {pid} of this machine)"
    return f" (process {pid} on {host}; if that has ended, remove {path})"
