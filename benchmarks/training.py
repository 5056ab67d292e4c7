"""Time of a training step from codes, split, beside what its matrix products alone take.

    python -m benchmarks.training --config configs/config_256_S.yaml --batch_size 4

Precision is that of training: bfloat16 on a GPU or a CPU that computes in it, unless --dtype says something else.

The products' own time is that of every linear layer, forward and both backward products, at the step's shapes, in the
same run. What is left is attention, norms, rotations, the loss and Python.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from runtime.command import run
from runtime.config import option, parse_flags
from runtime.errors import UserError, check_at_least
from runtime.files import prepare_output, write_json

WARM_UP = 2  # steps


@dataclass(frozen=True)
class BenchmarkArgs:
    """What to time."""

    config: str = option("configs/config_256_S.yaml", "training configuration")
    batch_size: int = option(4, "images a step")
    dtype: Literal["auto", "float32", "bfloat16"] = option("auto", "precision, as main.py takes it")
    patch_side: int = option(1, "codes along a side of the patches of Next Patch Prediction")
    steps: int = option(5, "timed steps, after two more to warm up; the median counts")
    device: str = option("auto", "auto, cuda, mps or cpu")
    output_file: str | None = option(None, "JSON to write: seconds of a step")

    def __post_init__(self) -> None:
        check_at_least(1, self, "batch_size", "patch_side", "steps")


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "benchmarks.training", __doc__, BenchmarkArgs)
    import torch  # takes seconds, and so do the rest

    from benchmarks.measure import RecordProducts, now, products_of_linear, random_batch, time_products
    from models.loading.checkpoint import random_model
    from runtime.device import (
        autocast,
        describe_machine,
        describe_size,
        dtype_name,
        fuses_optimizer,
        pick_device,
        pick_dtype,
    )
    from training.task import step_context

    prepare_output(args.output_file)
    device = pick_device(args.device)
    dtype = pick_dtype(args.dtype, device, trains=True)
    model = random_model(Path(args.config))[0].to(device).train()
    if args.patch_side > 1 and (not model.learns_patches or model.scale_sizes[-1] % args.patch_side):
        raise UserError(f"{args.config} does not learn from patches of side {args.patch_side}; leave out --patch_side")
    codes, labels = random_batch(model, args.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), fused=fuses_optimizer(device))
    times, record = [], RecordProducts()
    for step in range(WARM_UP + args.steps):
        times.append([now(device)])
        with record if step == 0 else nullcontext(), autocast(device, dtype):
            context = replace(step_context(0, step, 0, device, logs=False), patch_side=args.patch_side)
            loss = model.training_loss(codes, labels, context).value
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
    precision = dtype_name(dtype)
    print(f"{args.config}, batch {args.batch_size}, {precision}, {describe_size(model)}; {describe_machine(device)}")
    for name, value in zip(("forward", "backward", "optimizer", "step"), (*medians, total), strict=True):
        print(f"{name:>16}: {value:7.3f} s, {value / total:6.1%}")
    print(f"{'matrix products':>16}: {seconds:7.3f} s, {seconds / total:6.1%} of the step")
    if args.output_file is not None:
        found = {"patch_side": args.patch_side, "batch_size": args.batch_size, "dtype": precision}
        write_json(Path(args.output_file), found | {"seconds": total, "machine": describe_machine(device)})


if __name__ == "__main__":
    run(main)
