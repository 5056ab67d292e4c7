"""Images as files hold them: the 8-bit rule at its edges, single images, grids."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from models.autoencoder import to_uint8
from runtime.errors import UserError
from sampling.pictures import caption_font, grid_of, read_png, save_grid, save_labelled_grid, save_png

pytestmark = pytest.mark.quick


def as_images(values: list[float] | Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(1, 3, 1, n), the same values in each channel."""
    return torch.as_tensor(values, dtype=dtype).expand(1, 3, 1, -1)


def levels(values: list[float] | Tensor, dtype: torch.dtype = torch.float32) -> list[int]:
    images = to_uint8(as_images(values, dtype))
    assert images.dtype == torch.uint8
    assert (images == images[:, :1]).all()
    return images[0, 0, 0].tolist()


# The 8-bit rule


def test_the_ends_and_the_middle() -> None:
    assert levels([-1, 0, 1]) == [0, 127, 255]  # 127.5 is cut off, not rounded up


def test_values_beyond_the_ends_are_clamped() -> None:
    assert levels([-1.001, -50, -torch.inf, 1.001, 50, torch.inf]) == [0, 0, 0, 255, 255, 255]


def test_only_1_reaches_the_last_level() -> None:
    assert levels([1 - 1e-6, -1 + 1e-6]) == [254, 0]


def test_fractions_of_a_level_are_cut_off() -> None:
    level = torch.arange(255, dtype=torch.float64)
    for fraction in (0.01, 0.5, 0.99):
        assert levels((level + fraction) / 255 * 2 - 1) == list(range(255))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_follows_the_same_rule(dtype: torch.dtype) -> None:
    values = torch.linspace(-1.1, 1.1, 997).to(dtype)
    expected = np.clip((values.double().numpy() + 1) / 2, 0, 1) * 255
    assert levels(values, dtype) == expected.astype(np.uint8).tolist()


def test_the_input_stays_as_it_is() -> None:
    images = as_images([-2.0, 0.3, 2.0]).clone()
    to_uint8(images)
    assert torch.equal(images, as_images([-2.0, 0.3, 2.0]))


# Files


def numbered(count: int, height: int = 4, width: int = 6) -> Tensor:
    """(count, 3, height, width) bytes, no two alike in place, channel and image."""
    return (torch.arange(count * 3 * height * width) % 251 + 1).view(count, 3, height, width).to(torch.uint8)


def read(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        return np.array(picture)


def test_a_png_holds_the_image_exactly(tmp_path: Path) -> None:
    (image,) = numbered(1)
    save_png(image, tmp_path / "a.png")
    assert (read(tmp_path / "a.png") == image.permute(1, 2, 0).numpy()).all()


@pytest.mark.parametrize(("count", "columns", "rows"), [(5, 3, 2), (4, 2, 2), (3, 3, 1), (2, 1, 2)])
def test_a_grid_goes_row_by_row_with_gaps(
    count: int, columns: int, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = numbered(count)
    monkeypatch.setattr("sampling.pictures.MIN_GRID_SIDE", 4)
    save_grid(images, tmp_path / "grid.png", columns)
    expected = np.zeros((2 + rows * 6, 2 + columns * 8, 3), np.uint8)
    for i, image in enumerate(images):
        top, left = 2 + i // columns * 6, 2 + i % columns * 8
        expected[top : top + 4, left : left + 6] = image.permute(1, 2, 0).numpy()
    assert (read(tmp_path / "grid.png") == expected).all()


def test_a_grid_of_one_is_the_image_enlarged(tmp_path: Path) -> None:
    images = numbered(1)
    save_grid(images, tmp_path / "grid.png", columns=1)
    factor = 64 // images.shape[-1]
    expected = np.kron(images[0].permute(1, 2, 0).numpy(), np.ones((factor, factor, 1), np.uint8))
    assert (read(tmp_path / "grid.png") == expected).all()


@pytest.mark.parametrize(("count", "columns", "border"), [(1, 4, 0), (3, 8, 255), (7, 3, 9), (6, 3, 0)])
def test_a_grid_is_torchvisions(count: int, columns: int, border: int) -> None:
    expected = make_grid(numbered(count), nrow=columns, padding=2, pad_value=border)
    assert torch.equal(grid_of(numbered(count), columns, 1, border), expected)


def test_captions_in_turn_have_a_row_each(tmp_path: Path) -> None:
    """The last round may lack images."""
    images = numbered(5)
    save_labelled_grid(images, ["ant", "bee", "ant", "bee", "ant"], tmp_path / "grid.png")
    rows = torch.stack([images[0], images[2], images[4], images[1], images[3], torch.zeros_like(images[0])])
    save_grid(rows, tmp_path / "expected.png", 3, ["ant", "bee"])
    assert (read(tmp_path / "grid.png") == read(tmp_path / "expected.png")).all()


def test_other_captions_stand_below(tmp_path: Path) -> None:
    images = numbered(3)
    save_labelled_grid(
        images, ["ant", "bee", "a name that is far too long for its image, whatever one does"], tmp_path / "a.png"
    )
    picture, factor = read(tmp_path / "a.png"), 128 // images.shape[-1]
    height, width = (side * factor for side in images.shape[-2:])
    row, column = picture.shape[0] // 2, picture.shape[1] // 2
    for number, image in enumerate(images):
        top, left = number // 2 * row, number % 2 * column
        cell = picture[top : top + height : factor, left : left + width : factor]
        assert (cell == image.permute(1, 2, 0).numpy()).all()
        assert (picture[top + height : top + row, left : left + width] < 100).any()
        assert (picture[top : top + row, left + width : left + column] == 255).all()  # nothing goes over


@pytest.mark.parametrize("caption", ["été", "Кошка", "قطة"])
def test_captions_have_the_letters_of_most_alphabets(caption: str) -> None:
    """Not the box that stands for a letter which a font lacks."""
    font = caption_font(14)
    missing = bytes(font.getmask("\U0010ffff"))
    assert all(bytes(font.getmask(letter)) != missing for letter in caption)


def test_without_captions_it_is_a_plain_grid(tmp_path: Path) -> None:
    save_labelled_grid(numbered(4), [""] * 4, tmp_path / "a.png")
    save_grid(numbered(4), tmp_path / "b.png", 2)
    assert (read(tmp_path / "a.png") == read(tmp_path / "b.png")).all()


def test_a_missing_folder_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        save_png(numbered(1)[0], tmp_path / "nowhere/a.png")
    assert str(error.value.filename).endswith("nowhere/a.png")


def test_a_png_of_other_pixels_than_ours_is_refused(tmp_path: Path) -> None:
    """As optimizers make them grey; it is drawn again."""
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    with pytest.raises(UserError, match=r"x\.png is damaged \(its pixels are L, not RGB.*; remove it"):
        read_png(tmp_path / "x.png")
