"""Numeric checks of tiny models: a device computes what the CPU does, and sampling what teacher forcing does.

The tests of models/ say more, but need pytest. Letters: B images, L locations, V codes.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.device_plan import TINY_AUTOENCODER, tiny_section
from benchmarks.measure import make_model, random_batch
from models import sample
from models.config import FAMILIES
from models.draw import code_noise
from models.family import Generator, Samples
from models.noise import CODES, uniforms
from models.scales import join_scales

BATCH = 2
SEEDS = (5, 6)
NOISE_SEEDS = (0, 4, 2**31, 2**32 - 1)
ROUNDING = 1e-4  # of float32, which is up to 4e-6 off float64 here; rounding to TF32 goes beyond it
WEIGHT_STD = 0.2  # fresh models hold zeros, which would hide mistakes


class Check(NamedTuple):
    """Something that should be near zero."""

    name: str
    tolerance: float
    difference: Callable[[], float]


def checks_of(device: torch.device, compiled: bool) -> Iterator[Check]:
    """All checks, if wanted those of ``compiled`` sampling too; each computes once it is asked for its difference."""
    yield Check(
        "noise: uniform numbers, bit for bit", 0, partial(_noise, device, partial(uniforms, count=130, use=CODES))
    )
    yield Check("noise: exponential numbers", 1e-6, partial(_noise, device, partial(code_noise, num_codes=4096)))
    for architecture in FAMILIES:
        of_cpu = _tiny_model(architecture)
        of_device = copy.deepcopy(of_cpu).to(device)
        for name, tolerance, difference in (
            ("logits", ROUNDING, _logits),
            ("gradients", ROUNDING, _gradients),
            ("latents of images", ROUNDING, _latents),
            ("decoded images", ROUNDING, _decoded),
            ("codes drawn greedily that differ", 0, _greedy_codes),
        ):
            yield Check(f"{architecture}: {name}", tolerance, partial(difference, of_cpu, of_device))
        yield Check(f"{architecture}: sampling - teacher forcing", ROUNDING, partial(_teacher_forcing, of_device))
        if compiled:
            yield Check(f"{architecture}: codes that differ when compiled", 0, partial(_compiled_codes, of_device))


@torch.no_grad()
def _tiny_model(architecture: str) -> Generator:
    """A model on the CPU whose every weight is random."""
    model = make_model(tiny_section(architecture), TINY_AUTOENCODER, torch.device("cpu"))
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=WEIGHT_STD)
    return model


def _noise(device: torch.device, make: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Largest difference, over the number, of what ``make`` makes of seeds (B,) and locations (1, L)."""
    seeds, locations = torch.tensor(NOISE_SEEDS), torch.arange(400)[None]
    expected = make(seeds, locations)
    return _largest((make(seeds.to(device), locations.to(device)).cpu() - expected) / expected)


@torch.no_grad()
def _logits(of_cpu: Generator, of_device: Generator) -> float:
    codes, labels = random_batch(of_cpu, BATCH)
    found, _ = of_device(_to(codes, of_device), labels.to(of_device.device))
    return _largest(found.cpu() - of_cpu(codes, labels)[0])


def _gradients(of_cpu: Generator, of_device: Generator) -> float:
    """Over the largest of each parameter's."""
    codes, labels = random_batch(of_cpu, BATCH)
    gradients = []
    for model in (of_cpu, of_device):
        _, loss = model(_to(codes, model), labels.to(model.device))
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    return max(_largest(b.cpu() - a) / _largest(a) for a, b in zip(*gradients, strict=True))


@torch.no_grad()
def _latents(of_cpu: Generator, of_device: Generator) -> float:
    side = of_cpu.config.img_size
    images = torch.rand(BATCH, 3, side, side) * 2 - 1
    found = of_device.autoencoder.encode(images.to(of_device.device))
    return _largest(found.cpu() - of_cpu.autoencoder.encode(images))


@torch.no_grad()
def _decoded(of_cpu: Generator, of_device: Generator) -> float:
    codes = random_batch(of_cpu, BATCH)[0][-1]
    return _largest(of_device.decode(codes.to(of_device.device)).cpu() - of_cpu.decode(codes))


def _greedy_codes(of_cpu: Generator, of_device: Generator) -> float:
    return _differing(*(_draw(model, temperature=0.0) for model in (of_cpu, of_device)))


def _compiled_codes(model: Generator) -> float:
    torch._dynamo.reset()
    return _differing(_draw(model), _draw(model, compiled=True))


@torch.no_grad()
def _teacher_forcing(model: Generator) -> float:
    """Of the log-probabilities of the drawn codes, unguided, of each image sorted: families differ in their order."""
    labels, order = torch.arange(BATCH, device=model.device), None
    if model.takes_order:
        order = torch.rand(BATCH, model.num_locations).argsort(1).to(model.device)
    out = _draw(model, cfg=0.0, order=order)
    logits, targets = model.score(out.codes, labels, order)
    expected = logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)  # (B, L) in the order drawn
    return _largest(join_scales(out.probability).log().sort(1).values - expected.sort(1).values)


def _draw(model: Generator, **settings: Any) -> Samples:
    return sample(model, range(BATCH), seeds=SEEDS, **settings)


def _to(codes: list[Tensor], model: Generator) -> list[Tensor]:
    return [scale.to(model.device) for scale in codes]


def _differing(*drawn: Samples) -> float:
    """How many codes differ between two drawings."""
    first, second = (join_scales(samples.codes).cpu() for samples in drawn)
    return float((first != second).sum())


def _largest(difference: Tensor) -> float:
    """NaN if there is any."""
    return float(difference.abs().max())
