"""The processes of a run: one alone, or those of torchrun; CPU tensors travel by gloo, CUDA tensors by NCCL.

A sum waits for other ranks as long as torch lets it, half an hour. ``barrier``, ``from_main`` and ``everyones`` wait up
to a day, for instance while rank 0 makes a cache; a signal ends these waits.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import default_pg_nccl_timeout
from tqdm import tqdm

from runtime.errors import UserError
from runtime.stopping import waiting

Value = TypeVar("Value")
SILENT = 10.0  # seconds until a wait says for whom
START = 5 * 60.0  # seconds that the processes of a run may take to find each other
PATIENCE = 24 * 3600.0  # seconds that a rank may wait for another by name
_POLL = 0.05  # seconds between looks at a wait
_NAMED = 4  # ranks that are waited for and named
_MEND = "start the program with torchrun, which sets them all, or unset RANK"


@dataclass
class _Ranks:
    """What ranks meet by: a store of texts, and a group that is as patient as its waits."""

    store: dist.Store
    group: dist.ProcessGroup
    num_waits: int = 0  # so far; each rank's stands in the store

    def late(self) -> list[int]:
        """Ranks that have not come to this rank's wait."""
        return [i for i in range(num_ranks()) if int(self.store.get(f"waits/{i}")) < self.num_waits]

    def speaks_for_all(self) -> bool:
        """Whether this is the first of the ranks that wait: one line is enough."""
        return rank() == min(set(range(num_ranks())) - set(self.late()))


_ranks: _Ranks | None = None


def set_up(device: torch.device) -> torch.device:
    """Join the other processes if torchrun started this one; returns this process's device."""
    global _ranks
    if not os.environ.get("RANK"):
        return device
    own, world, port, local = _checked(os.environ, device.type == "cuda")
    backend = "gloo"
    if device.type == "cuda":
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    store = _meet(own, world, os.environ["MASTER_ADDR"], port)
    usual = default_pg_nccl_timeout if device.type == "cuda" else None  # with gloo beside, torch would give NCCL more
    meet = dist.PrefixStore("default", store)
    dist.init_process_group(backend, timeout=usual, store=meet, rank=own, world_size=world)
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=PATIENCE + 60))  # our own message comes first
    _ranks = _Ranks(store, group)
    return device


def tear_down() -> None:
    global _ranks
    if dist.is_initialized():
        dist.destroy_process_group()
        _ranks = None


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def num_ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def on_several_machines() -> bool:
    """By what torchrun says of its ranks here, or by the names of the ranks' machines; called on all ranks."""
    if os.environ.get("LOCAL_WORLD_SIZE"):
        return num_ranks() > int(os.environ["LOCAL_WORLD_SIZE"])
    return len(set(everyones(socket.gethostname()))) > 1


def say(text: str) -> None:
    """Print a line once, whatever the number of ranks; a warning to stderr, as Python's own."""
    if is_main():
        print(text, file=sys.stderr if text.startswith("warning: ") else sys.stdout, flush=True)


def barrier(what: str = "") -> None:
    """Wait for all ranks; ``what`` is said of the wait if it lasts, here and below."""
    _wait(lambda group: dist.all_reduce(torch.zeros(1), group=group), what)


def from_main(value: Value, what: str = "") -> Value:
    """What rank 0 passes, on every rank."""
    box = [value]
    _wait(lambda group: dist.broadcast_object_list(box, src=0, group=group), what)
    return box[0]


def everyones(value: Value, what: str = "") -> list[Value]:
    """What each rank passes, in order of rank."""
    box = [value] * num_ranks()
    _wait(lambda group: dist.all_gather_object(box, value, group=group), what)
    return box


