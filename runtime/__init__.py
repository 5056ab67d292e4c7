"""What every program needs, whatever it does; nothing here knows about images or models."""

import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType

PROJECT = Path(__file__).resolve().parents[1]


def _end_in_a_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C while a program is still importing, before ``runtime.command`` can answer it."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def _is_ours(program: str) -> bool:
    """Whether a file lies in the project, or is a console script of it."""
    with suppress(OSError):  # of a working directory that is gone, which runtime.command speaks of
        return Path(program).absolute().is_relative_to(PROJECT) or Path(program).name.startswith("checkerboard-")
    return False


if _is_ours(sys.argv[0] if sys.argv else ""):
    sys.excepthook = _end_in_a_line
