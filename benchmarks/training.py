"""Time of a training step from codes, split, beside what its matrix products alone take.

    python -m benchmarks.training --config configs/config_256_S.yaml --batch_size 4

Precision is that of training: bfloat16 on a GPU or a CPU that computes in it, unless --dtype says something else.

The products' own time is that of every linear layer, forward and both backward products, at the step's shapes, in the
same run. What is left is attention, norms, rotations, the loss and Python.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from runtime.command import run
from runtime.config import option, parse_flags
from runtime.errors import check_at_least

WARM_UP = 2  # steps


@dataclass(frozen=True)
class BenchmarkArgs:
    """What to time."""

    config: str = option("configs/config_256_S.yaml", "training configuration")
    batch_size: int = option(4, "images a step")
    dtype: Literal["auto", "float32", "bfloat16"] = option("auto", "precision, as main.py takes it")
    steps: int = option(5, "timed steps, after two more to warm up; the median counts")
    device: str = option("auto", "auto, cuda, mps or cpu")

    def __post_init__(self) -> None:
        check_at_least(1, self, "batch_size", "steps")


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "benchmarks.training", __doc__, BenchmarkArgs)
    import torch  # takes seconds, and so do the rest

    from benchmarks.measure import RecordProducts, now, products_of_linear, random_batch, time_products
    from models.loading.checkpoint import random_model
    from runtime.device import autocast, describe_machine, describe_size, fuses_optimizer, pick_device, pick_dtype
    from training.task import step_context

    device = pick_device(args.device)
    dtype = pick_dtype(args.dtype, device, trains=True)
    model = random_model(Path(args.config))[0].to(device).train()
    codes, labels = random_batch(model, args.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), fused=fuses_optimizer(device))
    times, record = [], RecordProducts()
    for step in range(WARM_UP + args.steps):
        times.append([now(device)])
        with record if step == 0 else nullcontext(), autocast(device, dtype):
            loss = model.training_loss(codes, labels, step_context(0, step, 0, device, logs=False)).value
        times[step].append(now(device))
        loss.backward()
        times[step].append(now(device))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times[step].append(now(device))
    medians = np.median(np.diff(times[WARM_UP:]), axis=0)
    total = sum(medians)
    products = [product for call in record.products for product in products_of_linear(*call.args[:2])]
    seconds = np.median([time_products(products, device) for _ in range(args.steps)])
    precision = str(dtype).removeprefix("torch.")
    print(f"{args.config}, batch {args.batch_size}, {precision}, {describe_size(model)}; {describe_machine(device)}")
    for name, value in zip(("forward", "backward", "optimizer", "step"), (*medians, total), strict=True):
        print(f"{name:>16}: {value:7.3f} s, {value / total:6.1%}")
    print(f"{'matrix products':>16}: {seconds:7.3f} s, {seconds / total:6.1%} of the step")


if __name__ == "__main__":
    run(main)
