"""One program at a time in a folder: two would draw or train the same twice, and end each other's files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from engine import distributed
from models.errors import UserError


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other programs out of a folder, on rank 0 for all ranks; a killed one leaves no lock behind.

    Args:
        folder: made if it is missing.

    Raises:
        UserError: one is at work there, or it is a file.
    """
    if not distributed.is_main():
        yield
        return
    if folder.is_file():
        raise UserError(f"{folder} is a file; name a folder as --output_dir")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"another process is at work in {folder}; wait for it, or name another output_dir") from error
    try:
        yield
    finally:
        lock.release()
        path.unlink(missing_ok=True)
