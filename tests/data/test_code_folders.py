"""Folders of codes as LlamaGen extracts them: values, several folders, repeated files, mistakes; the same as a cache.

Letters: A code maps an image, G side of a code map.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import TenCrop

import main
from data.cache import TokenCache, describe
from data.code_folders import CodeFolders
from data.crops import center_crop, to_bytes, to_floats
from data.images import open_dataset
from data.labelled_images import LabelledImages
from data.make_cache import CacheMaker
from models.autoencoder import Autoencoder
from models.loading.autoencoder import autoencoder_hash, save_autoencoder
from models.loading.state import read_torch_file
from runtime.config import write_yaml
from runtime.errors import UserError
from tests.command_factory import call
from tests.factory import tiny_autoencoder
from tests.pictures import write_pictures

SIZE = 32  # in the folders' names
SIDE, CODES, CLASSES = 4, 64, 10

pytestmark = pytest.mark.quick


def codes_of(count: int, maps: int, seed: int = 0) -> np.ndarray:
    """(count, A, G * G)"""
    return np.random.default_rng(seed).integers(CODES, size=(count, maps, SIDE * SIDE))


def labels_of(count: int) -> np.ndarray:
    return np.arange(count) * 3 % CLASSES


def write(root: Path, codes: np.ndarray, labels: np.ndarray | None = None, size: int = SIZE) -> Path:
    """A folder of images with these codes (count, A, G * G)."""
    labels = labels_of(len(codes)) if labels is None else labels
    for kind, arrays in (("codes", codes[:, None]), ("labels", labels[:, None])):
        folder = root / f"imagenet{size}_{kind}"
        folder.mkdir(parents=True)
        for n, array in enumerate(arrays):
            np.save(folder / f"{n}.npy", array)
    return root


def opened(*paths: Path) -> CodeFolders:
    """Folders that a model of the constants above may learn from."""
    found = CodeFolders([str(path) for path in paths], SIZE)
    found.check((SIDE,), CODES, CLASSES)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images, two maps each."""
    return write(tmp_path / "flip", codes_of(12, 2))


# Values


@pytest.mark.parametrize("maps", [2, 10])
def test_a_crop_is_one_of_the_maps(maps: int, tmp_path: Path) -> None:
    codes = codes_of(12, maps)
    data = opened(write(tmp_path / "codes", codes))
    assert (len(data), data.num_crops) == (12, maps)
    pairs = [(n, crop) for n in (0, 11, 5) for crop in range(maps)]
    (found,), labels = data.collate(data.__getitems__(pairs))
    assert found.dtype == labels.dtype == torch.int64
    assert found.shape == (3 * maps, SIDE, SIDE)
    np.testing.assert_array_equal(found.flatten(1), np.stack([codes[n, crop] for n, crop in pairs]))
    np.testing.assert_array_equal(labels, [labels_of(12)[n] for n, _ in pairs])


def test_a_folder_is_drawn_then_one_of_its_maps(tmp_path: Path) -> None:
    """Each folder as often as the others, however many maps it has."""
    codes = {maps: codes_of(5, maps, seed=maps) for maps in (2, 10, 3)}
    data = opened(*(write(tmp_path / str(maps), array) for maps, array in codes.items()))
    found = data.__getitems__([(4, crop) for crop in range(data.num_crops)])[0][0].flatten(1).numpy()
    for maps, array in codes.items():
        hits = [(found == each).all(1).sum() for each in array[4]]
        assert hits == [data.num_crops / 3 / maps] * maps


def test_any_integers_are_read(tmp_path: Path) -> None:
    codes = codes_of(4, 2)
    (found,), _ = opened(write(tmp_path / "codes", codes.astype(np.uint16))).__getitems__([(1, 1)])
    np.testing.assert_array_equal(found.flatten(), codes[1, 1])


