"""One row of ``benchmarks.device``: a batch drawn and decoded, or a step of training."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.device_plan import Row, section_of
from benchmarks.measure import forget_peak, held_memory, make_model, now, profiled, random_batch
from models.family import Generator
from models.linear import by_torch
from models.sampler import Sampler
from models.sampling import checked_drawing
from runtime.device import DTYPES, autocast, fuses_optimizer
from training.task import step_context

WARM_UPS = {"eager": 1, "compiled": 3}  # runs; of a CUDA graph the second is recorded, the third is the first replay
REPEATS = 3
ENOUGH = 4.0  # seconds of timed runs, after which fewer repeats are enough
# 1e12 dense operations a second of float32 without tensor cores, and of bfloat16 and float16 with them, by the makers'
# data sheets; the first name that is part of the card's counts.
PEAKS = {
    "H100 PCIe": (51, 756),
    "H100 NVL": (60, 835),
    "H100": (67, 989),
    "H200 NVL": (60, 835),
    "H200": (67, 989),
    "A100": (19.5, 312),
}

Values = dict[str, float]  # measured, by name


def measure(row: Row, small: bool, device: torch.device) -> Values:
    """What is measured of a row: seconds and bytes; shares are of 1."""
    model = make_model(*section_of(row, small), device)
    return (measure_sampling if row.work == "sampling" else measure_training)(row, model)


@torch.inference_mode()
def measure_sampling(row: Row, model: Generator) -> Values:
    """Guided images by the family's usual steps; transformer and decoder both in the row's precision."""
    device, labels = model.device, torch.arange(row.batch) % model.config.num_classes
    model.to(DTYPES[row.dtype])
    model.autoencoder.decode_in(DTYPES[row.dtype])
    sampler = model.sampler(row.batch, checked_drawing(model, {}), compiled=row.mode == "compiled")

    def run() -> tuple[float, float]:
        start = now(device)
        _draw(sampler, labels)
        drawn = now(device)
        _decode(sampler)
        return drawn - start, now(device) - drawn

    warm_up, (drawing, decoding), peak = _timed(run, row, device)
    drawing_kernels, drawing_busy = profiled(lambda: _draw(sampler, labels), device)
    decoding_kernels, decoding_busy = profiled(lambda: _decode(sampler), device)
    values = {
        "warm_up_seconds": warm_up,
        "drawing_seconds": drawing,
        "decoding_seconds": decoding,
        "drawn_images_a_second": row.batch / drawing,
        "images_a_second": row.batch / (drawing + decoding),
        "seconds_an_image": (drawing + decoding) / row.batch,
        "kernels": drawing_kernels,
        "decoding_kernels": decoding_kernels,
    }
    return values | _of_gpu(drawing_busy + decoding_busy, drawing + decoding, peak, device)


def measure_training(row: Row, model: Generator) -> Values:
    """Steps from codes, in mixed precision unless the row is of float32, with AdamW."""
    device = model.device
    model.train()
    codes, labels = random_batch(model, row.batch)
    optimizer = torch.optim.AdamW(model.parameters(), fused=fuses_optimizer(device))

    def run() -> tuple[float]:
        start = now(device)
        with autocast(device, DTYPES[row.dtype]):
            loss = model.training_loss(codes, labels, step_context(0, 0, 0, device, logs=False)).value
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return (now(device) - start,)

    with FlopCounterMode(display=False) as counter, by_torch():  # whose operations it knows
        run()
    model.prepare_training("sdpa", row.mode == "compiled", activation_checkpointing=False)
    warm_up, (step,), peak = _timed(run, row, device)
    kernels, busy = profiled(run, device)
    operations = float(counter.get_total_flops())
    values = {
        "warm_up_seconds": warm_up,
        "step_seconds": step,
        "images_a_second": row.batch / step,
        "seconds_an_image": step / row.batch,
        "kernels": kernels,
        "operations": operations,
    } | _of_gpu(busy, step, peak, device)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    best = peak_of(card, row.dtype)
    return values if best is None else values | {"share_of_peak": operations / step / best}


def peak_of(card: str, dtype: str) -> float | None:
    """Operations a second that a card of this name reaches at most in a precision; None of an unknown one."""
    peaks = next((peaks for name, peaks in PEAKS.items() if name in card), None)
    return None if peaks is None else 1e12 * peaks[dtype != "float32"]


def _draw(sampler: Sampler, labels: Tensor) -> None:
    for _ in sampler.steps(labels, range(len(labels))):
        pass


def _decode(sampler: Sampler) -> Tensor:
    return sampler.model.to_uint8(sampler.samples().images)


def _timed(run: Callable[[], tuple[float, ...]], row: Row, device: torch.device) -> tuple[float, Any, float]:
    """Seconds of warming up, the median of each of the seconds that ``run`` gives, and the most memory then held."""
    start = time.perf_counter()
    for _ in range(WARM_UPS[row.mode]):
        run()
    warm_up, times = time.perf_counter() - start, []
    forget_peak(device)
    while len(times) < REPEATS and sum(map(sum, times)) < ENOUGH:
        times.append(run())
    return warm_up, np.median(times, axis=0).tolist(), held_memory(device, peak=True)


def _of_gpu(busy: float, seconds: float, peak: float, device: torch.device) -> Values:
    """Memory, and the share of the seconds without a kernel; they are of a run without the profiler, which slows it.

    A CPU has operations instead of kernels, and memory of the whole process: neither says anything of a row.
    """
    return {"idle": max(0.0, 1 - busy / seconds), "peak_bytes": peak} if device.type == "cuda" else {}
