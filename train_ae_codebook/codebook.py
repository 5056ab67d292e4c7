"""What every training of a codebook shares: the pyramid's settings, the size of a step, usage of the codes.

Letters: V codes.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime import distributed
from runtime.errors import UserError
from training.options import LoopArgs

USAGE_RATE = 0.01  # of the moving average of code frequencies


@dataclass(frozen=True)
class PyramidArgs(LoopArgs):
    """Settings of a training over the sizes of a pyramid.

    Attributes:
        img_size: side of the full images, in pixels.
        scale_sizes: sides of the code maps of the pyramid to represent.
        full_size_share: probability of the full size outright; otherwise a step's size is drawn evenly, from scratch
            among the smaller ones, for a new codebook among all.
        commitment: weight of the pull of latents towards their codes.
        revive_freq: steps between revivals of dead codes; 0 never revives.
        dead_below: a code is dead if used less than this share of an equal one.
        export_dir: folder that gets the finished autoencoder; default the run folder's autoencoder/.
    """

    img_size: int = 32
    scale_sizes: tuple[int, ...] = (1, 2, 4, 8)
    full_size_share: float = 0.5
    commitment: float = 0.25
    revive_freq: int = 50
    dead_below: float = 0.03
    export_dir: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype not in ("auto", "float32"):
            raise UserError(f"dtype is {self.dtype}; an autoencoder is trained in float32")
        if not 0 <= self.full_size_share <= 1:
            raise UserError(f"full_size_share is a probability; {self.full_size_share} does not lie between 0 and 1")
        for name in ("commitment", "revive_freq", "dead_below"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must not be negative")
        if not self.scale_sizes or min(self.scale_sizes) < 1:
            raise UserError(f"scale_sizes is {list(self.scale_sizes)}; name at least one side, each at least 1")

    def check_stride(self, stride: int) -> None:
        """Refuse a pyramid whose largest scale is not the image; ``stride`` is the autoencoder's, in pixels."""
        largest = max(self.scale_sizes) * stride
        if largest != self.img_size:
            raise UserError(f"the largest of scale_sizes is one of {largest} pixels, but img_size is {self.img_size}")

    def draw_side(self, others: Sequence[int], draws: random.Random) -> int:
        """Side of the code maps of one step: the largest with probability ``full_size_share``, else of ``others``."""
        whole = not others or draws.random() < self.full_size_share
        return max(self.scale_sizes) if whole else draws.choice(others)


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
