"""Where and in which precision to compute, the only place that chooses; and how large a model is."""

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from runtime.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """The named device, or the first at hand of CUDA, Apple's MPS and the CPU.

    A GPU that is named by its number becomes the one that torch takes where nothing else is said.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    kind = name.split(":")[0]
    if kind not in available:
        raise UserError(f"device {name} is unknown; choose auto, cuda, mps or cpu")
    if not available[kind]:
        raise UserError(f"device {name} is not available to this torch; choose another, or auto")
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
    except RuntimeError as error:
        raise UserError(f"device {name} is unknown; give the number of a GPU as in cuda:0") from error
    return device


def pick_dtype(name: str, device: torch.device, trains: bool = False) -> torch.dtype:
    """The named precision; ``auto`` is bfloat16 on a GPU that computes in it and float32 elsewhere.

    To train, it is bfloat16 on a CPU that has instructions for it too. To draw it is not: in float32 an image hardly
    ever depends on its batch.
    """
    if name == "auto":
        fast = {
            "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
            "cpu": lambda: trains and cpu_has_bfloat16(),
        }
        return torch.bfloat16 if fast.get(device.type, bool)() else torch.float32
    if name not in DTYPES:
        raise UserError(f"dtype {name} is unknown; choose auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies matrices of bfloat16 by instructions of its own."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def fuses_optimizer(device: torch.device) -> bool:
    """Whether torch updates all weights there by one kernel."""
    return device.type in ("cuda", "cpu")


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Mixed precision with float32 weights; off for float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def allow_tf32(allowed: bool) -> None:
    """Whether CUDA may compute in float32 with 10 bits of the fraction, which is several times as fast."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def exact_float32() -> Iterator[None]:
    """Without TF32, which torch takes for convolutions if nothing else is said, and without mixed precision."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    allow_tf32(False)
    try:
        with ExitStack() as stack:
            for kind in ("cuda", "cpu", "mps"):
                stack.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. Nothing waits for a copy to CUDA: it is made of pinned memory, which is kept until then."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def fetch(tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """Begin to copy tensors of one device to the CPU; a call of what is returned, in any thread, waits for them.

    Of CUDA they come through pinned memory, while the device goes on with what is asked of it next.
    """
    if not tensors or tensors[0].device.type != "cuda":
        here = [tensor.cpu() for tensor in tensors]
        return lambda: here
    device = tensors[0].device
    pinned = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
    for to, tensor in zip(pinned, tensors, strict=True):
        to.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(device))

    def arrived() -> list[Tensor]:
        with torch.cuda.device(device):  # of another thread it is the first GPU, whose memory would be taken for this
            copied.synchronize()
        return pinned

    return arrived


def describe_size(model: nn.Module) -> str:
    """Millions of parameters, trained and frozen."""
    trained, frozen = (sum(p.numel() for p in m.parameters()) / 1e6 for m in (model, model.autoencoder))
    return f"{trained:.1f}M parameters + {frozen:.1f}M autoencoder"


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` and so on."""
    return str(dtype).removeprefix("torch.")


def describe_machine(device: torch.device) -> str:
    """The processor that computes, of a CPU its vector instructions and number of threads, and torch's version."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        threads = torch.get_num_threads()
        kind = f"{names[0] if names else platform.processor()} ({torch.backends.cpu.get_cpu_capability()})"
        name = f"{kind}, {threads} thread{'s' if threads > 1 else ''}"
    return f"{name}, torch {torch.__version__}"
