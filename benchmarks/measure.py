"""What benchmarks share: models, a clock that waits for the device, products noted for replay, kernels, memory."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from models.config import AutoencoderConfig, family_of
from models.family import Generator
from models.linear import by_torch
from models.loading.autoencoder_kinds import new_autoencoder
from runtime.config import dataclass_from_dict


def make_model(section: Mapping[str, Any], autoencoder: AutoencoderConfig | None, device: torch.device) -> Generator:
    """The model of a ``model:`` section in eval mode, its random weights always the same on a device.

    ``autoencoder`` is the architecture of its autoencoder, None for that of the family's released models.
    """
    family = family_of(section)
    config = dataclass_from_dict(family.load("config"), section, "model")
    torch.manual_seed(0)
    with device:
        return family.load("generator")(config, new_autoencoder(autoencoder or config.usual_autoencoder())).eval()


def random_batch(model: Generator, batch: int) -> tuple[list[Tensor], Tensor]:
    """Random codes (B, S, S) of each scale and labels (B,), on the model's device."""
    device = model.device
    codes = [torch.randint(model.num_codes, (batch, side, side), device=device) for side in model.scale_sizes]
    return codes, torch.randint(model.config.num_classes, (batch,), device=device)


def now(device: torch.device) -> float:
    """Seconds of a clock, once the device's work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class RecordProducts(TorchFunctionMode):
    """Notes every linear layer and convolution that runs, with its inputs, as calls of ``torch.nn.functional``.

    In mixed precision the inputs are those that are multiplied.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products: list[partial[Tensor]] = []
        self.by_torch = by_torch()

    def __enter__(self) -> Self:
        self.by_torch.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.by_torch.__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (F.linear, F.conv2d):
            kind = args[0].device.type
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else args[0].dtype
            detached = (value.detach().to(dtype) if isinstance(value, Tensor) else value for value in args)
            self.products.append(partial(func, *detached, **kwargs))
        return func(*args, **kwargs)


def time_products(products: Sequence[Callable[[], Tensor]], device: torch.device) -> float:
    """Seconds that the products alone take, one after the other."""
    start = now(device)
    for product in products:
        product()
    return now(device) - start


def products_of_linear(x: Tensor, weight: Tensor) -> list[partial[Tensor]]:
    """The forward product and both backward products of a linear layer."""
    rows = x.reshape(-1, x.shape[-1])
    grad = torch.ones(len(rows), weight.shape[0], device=x.device, dtype=x.dtype)
    return [partial(torch.mm, *pair) for pair in ((rows, weight.T), (grad, weight), (grad.T, rows))]


class CountKernels(TorchDispatchMode):
    """Counts operations whose result does not merely look at an argument's memory."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        aliases = [value.alias_info for value in func._schema.returns]
        self.count += not any(alias is not None and not alias.is_write for alias in aliases)
        return func(*args, **(kwargs or {}))


def profiled(work: Callable[[], object], device: torch.device) -> tuple[int, float]:
    """How many kernels and copies a piece of work launches on a GPU, and seconds in which at least one of them runs.

    Elsewhere operations of torch stand in for them.
    """
    on_gpu = device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity], acc_events=True) as record:  # else torch warns that further cycles clear them
        work()
        now(device)
    with TemporaryDirectory() as folder:  # a trace is read a hundred times as fast as record.events() are made
        record.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    wanted = ("kernel", "gpu_memcpy", "gpu_memset") if on_gpu else ("cpu_op",)
    spans = [(event["ts"], event["ts"] + event["dur"]) for event in events if event.get("cat") in wanted]
    return len(spans), covered(spans) / 1e6


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of what spans (start, end) cover together."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def forget_peak(device: torch.device) -> None:
    """Begin to measure peak memory anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def held_memory(device: torch.device, peak: bool = False) -> float:
    """Bytes held now, or at most since ``forget_peak``, of the GPU or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) if peak else torch.cuda.memory_allocated(device)
    return process_memory("VmHWM" if peak else "VmRSS")


def process_memory(kind: str) -> float:
    """Bytes of this process: VmRSS, VmHWM (peak) or RssAnon (its own alone); NaN where the system does not say."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith(kind)), float("nan"))
