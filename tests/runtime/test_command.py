"""What command lines do with errors: one line and a code for the user's, the traceback for ours."""

import signal
from collections.abc import Callable, Sequence
from errno import EACCES, EDQUOT, ENOSPC
from typing import NoReturn

import pytest

from runtime.command import INTERRUPTED, USER_ERROR, Stopped, run
from runtime.errors import UserError
from tests.command_factory import Outcome, call

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
    outcome = call(fails(Stopped(number)))
    assert outcome.code == code
    assert outcome.err == "stopped; the checkpoint is written, and the same command goes on from it\n"


def test_ctrl_c() -> None:
    assert call(fails(KeyboardInterrupt())) == Outcome(130, "working\n", "interrupted\n")


def test_help_keeps_its_own_code() -> None:
    assert call(fails(SystemExit(0))).code == 0
