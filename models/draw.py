"""Seeds of images; logits -> codes: guidance, truncation, each image's own noise (method.md Sec. 6).

Letters: B images, l tokens of a block, V codes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.config import NUM_SEEDS
from runtime.device import send

DRAWING_VERSION = 2  # recorded with samples; to be raised whenever the same settings give other images
SEED_STRIDE = 0x9E3779B9  # NUM_SEEDS over the golden ratio, odd: multiples of it lie far apart modulo NUM_SEEDS


def image_seed(seed: int, index: int) -> int:
    """The seed, below ``NUM_SEEDS``, of image ``index`` of a run of this ``seed``.

    No two images of a run share one. Two runs whose seeds differ by less than 30,000 share none among their first
    50,000 images.
    """
    return (seed * SEED_STRIDE + index) % NUM_SEEDS


def guide(logits: Tensor, cfg: float | Tensor) -> Tensor:
    """``cond + cfg * (cond - uncond)`` of logits (2B, l, V) whose second half is unconditional."""
    cond, uncond = logits.chunk(2)
    return cond + cfg * (cond - uncond)


def truncate(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits (..., V) with -inf outside the ``top_k`` likeliest, ties with the last of them kept, and then ``top_p``.

    Of what is left, a code goes if those that are likelier have more than a mass of ``top_p``; the likeliest stays.
    """
    if 0 < top_k < logits.shape[-1]:
        last = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < last, -torch.inf)
    if top_p < 1:
        ranked, codes = logits.sort(dim=-1, descending=True)
        probs = ranked.softmax(-1)
        mass_before = probs.cumsum(-1) - probs
        outside = torch.zeros_like(mass_before, dtype=torch.bool).scatter(-1, codes, mass_before > top_p)
        logits = logits.masked_fill(outside, -torch.inf)
    return logits


def draw(
    logits: Tensor, noise: Tensor, temperature: float | Tensor, top_k: int, top_p: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One code a token, its probability and the entropy of its distribution, each (B, l).

    Of float32 logits (B, l, V) after guidance, and noise (B, l, V) above 0, exponentially distributed. The number 0 as
    temperature takes the likeliest code, with entropy 0 and probability 1. Where logits are NaN or too large for
    float32, the entropy is NaN.

    The code with the least noise for its probability is drawn, which happens with that probability (Gumbel-max).
    Two codes seldom come so close that rounding decides; an inverse CDF has a threshold next to each of V codes.
    """
    if isinstance(temperature, float | int) and temperature == 0:
        likeliest, codes = logits.max(-1)
        return codes, torch.ones_like(likeliest), likeliest - likeliest
    probs = truncate(logits / temperature, top_k, top_p).softmax(-1)
    codes = (probs / noise).argmax(-1, keepdim=True)  # (B, l, 1)
    return codes.squeeze(-1), probs.gather(-1, codes).squeeze(-1), torch.special.entr(probs).sum(-1)


def draw_uniforms(generators: Sequence[torch.Generator], *shape: int) -> Tensor:
    """(B, *shape) in [0, 1): each image's own, so that no image depends on its batch; drawn on the CPU."""
    return torch.stack([torch.rand(shape, generator=generator) for generator in generators])


def draw_noise(generators: Sequence[torch.Generator], *shape: int, device: torch.device) -> Tensor:
    """(B, *shape) for ``draw``, on a device; copied while the device works on."""
    return noise_of(send(draw_uniforms(generators, *shape), device))


def noise_of(uniforms: Tensor) -> Tensor:
    """Exponentially distributed numbers from those in [0, 1), which are changed; never 0 or infinite."""
    return uniforms.mul_(1 - 2.0**-23).add_(2.0**-25).neg_().log1p_().neg_()