def add_up(tensor: Tensor) -> Tensor:
    """The sum over ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def _checked(environment: Mapping[str, str], on_cuda: bool) -> tuple[int, int, int, int]:
    """RANK, WORLD_SIZE, MASTER_PORT and LOCAL_RANK, or a UserError that says which of torchrun's variables is wrong."""
    wanted = ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", *(["LOCAL_RANK"] if on_cuda else [])]
    missing = [name for name in wanted if not environment.get(name)]
    if missing:
        raise UserError(f"RANK is set, but not {', '.join(missing)}; {_MEND}")
    numbers = []
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "LOCAL_RANK"):
        text = environment.get(name, "0")
        if not text.isdecimal():
            raise UserError(f"{name} is {text}; it must be a whole number: {_MEND}")
        numbers.append(int(text))
    own, world, port, local = numbers
    if own >= world:
        raise UserError(f"RANK is {own}, but WORLD_SIZE is {world}; ranks count from 0: {_MEND}")
    if not 0 < port < 2**16:
        raise UserError(f"MASTER_PORT is {port}; it must lie in 1..{2**16 - 1}: {_MEND}")
    if on_cuda and local >= torch.cuda.device_count():
        raise UserError(
            f"LOCAL_RANK is {local}, but torch sees {torch.cuda.device_count()} GPUs; start one process for each GPU"
        )
    return own, world, port, local


def _meet(own: int, world: int, host: str, port: int) -> dist.Store:
    """A store that all ranks have come to. Rank 0 serves it, if torchrun does not."""
    where, mend = f"{host}:{port}", "start all processes, as torchrun does, or unset RANK and WORLD_SIZE"
    by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    serves = own == 0 and not by_torchrun
    if not serves:  # torch would wait in C, and print its stack
        server = "torchrun" if by_torchrun else "rank 0"
        _watch(own, lambda: _answers(host, port), lambda: f"{server} at {where}", START, mend)
    try:
        store = dist.TCPStore(host, port, world, serves, timedelta(seconds=START), wait_for_workers=False)
    except dist.DistError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"rank {own} cannot use {where} ({reason}); set another MASTER_PORT") from error
    store.set(f"waits/{own}", "0")

    def late() -> int:
        return sum(not store.check([f"waits/{i}"]) for i in range(world))

    _watch(own, lambda: not late(), lambda: f"{late()} of {world} processes at {where}", START, mend)
    return store


def _answers(host: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def _wait(work: Callable[[dist.ProcessGroup], object], what: str) -> None:
    """Do ``work`` with all ranks: in a thread, because torch would keep signals from the main one."""
    if _ranks is None:
        return
    own, ranks, errors, done = rank(), _ranks, [], threading.Event()
    ranks.num_waits += 1
    ranks.store.set(f"waits/{own}", str(ranks.num_waits))

    def join() -> None:
        try:
            work(ranks.group)
        except Exception as error:
            errors.append(error)
        finally:
            done.set()

    def whom() -> str:
        late = ranks.late()
        names = ", ".join(map(str, late[:_NAMED])) + (f" and {len(late) - _NAMED} more" if late[_NAMED:] else "")
        who = f"rank{'s' if late[1:] else ''} {names}" if late else "what the other ranks send"
        return f"{who}: {what}" if what else who

    threading.Thread(target=join, daemon=True).start()
    mend = "look at what that rank does, and run the same command again"
    _watch(own, done.is_set, whom, PATIENCE, mend, done.wait, ranks.speaks_for_all)
    if errors:
        raise errors[0]


def _watch(
    own: int,
    ready: Callable[[], bool],
    whom: Callable[[], str],
    limit: float,
    mend: str,
    pause: Callable[[float], object] = time.sleep,
    speaks: Callable[[], bool] = lambda: True,
) -> None:
    """Wait until ``ready``; if it ``speaks``, say after 10 s for whom. After ``limit`` seconds it is a UserError."""
    start, told = time.monotonic(), False
    length, unit = next(((s, u) for s, u in ((3600, "hours"), (60, "minutes")) if limit >= s), (1, "seconds"))
    limit_text = f"{limit / length:g} {unit}"
    with waiting():
        while not ready():
            waited = time.monotonic() - start
            if waited > limit:
                raise UserError(f"rank {own} waited {limit_text} for {whom()}; {mend}")
            if waited > SILENT and not told:
                told = True
                if speaks():
                    tqdm.write(f"rank {own} waits for {whom()} (for up to {limit_text})", file=sys.stderr)
            pause(_POLL)
