"""What every command line does with errors: one line on stderr and a code, never a traceback for a user's mistake."""

import errno
import sys
from collections.abc import Callable, Sequence

from runtime.errors import UserError

USER_ERROR = 2
INTERRUPTED = 130


class Stopped(Exception):  # noqa: N818 (not an error)
    """A signal asked a long run to stop, and it has saved itself."""

    def __init__(self, signal_number: int) -> None:
        super().__init__()
        self.signal_number = signal_number


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Run a command line's ``main`` and exit as the shell expects: 0, 2 for a user's error, 130 for Ctrl-C."""
    try:
        main(sys.argv[1:])
        return
    except UserError as error:
        # A loader's worker passes its error on with its traceback as text.
        message, code = f"error: {str(error).rsplit(f'{UserError.__name__}: ', 1)[-1].strip()}", USER_ERROR
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise  # not from the file system: a bug of ours keeps its traceback
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "; free some space and run the same command again" if full else ""
        message, code = f"error: {error.filename or 'output'}: {error.strerror}{hint}", USER_ERROR
    except Stopped as stop:
        message = "stopped; the checkpoint is written, and the same command goes on from it"
        code = 128 + stop.signal_number
    except KeyboardInterrupt:
        message, code = "interrupted", INTERRUPTED
    print(message, file=sys.stderr)
    sys.exit(code)
