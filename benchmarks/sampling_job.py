"""Sampling, timed: a row of the table for each model, precision, batch and mode, in processes of its own."""

import copy
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import CountKernels, RecordProducts, forget_peak, held_memory, now, time_products
from benchmarks.sampling import BenchmarkArgs
from models.family import Generator, Samples
from models.loading.checkpoint import random_model
from models.sampler import Sampler
from models.sampling import checked_drawing
from runtime.device import DTYPES, describe_machine, pick_device

COLUMNS = (
    *("model", "batch", "dtype", "mode", "warm-up s", "drawing s", "floor s", "ratio"),
    *("decoding s", "floor s", "levels off", "s an image", "operations", "memory GB", "weights + cache", "by scale s"),
)
ROW = "{:<14}{:>6}{:>10}{:>10}{:>10}{:>10}{:>9}{:>7}{:>11}{:>9}{:>12}{:>11}{:>11}{:>10}{:>16}  {}"
# Tells glibc to return freed memory at once, of which it else keeps up to 100 MB to save the time of asking.
RETURNS_MEMORY = "MALLOC_MMAP_THRESHOLD_"


@dataclass(frozen=True)
class Case:
    """One row."""

    config: str
    dtype: str
    batch: int
    mode: str
    args: BenchmarkArgs

    def make(self, device: torch.device) -> tuple[Generator, Tensor]:
        """Model and labels of a batch."""
        torch.manual_seed(0)
        model, _ = random_model(Path(self.config))
        model.to(device=device, dtype=DTYPES[self.dtype])
        model.autoencoder.decode_in(DTYPES[self.args.decoder_dtype])
        return model, torch.arange(self.batch) % model.config.num_classes

    def sampler(self, model: Generator, mode: str) -> Sampler:
        return model.sampler(self.batch, checked_drawing(model, self.args.drawing), compiled=mode == "compiled")


def print_rows(args: BenchmarkArgs) -> None:
    """Measure every case that ``args`` name, and print the table."""
    steps = args.drawing or "as is usual for each family"
    print(f"{describe_machine(pick_device(args.device))}; guided, {steps}, seconds of a batch")
    print(ROW.format(*COLUMNS), flush=True)
    for case in product(args.configs, args.dtypes, args.batch_sizes, args.modes):
        times = _in_process(measure_times, Case(*case, args))
        os.environ[RETURNS_MEMORY] = "1000000"
        memory = _in_process(measure_memory, Case(*case, args))
        del os.environ[RETURNS_MEMORY]
        print(ROW.format(*times[:-1], *memory, times[-1]), flush=True)


def _in_process(measure: Callable[[Case], tuple[str, ...]], case: Case) -> tuple[str, ...]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, case).result()


@torch.inference_mode()
def measure_memory(case: Case) -> tuple[str, ...]:
    """The cells of memory: the most that is held while a batch is drawn and decoded, and weights and cache of that."""
    device = pick_device(case.args.device)
    before = held_memory(device)
    model, labels = case.make(device)
    sampler = case.sampler(model, case.mode)
    weights = [*model.state_dict().values(), *model.autoencoder.state_dict().values()]
    needed = sum(tensor.nbytes for tensor in (*weights, *sampler.cache()))
    if case.mode == "compiled":  # compilers hold more than the result does
        sampler(labels, range(case.batch))
    forget_peak(device)
    sampler(labels, range(case.batch))
    return f"{(held_memory(device, peak=True) - before) / 1e9:.2f}", f"{needed / 1e9:.2f}"


@torch.inference_mode()
def measure_times(case: Case) -> tuple[str, ...]:
    """The other cells of a row; those of scales last."""
    device, repeats = pick_device(case.args.device), range(case.args.repeats)
    model, labels = case.make(device)
    sampler, start = case.sampler(model, case.mode), now(device)
    _time_scales(sampler, labels, device)
    warm_up = now(device) - start
    *scales, decoding = np.median([_time_scales(sampler, labels, device) for _ in repeats], axis=0)
    drawing = sum(scales)
    eager = case.sampler(model, "eager")
    with RecordProducts() as of_drawing, CountKernels() as kernels:
        list(eager.steps(labels, range(case.batch)))
    with RecordProducts() as of_decoding:
        samples = eager.samples()
    records = (of_drawing, of_decoding)
    floors = [np.median([time_products(record.products, device) for _ in repeats]) for record in records]
    return (
        *(Path(case.config).stem.removeprefix("config_"), str(case.batch), case.dtype, case.mode),
        *(f"{warm_up:.1f}", f"{drawing:.2f}", f"{floors[0]:.2f}", f"{drawing / floors[0]:.2f}"),
        *(
            f"{decoding:.2f}",
            f"{floors[1]:.2f}",
            _levels_off(model, samples),
            f"{(drawing + decoding) / case.batch:.2f}",
            str(kernels.count),
        ),
        " ".join(f"{seconds:.2f}" for seconds in scales),
    )


def _levels_off(model: Generator, samples: Samples) -> str:
    """How far images are from those of the same weights in float32, in levels of 255: the most and on average."""
    single = copy.deepcopy(model.autoencoder)
    single.decode_in(torch.float32)
    expected = torch.cat([single.decode(codes) for codes in samples.codes[-1].split(1)])
    levels = [model.to_uint8(images).int() for images in (samples.images, expected)]
    off = (levels[0] - levels[1]).abs().float()
    return f"{off.max():.0f} / {off.mean():.2f}"


def _time_scales(sampler: Sampler, labels: Tensor, device: torch.device) -> list[float]:
    """Seconds of drawing each scale (the preparation counts to the first) and of decoding the last."""
    times = [now(device), *(now(device) for _ in sampler.steps(labels, range(len(labels))))]
    start = now(device)
    samples = sampler.samples()
    decoding = now(device) - start
    ends = [0, *(int(steps.max()) + 1 for steps in samples.step)]
    return [*np.diff([times[end] for end in ends]), decoding]
