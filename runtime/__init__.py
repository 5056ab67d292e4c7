"""What every program needs, whatever it does; nothing here knows about images or models."""

import sys
from pathlib import Path
from types import TracebackType


def _end_in_a_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C while a program is still importing, before ``runtime.command`` can answer it."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


_program = Path(sys.argv[0] if sys.argv else "").absolute()
if _program.is_relative_to(Path(__file__).parents[1]) or _program.name.startswith("checkerboard-"):
    sys.excepthook = _end_in_a_line
