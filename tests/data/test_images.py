"""Every kind of dataset under the one interface, and what happens to images that cannot be read."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader

from data.crops import crop_image, to_floats
from data.images import CroppedImages, check_num_classes, open_dataset
from models.class_names import human_names, imagenet_keys, imagenet_names
from runtime.errors import UserError
from tests.pictures import NumberedImages, damage, picture, write_pictures

pytestmark = pytest.mark.quick


def test_class_folders(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pets", {"dog": 2, "Zebra": 1, "ant": 3})
    images = open_dataset("folder", str(tmp_path / "pets"), 32)
    assert images.name == "pets"
    assert images.class_keys == images.class_names == ["Zebra", "ant", "dog"]  # as text, capitals first
    assert images.keys == ["Zebra/000.jpg", "ant/000.jpg", "ant/001.png", "ant/002.jpg", "dog/000.jpg", "dog/001.png"]
    assert images.labels == [0, 1, 1, 1, 2, 2]
    with Image.open(tmp_path / "pets" / "ant" / "001.png") as image:
        assert np.array_equal(np.array(images.read(2)), np.array(image))


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_train_and_held_out_folders(tmp_path: Path, held_out: str) -> None:
    write_pictures(tmp_path / "train", {"a": 2, "b": 1})
    write_pictures(tmp_path / held_out, {"a": 1, "b": 3})
    train, rest = (open_dataset("folder", str(tmp_path), 32, split) for split in ("train", "val"))
    assert train.name == rest.name == tmp_path.name
    assert train.keys == ["a/000.jpg", "a/001.png", "b/000.jpg"]
    assert rest.keys == ["a/000.jpg", "b/000.jpg", "b/001.png", "b/002.jpg"]
    assert rest.labels == [0, 1, 1, 1]


def test_val_is_taken_before_test(tmp_path: Path) -> None:
    write_pictures(tmp_path / "val", {"a": 1})
    write_pictures(tmp_path / "test", {"a": 2})
    assert len(open_dataset("folder", str(tmp_path), 32, "val")) == 1


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_any_kind_of_pixels_becomes_rgb(tmp_path: Path, mode: str) -> None:
    (tmp_path / "a").mkdir()
    suffix = "tif" if mode == "CMYK" else "png"
    image = picture(40, 30, seed=1).convert(mode)
    image.save(tmp_path / "a" / f"x.{suffix}")
    read = open_dataset("folder", str(tmp_path), 32).read(0)
    assert read.mode == "RGB"
    assert np.array_equal(np.array(read), np.array(image.convert("RGB")))


@pytest.mark.parametrize(
    ("prepare", "mend"),
    [
        ([], "link or unpack one there, or set data_path"),
        (["loose.jpg"], "CLASS/IMAGE.jpg"),
        (["train/loose.jpg"], "CLASS/IMAGE.jpg"),
        (["a/notes.txt"], "CLASS/IMAGE.jpg"),
        (["a/1.jpg", "b/notes.txt"], "no empty class (b hold none; left out: 1 .txt)"),
    ],
)
def test_a_missing_folder_is_one_line_with_the_mend(tmp_path: Path, prepare: list[str], mend: str) -> None:
    root = tmp_path / "pets"
    for name in prepare:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"only its name is looked at")
    with pytest.raises(UserError) as caught:
        open_dataset("folder", str(root), 32)
    assert str(root) in str(caught.value)
    assert mend in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_validation_folder_is_said(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", {"a": 1})
    with pytest.raises(UserError, match=r"has no val/ or test/; add one"):
        open_dataset("folder", str(tmp_path), 32, "val")


@pytest.mark.parametrize(("name", "call"), [("cifar10", "CIFAR10"), ("food101", "Food101"), ("celeba", "CelebA")])
def test_missing_downloads_name_the_call_that_fetches_them(tmp_path: Path, name: str, call: str) -> None:
    with pytest.raises(UserError) as caught:
        open_dataset(name, str(tmp_path), 32)
    expected = f"fetch it in Python by torchvision.datasets.{call}({str(tmp_path)!r}, download=True), or set data_path"
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = rng.integers(256, size=(12, 3072), dtype=np.uint8)  # colour planes, one after the other
    files = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for i, file in enumerate(files):
        content = {"data": rows[2 * i : 2 * i + 2], "labels": [i, 9 - i]}
        (folder / file).write_bytes(pickle.dumps(content))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: Path(path).exists())

    train, rest = (open_dataset("cifar10", str(tmp_path), 32, split) for split in ("train", "val"))
    assert (train.name, len(train), len(rest)) == ("cifar10", 10, 2)
    assert train.class_names == names
    assert train.labels == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    assert rest.labels == [5, 4]
    for images, first in ((train, 0), (rest, 10)):
        for index in range(len(images)):
            expected = rows[first + index].reshape(3, 32, 32).transpose(1, 2, 0)
            assert np.array_equal(np.array(images.read(index)), expected)
    check_num_classes(train.name, train.class_keys, 10)


def test_food101(tmp_path: Path) -> None:
    root = tmp_path / "food-101"
    splits = {"train": {"waffles": ["waffles/2", "waffles/1"], "pho": ["pho/7"]}, "test": {"pho": ["pho/8"]}}
    (root / "meta").mkdir(parents=True)
    for split, files in splits.items():
        (root / "meta" / f"{split}.json").write_text(json.dumps(files))
    for seed, name in enumerate(["waffles/1", "waffles/2", "pho/7", "pho/8"]):
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        picture(30 + seed, 25, seed).save(root / "images" / f"{name}.jpg")
    images = open_dataset("food101", str(tmp_path), 32)
    assert images.class_keys == ["pho", "waffles"]
    assert [(Path(key).stem, label) for key, label in zip(images.keys, images.labels, strict=True)] == [
        ("2", 1),
        ("1", 1),
        ("7", 0),
    ]
    assert images.read(0).size == (31, 25)
    assert open_dataset("food101", str(tmp_path), 32, "val").read(0).size == (33, 25)


def test_celeba(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "celeba"
    (root / "img_align_celeba").mkdir(parents=True)
    names = [f"{i:06d}.jpg" for i in range(1, 7)]
    partition = [0, 1, 0, 0, 2, 1]
    for seed, name in enumerate(names):
        picture(20 + seed, 30, seed).save(root / "img_align_celeba" / name)
    tables = {"identity_CelebA": ([], 1), "list_bbox_celeba": (["6", "x y w h"], 4)}
    tables |= {"list_landmarks_align_celeba": (["6", "a b"], 2), "list_attr_celeba": (["6", "Smiling Young"], 2)}
    for table, (header, columns) in tables.items():
        lines = [*header, *(f"{name}{' 1' * columns}" for name in names)]
        (root / f"{table}.txt").write_text("\n".join(lines) + "\n")
    lines = [f"{name} {part}" for name, part in zip(names, partition, strict=True)]
    (root / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr("torchvision.datasets.celeba.check_integrity", lambda path, md5: Path(path).exists())

    images = open_dataset("celeba", str(tmp_path), 32)
    assert images.keys == ["000001.jpg", "000003.jpg", "000004.jpg"]
    assert (images.labels, images.class_names) == ([0, 0, 0], ["face"])
    assert [images.read(index).width for index in range(3)] == [20, 22, 23]
    assert open_dataset("celeba", str(tmp_path), 32, "val").keys == ["000002.jpg", "000006.jpg"]


@pytest.mark.parametrize("name", ["food101", "folder"])
def test_a_home_folder_may_be_written_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    if name == "food101":
        (tmp_path / "sets" / "food-101" / "meta").mkdir(parents=True)
        (tmp_path / "sets" / "food-101" / "meta" / "train.json").write_text(json.dumps({"images": ["pho/7"]}))
        (tmp_path / "sets" / "food-101" / "images" / "pho").mkdir(parents=True)
        picture(21, 25, seed=0).save(tmp_path / "sets" / "food-101" / "images" / "pho" / "7.jpg")
    else:
        write_pictures(tmp_path / "sets", {"a": 1}, sizes=[(21, 25)])
    assert open_dataset(name, "~/sets", 32).read(0).size == (21, 25)


def test_digits_are_scikit_learns_scans() -> None:
    scans, labels = load_digits(return_X_y=True)
    train, rest = (open_dataset("digits", "", 8, split) for split in ("train", "val"))
    assert (len(train), len(rest)) == (1500, 297)
    assert train.labels + rest.labels == labels.tolist()
    assert train.class_names == [str(digit) for digit in range(10)]
    pixels = np.stack([np.array(part.read(i)) for part in (train, rest) for i in range(len(part))])
    expected = np.round(scans.reshape(-1, 8, 8) / 16 * 255)
    assert np.array_equal(pixels, np.repeat(expected[..., None], 3, axis=-1))


def test_digits_are_enlarged() -> None:
    small, large = (open_dataset("digits", "", size) for size in (8, 32))
    shrunk = np.array(large.read(5)).reshape(8, 4, 8, 4, 3).mean(axis=(1, 3))
    assert large.read(5).size == (32, 32)
    assert np.corrcoef(shrunk.ravel(), np.array(small.read(5)).ravel())[0, 1] > 0.95


def test_imagenet_identifiers_get_words() -> None:
    names = human_names(["n02099601", "n01440764", "my_class"])
    assert names[0].startswith("golden retriever")
    assert names[1].startswith("tench")
    assert names[2] == "my_class"


def test_imagenets_order_is_the_fields() -> None:
    keys, names = imagenet_keys(), imagenet_names()
    assert len(keys) == len(names) == 1000
    assert keys == sorted(keys)
    fields_order = {0: "tench", 207: "golden retriever", 360: "otter", 388: "giant panda", 980: "volcano"}
    for label, name in fields_order.items():
        assert names[label].startswith(name)


def test_class_count_is_checked() -> None:
    images = open_dataset("digits", "", 8)
    check_num_classes(images.name, images.class_keys, 10)
    with pytest.raises(UserError, match=r"digits has 10 classes, but num_classes is 1000; set num_classes 10$"):
        check_num_classes(images.name, images.class_keys, 1000)


def test_a_crop_of_an_image(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"a": 2, "b": 2})
    images = open_dataset("folder", str(tmp_path), 32)
    dataset = CroppedImages(images, 32, "ten")
    assert (len(dataset), dataset.num_crops) == (4, 10)
    for index, crop in [(0, 0), (3, 7), (2, 4)]:
        image, label = dataset[index, crop]
        assert torch.equal(image, to_floats(crop_image(images.read(index), 32, "ten", crop)))
        assert label == images.labels[index]


@pytest.mark.parametrize("how", ["truncated", "text", "empty", "gone"])
def test_an_unreadable_file_is_named_and_the_next_one_takes_its_place(
    tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = write_pictures(tmp_path, {"a": 3, "b": 3})
    dataset = CroppedImages(open_dataset("folder", str(tmp_path), 32), 32, "ten")
    expected = dataset[3, 6]
    damage(paths[2], how)
    for _ in range(2):
        image, label = dataset[2, 6]
        assert torch.equal(image, expected[0])
        assert label == expected[1] == 1  # the label of the image that is shown
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1  # once, however often it is met
    assert str(paths[2]) in lines[0]
    assert ("is missing" if how == "gone" else "cannot be read as an image") in lines[0]


def test_the_place_after_the_last_is_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    dataset = CroppedImages(NumberedImages(200, {198, 199}), 8, "center")
    assert [dataset[index, 0][1] for index in (197, 198, 199)] == [197, 0, 0]
    assert capsys.readouterr().err.splitlines() == ["skipped: image 198 is broken", "skipped: image 199 is broken"]


@pytest.mark.parametrize(("number", "allowed"), [(20, 1), (100, 1), (300, 3), (350, 3)])
def test_more_than_one_percent_unreadable_is_an_error(number: int, allowed: int) -> None:
    dataset = CroppedImages(NumberedImages(number, set(range(0, 2 * allowed + 1, 2))), 8, "center")
    for index in range(2 * allowed):
        assert dataset[index, 0][1] == index + (index % 2 == 0)
    with pytest.raises(UserError, match=f"{allowed + 1} unreadable images, over 1 % of the data"):
        dataset[2 * allowed, 0]


def test_unreadable_images_count_over_all_loading_processes() -> None:
    dataset = CroppedImages(NumberedImages(200, {10, 60, 110}), 8, "center")  # one to each worker
    pairs = [[(index, 0)] for start in (0, 50, 100) for index in range(start + 8, start + 12)]
    batches = [pairs[i + 4 * worker] for i in range(4) for worker in range(3)]
    with pytest.raises(UserError, match="3 unreadable images, over 1 % of the data"):
        list(DataLoader(dataset, batch_sampler=batches, num_workers=3, collate_fn=dataset.collate))


@pytest.mark.parametrize("number", [1, 2])
def test_nothing_readable_is_an_error_and_not_an_endless_search(number: int) -> None:
    dataset = CroppedImages(NumberedImages(number, set(range(number))), 8, "center")
    with pytest.raises(UserError, match="unreadable"):
        dataset[0, 0]
