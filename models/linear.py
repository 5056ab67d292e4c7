"""Linear layers, by the fastest matrix product at hand."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b`` (..., n) of inputs (..., k), a weight (n, k) and a bias (n,), as ``F.linear``.

    In float32 on a CPU and without gradients oneDNN computes it. ``F.linear`` takes MKL there, which is 1.1 to 3.8
    times as slow on an AMD EPYC, most for few rows (docs/speed.md).
    """
    if _uses_onednn(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _uses_onednn(x: Tensor, weight: Tensor) -> bool:
    """torch has no public name for this product; its compiler uses it, with weights that it packs itself."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
    )


class Linear(nn.Linear):
    """``nn.Linear`` by ``linear``."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
