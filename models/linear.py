"""Linear layers, by the fastest matrix product at hand.

Letters: k inputs, n outputs, M rows of all that comes before.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

MANY_LOGITS = 2**22  # a step that has more computes a part of them at a time
_plain = False


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b`` (..., n) of inputs (..., k), a weight (n, k) and a bias (n,), as ``F.linear``.

    In float32 on a CPU oneDNN computes it. ``F.linear`` takes MKL there, which is 1.1 to 3.8 times as slow on an AMD
    EPYC, most for few rows (docs/speed.md).
    """
    if not _takes_onednn(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in (x, weight, bias)):
        product = _Product.apply(x, weight)
        return product if bias is None else product + bias
    return _onednn(x, weight, bias)


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None) -> Tensor:
    """Mean cross-entropy in nats of the logits ``linear(x, weight, bias)`` of rows (M, k) with targets (M,).

    Of many logits, a part of the rows at a time, forward and backward: they are never there as a whole, and gradients
    can be taken once.
    """
    few = len(x) * len(weight) < MANY_LOGITS or len(weight) <= weight.shape[1]
    if few or _plain or torch.compiler.is_compiling():
        return F.cross_entropy(linear(x, weight, bias), targets)
    return F.linear_cross_entropy(x, weight, targets, linear_bias=bias, options=nn.LinearCrossEntropyOptions())


@contextmanager
def by_torch() -> Iterator[None]:
    """``F.linear`` alone computes linear layers while this lasts: to compare with, or to note its calls."""
    global _plain
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before


class Linear(nn.Linear):
    """``nn.Linear`` by ``linear``."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def _takes_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether it is faster, and torch needs no more of it than values and first derivatives by ``backward``."""
    return (
        not _plain
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and weight.ndim == 2
        and x.shape[-1:] == weight.shape[1:]  # else F.linear says what is wrong
        and x.numel() > 0 < weight.numel()
        and not torch._C._are_functorch_transforms_active()
    )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch has no public name for this product; its compiler uses it, with weights that it packs itself.

    It takes weights that lie row by row or column by column; of a part of a larger one it is a thousand times as slow.
    """
    if not (weight.is_contiguous() or weight.T.is_contiguous()):
        weight = weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Product(torch.autograd.Function):
    """``x W^T`` with gradients, which oneDNN computes too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x = _onednn(grad, weight.T) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return of_x, None
        rows, grad_rows = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])  # (M, k), (M, n)
        return of_x, _onednn(rows.T, grad_rows.T).T
