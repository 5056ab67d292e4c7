"""What benchmarks measure with: products that can be replayed, operations, memory."""

import math
import mmap
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.measure import (
    CountKernels,
    RecordProducts,
    covered,
    process_memory,
    products_of_linear,
    profiled,
    time_products,
)
from models.linear import Linear

pytestmark = pytest.mark.quick
CPU = torch.device("cpu")


def test_products_can_be_replayed() -> None:
    """Of linear layers and convolutions alone, with their own inputs."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.Softmax(-1))
    images = torch.randn(2, 3, 4, 4)
    with RecordProducts() as record:
        probabilities = network(images)
    convolution, linear = (product() for product in record.products)
    torch.testing.assert_close(convolution, F.conv2d(images, network[0].weight, network[0].bias))
    torch.testing.assert_close(linear.softmax(-1), probabilities)
    assert time_products(record.products, CPU) > 0


@torch.inference_mode()
def test_products_of_our_layers_are_replayed_by_torchs() -> None:
    """So that the floor says what torch takes for them."""
    layer, x = Linear(16, 5), torch.randn(3, 16)
    with RecordProducts() as record:
        found = layer(x)
    (product,) = record.products
    assert product.func is F.linear
    torch.testing.assert_close(product(), found)


def test_the_three_products_of_a_linear_layer_are_its_output_and_its_gradients() -> None:
    x, weight = torch.randn(2, 3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    output = F.linear(x, weight)
    output.sum().backward()
    products = [product() for product in products_of_linear(x.detach(), weight.detach())]
    for product, expected in zip(products, (output.flatten(0, 1), x.grad.flatten(0, 1), weight.grad), strict=True):
        torch.testing.assert_close(product, expected)


def test_operations_that_only_look_are_not_counted() -> None:
    x = torch.ones(4, 4)
    with CountKernels() as kernels:
        y = x.view(16).unsqueeze(0) + 1
        y.mul_(2)
    assert kernels.count == 2


def test_what_overlaps_counts_once() -> None:
    assert covered([(5, 6), (0, 2), (1, 3), (1.5, 2), (3, 4)]) == 5
    assert covered([]) == 0


def test_operations_are_counted_and_waiting_is_idle() -> None:
    x = torch.ones(300, 300)
    count, busy = profiled(lambda: (x + x, x * x, time.sleep(0.2)), CPU)
    assert count == 2
    assert 0 < busy < 0.1


def test_memory_of_this_process() -> None:
    size = 64 * 2**20
    before = process_memory("RssAnon")
    held = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANON)  # new pages: malloc may give freed ones again
    held.write(b"1" * size)
    added = process_memory("RssAnon") - before
    assert math.isnan(added) or added > 0.9 * size
    assert math.isnan(process_memory("Nothing"))
