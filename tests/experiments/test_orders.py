"""The picture of the scan orders."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import orders
from models.checkerboard.order import progressive_checkerboard, sampling_blocks
from tests.command_factory import call

pytestmark = pytest.mark.quick
SIDES = (1, 2, 5, 16)


@pytest.mark.parametrize("steps_per_scale", [1, 4, 7])
@pytest.mark.parametrize("order", ["checkerboard", "raster"])
def test_the_maps_have_the_blocks_of_the_order_one_after_another(order: str, steps_per_scale: int) -> None:
    first, maps = 0, orders.step_maps(order, SIDES, steps_per_scale, 0)
    for side, lengths, drawn in zip(SIDES, sampling_blocks(SIDES, steps_per_scale), maps, strict=True):
        locations = progressive_checkerboard(side) if order == "checkerboard" else range(side * side)
        expected = np.repeat(np.arange(first, first + len(lengths)), lengths)
        assert np.array_equal(drawn.ravel()[list(locations)], expected)
        assert drawn.shape == (side, side)
        first += len(lengths)


def test_a_random_order_has_blocks_of_the_same_lengths_and_follows_its_seed() -> None:
    fixed, first, again, other = (
        orders.step_maps(order, SIDES, 4, seed)
        for order, seed in (("raster", 0), ("random", 0), ("random", 0), ("random", 1))
    )
    for a, b, c, d in zip(fixed, first, again, other, strict=True):
        assert np.array_equal(np.bincount(a.ravel()), np.bincount(b.ravel()))
        assert np.array_equal(b, c)
        assert a.size == 1 or not np.array_equal(b, d)


def test_the_command_writes_a_picture(tmp_path: Path) -> None:
    outcome = call(orders.main, "--scale_sizes", "[1,2,32]", "--output", str(tmp_path / "new/orders.png"))
    assert outcome.out == f"{tmp_path / 'new/orders.png'}: 9 steps\n"
    with Image.open(tmp_path / "new/orders.png") as picture:
        assert picture.width > 500


@pytest.mark.parametrize("sides", ["[]", "[0,2]", "[4,2]", "[2,2]"])
def test_sides_that_are_no_pyramid_are_refused(sides: str) -> None:
    assert call(orders.main, "--scale_sizes", sides).error().startswith("--scale_sizes are the sides of the scales")


def test_a_negative_seed_is_refused() -> None:
    assert "seed is -1" in call(orders.main, "--seed", "-1").error()
