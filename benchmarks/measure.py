"""What benchmarks share: a clock that waits for the device, products noted for replay, kernels counted, memory."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class Clock:
    """Seconds between laps, the device's work done."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.lap()

    def lap(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        elapsed, self.start = now - getattr(self, "start", now), now
        return elapsed


@dataclass(frozen=True)
class Product:
    """One call of a linear layer or a convolution."""

    run: Callable[..., Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self) -> Tensor:
        return self.run(*self.args, **self.kwargs)


class RecordProducts(TorchFunctionMode):
    """Notes every linear layer and convolution that runs, with its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (F.linear, F.conv2d):
            detached = tuple(value.detach() if isinstance(value, Tensor) else value for value in args)
            self.products.append(Product(func, detached, kwargs))
        return func(*args, **kwargs)


def time_products(products: list[Product], device: torch.device) -> float:
    """Seconds that the products alone take, one after the other."""
    clock = Clock(device)
    for product in products:
        product()
    return clock.lap()


class CountKernels(TorchDispatchMode):
    """Counts operations whose result does not merely look at an argument's memory."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        aliases = [value.alias_info for value in func._schema.returns]
        self.count += not any(alias is not None and not alias.is_write for alias in aliases)
        return func(*args, **(kwargs or {}))


def forget_peak(device: torch.device) -> None:
    """Begin to measure peak memory anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> float:
    """Bytes held at most since ``forget_peak``, of the GPU or of this process; NaN if the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def held_memory(device: torch.device) -> float:
    """Bytes held now, as ``peak_memory``."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _status("VmRSS")


def _status(name: str) -> float:
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith(name)), float("nan"))
