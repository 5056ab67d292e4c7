"""Time of a training step from codes, split, beside what its matrix products alone take.

    python -m benchmarks.training --config configs/config_256_S.yaml --batch_size 4

The products' own time is that of every linear layer, forward and both backward products, at the step's shapes, in the
same run. What is left is attention, norms, rotations, the loss and Python.
"""

import random
import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure import Clock, RecordProducts
from models.family import StepContext
from models.loading.checkpoint import random_model
from runtime.command import run
from runtime.config import parse_flags
from runtime.device import describe_machine, describe_size, pick_device


@dataclass(frozen=True)
class BenchmarkArgs:
    """What to time.

    Attributes:
        config: training configuration.
        batch_size: images a step.
        steps: timed steps, after two more to warm up; the median counts.
        device: auto, cuda, mps or cpu.
    """

    config: str = "configs/config_256_S.yaml"
    batch_size: int = 4
    steps: int = 5
    device: str = "auto"


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "benchmarks.training", __doc__, BenchmarkArgs)
    device = pick_device(args.device)
    model = random_model(Path(args.config))[0].to(device).train()
    num_codes = model.autoencoder.config.n_embed
    codes = [torch.randint(num_codes, (args.batch_size, side, side), device=device) for side in model.scale_sizes]
    labels = torch.randint(model.config.num_classes, (args.batch_size,), device=device)
    optimizer = torch.optim.AdamW(model.parameters())
    parts: dict[str, list[float]] = {"forward": [], "backward": [], "optimizer": []}
    record = RecordProducts()
    for step in range(args.steps + 2):
        clock = Clock(device)
        with record if step == 0 else nullcontext():
            context = StepContext(step, 0.0, 0, random.Random(step), torch.Generator(device).manual_seed(step))
            loss = model.training_loss(codes, labels, context).value
        forward = clock.lap()
        loss.backward()
        backward = clock.lap()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step >= 2:
            for name, seconds in zip(parts, (forward, backward, clock.lap()), strict=True):
                parts[name].append(seconds)
    medians = {name: statistics.median(seconds) for name, seconds in parts.items()}
    total = sum(medians.values())
    linears = [product.args[:2] for product in record.products]
    products = statistics.median(_time_linears(linears, device) for _ in range(args.steps))
    print(f"{args.config}, batch {args.batch_size}, float32, {describe_size(model)}; {describe_machine(device)}")
    for name, seconds in [*medians.items(), ("step", total)]:
        print(f"{name:>16}: {seconds:7.3f} s, {seconds / total:6.1%}")
    print(f"{'matrix products':>16}: {products:7.3f} s, {products / total:6.1%} of the step")


def _time_linears(calls: list[tuple[Tensor, Tensor]], device: torch.device) -> float:
    """Seconds of the forward product and both backward products of each layer."""
    seconds = 0.0
    for x, weight in calls:
        rows = x.reshape(-1, x.shape[-1])
        grad = torch.ones(len(rows), weight.shape[0], device=device)
        products: tuple[Callable[[], Tensor], ...] = (
            lambda rows=rows, weight=weight: rows @ weight.T,
            lambda grad=grad, weight=weight: grad @ weight,
            lambda grad=grad, rows=rows: grad.T @ rows,
        )
        clock = Clock(device)
        for product in products:
            product()
        seconds += clock.lap()
    return seconds


if __name__ == "__main__":
    run(main)
