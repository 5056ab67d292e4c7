"""Reading images a batch at a time: npz compressed or not, folders, and what is wrong with them."""

import json
import os
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.image_files import FolderImages, NpzImages, open_images
from runtime.errors import UserError
from sampling.pictures import write_npz


def pictures(count: int = 10, height: int = 6, width: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(count, height, width, 3), dtype=np.uint8)


def save_pngs(folder: Path, images: np.ndarray, suffix: str = ".png") -> Path:
    """Some at the top, some two folders down; sorted by path in the order given."""
    for i, image in enumerate(images):
        path = folder / ("a/b" if i < len(images) // 2 else "c") / f"{i:03d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def refusal(path: Path, read: bool = True) -> str:
    with pytest.raises(UserError) as error:
        images = open_images(path)
        if read:
            list(images.batches(4))
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "save",
    [np.savez, np.savez_compressed, lambda path, arr_0: write_npz(path, arr_0.shape, [arr_0[:4], arr_0[4:]], [0] * 10)],
)
@pytest.mark.parametrize("size", [1, 4, 10, 64])
def test_npz_streams_what_it_holds(save: object, size: int, tmp_path: Path) -> None:
    save(tmp_path / "a.npz", arr_0=pictures())
    images = open_images(tmp_path / "a.npz")
    batches = list(images.batches(size))
    assert images.shape == (10, 6, 6)
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    np.testing.assert_array_equal(np.concatenate(batches), pictures())
    np.testing.assert_array_equal(next(images.batches(size)), pictures()[:size])  # and again from the start


