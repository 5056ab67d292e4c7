"""Listing and reading of image files: what is left out is counted by kind, what is read means one thing."""

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.files import UnreadableImageError, left_out_text, list_images, read_image, to_rgb
from runtime.files import composed
from tests.pictures import picture

pytestmark = pytest.mark.quick
ORIENTATION = 0x112  # EXIF tag
LEFT_RED = np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8).repeat(8, 0).repeat(4, 1)  # (8, 8, 3)


def save(path: Path, how: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if how == "broken":
        path.symlink_to("nowhere")
    elif how == "text":
        path.write_text("no image")
    else:
        Image.fromarray(LEFT_RED).save(path)
    return path


def test_what_is_no_visible_image_is_left_out_and_counted(tmp_path: Path) -> None:
    kept = [save(tmp_path / name) for name in ("a.png", "deep/er/b.JPG", "deep/c.tiff", "d.webp", "e.Bmp")]
    for name in (".hidden.png", "._a.png", ".ipynb_checkpoints/a.png", "deep/.git/x.png", "__MACOSX/a.png"):
        save(tmp_path / name)
    for name in ("notes.txt", "more.TXT", "photo.heic", "README"):
        save(tmp_path / name, "text")
    save(tmp_path / "gone.png", "broken")
    os.mkfifo(tmp_path / "pipe.png")
    found = list_images(tmp_path)
    assert found.files == sorted(kept)
    expected = {
        "hidden": 4,
        "__MACOSX": 1,
        ".txt": 2,
        ".heic": 1,
        "without suffix": 1,
        "broken links": 1,
        "no files": 1,
    }
    assert found.left_out == expected
    assert left_out_text(found.left_out).startswith("left out: 1 .heic, 2 .txt")
    assert left_out_text(list_images(tmp_path / "deep" / "er").left_out) == ""


def test_links_are_followed_but_not_in_a_circle(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "far.png")
    folder = tmp_path / "folder"
    save(folder / "near.png")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "one.png").symlink_to(folder / "near.png")
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    found = list_images(folder)
    assert [str(path.relative_to(folder)) for path in found.files] == ["link/far.png", "near.png", "one.png"]
    assert found.left_out == {"links that lead back": 1}


def test_links_that_lead_back_are_no_images_of_this_folder(tmp_path: Path) -> None:
    save(tmp_path / "root/a/x.png")
    save(tmp_path / "root/b/y.png")
    (tmp_path / "root/a/up").symlink_to("..")
    (tmp_path / "root/a/loop").symlink_to("loop")
    found = list_images(tmp_path / "root/a")
    assert [path.name for path in found.files] == ["x.png"]
    assert found.left_out == {"links that lead back": 1, "broken links": 1}


def test_photographs_of_other_formats_come_with_the_mend(tmp_path: Path) -> None:
    save(tmp_path / "photo.heic", "text")
    assert (
        left_out_text(list_images(tmp_path).left_out) == "left out: 1 .heic; convert such photographs to .jpg or .png"
    )


