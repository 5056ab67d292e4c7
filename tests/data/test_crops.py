"""Crops against a restatement of ADM's centre crop in floating point, and against slicing."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from data.crops import all_crops, center_crop, crop_image, from_floats, to_bytes, to_floats
from data.options import NUM_CROPS, CropRecipe
from tests.pictures import picture

pytestmark = pytest.mark.quick
Kernel = Callable[[np.ndarray], np.ndarray]


def box(x: np.ndarray) -> np.ndarray:
    return ((x > -0.5) & (x <= 0.5)).astype(float)


def bicubic(x: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -1/2."""
    x = np.abs(x)
    return np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))


def resample_rows(pixels: np.ndarray, size: int, kernel: Kernel) -> np.ndarray:
    """The first axis resampled to ``size`` with antialiasing, rounded to bytes."""
    step = len(pixels) / size
    width = max(step, 1.0)
    centers = (np.arange(size) + 0.5) * step
    weights = kernel((np.arange(len(pixels))[None] + 0.5 - centers[:, None]) / width)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.floor(np.tensordot(weights, pixels, axes=1) + 0.5).clip(0, 255)  # halves up, as PIL does


def resample(pixels: np.ndarray, height: int, width: int, kernel: Kernel) -> np.ndarray:
    columns_done = resample_rows(pixels.swapaxes(0, 1), width, kernel).swapaxes(0, 1)
    return resample_rows(columns_done, height, kernel)


def adm_crop(image: Image.Image, size: int) -> np.ndarray:
    """(size, size, 3): ADM's rule restated without PIL."""
    pixels = np.array(image).astype(float)
    height, width = pixels.shape[:2]
    while min(height, width) >= 2 * size:
        height, width = height // 2, width // 2
        pixels = resample(pixels, height, width, box)
    scale = size / min(height, width)
    height, width = round(height * scale), round(width * scale)
    pixels = resample(pixels, height, width, bicubic)
    top, left = math.floor((height - size) / 2), math.floor((width - size) / 2)
    return pixels[top : top + size, left : left + size]


@pytest.mark.parametrize(
    "width_height",
    [
        (32, 32),  # nothing to do
        (48, 48),
        (63, 80),  # just below halving
        (64, 64),  # halved once, exactly
        (129, 200),  # halved twice, odd sides
        (200, 131),
        (257, 90),
        (400, 33),  # a panorama
        (31, 97),
        (7, 5),  # enlarged
        (20, 24),
    ],
)
def test_center_crop_is_adms(width_height: tuple[int, int]) -> None:
    image = picture(*width_height, seed=1)
    expected = adm_crop(image, 32)
    ours = np.array(center_crop(image, 32)).astype(float)
    assert ours.shape == (32, 32, 3)
    difference = np.abs(ours - expected)
    assert difference.max() <= 1  # PIL computes in fixed point
    assert difference.mean() < 0.01
    assert np.abs(ours[:, 1:] - expected[:, :-1]).mean() > 1  # the check would notice a shift by one pixel


def test_center_crop_to_the_papers_size() -> None:
    image = picture(640, 563, seed=2)  # halved to 320 x 281
    ours = np.array(center_crop(image, 281)).astype(float)
    assert np.abs(ours - adm_crop(image, 281)).max() <= 1


TEN = [("ten", *sizes) for sizes in ((32, 35, 2), (40, 44, 2), (256, 281, 12), (384, 422, 19), (448, 492, 22))]
TEN105 = [("ten105", *sizes) for sizes in ((40, 42, 1), (256, 268, 6), (384, 403, 10), (448, 470, 11), (512, 537, 12))]


@pytest.mark.parametrize(("recipe", "size", "square", "middle"), TEN + TEN105)
def test_ten_crops_are_slices_of_a_larger_square(recipe: CropRecipe, size: int, square: int, middle: int) -> None:
    image = picture(2 * size + 9, size + 20, seed=3)
    large = torch.from_numpy(np.array(center_crop(image, square))).permute(2, 0, 1)
    end = square - size
    corners = [(0, 0), (0, end), (end, 0), (end, end), (middle, middle)]
    straight = [large[:, top : top + size, left : left + size] for top, left in corners]
    turned = large.flip(2)
    mirrored = [turned[:, top : top + size, left : left + size] for top, left in corners]
    crops = [crop_image(image, size, recipe, crop) for crop in range(NUM_CROPS[recipe])]
    for ours, expected in zip(crops, straight + mirrored, strict=True):
        assert ours.dtype == torch.uint8
        assert torch.equal(ours, expected)
    assert len({bytes(crop.numpy()) for crop in crops}) == 10
    assert torch.equal(crops[5], crops[1].flip(2))  # top left of the mirror image is the top right, mirrored


def test_twenty_are_ten_of_either_margin() -> None:
    image = picture(60, 45, seed=4)
    assert NUM_CROPS["twenty"] == 20
    expected = [*all_crops(image, 32, "ten"), *all_crops(image, 32, "ten105")]
    assert torch.equal(torch.stack(list(all_crops(image, 32, "twenty"))), torch.stack(expected))
    for crop in (0, 9, 10, 19):
        assert torch.equal(crop_image(image, 32, "twenty", crop), expected[crop])


def test_five_are_the_first_of_ten() -> None:
    image = picture(60, 45, seed=4)
    assert NUM_CROPS["five"] == 5
    for crop in range(5):
        assert torch.equal(crop_image(image, 32, "five", crop), crop_image(image, 32, "ten", crop))


def test_flip_is_the_centre_crop_and_its_mirror_image() -> None:
    image = picture(60, 45, seed=5)
    assert NUM_CROPS["flip"] == 2
    first, second = (crop_image(image, 32, "flip", crop) for crop in range(2))
    assert torch.equal(first, to_bytes(center_crop(image, 32)))
    assert torch.equal(second, to_bytes(center_crop(image, 32).transpose(Image.Transpose.FLIP_LEFT_RIGHT)))


def test_center_recipe_is_the_centre_crop_itself() -> None:
    image = picture(60, 45, seed=5)
    assert NUM_CROPS["center"] == 1
    assert torch.equal(crop_image(image, 32, "center", 0), to_bytes(center_crop(image, 32)))


def test_bytes_become_floats_between_minus_one_and_one() -> None:
    floats = to_floats(torch.tensor([0, 51, 255], dtype=torch.uint8))
    torch.testing.assert_close(floats, torch.tensor([-1.0, -0.6, 1.0]), rtol=0, atol=1e-6)


def test_floats_become_the_nearest_bytes() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(from_floats(to_floats(every)), every)
    assert from_floats(torch.tensor([-3.0, -0.9965, -0.99, 1.2])).tolist() == [0, 0, 1, 255]
