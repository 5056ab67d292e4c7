"""Batches from processes: the same as without, and what befalls the processes ends in one line, never in a wait."""

import errno
import multiprocessing
import os
import pickle
import queue
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data import loading
from data.images import UnreadableImageError, open_dataset
from data.labelled_images import StoredImages
from data.loading import load_batches, one_ahead
from runtime.errors import UserError
from tests.command_factory import Outcome, call, start_python
from tests.limits import largest_file
from tests.places import KINDS, write_places

BATCHES = [[0, 3], [1], [2, 5, 4]]


class Numbers(Dataset):
    """Item i is a tensor of i; ``trouble`` is called with i in the process that reads it."""

    def __init__(self, trouble: Callable[[int], None] = lambda item: None, size: int = 3) -> None:
        self.trouble, self.size = trouble, size

    def __getitem__(self, item: int) -> Tensor:
        self.trouble(item)
        return torch.full((self.size,), item)


class AtOnce(Numbers):
    """Makes whole batches."""

    def __getitems__(self, items: Sequence[int]) -> list[Tensor]:
        return [self[item] for item in items]


def load(dataset: Dataset, num_workers: int = 2, **options: Any) -> list[list[Tensor]]:
    return list(load_batches(dataset, BATCHES, num_workers, list, **options))


def outcome_of(trouble: Callable[[int], None]) -> Outcome:
    """What a command line says that loads from a dataset of such trouble."""
    return call(lambda argv: load(Numbers(trouble), shielded=True) and None)


@pytest.mark.quick
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("dataset", [Numbers(), AtOnce()])
def test_batches_come_in_order(dataset: Dataset, num_workers: int) -> None:
    found = load(dataset, num_workers, shielded=bool(num_workers))
    assert [[item.tolist() for item in batch] for batch in found] == [[[i] * 3 for i in batch] for batch in BATCHES]


@pytest.mark.quick
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_mistake_of_the_user_arrives_with_its_own_words(num_workers: int) -> None:
    def trouble(item: int) -> None:
        if item == 5:
            raise UnreadableImageError("5.png is damaged; mend it")

    with pytest.raises(UserError) as raised:
        load(Numbers(trouble), num_workers)
    assert str(raised.value) == "5.png is damaged; mend it"


def checksums(images: StoredImages) -> list[int]:
    return [images.checksum(index) for index in range(len(images))]


@pytest.mark.processes
def test_images_of_every_kind_of_place_reach_a_process_that_was_not_forked(tmp_path: Path) -> None:
    places = write_places(tmp_path)
    opened = [open_dataset("folder", str(places[kind]), 32) for kind in KINDS]
    expected = [checksums(images) for images in opened]  # so that whatever reading opens is open
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(checksums, opened) == expected


def raises(error: Exception) -> Callable[[int], None]:
    def trouble(item: int) -> None:
        if item == 2:
            raise error

    return trouble


@pytest.mark.quick
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EIO, "Input/output error", "a.png"), ["a.png: Input/output error"]),
        (OSError(errno.ENOSPC, "No space left on device"), ["/dev/shm", "--shm-size", "--num_workers 0"]),
        (OSError(errno.EMFILE, "Too many open files", "a.png"), ["ulimit -n", "num_workers"]),
        (OSError("truncated"), ["truncated", "--num_workers 0"]),
        (MemoryError(), ["batch_size", "num_workers"]),
        (RuntimeError("unable to mmap 8 bytes from file </torch_7_1_0>: Cannot allocate memory (12)"), ["/dev/shm"]),
    ],
    ids=["disk", "shared memory", "files", "no number", "memory", "mapping"],
)
def test_what_the_surroundings_do_to_a_process_is_one_line(error: Exception, words: list[str]) -> None:
    line = outcome_of(raises(error)).error()
    assert all(word in line for word in words), line


@pytest.mark.quick
@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ZeroDivisionError("by 0")])
def test_a_bug_says_where_it_was_in_the_process(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        load(Numbers(raises(error)))
    text = "".join([str(raised.value), *getattr(raised.value, "__notes__", [])])
    assert str(error) in text
    assert "test_loading.py" in text  # the line of the dataset


def test_shared_memory_that_is_too_small_ends_the_wait() -> None:
    """Of a limited size are all files of a process, those in memory that carry tensors to another among them."""

    def main(argv: Sequence[str]) -> None:
        with largest_file(4096):
            load(Numbers(size=100_000))

    line = call(main).error()
    assert "/dev/shm" in line
    assert "--num_workers 0" in line


@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGKILL, ["memory", "num_workers or batch_size"]), (signal.SIGBUS, ["/dev/shm"])]
)
def test_a_process_that_is_killed_is_one_line(number: signal.Signals, words: list[str]) -> None:
    def trouble(item: int) -> None:
        if item == 2:
            os.kill(os.getpid(), number)

    line = outcome_of(trouble).error()
    assert all(word in line for word in words), line


