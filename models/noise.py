"""Random numbers of images, each found from its image's seed and its place alone: Philox 4x32-10.

So they depend on no batch, rank, device or order of drawing. Source: Salmon et al., "Parallel random numbers: as easy
as 1, 2, 3", SC 2011. Letters: B images, L locations, n numbers of a location.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# What an image's numbers are for; those of different uses are independent.
CODES = 0
ORDER = 1

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF  # 32 bits; words lie in int64, whose products keep their low 64 bits


def philox(counter: Sequence[Tensor], key: tuple[Tensor, int]) -> tuple[Tensor, ...]:
    """Four random words (...) of every counter, four words (...), under a key of two; tensors are int64 of 32 bits.

    What lies above 32 bits is cut off where a product would else be wrong, and at the end.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        first, second = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0 = (second >> 32).bitwise_xor_(c1).bitwise_xor_(k0).bitwise_and_(WORD)
        c2 = (first >> 32).bitwise_xor_(c3).bitwise_xor_(k1).bitwise_and_(WORD)
        c1, c3 = second, first
        k0, k1 = k0 + KEY_STEPS[0], k1 + KEY_STEPS[1] & WORD
    return c0, c1 & WORD, c2, c3 & WORD


def uniforms(seeds: Tensor, locations: Tensor, count: int, use: int) -> Tensor:
    """(B, L, n) float32 in (0, 1), of seeds (B,) below 2**32 and locations (B or 1, L), both int64.

    Near 0 they are as fine as 2**-33; the largest is 1 - 2**-23.
    """
    quads = torch.arange(-(-count // 4), device=seeds.device)
    shape = (len(seeds), locations.shape[-1], len(quads))
    zero = seeds.new_zeros(()).expand(shape)
    counter = (quads.expand(shape), locations[..., None].expand(shape), zero, zero)
    words = philox(counter, (seeds[:, None, None], use))
    numbers = torch.stack([word.float() for word in words], dim=-1).flatten(2)[..., :count]
    return numbers.add_(0.5).mul_(2.0**-32 * (1 - 2.0**-23))


def exponentials(seeds: Tensor, locations: Tensor, count: int, use: int) -> Tensor:
    """(B, L, n) exponentially distributed, never 0 or infinite, otherwise as ``uniforms``: ``-log1p(-u)``.

    By Kahan's formula, for log1p is eight times as slow as log on a CPU.
    """
    u = uniforms(seeds, locations, count, use)
    rest = 1 - u
    return torch.where(rest == 1, u, rest.log() * (u / (rest - 1)))
