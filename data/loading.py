"""The one way from a dataset to batches: read here or by processes, whose errors arrive as they were raised."""

import errno
import os
import pickle
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing import RawValue
from multiprocessing.connection import Listener, wait
from multiprocessing.reduction import ForkingPickler
from types import FrameType
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from runtime.errors import UserError

END = 3.0  # seconds that processes may take to end; those that hang are left behind
SHARED_MEMORY = "/dev/shm"


def load_batches(
    dataset: Dataset,
    batches: Iterable[Sequence[Any]],
    num_workers: int,
    collate: Callable[[list[Any]], Any],
    pin_memory: bool = False,
    shielded: bool = False,
) -> Iterator[Any]:
    """``collate`` of the items of each batch, in order.

    Args:
        batches: of indices into the dataset.
        num_workers: processes that read; 0 reads here.
        pin_memory: of batches, nested lists of tensors.
        shielded: a signal to all processes of the terminal leaves those that read alone. Close the iterator then.

    Raises:
        UserError: one that the dataset raised, or the processes cannot work here.
        OSError, MemoryError, RuntimeError: as raised there; ``runtime.command`` has sentences for what surroundings do.
    """
    if num_workers:
        _check_sockets()
    needed = RawValue("b", shielded)  # seen by the processes
    loader = DataLoader(
        _Batches(dataset, collate),
        batch_size=None,  # those of the sampler
        sampler=batches,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        pin_memory=pin_memory,
        worker_init_fn=partial(_begin, needed),
    )
    try:
        iterator = iter(loader)
    except OSError as error:
        raise _placed(error) from error
    try:
        for found in iterator:
            batch = found.open() if isinstance(found, _Parcel) else found
            if isinstance(batch, _Undelivered):
                _check_processes(iterator)
            if isinstance(batch, _Failure):
                raise batch.error
            yield batch
    except RuntimeError as error:
        if isinstance(error.__cause__, RuntimeError):  # it names the signal that ended a process
            raise error.__cause__ from None
        raise
    finally:
        needed.value = 0
        if num_workers:  # torch waits for each in turn, and as long as the error that ends it is kept
            end = threading.Thread(target=iterator._shutdown_workers, daemon=True)
            end.start()
            end.join(END)


def _check_processes(iterator: Any) -> None:
    """A RuntimeError if a process was killed, as torch raises it: the connection to it breaks a moment before."""
    wait([worker.sentinel for worker in iterator._workers], timeout=1)
    codes = [worker.exitcode for worker in iterator._workers if worker.exitcode]
    if codes:
        end = f"was killed by signal: {signal.strsignal(-codes[0])}" if codes[0] < 0 else f"ended with {codes[0]}"
        raise RuntimeError(f"DataLoader worker {end}")


def one_ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """The same batches, each read in a thread while the one before it is worked on."""
    with ThreadPoolExecutor(1) as reader:
        end = object()
        coming = reader.submit(next, batches, end)
        while (batch := coming.result()) is not end:
            coming = reader.submit(next, batches, end)
            yield batch


class _Batches(Dataset):
    """Whole batches of a dataset."""

    def __init__(self, dataset: Dataset, collate: Callable[[list[Any]], Any]) -> None:
        self.dataset, self.collate = dataset, collate

    def __getitem__(self, batch: Sequence[Any]) -> Any:
        if get_worker_info() is None:
            return self._read(batch)
        try:
            # Packed here, because torch prints errors of packing and drops the batch, and the program waits for ever.
            return _Parcel(bytes(ForkingPickler.dumps(self._read(batch))))
        except (UserError, OSError, MemoryError, RuntimeError) as error:
            return _Failure(_portable(error))

    def _read(self, batch: Sequence[Any]) -> Any:
        at_once = getattr(self.dataset, "__getitems__", None)
        return self.collate(at_once(batch) if at_once else [self.dataset[item] for item in batch])


class _Parcel:
    """A batch on its way between processes, its tensors in shared memory."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def open(self) -> Any:
        """The batch, or what went wrong on its way."""
        try:
            return pickle.loads(self.content)
        except (EOFError, ConnectionError):
            return _Undelivered(OSError(errno.EMFILE, "a process that loads images cannot hand them over"))
        except (OSError, RuntimeError) as error:
            return _Undelivered(error)

    def pin_memory(self) -> Any:
        """Called by torch, in a thread."""
        batch = self.open()
        return batch if isinstance(batch, _Failure) else _pinned(batch)


class _Failure:
    """What went wrong with a batch."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class _Undelivered(_Failure):
    """A batch that was read, and could not be taken over."""


def _portable(error: Exception) -> Exception:
    """An error as the main process should see it: a user's mistake with its own sentence alone."""
    if isinstance(error, UserError):
        return UserError(str(error))
    if isinstance(error, OSError):
        if error.errno is None:
            return UserError(f"a process that loads images failed ({error}); --num_workers 0 shows more of the error")
        error = _placed(error)
    error.add_note("In a process that loads images:\n" + "".join(traceback.format_exception(error)))
    return error


def _placed(error: OSError) -> OSError:
    """An error that names no file, with the place that is full: processes that load write nothing but shared memory."""
    if error.errno == errno.ENOSPC and error.filename is None:
        error.filename = SHARED_MEMORY
    return error


def _pinned(batch: Any) -> Any:
    return batch.pin_memory() if isinstance(batch, Tensor) else [_pinned(part) for part in batch]


def _as_it_is(batch: Any) -> Any:
    return batch


def _check_sockets() -> None:
    """Refuse a temporary folder in which processes cannot hand over tensors: they would wait for ever."""
    try:
        Listener().close()
    except OSError as error:
        raise UserError(
            f"the processes that load images cannot meet in {tempfile.gettempdir()} ({error.strerror or error}); set "
            "TMPDIR to a folder of a short name, such as /tmp, or add --num_workers 0"
        ) from error


def _begin(needed: Any, worker: int) -> None:
    """Prepare a process that loads. As long as it is needed it leaves signals to the main process.

    After that SIGTERM ends it: an interpreter that exits sends it, and then waits for it.
    """
    sys.excepthook = lambda *error: None  # of threads that hand tensors over: the main process meets their errors
    if not needed.value:
        return

    def on_terminate(number: int, frame: FrameType | None) -> None:
        if not needed.value:
            os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, on_terminate)
