"""Editing: which locations a mask touches, what is kept of an image, and files that make no edit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageOps

from data.crops import to_floats
from models.autoencoder import to_uint8
from models.checkerboard.config import CheckerboardDrawing
from models.checkerboard.model import Checkerboard
from runtime.errors import UserError
from sampling.bulk import Request, draw_many
from sampling.editing import make_edit, touched_locations
from tests.factory import tiny_model
from tests.pictures import damage, picture

pytestmark = pytest.mark.quick
BOX = (9, 4, 17, 26)  # left, top, right and bottom pixel drawn anew


@pytest.fixture(scope="module")
def model() -> Checkerboard:
    return tiny_model()


def write_mask(path: Path, size: tuple[int, int], box: tuple[int, int, int, int] | None = BOX) -> Path:
    mask = Image.new("L", size)
    if box is not None:
        ImageDraw.Draw(mask).rectangle(box, fill=255)
    mask.save(path)
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """An image of 32 px and its mask."""
    picture(32, 32, seed=1).save(tmp_path / "image.png")
    return str(tmp_path / "image.png"), str(write_mask(tmp_path / "mask.png", (32, 32)))


# Which locations


@pytest.mark.parametrize(("pixels", "side"), [(8, 8), (8, 4), (8, 1), (10, 4), (10, 3), (7, 5), (5, 4)])
def test_any_pixel_touches_its_locations_alone(pixels: int, side: int) -> None:
    reach = [  # a location's first pixel, rounded down, to its last, rounded up
        range(i * pixels // side, -(-(i + 1) * pixels // side)) for i in range(side)
    ]
    for y in range(pixels):
        for x in range(pixels):
            redraw = torch.zeros(pixels, pixels, dtype=torch.bool)
            redraw[y, x] = True
            expected = [[y in rows and x in columns for columns in reach] for rows in reach]
            assert touched_locations(redraw, side).tolist() == expected


def test_no_pixel_and_all_pixels() -> None:
    for side in (1, 3, 8):
        assert not touched_locations(torch.zeros(8, 8, dtype=torch.bool), side).any()
        assert touched_locations(torch.ones(8, 8, dtype=torch.bool), side).all()


# What stays


def test_an_image_and_its_mask(files: tuple[str, str], model: Checkerboard) -> None:
    edit = make_edit(*files, model)
    with Image.open(files[0]) as image:
        assert torch.equal(edit.image, torch.from_numpy(np.array(image)).permute(2, 0, 1))
    expected = torch.zeros(32, 32, dtype=torch.bool)
    expected[4:27, 9:18] = True
    assert torch.equal(edit.mask, expected)
    codes = model.tokenize(to_floats(edit.image).unsqueeze(0))
    assert all(torch.equal(ours, theirs[0]) for ours, theirs in zip(edit.constraint.codes, codes, strict=True))
    kept = [~touched_locations(expected, side) for side in (1, 2, 4, 8)]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(edit.constraint.mask, kept, strict=True))
    assert [int(scale.sum()) for scale in edit.constraint.mask] == [0, 0, 8, 46]


def test_larger_images_are_cropped_with_their_masks(tmp_path: Path, model: Checkerboard) -> None:
    picture(192, 128, seed=1).save(tmp_path / "image.jpg")
    mask = write_mask(tmp_path / "mask.png", (192, 128), (32 + 64, 0, 191, 127))  # right of the middle
    edit = make_edit(str(tmp_path / "image.jpg"), str(mask), model)
    assert edit.image.shape == (3, 32, 32)
    expected = torch.zeros(32, 32, dtype=torch.bool)
    expected[:, 16:] = True
    assert torch.equal(edit.mask, expected)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P"])
def test_masks_of_all_kinds(mode: str, files: tuple[str, str], tmp_path: Path, model: Checkerboard) -> None:
    expected = make_edit(*files, model).mask
    with Image.open(files[1]) as mask:
        mask.convert(mode).save(tmp_path / "other.png")
    assert torch.equal(make_edit(files[0], str(tmp_path / "other.png"), model).mask, expected)


def test_drawing_leaves_kept_codes_and_pixels_alone(files: tuple[str, str], model: Checkerboard) -> None:
    edit = make_edit(*files, model)
    request = Request([3, 7, 3, 1, 0], CheckerboardDrawing(), batch_size=2, constraint=edit.constraint)
    for _, out in draw_many(model, request):
        for kept, expected, codes in zip(edit.constraint.mask, edit.constraint.codes, out.codes, strict=True):
            assert (codes[:, kept] == expected[kept]).all()
        drawn = to_uint8(out.images)
        pasted = edit.paste_back(drawn)
        assert torch.equal(pasted[..., edit.mask], drawn[..., edit.mask])
        assert (pasted[..., ~edit.mask] == edit.image[:, ~edit.mask]).all()
        assert (pasted[..., edit.mask] != edit.image[:, edit.mask]).any()


def test_what_is_drawn_fades_into_the_original_beside_the_mask(files: tuple[str, str], model: Checkerboard) -> None:
    edit = make_edit(*files, model, blend=3)
    drawn = 255 - edit.image[None]
    pasted = edit.paste_back(drawn)
    assert torch.equal(pasted[..., edit.mask], drawn[..., edit.mask])
    left = edit.image[:, 10, 4:10].float()  # row 10 of the box, whose first column is 9
    expected = left + torch.tensor([0, 0, 0.25, 0.5, 0.75, 1]) * (255 - 2 * left)
    torch.testing.assert_close(pasted[0, :, 10, 4:10].float(), expected, atol=0.5, rtol=0)
    far = edit.share == 0
    assert (pasted[..., far] == edit.image[:, far]).all()
    assert int((~far).sum()) == 23 * 9 + 3 * (23 + 9) * 2 + 4 * 8  # the box, 3 pixels at each side, and rounded corners


# Mistakes


def lose(image: Path, mask: Path) -> None:
    image.unlink()


def lose_the_mask(image: Path, mask: Path) -> None:
    mask.unlink()


def enlarge_the_mask(image: Path, mask: Path) -> None:
    write_mask(mask, (33, 32))


def blacken_the_mask(image: Path, mask: Path) -> None:
    write_mask(mask, (32, 32), None)


def write_text(image: Path, mask: Path) -> None:
    damage(image, "text")


def truncate(image: Path, mask: Path) -> None:
    damage(image, "truncated")


def empty_the_mask(image: Path, mask: Path) -> None:
    damage(mask, "empty")


@pytest.mark.parametrize(
    ("spoil", "answer"),
    [
        (lose, "no such file: {image}"),
        (lose_the_mask, "no such file: {mask}"),
        (
            enlarge_the_mask,
            "{mask} is 33 x 32 pixels, but {image} is 32 x 32; make them the same size",
        ),
        (
            blacken_the_mask,
            "{mask} is black all over the middle square that is kept; paint white what is to be drawn anew",
        ),
        (write_text, "{image} cannot be read as an image (cannot identify image file)"),
        (truncate, "{image} cannot be read as an image ("),
        (empty_the_mask, "{mask} cannot be read as an image ("),
    ],
)
def test_files_that_make_no_edit(
    spoil: Callable[[Path, Path], None], answer: str, files: tuple[str, str], model: Checkerboard
) -> None:
    image, mask = map(Path, files)
    spoil(image, mask)
    with pytest.raises(UserError) as error:
        make_edit(*files, model)
    assert str(error.value).startswith(answer.format(image=image, mask=mask))
    assert "\n" not in str(error.value)


def test_sixteen_bits_and_transparent_masks_mean_what_they_show(tmp_path: Path) -> None:
    """16 bits as 8; white strokes on transparent white are strokes."""
    levels = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / "image.png")
    strokes = np.full((32, 32, 4), 255, np.uint8)
    strokes[:, 8:, 3] = 0
    Image.fromarray(strokes).save(tmp_path / "mask.png")
    edit = make_edit(str(tmp_path / "image.png"), str(tmp_path / "mask.png"), tiny_model())
    assert np.array_equal(edit.image[0].numpy(), levels // 257)
    assert edit.mask[:, :8].all()
    assert not edit.mask[:, 8:].any()


@pytest.mark.parametrize("turned", range(1, 9))
def test_photos_and_masks_are_upright(turned: int, tmp_path: Path, model: Checkerboard) -> None:
    """However the camera stores them: EXIF orientation 1 to 8, of the image, its mask, or both."""
    upright = picture(48, 40, seed=1)
    mask = Image.open(write_mask(tmp_path / "upright.png", upright.size))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that a viewer undoes
    exif = Image.Exif()
    exif[ImageOps.ExifTags.Base.Orientation] = turned
    for name, shown in (("image", upright), ("mask", mask)):
        shown.save(tmp_path / f"{name}.png")
        stored = shown if turned == 1 else shown.transpose(Image.Transpose(undo[turned]))
        stored.save(tmp_path / f"{name}-turned.png", exif=exif)
    expected = make_edit(str(tmp_path / "image.png"), str(tmp_path / "mask.png"), model)
    for image in ("image", "image-turned"):
        for mask_name in ("mask", "mask-turned"):
            edit = make_edit(str(tmp_path / f"{image}.png"), str(tmp_path / f"{mask_name}.png"), model)
            assert torch.equal(edit.image, expected.image)
            assert torch.equal(edit.mask, expected.mask)


def test_strokes_on_transparent_ground_turn_with_their_file(tmp_path: Path, model: Checkerboard) -> None:
    picture(32, 32, seed=1).save(tmp_path / "image.png")
    strokes = np.full((32, 32, 4), 255, np.uint8)
    strokes[8:, :, 3] = 0  # the upper quarter is painted
    exif = Image.Exif()
    exif[ImageOps.ExifTags.Base.Orientation] = 3
    Image.fromarray(strokes).save(tmp_path / "mask.png", exif=exif)
    edit = make_edit(str(tmp_path / "image.png"), str(tmp_path / "mask.png"), model)
    assert edit.mask[-8:].all()
    assert not edit.mask[:-8].any()


def test_sixteen_bit_masks_are_white_from_the_middle_on(tmp_path: Path, model: Checkerboard) -> None:
    picture(32, 32, seed=1).save(tmp_path / "image.png")
    levels = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / "mask.png")
    edit = make_edit(str(tmp_path / "image.png"), str(tmp_path / "mask.png"), model)
    assert np.array_equal(edit.mask.numpy(), levels // 257 >= 128)


def test_masks_without_a_known_white_are_refused(tmp_path: Path, model: Checkerboard) -> None:
    picture(32, 32, seed=1).save(tmp_path / "image.png")
    Image.fromarray(np.ones((32, 32), np.float32)).save(tmp_path / "mask.tif")
    with pytest.raises(UserError, match=r"mask\.tif holds floating-point numbers, whose black and white"):
        make_edit(str(tmp_path / "image.png"), str(tmp_path / "mask.tif"), model)
