"""Locks: one program at a time, none left by a killed one, also where the file system has none; who holds one."""

import errno
import fcntl
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from runtime.errors import UserError
from runtime.lock import lock_file, lock_folder

pytestmark = pytest.mark.quick


@pytest.fixture(
    params=[None, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP], ids=["locks", "ENOLCK", "ENOSYS", "ENOTSUP"]
)
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """One that has locks, and those that say that they have not."""

    def flock(file: object, operation: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    if request.param is not None:
        monkeypatch.setattr(fcntl, "flock", flock)
    return request.param


@contextmanager
def another_process(*contexts: AbstractContextManager[None]) -> Iterator[int]:
    """A process that waits in contexts, and is killed there; its id."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with ExitStack() as stack:
                for context in contexts:
                    stack.enter_context(context)
                os.write(writer, b"1")
                signal.pause()
        finally:
            os._exit(1)
    assert os.read(reader, 1) == b"1"
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
        os.close(writer)


def test_a_lock_is_gone_with_its_work(file_system: int | None, tmp_path: Path) -> None:
    for _ in range(2):
        with lock_file(tmp_path / ".lock", "busy"):
            assert (tmp_path / ".lock").exists()
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError), lock_file(tmp_path / ".lock", "busy"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_the_owner_is_named_until_it_ends(file_system: int | None, tmp_path: Path) -> None:
    with another_process(lock_folder(tmp_path / "run")) as pid:
        for _ in range(2):
            with pytest.raises(UserError) as busy, lock_folder(tmp_path / "run"):
                pass
            assert str(busy.value).startswith(f"another process is at work in {tmp_path / 'run'}; wait for it, or")
            assert f"process {pid} of this machine" in str(busy.value)
    with lock_folder(tmp_path / "run"):  # a killed one does not count
        pass


def test_the_owner_on_another_machine_is_for_the_user_to_judge(file_system: int | None, tmp_path: Path) -> None:
    """Unless the kernel knows better."""
    lock = tmp_path / ".lock"
    lock.write_text("4242\nnode17\n123\n")
    if file_system is None:
        with lock_folder(tmp_path):
            pass
        return
    with pytest.raises(UserError) as busy, lock_folder(tmp_path):
        pass
    for words in ("process 4242 on node17", f"remove {lock}"):
        assert words in str(busy.value)
    assert "\n" not in str(busy.value)
    assert lock.read_text() == "4242\nnode17\n123\n"


def test_a_lock_that_names_no_owner(file_system: int | None, tmp_path: Path) -> None:
    """As earlier versions left them."""
    lock = tmp_path / ".lock"
    lock.touch()
    if file_system is None:
        with lock_folder(tmp_path):
            pass
        return
    with pytest.raises(UserError, match=f"if none is, remove {lock}"), lock_folder(tmp_path):
        pass


def test_a_process_of_this_machine_that_ended_does_not_count(file_system: int | None, tmp_path: Path) -> None:
    with another_process() as pid:
        pass
    (tmp_path / ".lock").write_text(f"{pid}\n{socket.gethostname()}\n")
    if file_system is not None and "?" in _own_name(tmp_path):
        pytest.skip("a container: another's process may have this number")
    with lock_folder(tmp_path):
        pass


def _own_name(folder: Path) -> str:
    """This machine's name as locks without the kernel note it."""
    with lock_file(folder / "other", "busy"):
        return (folder / "other").read_text()
