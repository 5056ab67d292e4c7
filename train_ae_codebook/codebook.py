"""Usage of the codes of a codebook that is being trained.

Letters: V codes.
"""

import torch
from torch import Tensor

from runtime import distributed

USAGE_RATE = 0.01  # of the moving average of code frequencies


@torch.no_grad()
def code_frequencies(codes: Tensor, num_codes: int) -> Tensor:
    """(V,) shares of each code in the codes (B, S, S) of all ranks; bincount would wait for a GPU."""
    codes = codes.flatten()
    ones = torch.ones(codes.shape, device=codes.device)
    counts = distributed.add_up(torch.zeros(num_codes, device=codes.device).index_add_(0, codes, ones))
    return counts / counts.sum()


def perplexity(usage: Tensor) -> Tensor:
    """exp of the entropy of frequencies (..., V) of any sum: as many codes, used equally, would be as diverse."""
    shares = usage / usage.sum(-1, keepdim=True).clamp_min(torch.finfo(usage.dtype).tiny)
    return torch.special.entr(shares).sum(-1).exp()


def dead_codes(usage: Tensor, dead_below: float) -> Tensor:
    """Which of the frequencies (..., V) are below ``dead_below`` of an equal share."""
    return usage < dead_below / usage.shape[-1]