def test_names_that_are_no_utf8_are_listed_and_read(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xe4r.png"))
    save(path)
    (found,) = list_images(tmp_path).files
    assert np.array_equal(read_image(found)[0], LEFT_RED)


def test_accents_are_composed() -> None:
    assert composed("cafe\u0301") == composed("caf\xe9") == "caf\xe9"


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_upright_whatever_way_it_was_held(
    tmp_path: Path, orientation: int, damaged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where something else in its EXIF data is wrong: Pillow turns it, and then fails to write them again."""
    upright = picture(24, 16, seed=0)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions that turn upright into the stored one
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored.save(tmp_path / "x.png", exif=exif)
    if damaged:
        monkeypatch.setattr(Image.Exif, "tobytes", _not_to_be_written)
    assert np.array_equal(read_image(tmp_path / "x.png")[0], upright)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white_whatever_colour_hides_there(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.paste((40, 40, 40, 255), (0, 0, 8, 4))
    if mode == "P":
        image = image.convert("RGB").quantize(8)
        image.info["transparency"] = image.getpixel((0, 7))
    else:
        image = image.convert(mode)
    image.save(tmp_path / "x.png", **({"transparency": image.info["transparency"]} if mode == "P" else {}))
    read = np.array(read_image(tmp_path / "x.png")[0])
    assert (read[:4] == 40).all()
    assert (read[4:] == 255).all()


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_of_16_bits_the_upper_8_stay(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 257, 32896, 65535]], np.uint16).repeat(4, 0)
    Image.fromarray(values).save(tmp_path / f"x.{suffix}")
    image, mode = read_image(tmp_path / f"x.{suffix}")
    assert mode.startswith("I")
    assert np.array(image)[0].tolist() == [[value // 257] * 3 for value in (0, 257, 32896, 65535)]


def test_the_transparent_value_of_16_bits_is_white(tmp_path: Path) -> None:
    values = np.array([[0, 65535]], np.uint16).repeat(4, 0)
    Image.fromarray(values).save(tmp_path / "x.png", transparency=0)
    assert (np.array(read_image(tmp_path / "x.png")[0]) == 255).all()


@pytest.mark.parametrize(("dtype", "word"), [(np.float32, "floating-point"), (np.int32, "32-bit")])
def test_numbers_without_a_known_white_are_refused_by_name(tmp_path: Path, dtype: type, word: str) -> None:
    Image.fromarray(np.linspace(0, 1, 64).reshape(8, 8).astype(dtype)).save(tmp_path / "x.tif")
    with pytest.raises(UnreadableImageError, match=word) as caught:
        read_image(tmp_path / "x.tif")
    assert str(tmp_path / "x.tif") in str(caught.value)


def test_a_thread_of_an_image_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (1, 4000)).save(tmp_path / "x.png")
    with pytest.raises(UnreadableImageError, match="1 x 4000 pixels"):
        read_image(tmp_path / "x.png")
    assert to_rgb(Image.new("RGB", (10, 1000))).size == (10, 1000)


def _not_to_be_written(exif: Image.Exif) -> bytes:
    raise TypeError("required argument is not an integer")


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_damage_within_a_file_is_never_read_past(tmp_path: Path, suffix: str, orientation: int) -> None:
    """What Pillow refuses to decode at once it may decode at the second try, in black."""
    path, refused = tmp_path / f"x.{suffix}", 0
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    picture(64, 48, seed=0).save(path, exif=exif)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(content)
        for place in rng.integers(len(content) // 4, len(content), 4):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            with Image.open(path) as image:
                image.load()
        except Exception:
            refused += 1
            with pytest.raises(UnreadableImageError):
                read_image(path)
    assert refused > 3


class _Failing(io.BytesIO):
    """A file whose disk fails."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def read(self, size: int | None = -1, /) -> bytes:
        raise self.error


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, ""), MemoryError()])
def test_a_fault_of_the_machine_is_none_of_the_image(error: Exception) -> None:
    """Else a disk that fails for a second would leave images out of a cache for good."""
    with pytest.raises(type(error)) as found:
        read_image(_Failing(error), name="x.png")
    assert not isinstance(found.value, UnreadableImageError)
    assert getattr(found.value, "filename", "x.png") == "x.png"
    with pytest.raises(UnreadableImageError, match=r"x\.png cannot be read as an image"):
        read_image(_Failing(OSError("broken data stream")), name="x.png")


def test_folders_of_systems_are_left_out(tmp_path: Path) -> None:
    for name in ("a.png", "@eaDir/a.png/SYNOPHOTO_THUMB_XL.png", "lost+found/b.png", "c/$RECYCLE.BIN/d.png"):
        save(tmp_path / name)
    found = list_images(tmp_path)
    assert found.files == [tmp_path / "a.png"]
    assert found.left_out == {"@eaDir": 1, "lost+found": 1, "$RECYCLE.BIN": 1}


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(20), b"II*\0\x08\0\0\0\xff\xff"])
def test_any_damage_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match="cannot be read as an image") as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