def test_npz_is_never_held_whole(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((400, 64, 64, 3), dtype=np.uint8))  # 4.9 MB
    images = NpzImages(tmp_path / "a.npz")
    tracemalloc.start()
    for _ in images.batches(8):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_npz(save: object, share: float, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    save(path, arr_0=pictures())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "damaged, still being written, or no npz" in refusal(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("place", [0.02, 0.5, 0.7])
def test_a_flipped_byte(save: object, place: float, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    save(path, arr_0=pictures(40))
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 0xFF
    path.write_bytes(content)
    assert "damaged" in refusal(path) or place == 0.02


@pytest.mark.parametrize("place", [-3, -6, -7])  # of the place of the list, and its length, in the zip's last record
@pytest.mark.parametrize("byte", [0, 1, 77, 255])
def test_a_damaged_list_of_contents(place: int, byte: int, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, arr_0=pictures())
    content = bytearray(path.read_bytes())
    content[place] = byte if content[place] != byte else 3
    path.write_bytes(content)
    assert "damaged, still being written, or no npz" in refusal(path)


def test_array_shorter_than_its_header_says(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.npz", tmp_path / "a.npz"
    np.savez(whole, arr_0=pictures())
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        target.writestr("arr_0.npy", source.read("arr_0.npy")[:-5])
    assert "5 bytes too early" in refusal(path)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (pictures()[..., 0], "greyscale"),
        (pictures()[..., :1], "greyscale"),
        (pictures().astype(np.float32), "float32 (10, 6, 6, 3)"),
        (pictures().transpose(0, 3, 1, 2).copy(), "must be uint8 (N, H, W, 3)"),
        (np.asfortranarray(pictures()), "C order"),
        (pictures()[:0], "(0, 6, 6, 3)"),
        (np.array([{}]), "object"),
    ],
)
def test_other_arrays(array: np.ndarray, says: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", arr_0=array)
    assert says in refusal(tmp_path / "a.npz")


def test_npz_of_something_else(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=pictures())
    assert "holds images; neither images (arr_0) nor statistics" in refusal(tmp_path / "a.npz")
    assert "does not exist" in refusal(tmp_path / "b.npz")


def test_folder_at_any_depth(tmp_path: Path) -> None:
    images = open_images(save_pngs(tmp_path / "a", pictures()))
    assert isinstance(images, FolderImages)
    assert images.shape == (10, 6, 6)
    np.testing.assert_array_equal(np.concatenate(list(images.batches(4))), pictures())
    assert images.warnings() == []


def test_hash_of_a_folder_is_of_names_and_contents(tmp_path: Path) -> None:
    first = FolderImages(save_pngs(tmp_path / "a", pictures())).sha256
    assert FolderImages(save_pngs(tmp_path / "b", pictures())).sha256 == first
    (tmp_path / "b/c/009.png").rename(tmp_path / "b/c/010.png")
    assert FolderImages(tmp_path / "b").sha256 != first
    assert FolderImages(save_pngs(tmp_path / "c", pictures() ^ 1)).sha256 != first


def test_jpeg_and_modes_are_named(tmp_path: Path) -> None:
    save_pngs(tmp_path / "a", pictures(3), suffix=".JPG")
    Image.fromarray(pictures()[0, ..., 0]).save(tmp_path / "a/grey.png")
    Image.fromarray(pictures()[0]).convert("RGBA").save(tmp_path / "a/x.png")
    images = open_images(tmp_path / "a")
    for _ in range(2):  # read twice, counted once
        batch = np.concatenate(list(images.batches(2)))
    jpeg, modes = images.warnings()
    assert jpeg.startswith("3 of 5 images are JPEG")
    assert "1 L, 1 RGBA" in modes
    assert (batch[3] == batch[3][..., :1]).all()


def test_mistakes_in_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no images" in refusal(tmp_path / "empty")
    sizes = save_pngs(tmp_path / "sizes", pictures(4))
    Image.fromarray(pictures(1, 7, 6)[0]).save(sizes / "odd.png")
    assert "odd.png has 6 x 7 pixels, 000.png 6 x 6" in refusal(sizes)
    damaged = save_pngs(tmp_path / "damaged", pictures(4))
    (damaged / "c/003.png").write_bytes((damaged / "c/003.png").read_bytes()[:60])
    assert "003.png cannot be read as an image" in refusal(damaged)
    (tmp_path / "empty/.hidden.png").write_bytes(b"")
    assert "left out: 1 hidden" in refusal(tmp_path / "empty")


def test_sixteen_bits_are_converted_as_everywhere(tmp_path: Path) -> None:
    """A ramp of 16 bits is a ramp of 8, not white, and is said."""
    folder = save_pngs(tmp_path / "a", pictures(3, 16, 16))
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(ramp * 257).save(folder / "c/ramp.png")
    images = open_images(folder)
    last = np.concatenate(list(images.batches(2)))[-1]
    np.testing.assert_array_equal(last, np.repeat(ramp[..., None], 3, axis=2))
    (warning,) = images.warnings()
    assert "converted to it: 1 I;16" in warning


def test_what_is_left_out_is_counted_by_kind(tmp_path: Path) -> None:
    folder = save_pngs(tmp_path / "a", pictures(6))
    names = (
        ".hidden.png",
        "._000.png",
        ".ipynb_checkpoints/000.png",
        "c/__MACOSX/._000.png",
        "notes.txt",
        "c/b.TXT",
        "x",
    )
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\0\5\26\7")
    (folder / "broken.png").symlink_to("nowhere.png")
    images = open_images(folder)
    assert images.shape == (6, 6, 6)
    np.testing.assert_array_equal(np.concatenate(list(images.batches(4))), pictures(6))
    assert images.left_out() == "left out: 2 .txt, 1 __MACOSX, 1 broken links, 3 hidden, 1 without suffix"
    assert images.sha256 == open_images(save_pngs(tmp_path / "b", pictures(6))).sha256


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/gr\xfcn"
    os.mkdir(folder)  # noqa: PTH102 (a name in bytes)
    for i, image in enumerate(pictures(4)):
        with open(folder + b"/b\xe4r%d.png" % i, "wb") as file:  # noqa: PTH123
            Image.fromarray(image).save(file, "PNG")
    images = open_images(tmp_path)
    np.testing.assert_array_equal(np.concatenate(list(images.batches(3))), pictures(4))
    assert len(images.sha256) == 64
    assert [os.fsencode(label) for label in images.labels()] == [b"gr\xfcn"] * 4


def sampled(folder: Path) -> Path:
    """As main_sample.py leaves it."""
    folder.mkdir()
    for i, image in enumerate(pictures()):
        Image.fromarray(image).save(folder / f"{i:06d}.png")
    for name in ("grid.png", "maps_000000.png", "entropy_by_step.png"):
        Image.fromarray(pictures(1, 20, 30)[0]).save(folder / name)
    (folder / "samples.json").write_text(json.dumps({"cfg": 1.5}))
    return folder


def test_a_folder_of_ours_is_its_samples_alone(tmp_path: Path) -> None:
    images = open_images(sampled(tmp_path / "a"))
    np.testing.assert_array_equal(np.concatenate(list(images.batches(64))), pictures())


def test_a_folder_of_ours_with_an_npz(tmp_path: Path) -> None:
    folder = sampled(tmp_path / "a")
    write_npz(folder / "samples.npz", pictures(5).shape, [pictures(5)], [0] * 5)
    images = open_images(folder)
    assert (images.path, images.shape) == (folder / "samples.npz", (5, 6, 6))


def test_samples_still_being_drawn_are_refused(tmp_path: Path) -> None:
    folder = sampled(tmp_path / "a")
    (folder / ".progress").mkdir()
    assert "still lacks images" in refusal(folder)


def test_stored_statistics(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, mu=np.arange(3.0, dtype=np.float32), sigma=np.eye(3), mu_s=np.zeros(2), sigma_s=np.eye(3))
    images = open_images(path)
    assert images.shape is None
    found = images.statistics("")
    assert found.mean.tolist() == [0, 1, 2]
    assert found.mean.dtype == np.float64
    assert images.statistics("_t") is None
    with pytest.raises(UserError, match=r"a\.npz: mu_s \(2,\) and sigma_s \(3, 3\) are no statistics"):
        images.statistics("_s")


@pytest.mark.parametrize("keys", [("mu",), ("mu", "mu_s"), ("mu_digits",)])
def test_whose_statistics_they_are(keys: tuple[str, ...], tmp_path: Path) -> None:
    """ADM's and ours have those of spatial features too; other programs' do not. Some say of how many images."""
    arrays = {key: np.zeros(2) for key in keys} | {key.replace("mu", "sigma"): np.eye(2) for key in keys}
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez(tmp_path / "b.npz", **arrays, arr_0=pictures(), num_images=30)
    images, with_images = NpzImages(tmp_path / "a.npz"), NpzImages(tmp_path / "b.npz")
    assert images.of_another_program is (keys == ("mu",))
    assert not with_images.of_another_program
    assert (images.num_stored, with_images.num_stored) == (None, 30)


def test_a_pickle_is_refused_by_name(tmp_path: Path) -> None:
    """torch-fidelity keeps statistics so; to load one could run any code."""
    torch.save({"mu": np.zeros(3), "sigma": np.eye(3)}, tmp_path / "a.pt")
    assert "torch-fidelity" in refusal(tmp_path / "a.pt")
