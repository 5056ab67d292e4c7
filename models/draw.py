"""Seeds of images; logits -> codes: guidance, truncation, each image's own noise (formats.md M6).

Letters: B images, l tokens of a block, V codes, n numbers of noise a token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.config import NUM_SEEDS
from models.noise import CODES, exponentials

DRAWING_VERSION = 3  # recorded with samples; to be raised whenever the same settings give other images
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
    return torch.lerp(uncond, cond, 1 + cfg)


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


def group_size(num_codes: int) -> int:
    """Codes of a group, as ``draw`` forms groups of V codes: a power of two near sqrt(V)."""
    return 1 << ((num_codes - 1).bit_length() + 1) // 2


def code_noise(seeds: Tensor, locations: Tensor, num_codes: int) -> Tensor:
    """(B, l, n) for ``draw``: of images of seeds (B,), at their locations (B or 1, l).

    It is the same for a seed and a location whenever and wherever it is made.
    """
    size = group_size(num_codes)
    return exponentials(seeds, locations, -(-num_codes // size) + size, CODES)


def draw(
    logits: Tensor, noise: Tensor, temperature: float | Tensor, top_k: int, top_p: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One code a token, its probability and the entropy of its distribution, each (B, l).

    Of float32 logits (B, l, V) after guidance, and the ``code_noise`` of the tokens. The number 0 as temperature takes
    the likeliest code, with entropy 0 and probability 1. Where logits are NaN or too large for float32, the entropy
    is NaN.

    First a group of codes is drawn, then a code in it, each by Gumbel-max: the least noise / probability wins. That
    takes about 2 sqrt(V) random numbers instead of V. Rounding seldom changes which one wins; with an inverse CDF it
    could at each of V thresholds.
    """
    if isinstance(temperature, float | int) and temperature == 0:
        likeliest, codes = logits.max(-1)
        return codes, torch.ones_like(likeliest), likeliest - likeliest
    if not (isinstance(temperature, float | int) and temperature == 1):
        logits = logits / temperature
    probs = truncate(logits, top_k, top_p).softmax(-1)
    codes = _draw_by_groups(probs, noise)
    return codes.squeeze(-1), probs.gather(-1, codes).squeeze(-1), torch.special.entr(probs).sum(-1)


def _draw_by_groups(probs: Tensor, noise: Tensor) -> Tensor:
    """(B, l, 1) codes of probabilities (B, l, V)."""
    size = group_size(probs.shape[-1])
    lacking = -probs.shape[-1] % size
    probs = F.pad(probs, (0, lacking)) if lacking else probs
    grouped = probs.unflatten(-1, (-1, size))
    of_group, within = noise.split([grouped.shape[-2], size], dim=-1)
    group = (grouped.sum(-1) / of_group).argmax(-1, keepdim=True)  # (B, l, 1)
    drawn = grouped.gather(-2, group.unsqueeze(-1).expand(-1, -1, -1, size)).squeeze(-2)  # (B, l, size)
    return torch.add((drawn / within).argmax(-1, keepdim=True), group, alpha=size)