def test_a_process_that_is_killed_after_it_has_sent_a_batch_is_the_same_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch can be taken over only as long as the process lives that sent it."""

    def late(parcel: Any) -> Any:
        for process in multiprocessing.active_children():
            process.kill()
            while process.is_alive():
                with suppress(RuntimeError):  # torch's word of the death, which may come later
                    process.join()
        return opened(parcel)

    opened = loading._Parcel.open
    monkeypatch.setattr(loading._Parcel, "open", late)
    line = outcome_of(lambda item: None).error()
    assert "num_workers or batch_size" in line


def refuse() -> None:
    raise ConnectionRefusedError


class Lost:
    """What cannot be unpickled, because its process has gone."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return refuse, ()


@pytest.mark.quick
def test_a_batch_that_is_pinned_may_be_lost_as_well() -> None:
    """Torch opens it in a thread then, whose errors would come without what they are of."""
    lost = loading._Parcel(pickle.dumps(Lost())).pin_memory()
    assert isinstance(lost, loading._Undelivered)
    assert lost.error.errno == errno.EMFILE


@pytest.mark.quick
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EAGAIN, ["num_workers", "ulimit -u"]),
        (errno.ENOMEM, ["num_workers"]),
        (errno.ENOSPC, ["/dev/shm", "--num_workers 0"]),
    ],
)
def test_processes_that_cannot_be_started(number: int, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fork", fork)
    line = outcome_of(lambda item: None).error()
    assert all(word in line for word in words), line


FEW_FILES = """
import resource, torch
from data.loading import load_batches, one_ahead
from runtime.command import run
soft = len(__import__("os").listdir("/proc/self/fd")) + 40
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, soft))
class Data(torch.utils.data.Dataset):
    def __getitem__(self, item):
        return torch.zeros(5)
run(lambda argv: list(load_batches(Data(), [[0] * 8 for _ in range(100)], 2, list)) and None)
"""


@pytest.mark.processes
def test_too_few_file_handles_end_the_wait() -> None:
    line = start_python("-c", FEW_FILES).error()
    assert "ulimit -n" in line
    assert "num_workers" in line


LONG = """
import torch
from data.loading import load_batches, one_ahead
from runtime.command import run
run(lambda argv: print(list(load_batches(torch.arange(3), [[0], [2]], {num_workers}, list))))
"""


@pytest.mark.processes
def test_a_temporary_folder_of_a_long_name_is_refused(tmp_path: Path) -> None:
    """The sockets that processes meet by have short names."""
    folder = tmp_path / ("x" * 90)
    folder.mkdir()
    line = start_python("-c", LONG.format(num_workers=1), TMPDIR=str(folder)).error()
    for words in ("TMPDIR", str(folder), "--num_workers 0"):
        assert words in line
    assert start_python("-c", LONG.format(num_workers=0), TMPDIR=str(folder)).code == 0
    assert start_python("-c", LONG.format(num_workers=1), TMPDIR=tempfile.gettempdir()).code == 0


def test_processes_that_hang_are_left_behind() -> None:
    def trouble(item: int) -> None:
        if item == 2:
            time.sleep(600)

    batches = load_batches(Numbers(trouble), [[0], [2], [2]], 2, list, shielded=True)
    next(batches)
    start = time.monotonic()
    batches.close()
    assert time.monotonic() - start < 8


@pytest.mark.quick
def test_one_batch_is_read_ahead() -> None:
    """While a batch is worked on, the next is read, and no other; an error comes in the place of its batch."""
    read: queue.Queue[int] = queue.Queue()

    def batches() -> Iterator[int]:
        for number in range(3):
            read.put(number)
            yield number
        raise UserError("the fourth is damaged")

    found = one_ahead(batches())
    for number in range(3):
        assert next(found) == number
        expected = [[0, 1], [2], []][number]
        assert [read.get(timeout=10) for _ in expected] == expected
        assert read.empty()
    with pytest.raises(UserError, match="the fourth"):
        next(found)
