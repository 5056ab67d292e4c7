"""What every command line does with errors: one line on stderr and a code, never a traceback for a user's mistake."""

import errno
import io
import multiprocessing
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from runtime.errors import UserError
from runtime.files import PROJECT
from runtime.stopping import Stopped

# How many times a thread that waits looks for work before it sleeps. libgomp's own 300,000 keep it spinning, on a busy
# machine in the place of the thread that it waits for (docs/speed.md). Read when torch is imported, which comes later.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

FAILED = 1
USER_ERROR = 2
INTERRUPTED = 130
BROKEN_PIPE = 141
_SHORT = 200  # characters of a reason
# Errors of the surroundings: words of the class, the number's name or the text; what to say of them; the exit code.
_SURROUNDINGS = (
    (
        r"^(torch\._dynamo|torch\._inductor|triton)\.",
        "torch cannot compile here ({reason}); leave out --compile and --attention flex, or install a C++ compiler",
        USER_ERROR,
    ),
    (
        r"EMFILE|ENFILE|Too many open files|items of ancdata",
        "too many files are open at once; raise the limit by ulimit -n, or lower num_workers",
        USER_ERROR,
    ),
    (
        r"Bus error|</torch_|out of shared memory|/dev/shm",
        "/dev/shm, where the processes that load images put them, is full or too small ({reason}); make it larger, in "
        "docker by --shm-size 8g, or add --num_workers 0",
        USER_ERROR,
    ),
    (
        r"DataLoader worker",
        "a process that loads images ended ({reason}), perhaps for want of memory; lower num_workers or batch_size",
        USER_ERROR,
    ),
    (
        r"MemoryError|OutOfMemory|ENOMEM|out of memory|can't allocate memory|annot allocate memory|ALLOC_FAILED",
        "the memory does not suffice ({reason}); lower batch_size or num_workers",
        USER_ERROR,
    ),
    (
        r"EAGAIN|can't start new thread",
        "no more processes can be started ({reason}); lower num_workers, or raise the limit by ulimit -u",
        USER_ERROR,
    ),
    (r"RecursionError", "a file or a setting is nested too deep to be read; make it flatter", USER_ERROR),
    (
        r"torch\.distributed\.Dist|gloo|NCCL",
        "another rank ended or cannot be reached ({reason}); if it has ended, its own message says why",
        FAILED,
    ),
    (r"No usable temporary directory", "{reason}; free some space, or set TMPDIR to a folder of yours", USER_ERROR),
    (r"home directory", "{reason}; set HOME to a folder of yours", USER_ERROR),
)


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Run a command line's ``main`` and exit as the shell expects: 0, 2 for a user's error, 130 for Ctrl-C."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started the program; progress bars need one
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 (open to the end)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what a terminal cannot show is no reason to stop
    os.environ["MPLBACKEND"] = "agg"  # a notebook's, which its commands inherit, may be missing here
    warnings.formatwarning = _in_a_line
    message, code = "", 0
    try:
        _check_surroundings()
        main(sys.argv[1:])
        sys.stdout.flush()  # a full disk or a reader that has left is found out here at the latest
    except SystemExit as end:  # of --help
        code = end.code or 0
    except (Exception, Stopped, KeyboardInterrupt) as error:
        explained = explain(error)
        if explained is None and not os.environ.get("RANK"):
            raise
        message, code = explained or (traceback.format_exc(), FAILED)
    _leave(message, code)


def _in_a_line(message: Warning | str, category: type[Warning], filename: str, *where: Any) -> str:
    """A warning as users see it; those of libraries say where they come from."""
    source = "" if Path(filename).is_relative_to(PROJECT) else f" ({category.__name__}, {filename})"
    return f"warning: {message}{source}\n"


def _check_surroundings() -> None:
    """Refuse Windows itself, and a working directory that is gone, of which libraries have errors that mislead."""
    if sys.platform == "win32":
        raise UserError("this runs on Linux and macOS; on Windows, run it within WSL 2")
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise UserError("the working directory does not exist any more; cd to another") from error


def explain(error: BaseException) -> tuple[str, int] | None:
    """The line for an error and the exit code; None for one that the user cannot mend, a bug of ours."""
    kind, text = type(error), str(error)
    if isinstance(error, Stopped):
        saved = "stopped; the checkpoint is written, and the same command goes on from it"
        lost = "stopped without saving; the same command goes on from the last checkpoint"
        return saved if error.saved else lost, 128 + error.signal_number
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the same command goes on from what is done, or starts again", INTERRUPTED
    if isinstance(error, UserError):
        return f"error: {text}", USER_ERROR
    if isinstance(error, BrokenPipeError):
        return "", BROKEN_PIPE
    if isinstance(error, ImportError) and "failed to map segment" in text:
        return (
            f"error: the memory does not suffice to load a library ({text}); raise the limit of ulimit -v",
            USER_ERROR,
        )
    if isinstance(error, ImportError):
        return None if _is_ours(error.name) else (f"error: {text}; run pip install -r requirements.txt", USER_ERROR)
    number = error.errno if isinstance(error, OSError) else None
    words = f"{kind.__module__}.{kind.__name__} {errno.errorcode.get(number, '')} {text}"
    if isinstance(error, OSError | RuntimeError | MemoryError) or kind.__module__.startswith(("torch.", "triton.")):
        for pattern, said, code in _SURROUNDINGS:
            if re.search(pattern, words):
                return f"error: {said.format(reason=short_reason(error))}", code
    if number is not None or getattr(error, "filename", None) is not None:  # else not from the file system
        full = number in (errno.ENOSPC, errno.EDQUOT)
        place = error.filename or ("output" if full else "")
        hint = "; free some space and run the same command again" if full else ""
        if number in (errno.EIO, errno.ESTALE):
            hint = "; its disk or network failed; run the same command again"
        return f"error: {place}{': ' if place else ''}{error.strerror}{hint}", USER_ERROR
    return None


def short_reason(error: BaseException) -> str:
    """The first sentence of an error's text, without the place in brackets before it, or its class if it has none."""
    text = re.sub(r"^\[[^]]*\]\s*", "", str(error).strip()) or type(error).__name__
    return re.split(r"\n|\.(?=\s|$)", text, maxsplit=1)[0][:_SHORT]


def _is_ours(module: str | None) -> bool:
    """Whether a module that cannot be imported is one of the project's."""
    top = (module or "").partition(".")[0]
    return top != "" and ((PROJECT / top).is_dir() or (PROJECT / f"{top}.py").is_file())


def _leave(message: str, code: int) -> None:
    """End the program by an exit code, after a line on stderr."""
    try:
        if message:
            print(message, file=sys.stderr)
        sys.stdout.flush()
    except OSError:  # known by now; Python would report it once more at its end
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if os.environ.get("RANK") and code:
        # Python's own end would wait for threads that wait for other ranks, and these would wait for us, as long as a
        # process of ours keeps the connections that it inherited.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for process in multiprocessing.active_children():
            process.kill()
        os._exit(code)
    if code:
        sys.exit(code)
