"""Time, operations and memory of sampling, beside what its matrix products and convolutions alone take.

    python benchmarks/sampling.py

Weights are random: only shapes matter. The floor is the sum over all linear layers (all convolutions, for the decoder)
of their own time at the same shapes, in the same process, right after. Each row is measured in a process of its own.
"""

import multiprocessing
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, the project is not on the path

from benchmarks.measure import (
    Clock,
    CountKernels,
    Product,
    RecordProducts,
    forget_peak,
    held_memory,
    peak_memory,
    time_products,
)
from models.family import Generator, Sampler
from models.loading.checkpoint import random_model
from runtime.command import run
from runtime.config import parse_flags
from runtime.device import DTYPES, describe_machine, pick_device

COLUMNS = (
    *("model", "batch", "dtype", "mode", "warm-up s", "drawing s", "floor s", "ratio"),
    *("decoding s", "floor s", "s an image", "operations", "memory GB", "weights + cache", "by scale s"),
)
ROW = "{:<14}{:>6}{:>10}{:>10}{:>10}{:>10}{:>9}{:>7}{:>11}{:>9}{:>11}{:>11}{:>10}{:>16}  {}"


@dataclass(frozen=True)
class BenchmarkArgs:
    """What to time. Seconds of drawing, decoding and their floors are of a batch.

    Attributes:
        configs: training configurations, whose models are built with random weights.
        batch_sizes: images drawn at once.
        dtypes: precisions of the transformer.
        modes: eager, compiled.
        drawing: settings of the drawing, as in '{steps_per_scale: 8}'; cfg 1.5 and the family's otherwise.
        repeats: timed runs after one more; medians count.
        device: auto, cuda, mps or cpu.
    """

    configs: tuple[str, ...] = ("configs/config_256_S.yaml", "configs/config_256_L.yaml")
    batch_sizes: tuple[int, ...] = (1, 8)
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    modes: tuple[str, ...] = ("eager", "compiled")
    drawing: dict[str, Any] = field(default_factory=dict)
    repeats: int = 3
    device: str = "auto"


@dataclass(frozen=True)
class Case:
    """One row."""

    config: str
    batch: int
    dtype: str
    compiled: bool
    args: BenchmarkArgs


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "benchmarks/sampling.py", __doc__, BenchmarkArgs)
    device = pick_device(args.device)
    print(f"{describe_machine(device)}; guided (cfg 1.5), {args.drawing or 'the usual steps'}, seconds of a batch")
    print(ROW.format(*COLUMNS), flush=True)
    context = multiprocessing.get_context("spawn")
    for config in args.configs:
        for dtype in args.dtypes:
            for batch in args.batch_sizes:
                for mode in args.modes:
                    case = Case(config, batch, dtype, mode == "compiled", args)
                    with ProcessPoolExecutor(1, context) as pool:
                        times = pool.submit(measure_times, case).result()
                    with _returned_at_once(), ProcessPoolExecutor(1, context) as pool:
                        memory = pool.submit(measure_memory, case).result()
                    print(ROW.format(*times[:-1], *memory, times[-1]), flush=True)


@contextmanager
def _returned_at_once() -> Iterator[None]:
    """Processes started here return freed memory; glibc else keeps up to 100 MB of it, to save the time of asking."""
    name = "MALLOC_MMAP_THRESHOLD_"
    os.environ[name] = "1000000"
    yield
    del os.environ[name]


@torch.inference_mode()
def measure_memory(case: Case) -> tuple[str, ...]:
    """The cells of memory: the most that is held while a batch is drawn and decoded, and weights and cache of that."""
    device = pick_device(case.args.device)
    before = held_memory(device)
    model, sampler, labels = _make(case, device)
    needed = sum(t.nbytes for t in (*_weights(model), *sampler.cache()))
    if case.compiled:  # compilers hold more than the result does
        sampler(labels, range(case.batch))
    forget_peak(device)
    sampler(labels, range(case.batch))
    return f"{(peak_memory(device) - before) / 1e9:.2f}", f"{needed / 1e9:.2f}"


@torch.inference_mode()
def measure_times(case: Case) -> tuple[str, ...]:
    """The other cells of a row; those of scales last."""
    device = pick_device(case.args.device)
    model, sampler, labels = _make(case, device)
    clock = Clock(device)
    _time_scales(sampler, labels, device)
    warm_up = clock.lap()
    runs = [_time_scales(sampler, labels, device) for _ in range(case.args.repeats)]
    scales = [statistics.median(times) for times in zip(*runs, strict=True)]
    *drawing, decoding = scales
    drawn, decoded, operations = _products(case, model, labels)
    floors = [
        statistics.median(time_products(products, device) for _ in range(case.args.repeats))
        for products in (drawn, decoded)
    ]
    name = Path(case.config).stem.removeprefix("config_")
    ratio = f"{sum(drawing) / floors[0]:.2f}"
    return (
        *(name, str(case.batch), case.dtype, "compiled" if case.compiled else "eager"),
        *(f"{warm_up:.1f}", f"{sum(drawing):.2f}", f"{floors[0]:.2f}", ratio),
        *(f"{decoding:.2f}", f"{floors[1]:.2f}", f"{sum(scales) / case.batch:.2f}", str(operations)),
        " ".join(f"{seconds:.2f}" for seconds in drawing),
    )


def _make(case: Case, device: torch.device) -> tuple[Generator, Sampler, torch.Tensor]:
    """Model, sampler and labels of a batch."""
    torch.manual_seed(0)
    model, _ = random_model(Path(case.config))
    model.to(device=device, dtype=DTYPES[case.dtype])
    sampler = model.sampler(case.batch, model.Drawing(**case.args.drawing), case.compiled)
    return model, sampler, torch.arange(case.batch) % model.config.num_classes


def _weights(model: Generator) -> list[torch.Tensor]:
    return [*model.state_dict().values(), *model.autoencoder.state_dict().values()]


def _time_scales(sampler: Sampler, labels: torch.Tensor, device: torch.device) -> list[float]:
    """Seconds of drawing each scale (the preparation counts to the first) and of decoding the last."""
    clock = Clock(device)
    seconds = [clock.lap() for _ in sampler.steps(labels, range(len(labels)))]
    clock.lap()
    samples = sampler.samples()
    decoding = clock.lap()
    ends = [int(steps.max()) + 1 for steps in samples.step]
    return [*(sum(seconds[start:end]) for start, end in pairwise([0, *ends])), decoding]


def _products(case: Case, model: Generator, labels: torch.Tensor) -> tuple[list[Product], list[Product], int]:
    """The products of an eager run, those of drawing and of decoding; and the operations of drawing."""
    sampler = model.sampler(case.batch, model.Drawing(**case.args.drawing))
    with RecordProducts() as drawing, CountKernels() as kernels:
        for _ in sampler.steps(labels, range(len(labels))):
            pass
    with RecordProducts() as decoding:
        sampler.samples()
    return drawing.products, decoding.products, kernels.count


if __name__ == "__main__":
    run(main)
