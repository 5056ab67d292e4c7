"""What command lines do with errors: one line and a code for the user's, the traceback for ours."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from errno import EACCES, EDQUOT, EMFILE, ENFILE, ENOENT, ENOMEM, ENOSPC
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from torch._inductor.exc import InductorError

from runtime.command import INTERRUPTED, USER_ERROR, run
from runtime.errors import UserError
from runtime.stopping import Stopped
from tests.command_factory import ROOT, Outcome, call, start_python

pytestmark = pytest.mark.quick


def fails(error: BaseException) -> Callable[[Sequence[str]], None]:
    """A ``main`` that ends in an error."""

    def main(argv: Sequence[str]) -> NoReturn:
        print("working")
        raise error

    return main


def test_success_is_silent() -> None:
    assert call(lambda argv: None) == Outcome(0, "", "")


def test_main_gets_the_arguments_without_the_program() -> None:
    got: list[str] = []
    call(got.extend, "--epochs", "3", "")
    assert got == ["--epochs", "3", ""]


def test_codes() -> None:
    assert (USER_ERROR, INTERRUPTED) == (2, 130)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("epochs is 0; it must be at least 1"), "epochs is 0; it must be at least 1"),
        (FileNotFoundError(2, "No such file or directory", "a.yaml"), "a.yaml: No such file or directory"),
        (PermissionError(EACCES, "Permission denied", "out/a.png"), "out/a.png: Permission denied"),
        (
            OSError(ENOSPC, "No space left on device", "out/a.png"),
            "out/a.png: No space left on device; free some space and run the same command again",
        ),
        (
            OSError(ENOSPC, "No space left on device"),  # as writing to an open file reports it
            "output: No space left on device; free some space and run the same command again",
        ),
        (
            OSError(EDQUOT, "Disk quota exceeded", "out/a.png"),
            "out/a.png: Disk quota exceeded; free some space and run the same command again",
        ),
    ],
    ids=["user", "missing", "forbidden", "full disk", "full disk, open file", "quota"],
)
def test_what_the_user_can_mend_is_one_line_and_code_2(error: BaseException, line: str) -> None:
    outcome = call(fails(error))
    assert outcome.error() == line
    assert outcome.out == "working\n"


def too_large(library: object) -> Exception:
    """What a library says if there is no memory."""
    try:
        library.ones(2**60 // 4, dtype=library.float32)
    except (MemoryError, RuntimeError) as error:
        return error
    raise AssertionError


def too_deep(depth: int = 0) -> RecursionError:
    try:
        return too_deep(depth + 1)
    except RecursionError as error:
        return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(EMFILE, "Too many open files", "a.png"), ["ulimit -n", "num_workers"]),
        (OSError(ENFILE, "Too many open files in system"), ["ulimit -n"]),
        (RuntimeError("received 0 items of ancdata"), ["ulimit -n"]),
        (MemoryError(), ["batch_size"]),
        (OSError(ENOMEM, "Cannot allocate memory"), ["batch_size"]),
        (too_large(np), ["EiB", "batch_size"]),
        (too_large(torch), ["batch_size"]),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore"),
            ["CUDA out of memory)", "batch_size"],
        ),
        (too_deep(), ["nested too deep"]),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), ["signal: Killed)", "num_workers"]),
        (RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)"), ["/dev/shm"]),
        (ModuleNotFoundError("No module named 'timm'", name="timm"), ["timm", "pip install -r requirements.txt"]),
        (ImportError("libGL.so.1: cannot open shared object file"), ["libGL", "pip install -r requirements.txt"]),
        (FileNotFoundError(ENOENT, "No usable temporary directory found in ['/tmp']"), ["['/tmp']", "TMPDIR"]),
        (RuntimeError("Could not determine home directory."), ["home directory;", "HOME"]),
        (RuntimeError("can't start new thread"), ["ulimit -u"]),
    ],
)
def test_what_the_surroundings_lack_is_one_line_that_says_the_mend(error: Exception, words: list[str]) -> None:
    line = call(fails(error)).error()
    assert all(word in line for word in words), line


def test_a_compiler_that_is_missing() -> None:
    """As torch raises it, from PATH without one."""
    cause = RuntimeError("No working C++ compiler found: (None, 'g++')")
    line = call(fails(InductorError(cause, sys._getframe()))).error()
    assert line.startswith("torch cannot compile here (")
    for words in ("No working C++ compiler found", "leave out --compile", "C++ compiler"):
        assert words in line


def test_a_rank_that_lost_another_points_to_its_message() -> None:
    """The mend is there, so the code is 1."""
    place = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] "
    error = RuntimeError(f"{place}Connection closed by peer [127.0.0.1]:55523. This is typically caused by a crash.")
    outcome = call(fails(error))
    assert outcome.code == 1
    assert outcome.err.startswith("error: another rank ended or cannot be reached (Connection closed by peer")
    assert outcome.err.count("\n") == 1
    assert call(fails(torch.distributed.DistBackendError("NCCL error in: a.cpp:7"))).code == 1


@pytest.mark.parametrize(
    "error",
    [
        ImportError("cannot import name 'crops' from 'data'", name="data.images"),
        ModuleNotFoundError("No module named 'models.lost'", name="models.lost"),
    ],
)
def test_a_module_of_ours_that_is_missing_is_a_bug(error: Exception) -> None:
    with pytest.raises(type(error)):
        run(fails(error))


@pytest.mark.parametrize(
    "error",
    [RuntimeError("shapes differ"), AssertionError(), OSError("raised by hand"), KeyError("model"), ValueError("odd")],
)
def test_a_bug_of_ours_keeps_its_traceback(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised:
        run(fails(error))
    assert raised.value is error


def test_a_user_error_of_a_subclass_counts_too() -> None:
    class UnreadableError(UserError):
        pass

    assert call(fails(UnreadableError("a.jpg is damaged"))).error() == "a.jpg is damaged"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_saved_itself_says_so(number: int, code: int) -> None:
    outcome = call(fails(Stopped(number, saved=True)))
    assert outcome.code == code
    assert outcome.err == "stopped; the checkpoint is written, and the same command goes on from it\n"


def test_ctrl_c() -> None:
    assert call(fails(KeyboardInterrupt())) == Outcome(
        130, "working\n", "interrupted; the same command goes on from what is done, or starts again\n"
    )


def test_a_signal_that_let_nothing_be_saved_says_so() -> None:
    outcome = call(fails(Stopped(signal.SIGTERM)))
    assert outcome.code == 143
    assert outcome.err == "stopped without saving; the same command goes on from the last checkpoint\n"


def test_help_keeps_its_own_code() -> None:
    assert call(fails(SystemExit(0))).code == 0


# Terminals, pipes and notebooks


PROGRAM = "import sys\nfrom runtime.command import run\nrun(lambda argv: [{}])"


@pytest.mark.processes
@pytest.mark.parametrize("encoding", ["ascii", "latin-1:strict", "utf-8:strict"])
def test_any_text_reaches_any_terminal(encoding: str) -> None:
    """Of a Chinese name, and of one that is not UTF-8."""
    texts = r"print('\u732b-caf\udce9'), print('\u732b', file=sys.stderr)"
    outcome = start_python("-c", PROGRAM.format(texts), PYTHONIOENCODING=encoding)
    assert (outcome.code, "\\udce9" in outcome.out, "Traceback" in outcome.err) == (0, True, False)


@pytest.mark.processes
@pytest.mark.parametrize("streams", ["", "sys.stdout = sys.stderr = None; "])
def test_a_program_without_streams(streams: str) -> None:
    """As under pythonw, or with both closed."""
    written = "print(argv, file=sys.stderr), sys.stdout.flush()"
    assert start_python("-c", "import sys; " + streams + PROGRAM.format(written)).code == 0


@pytest.mark.processes
def test_a_working_directory_that_is_gone_is_said(tmp_path: Path) -> None:
    program = f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); os.mkdir('x'); os.chdir('x'); os.rmdir('../x')\n"
    outcome = start_python("-c", program + PROGRAM.format("len(argv)"), folder=tmp_path)
    assert (outcome.code, outcome.err) == (2, "error: the working directory does not exist any more; cd to another\n")


@pytest.mark.processes
@pytest.mark.parametrize("amount", [1, 100_000])
def test_a_reader_that_has_left_is_no_error(amount: int) -> None:
    """As in ``main.py ... | head``; the rest may be written at the end of the program alone."""
    program = PROGRAM.format(f"print('line\\n' * {amount})")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.processes
@pytest.mark.parametrize("work", ["print('a')", "print('a', flush=True)"])
def test_an_output_that_is_full_is_one_line(work: str) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", PROGRAM.format(work)]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    line = "error: output: No space left on device; free some space and run the same command again\n"
    assert (done.returncode, done.stderr) == (2, line)


@pytest.mark.processes
def test_the_backend_of_a_notebook_does_not_matter() -> None:
    program = PROGRAM.format("print(__import__('matplotlib.pyplot').get_backend())")
    outcome = start_python("-c", program, MPLBACKEND="module://matplotlib_inline.backend_inline")
    assert (outcome.code, outcome.out.strip().lower()) == (0, "agg")


@pytest.mark.processes
@pytest.mark.parametrize(
    "program", ["main", "main_sample", "evaluator", "train_ae_codebook.main", "benchmarks.sampling"]
)
def test_threads_that_wait_sleep_soon(program: str) -> None:
    """Which torch reads when it is imported; what the user has set stays."""
    code = f"import os, sys, {program}; print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    assert start_python("-c", code).out.split() == ["1000", "False"]
    assert start_python("-c", code, GOMP_SPINCOUNT="7").out.split() == ["7", "False"]
