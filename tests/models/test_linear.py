"""Linear layers: the numbers of torch's own, whichever library computes them; gradients where they are asked for."""

import time
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import linear as module
from models.linear import Linear, by_torch, linear, linear_cross_entropy

pytestmark = pytest.mark.quick


def assert_exact(found: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """As in float64, to the rounding of float32 sums."""
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=2e-6)


@pytest.mark.parametrize("shape", [(1,), (2, 1), (3, 7), (130,), (2, 3, 5)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_products_without_gradients(shape: tuple[int, ...], has_bias: bool, device: torch.device) -> None:
    x, weight = torch.randn(*shape, 96, device=device), torch.randn(40, 96, device=device)
    bias = torch.randn(40, device=device) if has_bias else None
    with torch.inference_mode():
        assert_exact(linear(x, weight, bias), x, weight, bias)


@torch.inference_mode()
def test_parts_of_tensors() -> None:
    """Inputs and weights whose rows are not one behind the other in memory."""
    x, weight = torch.randn(6, 2, 96).transpose(0, 1), torch.randn(40, 384)
    for part in weight.chunk(4, dim=1):
        assert_exact(linear(x, part), x, part, None)
    turned = torch.randn(48, 40).T
    assert_exact(linear(x[..., ::2], turned), x[..., ::2], turned, None)
    assert_exact(linear(x[:0], weight[:, :96]), x[:0], weight[:, :96], None)


@pytest.mark.parametrize("shape", [(5, 96), (2, 3, 96), (1, 96)])
def test_gradients_are_torchs(shape: tuple[int, ...]) -> None:
    x, layer = torch.randn(shape, requires_grad=True), Linear(96, 40)
    layer(x).square().sum().backward()
    found = (x.grad, layer.weight.grad, layer.bias.grad)
    x.grad, layer.weight.grad, layer.bias.grad = None, None, None
    F.linear(x, layer.weight, layer.bias).square().sum().backward()
    for grad, expected in zip(found, (x.grad, layer.weight.grad, layer.bias.grad), strict=True):
        torch.testing.assert_close(grad, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("trained", [("bias",), ("weight",), ("weight", "bias")])
def test_what_is_trained_alone_gets_its_gradient(trained: tuple[str, ...]) -> None:
    layer, x = Linear(96, 40), torch.randn(5, 96)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name in trained)
    layer(x).square().sum().backward()
    found = {name: parameter.grad for name, parameter in layer.named_parameters()}
    layer.zero_grad()
    F.linear(x, layer.weight, layer.bias).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert (found[name] is None) == (name not in trained)
        if name in trained:
            torch.testing.assert_close(found[name], parameter.grad, atol=1e-4, rtol=1e-5)


def test_second_derivatives_are_an_error_and_not_0() -> None:
    layer, x = Linear(96, 40), torch.randn(5, 96, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.square().sum().backward()


def test_transforms_of_functions_are_torchs() -> None:
    layer, x, direction = Linear(96, 40).requires_grad_(False), torch.randn(5, 96), torch.randn(5, 96)
    _, change = torch.func.jvp(layer, (x,), (direction,))
    torch.testing.assert_close(change, direction @ layer.weight.T, atol=1e-4, rtol=1e-5)
    gradient = torch.func.grad(lambda x: layer(x).square().sum())(x)
    torch.testing.assert_close(gradient, 2 * layer(x) @ layer.weight, atol=1e-3, rtol=1e-4)


def test_a_bias_may_be_a_column() -> None:
    x, weight, bias = torch.randn(5, 96), torch.randn(40, 96), torch.randn(40, 2)[:, 0]
    with torch.inference_mode():
        assert_exact(linear(x, weight, bias), x, weight, bias)


def test_an_empty_batch_has_gradients() -> None:
    layer = Linear(96, 40)
    layer(torch.zeros(0, 96)).sum().backward()
    assert torch.equal(layer.weight.grad, torch.zeros(40, 96))


@pytest.mark.parametrize(("inputs", "weight"), [((5, 95), (40, 96)), ((5, 96), (1, 40, 96))])
def test_wrong_shapes_are_torchs_error(inputs: tuple[int, ...], weight: tuple[int, ...]) -> None:
    with torch.inference_mode(), pytest.raises(RuntimeError) as error:
        linear(torch.randn(inputs), torch.randn(weight))
    with torch.inference_mode(), pytest.raises(RuntimeError) as expected:
        F.linear(torch.randn(inputs), torch.randn(weight))
    assert str(error.value) == str(expected.value)


def test_other_precisions_stay() -> None:
    layer = Linear(96, 40)
    x = torch.randn(5, 96)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    with torch.inference_mode():
        assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
        assert layer.double()(x.double()).dtype == torch.float64


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch has no MKL, whose place oneDNN takes")
def test_the_fast_product_is_taken_where_it_can_be() -> None:
    x, layer = torch.randn(5, 96), Linear(96, 40)
    with patch.object(module.F, "linear", side_effect=AssertionError("F.linear was called")):
        layer(x).sum().backward()
        with torch.no_grad():
            layer(x)
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(AssertionError, match=r"F\.linear was called"):
            layer(x)


def test_parts_of_weights_are_no_slower() -> None:
    """oneDNN falls back to plain loops for weights whose rows lie apart: a thousand times as slow."""
    x, weight = torch.randn(512, 128, requires_grad=True), torch.randn(128, 512, requires_grad=True)
    seconds = []
    for part in (weight.chunk(4, dim=1)[1].contiguous(), weight.chunk(4, dim=1)[1]):
        times = []
        for _ in range(5):
            start = time.process_time()
            linear(x, part).sum().backward()
            times.append(time.process_time() - start)
        seconds.append(min(times))
    assert seconds[1] < 10 * seconds[0]


# The loss of a head


@patch.object(module, "MANY_LOGITS", 0)
@pytest.mark.parametrize("rows", [1, 50, 300])
@pytest.mark.parametrize("outputs", [40, 1000])  # fewer than inputs: all rows at once
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_loss_of_a_head_and_its_gradients_are_torchs(
    rows: int, outputs: int, has_bias: bool, device: torch.device
) -> None:
    x, weight = torch.randn(rows, 96, device=device), torch.randn(outputs, 96, device=device) / 10
    bias, targets = torch.randn(outputs, device=device), torch.randint(outputs, (rows,), device=device)
    parts = [part.requires_grad_() for part in ([x, weight, bias] if has_bias else [x, weight])]
    loss = linear_cross_entropy(x, weight, targets, bias if has_bias else None)
    found = torch.autograd.grad(3 * loss, parts)
    exact = F.cross_entropy(F.linear(*(part.double() for part in parts)), targets)
    torch.testing.assert_close(loss.double(), exact, atol=1e-6, rtol=1e-6)
    for grad, expected in zip(found, torch.autograd.grad(3 * exact, parts), strict=True):
        torch.testing.assert_close(grad, expected, atol=1e-6, rtol=1e-4)


@patch.object(module, "MANY_LOGITS", 0)
@pytest.mark.parametrize("trained", [(), (0,), (1,), (2,), (0, 2)])
def test_gradients_of_what_is_trained(trained: tuple[int, ...]) -> None:
    parts = [torch.randn(50, 16), torch.randn(200, 16), torch.randn(200)]
    for index in trained:
        parts[index].requires_grad_()
    loss = linear_cross_entropy(parts[0], parts[1], torch.arange(50), parts[2])
    assert loss.requires_grad == bool(trained)
    if trained:
        loss.backward()
    assert [part.grad is not None for part in parts] == [index in trained for index in range(3)]


def test_the_logits_are_never_there_as_a_whole() -> None:
    """Unlike by torch's plain layer and loss."""

    def largest() -> int:
        """Bytes of the largest tensor that a step makes."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
            linear_cross_entropy(x, weight, torch.zeros(2000, dtype=torch.long)).backward()
        return max(event.self_cpu_memory_usage for event in profiler.events())

    x, weight = torch.randn(2000, 16, requires_grad=True), torch.randn(3000, 16, requires_grad=True)
    assert largest() < 4 * 2000 * 3000 / 10
    with by_torch():
        assert largest() >= 4 * 2000 * 3000
