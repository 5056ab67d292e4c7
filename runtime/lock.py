"""One program at a time where two would draw, encode or train the same twice, and end each other's files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from runtime import distributed
from runtime.errors import UserError


@contextmanager
def lock_file(path: Path, busy: str) -> Iterator[None]:
    """Hold a lock on rank 0 for all ranks, or raise a UserError of ``busy``; a killed program leaves none behind."""
    if not distributed.is_main():
        yield
        return
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(busy) from error
    try:
        yield
    finally:
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