@pytest.mark.parametrize("ranks", [2, 8])
@pytest.mark.parametrize("count", [17, 40])
def test_files_that_repeat_the_first_images_are_left_out(count: int, ranks: int, tmp_path: Path) -> None:
    """As the last round of so many processes adds them."""
    codes, labels = codes_of(count, 2), labels_of(count)
    total = -(-count // ranks) * ranks
    order = np.arange(total) % count
    assert len(opened(write(tmp_path / "codes", codes[order], labels[order]))) == count


def test_images_that_are_alike_count(tmp_path: Path) -> None:
    """The last ones are copies of others than the first, or but for one code."""
    codes = codes_of(20, 2)
    codes[18], codes[19] = codes[5], codes[0]
    codes[19, 1, 7] = (codes[19, 1, 7] + 1) % CODES
    assert len(opened(write(tmp_path / "codes", codes))) == 20


def test_an_image_of_another_label_is_no_repetition(tmp_path: Path) -> None:
    codes, labels = codes_of(20, 2), labels_of(20)
    codes[19], labels[19] = codes[0], labels[0] + 1
    assert len(opened(write(tmp_path / "codes", codes, labels))) == 20


# Mistakes


def replaced(*parts: str, by: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Change one array of a folder."""

    def change(folder: Path) -> None:
        path = folder.joinpath(*parts)
        np.save(path, by(np.load(path)))

    return change


def damaged(content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "imagenet32_codes/7.npy").write_bytes(content)


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "no codes": (lambda f: (f / "imagenet32_codes").rename(f / "imagenet384_codes"), "no folder .*imagenet32_codes;"),
    "no labels": (lambda f: (f / "imagenet32_labels").rename(f / "x"), "no folder .*imagenet32_labels; name the one"),
    "empty": (
        lambda f: [file.unlink() for file in f.rglob("*.npy")],
        r"imagenet32_codes lacks 0\.npy; extract the codes again$",
    ),
    "a gap": (lambda f: (f / "imagenet32_codes/5.npy").unlink(), r"imagenet32_codes lacks 5\.npy; extract"),
    "the first": (lambda f: (f / "imagenet32_codes/0.npy").unlink(), r"imagenet32_codes lacks 0\.npy; extract"),
    "a label less": (
        lambda f: (f / "imagenet32_labels/11.npy").unlink(),
        "has codes of 12 images, but 11 labels; extract them again$",
    ),
    "no maps": (replaced("imagenet32_codes", "0.npy", by=lambda x: x[:, :0]), r"0\.npy holds int64 \(0, 16\), not"),
    "floats": (replaced("imagenet32_codes", "7.npy", by=np.float32), r"7\.npy holds float32 \(2, 16\), not"),
    "flat": (replaced("imagenet32_codes", "7.npy", by=np.ravel), r"7\.npy holds int64 \(32,\), not"),
    "a batch": (replaced("imagenet32_codes", "7.npy", by=lambda x: x.repeat(2, 0)), r"7\.npy holds int64 \(2, 2, 16\)"),
    "more maps": (
        replaced("imagenet32_codes", "7.npy", by=lambda x: x.repeat(5, 1)),
        r"7\.npy holds 10 maps of 16 codes, but the first file 2 of 16",
    ),
    "fewer maps": (
        replaced("imagenet32_codes", "7.npy", by=lambda x: x[:, :1]),
        r"7\.npy holds 1 maps of 16 codes, but the first file",
    ),
    "fewer codes": (
        replaced("imagenet32_codes", "7.npy", by=lambda x: x[..., :9]),
        r"7\.npy holds 2 maps of 9 codes, but the first file",
    ),
    "labels": (
        replaced("imagenet32_labels", "7.npy", by=lambda x: x.repeat(2)),
        r"imagenet32_labels/7\.npy holds int64 \(2,\), not one label",
    ),
    "float label": (
        replaced("imagenet32_labels", "7.npy", by=lambda x: x + 0.5),
        r"imagenet32_labels/7\.npy holds float64 \(1,\), not one label",
    ),
    "a large code": (
        replaced("imagenet32_codes", "7.npy", by=lambda x: x + CODES),
        r"imagenet32_codes/7\.npy holds \d+, but the model has 64 codes, counted from 0; name codes of its own$",
    ),
    "a code below 0": (
        replaced("imagenet32_codes", "7.npy", by=lambda x: x - CODES),
        r"imagenet32_codes/7\.npy holds -\d+, but the model has 64 codes",
    ),
    "a large label": (
        replaced("imagenet32_labels", "7.npy", by=lambda x: x + CLASSES),
        r"imagenet32_labels/7\.npy holds 11, but the model has 10 classes, counted from 0",
    ),
    "a label below 0": (
        replaced("imagenet32_labels", "7.npy", by=lambda x: x - 2),
        r"imagenet32_labels/7\.npy holds -1, but the model has 10 classes",
    ),
    "text": (damaged(b"hello"), r"imagenet32_codes/7\.npy is missing or damaged"),
    "no bytes": (damaged(b""), r"imagenet32_codes/7\.npy is missing or damaged"),
    "half": (damaged(b"\x93NUMPY\x01\x00v\x00"), r"imagenet32_codes/7\.npy is missing or damaged"),
    "a pickle": (
        replaced("imagenet32_codes", "7.npy", by=lambda x: x.astype(object)),
        r"imagenet32_codes/7\.npy is missing or damaged",
    ),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_folders_that_are_not_whole_are_refused(kind: str, folder: Path) -> None:
    spoil, answer = SPOILT[kind]
    spoil(folder)
    with pytest.raises(UserError, match=answer) as error:
        opened(folder).__getitems__([(n, crop) for n in range(12) for crop in range(2)])
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def test_codes_of_another_grid_are_refused(folder: Path) -> None:
    for scales in ((8,), (1, 2, 4), (2, 4)):
        with pytest.raises(
            UserError, match=r"flip holds 16 codes an image, but the model has the scales .*; name codes"
        ):
            CodeFolders([str(folder)], SIZE).check(scales, CODES, CLASSES)


@pytest.mark.parametrize("other", ["fewer", "labels"])
def test_folders_of_different_images_are_refused(other: str, folder: Path, tmp_path: Path) -> None:
    codes, labels = codes_of(12, 10), labels_of(12)
    if other == "fewer":
        write(tmp_path / "ten", codes[:11], labels[:11])
    else:
        labels[6] += 1
        write(tmp_path / "ten", codes, labels)
    with pytest.raises(UserError, match=r"flip, .*ten are of different images; name folders of the same ones$"):
        opened(folder, tmp_path / "ten")


# One image gives the same codes either way


PIXELS = 40  # of 4 px a code
RECIPES = {"ten": 1.1, "ten105": 1.05, "flip": None}


def test_hidden_files_do_not_count(folder: Path) -> None:
    (folder / f"imagenet{SIZE}_codes" / "._3.npy").write_bytes(b"a resource fork")
    opened(folder)


def test_folders_of_different_sizes_are_refused(tmp_path: Path) -> None:
    paths = [write(tmp_path / str(number), codes_of(4, 2)[..., : 4 * number]) for number in (1, 2)]
    with pytest.raises(UserError, match="are of different sizes"):
        opened(*paths)


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    return tiny_autoencoder()


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    root = tmp_path_factory.mktemp("pictures") / "pets"
    write_pictures(root, {"ant": 4, "bee": 3})
    return open_dataset("folder", str(root), PIXELS)


def extracted_crops(image: Image.Image, crop_range: float | None) -> list[Image.Image]:
    """As LlamaGen's extract_codes_c2i.py makes them of an image, by torchvision."""
    if crop_range is None:
        square = center_crop(image, PIXELS)
        return [square, square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    return list(TenCrop(PIXELS)(center_crop(image, int(PIXELS * crop_range))))


@torch.no_grad()
def extract(root: Path, pets: LabelledImages, autoencoder: Autoencoder, crop_range: float | None) -> Path:
    """Write what LlamaGen's tools write: an image's crops encoded as one batch."""
    maps = []
    for index in range(len(pets)):
        crops = torch.stack([to_bytes(crop) for crop in extracted_crops(pets.read(index), crop_range)])
        maps.append(autoencoder.tokenize(to_floats(crops), (PIXELS // 4,))[0].flatten(1).numpy())
    return write(root, np.stack(maps), np.array(pets.labels), PIXELS)


@pytest.mark.parametrize("recipe", RECIPES)
def test_one_image_gives_the_same_codes_either_way(
    recipe: str, pets: LabelledImages, autoencoder: Autoencoder, tmp_path: Path
) -> None:
    side, num_codes = PIXELS // 4, autoencoder.config.n_embed
    manifest = describe(pets, PIXELS, recipe, (side,), num_codes, autoencoder_hash(autoencoder))
    made = CacheMaker(pets, autoencoder, manifest, batch_size=10, num_workers=0).create(tmp_path / "cached")
    cache = TokenCache(made, manifest, (side,))
    folders = CodeFolders([str(extract(tmp_path / recipe, pets, autoencoder, RECIPES[recipe]))], PIXELS)
    folders.check((side,), num_codes, 2)
    assert (len(folders), folders.num_crops) == (len(cache), cache.num_crops)
    pairs = [(index, crop) for index in range(len(cache)) for crop in range(cache.num_crops)]
    ((ours,), labels), ((theirs,), others) = cache.__getitems__(pairs), folders.__getitems__(pairs)
    assert torch.equal(labels, others)
    assert (ours != theirs).sum() <= 1  # batches of another size round otherwise
    by_crop = ours.unflatten(0, (len(cache), -1)).flatten(2)
    assert all(len(image.unique(dim=0)) == cache.num_crops for image in by_crop[1:])  # each crop has codes of its own


def test_a_run_trains_from_folders(pets: LabelledImages, autoencoder: Autoencoder, tmp_path: Path) -> None:
    """By the same losses with and without a process that reads them; no image is looked at."""
    save_autoencoder(autoencoder, tmp_path / "autoenc")
    folders = [str(extract(tmp_path / name, pets, autoencoder, RECIPES[name])) for name in ("ten", "ten105")]
    size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    weights = str(tmp_path / "autoenc/autoencoder.safetensors")
    model = {"architecture": "llamagen", "img_size": PIXELS, "num_classes": 2, "vocab_size": 64, "llama_config": size}
    args = {"code_paths": folders, "batch_size": 3, "epochs": 2, "device": "cpu", "data_path": "nowhere"}
    write_yaml(tmp_path / "npp.yaml", {"model": model | {"autoenc": {"checkpoint_path": weights}}, "args": args})
    saved = []
    for workers in ("0", "1"):
        folder = tmp_path / f"run{workers}"
        words = ("--num_workers", workers, "--patch_level", "2", "--output_dir", str(folder))
        outcome = call(main.main, "--config", str(tmp_path / "npp.yaml"), *words)
        assert outcome.code == 0, outcome.err
        assert "7 images of 2 classes; 2 steps an epoch" in outcome.out
        saved.append(read_torch_file(folder / "checkpoint-last.pth"))
    assert saved[0]["step"] == 4
    assert all(torch.equal(value, saved[1]["model"][key]) for key, value in saved[0]["model"].items())
    codes = write(tmp_path / "others", codes_of(7, 2), np.arange(7) % 2, PIXELS)
    outcome = call(main.main, "--config", str(tmp_path / "npp.yaml"), "--code_paths", f"[{codes}]")
    assert outcome.error().startswith(f"{codes} holds 16 codes an image, but the model has the scales 10; name codes")


# RandAR's folders


def write_by_class(root: Path, codes: np.ndarray, names: list[str]) -> Path:
    """``names`` of the classes, in turn."""
    for index, maps in enumerate(codes):
        (root / names[index % len(names)]).mkdir(parents=True, exist_ok=True)
        np.save(root / names[index % len(names)] / f"{index}.npy", maps)
    return root


def test_folders_of_classes_give_each_image_its_codes_and_label(tmp_path: Path) -> None:
    """Folders without codes and hidden files do not count."""
    codes, root = codes_of(25, 2), tmp_path / "codes"
    write_by_class(root, codes, ["0", "2", "10"])
    for other in ("logs", "__MACOSX"):
        (root / other).mkdir()
    (root / "2" / "._1.npy").write_bytes(b"")
    folders = CodeFolders([str(root)], SIZE)
    folders.check([SIDE], CODES, 11)
    assert (len(folders), folders.num_crops) == (25, 2)
    found = {}
    for item in range(25):
        for crop in range(2):
            (maps,), label = folders.__getitems__([(item, crop)])
            found[maps[0].flatten().numpy().tobytes()] = (int(label), crop)
    expected = {codes[i, crop].tobytes(): ((0, 2, 10)[i % 3], crop) for i in range(25) for crop in range(2)}
    assert found == expected


@pytest.mark.parametrize("name", ["n01440764", "01", "²"])
def test_folders_of_classes_are_called_by_indices(name: str, tmp_path: Path) -> None:
    folder = write_by_class(tmp_path / "codes", codes_of(6, 2), ["0", "1", name])
    with pytest.raises(UserError, match=f"{name} holds codes, but is not called by a class index"):
        CodeFolders([str(folder)], SIZE)


def test_folders_of_classes_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    folder = write_by_class(tmp_path / "codes", codes_of(6, 2), ["0", "1", "12"])
    with pytest.raises(UserError, match="12 holds 12, but the model has 10 classes"):
        folders = CodeFolders([str(folder)], SIZE)
        folders.check([SIDE], CODES, CLASSES)
    np.save(folder / "1" / "4.npy", np.zeros((3, 16), np.int64))
    with pytest.raises(UserError, match=r"4\.npy holds 3 maps of 16 codes, but the first file 2 of 16"):
        CodeFolders([str(folder)], SIZE).folders[0].read(3)
