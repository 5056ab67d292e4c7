"""One program at a time in a folder: two would draw or train the same twice, and end each other's files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from engine import distributed
from models.errors import UserError


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other programs out of a folder meanwhile, on rank 0 for all ranks; a killed one leaves no lock behind.

    Raises:
        UserError: one is at work there.
    """
    if not distributed.is_main():
        yield
        return
    path = folder / ".lock"
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout as error:
        raise UserError(f"another process is at work in {folder}; wait for it, or name another output_dir") from error
    path.unlink(missing_ok=True)
