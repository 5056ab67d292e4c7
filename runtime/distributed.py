"""The processes of a run: one alone, or those of torchrun; CPU tensors travel by gloo, CUDA tensors by NCCL."""

import os
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")
PATIENCE = timedelta(hours=24)  # one rank may wait this long for another, for instance while a cache is made


def set_up(device: torch.device) -> torch.device:
    """Join the other processes if torchrun started this one; returns this process's device."""
    if "RANK" not in os.environ:
        return device
    backend = "gloo"
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=PATIENCE)
    return device


def tear_down() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def num_ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def say(text: str) -> None:
    """Print a line once, whatever the number of ranks."""
    if is_main():
        print(text, flush=True)


def barrier() -> None:
    if dist.is_initialized():
        dist.all_reduce(torch.zeros(1))  # by gloo: a CUDA stream need not be waited for


def from_main(value: Value) -> Value:
    """What rank 0 passes, on every rank."""
    box = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def everyones(value: Value) -> list[Value]:
    """What each rank passes, in order of rank."""
    box = [value] * num_ranks()
    if dist.is_initialized():
        dist.all_gather_object(box, value)
    return box


def add_up(tensor: Tensor) -> Tensor:
    """The sum over ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor
