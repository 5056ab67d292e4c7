"""Files that appear whole or not at all: killed writers, full disks, several writers at once; names that are free."""

import errno
import os
import signal
import socket
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from runtime.errors import UserError
from runtime.files import free_name, hash_file, move_aside, whole, write_json, write_text
from tests.command_factory import start_python
from tests.limits import largest_file

pytestmark = pytest.mark.quick
OLD, NEW = "what was there before\n", "new\n" * 1000


def fork(action: Callable[[], object]) -> int:
    """Run in a process of its own; its id."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_writing(path: Path) -> NoReturn:
    """Half of the file is on the disk when the process is killed."""
    with whole(path) as temporary, temporary.open("w") as file:
        file.write(NEW[: len(NEW) // 2])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def others(path: Path) -> list[str]:
    """Names of what lies beside a file."""
    return sorted(other.name for other in path.parent.iterdir() if other != path)


# Whole


@pytest.mark.parametrize("before", [None, OLD])
def test_a_file_appears_at_the_end(tmp_path: Path, before: str | None) -> None:
    path = tmp_path / "state.yaml"
    if before is not None:
        path.write_text(before)
    with whole(path) as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".yaml")  # the suffix names the format
        temporary.write_text(NEW)
        assert (path.read_text() if path.exists() else None) == before
    assert path.read_text() == NEW
    assert others(path) == []


def test_text_and_json(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", NEW)
    write_json(tmp_path / "b.json", {"a": [1, None], "b": "c"})
    assert (tmp_path / "a.txt").read_text() == NEW
    assert (tmp_path / "b.json").read_text() == '{\n "a": [\n  1,\n  null\n ],\n "b": "c"\n}\n'


@pytest.mark.processes
def test_texts_are_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from runtime.files import read_json, write_text; import sys\n"
        'path = Path(sys.argv[1]); write_text(path, \'{"name": "\\u732b"}\')\n'
        "assert read_json(path) == {'name': '\\u732b'}"
    )
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert start_python("-c", code, str(tmp_path / "a.json"), **locale).code == 0
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{"name": "\u732b"}'


@pytest.mark.parametrize("error", [KeyError("a bug"), KeyboardInterrupt()])
def test_an_error_on_the_way_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "state.pth"
    path.write_text(OLD)
    with pytest.raises(type(error)), whole(path) as temporary:
        temporary.write_text(NEW)
        raise error
    assert path.read_text() == OLD
    assert others(path) == []


@pytest.mark.processes
def test_a_kill_in_the_middle_leaves_what_was_there_and_the_next_writer_tidies_up(tmp_path: Path) -> None:
    path = tmp_path / "state.pth"
    path.write_text(OLD)
    assert exit_code(fork(lambda: die_writing(path))) == -signal.SIGKILL
    assert path.read_text() == OLD
    assert len(others(path)) == 1
    write_text(tmp_path / "other.pth", NEW)  # of another file it is none of its business
    assert len(others(path)) == 2
    write_text(path, NEW)
    assert path.read_text() == NEW
    assert others(path) == ["other.pth"]


@pytest.mark.processes
def test_what_a_running_process_or_another_machine_writes_is_left_alone(tmp_path: Path) -> None:
    path, parent = tmp_path / "state.pth", os.getpid()
    theirs = tmp_path / f".state.another-machine-{2**22 + 1}.tmp.pth"
    theirs.write_text("half")
    with whole(path) as temporary:
        temporary.write_text(NEW)
        assert exit_code(fork(lambda: write_text(path, OLD))) == 0  # a second writer, meanwhile
        assert str(parent) in temporary.name
        assert temporary.read_text() == NEW
        assert path.read_text() == OLD
    assert path.read_text() == NEW  # the last one to end wins
    assert others(path) == [theirs.name]


@pytest.mark.processes
def test_several_processes_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    path, texts = tmp_path / "state.txt", [letter * 200_000 for letter in "abcd"]
    start, go = os.pipe()

    def write_often(text: str) -> None:
        os.close(go)
        os.read(start, 1)  # all begin together, when the pipe is closed
        for _ in range(20):
            write_text(path, text)
            assert path.read_text() in texts

    pids = [fork(partial(write_often, text)) for text in texts]
    os.close(go)
    assert [exit_code(pid) for pid in pids] == [0] * 4
    os.close(start)
    assert path.read_text() in texts
    assert others(path) == []


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF])
def test_a_shared_folder_that_cannot_be_flushed_is_written_to(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As VirtualBox's and old kernels' network folders answer; files can be."""
    flush = os.fsync

    def fail(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    write_text(tmp_path / "x.txt", NEW)
    assert (tmp_path / "x.txt").read_text() == NEW


def test_a_name_that_is_too_long_asks_for_another(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\(File name too long\).*: name another file and run the command again"):
        write_text(tmp_path / ("x" * 250), NEW)


def write_much(temporary: Path) -> None:
    temporary.write_text(NEW * 100)


def save_much(temporary: Path) -> None:
    torch.save({"weights": torch.zeros(100_000)}, temporary)  # which makes an error of its own kind of a full disk


@pytest.mark.parametrize("write", [write_much, save_much])
def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(write: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "state.pth"
    path.write_text(OLD)
    message = rf"could not write {path} \(.+\); what was there before is untouched: free some space"
    with largest_file(10_000), pytest.raises(UserError, match=message), whole(path) as temporary:
        write(temporary)
    assert path.read_text() == OLD
    assert others(path) == []
    with whole(path) as temporary:
        write(temporary)
    assert path.stat().st_size > 10_000


def test_a_name_tells_the_machine_and_the_process(tmp_path: Path) -> None:
    """So that those on other machines, which cannot see whether it is running, leave it alone."""
    with whole(tmp_path / "a.npz") as temporary:
        temporary.touch()
    assert temporary.name == f".a.{socket.gethostname()}-{os.getpid()}.tmp.npz"


# Names


def test_the_next_free_name(tmp_path: Path) -> None:
    path = tmp_path / "sweep.png"
    assert free_name(path).name == "sweep.1.png"
    for number in (1, 2, 4):
        (tmp_path / f"sweep.{number}.png").touch()
    assert free_name(path).name == "sweep.3.png"
    assert free_name(tmp_path / "folder").name == "folder.1"


def test_an_earlier_file_or_folder_is_moved_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, folder = tmp_path / "sweep.png", tmp_path / "run"
    move_aside(path)  # none is there
    path.write_text("first")
    move_aside(path)
    path.write_text("second")
    move_aside(path)
    assert (tmp_path / "sweep.1.png").read_text() == "first"
    assert (tmp_path / "sweep.2.png").read_text() == "second"
    (folder / "inside").mkdir(parents=True)
    move_aside(folder)
    assert (tmp_path / "run.1" / "inside").is_dir()
    assert not path.exists()
    assert not folder.exists()
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"the earlier {p} is now {name}"
        for p, name in ((path, "sweep.1.png"), (path, "sweep.2.png"), (folder, "run.1"))
    ]


def test_hash_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert hash_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_link_stays_one_and_what_it_names_is_replaced(tmp_path: Path) -> None:
    path, link = tmp_path / "there" / "a.txt", tmp_path / "link.txt"
    path.parent.mkdir()
    write_text(path, OLD)
    link.symlink_to(path)
    write_text(link, NEW)
    assert link.is_symlink()
    assert path.read_text() == NEW


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is no file that can be replaced; name another"):
        write_text(tmp_path / "pipe", NEW)
    assert (tmp_path / "pipe").is_fifo()


def test_an_error_that_is_no_full_disk_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug"), whole(tmp_path / "a.txt"):
        raise RuntimeError("a bug")
    assert not list(tmp_path.iterdir())
