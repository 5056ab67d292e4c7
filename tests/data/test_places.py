"""The same images in every kind of place: pixels, labels, codes; loading processes; splits; what has no one meaning."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

import main as training
from benchmarks.packing import pack
from data.cache import describe
from data.images import CroppedImages, dataset_name, open_dataset
from data.labelled_images import StoredImages
from data.make_cache import CacheMaker
from models.loading.autoencoder import autoencoder_hash
from runtime.errors import UserError
from tests.command_factory import call
from tests.factory import tiny_autoencoder
from tests.pictures import write_pictures
from tests.places import KINDS, write_places

pytestmark = pytest.mark.quick
SIZE = 32


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_places(tmp_path_factory.mktemp("places"))


def opened(places: dict[str, Path], kind: str, split: str = "train") -> StoredImages:
    return open_dataset("folder", str(places[kind]), SIZE, split)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("kind", KINDS[1:])
def test_images_are_the_same_wherever_they_lie(places: dict[str, Path], kind: str, split: str) -> None:
    ours, folders = opened(places, kind, split), opened(places, "folders", split)
    assert (ours.labels, ours.class_keys, ours.class_names) == (folders.labels, ["ant", "bee"], ["ant", "bee"])
    assert len(set(ours.keys)) == len(folders) == (11 if split == "train" else 3)
    assert [ours.read(i).size for i in range(len(ours)) if folders.keys[i].endswith("turned.jpg")] in ([], [(30, 40)])
    for index in np.random.default_rng(0).permutation(len(folders)).tolist():
        assert np.array_equal(ours.read(index), folders.read(index))
        assert ours.checksum(index) == folders.checksum(index)
    assert ours.remarks == []


@pytest.mark.parametrize("kind", KINDS)
def test_keys_are_the_same_wherever_the_data_lies(places: dict[str, Path], kind: str, tmp_path: Path) -> None:
    root = shutil.copytree(places["folders"].parent, tmp_path / "moved")
    if kind == "csv":  # whose paths are absolute
        text = places["csv"].read_text()
        (root / "images.csv").write_text(text.replace(str(places["csv"].parent), str(root)))
    moved = open_dataset("folder", str(root / places[kind].name), SIZE)
    assert moved.keys == opened(places, kind).keys
    assert np.array_equal(moved.read(3), opened(places, kind).read(3))


def test_codes_are_the_same_to_the_bit(places: dict[str, Path], tmp_path: Path) -> None:
    autoencoder = tiny_autoencoder(ch_mult=(1, 1, 2))
    codes = {}
    for kind in KINDS:
        images = opened(places, kind)
        manifest = describe(
            images, SIZE, "center", (1, 2, 8), autoencoder.config.n_embed, autoencoder_hash(autoencoder)
        )
        maker = CacheMaker(images, autoencoder, manifest, batch_size=4, num_workers=0)
        folder = maker.create(tmp_path / kind)
        codes[kind] = np.load(folder / "codes.npy")
        assert maker.verify(folder, 5, seed=0)[0] == 0
    assert len(np.unique(codes["folders"])) > 20
    assert all(np.array_equal(found, codes["folders"]) for found in codes.values())


@pytest.mark.parametrize("kind", KINDS)
def test_loading_processes_read_what_is_read_here(places: dict[str, Path], kind: str) -> None:
    """Also after this process has read, and so opened, something itself."""
    crops = CroppedImages(opened(places, kind), SIZE, "center")
    here = [crops[index, 0][0] for index in range(len(crops))]
    loader = DataLoader(crops, batch_sampler=[[(index, 0)] for index in range(len(crops))], num_workers=2)
    found = [images[0] for images, _ in loader]
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(found, here, strict=True))


def test_a_forked_process_does_not_move_what_its_parent_reads(places: dict[str, Path]) -> None:
    images = opened(places, "parquet")
    expected = [images.content(index) for index in range(len(images))]
    images.content(0)
    pid = os.fork()
    if pid == 0:
        found = [images.content(index) for index in reversed(range(len(images)))]
        os._exit(0 if found == expected[::-1] else 1)
    assert images.content(1) == expected[1]
    assert os.waitpid(pid, 0)[1] == 0
    assert pickle.loads(pickle.dumps(images)).content(5) == expected[5]


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_reports_and_makes_a_cache(places: dict[str, Path], kind: str, tmp_path: Path) -> None:
    """With as many classes as there are, and named as the cache is looked for without the images."""
    shared = ["--config", "configs/quickstart.yaml", "--dataset", "folder", "--data_path", str(places[kind])]
    shared += ["--num_classes", "0", "--num_workers", "0", "--device", "cpu", "--cached_path", str(tmp_path)]
    assert "11 images of 2 classes; 5 to 6 images a class" in call(training.main, *shared, "--check_data").out
    assert call(training.main, *shared, "--create_cache", "--use_cache", "false", "--crop", "center").code == 0
    name = dataset_name("folder", str(places[kind]))
    assert np.load(tmp_path / f"{name}-32-center/codes.npy").shape[0] == 11


def test_places_are_called_as_their_files_without_the_suffix() -> None:
    named = {"/a/pets": "pets", "/a/pets.zip": "pets", "/a/v1.2": "v1.2", "/a/x.tar": "x", "b/train.csv": "train"}
    assert {path: dataset_name("folder", path) for path in named} == named


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_split_all_are_training_images(places: dict[str, Path], kind: str, tmp_path: Path) -> None:
    one = {"train": opened(places, "folders")}
    alone = pack(one, tmp_path) | {"folders": places["folders"] / "train"}
    if kind in ("parquet", "tar"):
        (file,) = (alone[kind] / "data").glob("train-00000*")
        alone[kind] = shutil.copyfile(file, tmp_path / f"images{file.suffix}")
        (tmp_path / "classes.txt").write_text("ant\nbee\n")
    if kind == "zip":
        shutil.rmtree(tmp_path / "tar")
        alone[kind] = Path(shutil.make_archive(str(tmp_path / "flat"), "zip", places["folders"] / "train"))
    if kind == "csv":
        alone[kind].write_text("".join(f"{line.rpartition(',')[0]}\n" for line in alone[kind].read_text().splitlines()))
    images = open_dataset("folder", str(alone[kind]), SIZE)
    assert len(images) == (6 if kind in ("parquet", "tar") else 11)
    with pytest.raises(UserError, match=r"has no .*val.* or .*test.*; add one, or give --split train"):
        open_dataset("folder", str(alone[kind]), SIZE, "val")


@pytest.mark.parametrize("suffix", [".zip", ".csv"])
def test_a_file_for_each_split(places: dict[str, Path], suffix: str, tmp_path: Path) -> None:
    for split in ("train", "val"):
        if suffix == ".zip":
            shutil.make_archive(str(tmp_path / split), "zip", places["folders"] / split)
        else:
            rows = [
                f"{images.file_of(index)},{label}\n"
                for images in [opened(places, "folders", split)]
                for index, label in enumerate(images.labels)
            ]
            (tmp_path / f"{split}.csv").write_text("file,label\n" + "".join(rows))
    for split, count in (("train", 11), ("val", 3)):
        images = open_dataset("folder", str(tmp_path), SIZE, split)
        assert images.labels == opened(places, "folders", split).labels
        assert np.array_equal(images.read(count - 1), opened(places, "folders", split).read(count - 1))


def test_what_has_no_one_meaning_is_refused(places: dict[str, Path], tmp_path: Path) -> None:
    for file in ("parquet/data/train-00000-of-00002.parquet", "tar/data/train-00000-of-00002.tar"):
        shutil.copy(places["csv"].parent / file, tmp_path)
    with pytest.raises(UserError, match=r"00002\.parquet and train-00000-of-00002\.tar; move"):
        open_dataset("folder", str(tmp_path), SIZE)
    (tmp_path / "train-00000-of-00002.tar").unlink()
    write_pictures(tmp_path, {"ant": 1})
    with pytest.raises(UserError, match=r"parquet and class folders; move"):
        open_dataset("folder", str(tmp_path), SIZE)


def test_folders_beside_what_they_were_unpacked_from_are_class_folders(places: dict[str, Path], tmp_path: Path) -> None:
    """The archive of a split, a list of another kind, and a tar that is no shard, as that of ImageNet."""
    write_pictures(tmp_path / "train", {"ant": 2})
    shutil.make_archive(str(tmp_path / "train"), "zip", tmp_path / "train")
    shutil.make_archive(str(tmp_path / "ILSVRC2012_img_train"), "tar", tmp_path / "train")
    (tmp_path / "test.csv").write_text("name,width\na,3\n")
    assert open_dataset("folder", str(tmp_path), SIZE).keys == ["ant/000.jpg", "ant/001.png"]


def test_a_table_beside_the_folders_of_its_images_says_what_they_are(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"images": 2})
    (tmp_path / "train.csv").write_text("path,class\nimages/000.jpg,cat\nimages/001.png,dog\n")
    images = open_dataset("folder", str(tmp_path), SIZE)
    assert (images.keys, images.class_keys) == (["images/000.jpg", "images/001.png"], ["cat", "dog"])
    assert images.remarks == [f"{tmp_path}: train.csv says what the images are; folders beside it only hold them"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train-0.tar", "other.tar"], "other.tar names no split, but train-0.tar does"),
        (["train-val-0.tar"], "names two splits, train and val"),
        (["val-0.tar"], r"has val-\*.tar, but no train-\*.tar"),
        (["train-0.tar", "training-0.tar"], "join them, or move one away"),
        (["train-0.tar", "data/train-0.tar"], "two files of a split are called train-0.tar"),
        (["train/0.parquet", "data/train/0.parquet"], r"two files of a split are called 0\.parquet"),
    ],
)
def test_names_of_splits(places: dict[str, Path], names: list[str], said: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        kind = Path(name).suffix
        shutil.copyfile(places[kind[1:]] / f"data/train-00000-of-00002{kind}", tmp_path / name)
    with pytest.raises(UserError, match=said):
        open_dataset("folder", str(tmp_path), SIZE)


def test_shards_in_folders_of_splits_and_missing_ones(places: dict[str, Path], tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        shutil.copyfile(places["tar"] / f"data/{split}-00001-of-00002.tar", tmp_path / split / "0001-of-2.tar")
    (tmp_path / "classnames.txt").write_text("Ameise\nBiene\n")
    (tmp_path / "README.md").touch()
    train, rest = (open_dataset("folder", str(tmp_path), SIZE, split) for split in ("train", "val"))
    assert train.class_keys == rest.class_keys == ["Ameise", "Biene"]
    assert (len(train), len(rest)) == (5, 1)
    shutil.move(tmp_path / "train/0001-of-2.tar", tmp_path / "train/x-0001-of-2.tar")
    remarks = open_dataset("folder", str(tmp_path), SIZE).remarks
    assert remarks[0] == f"warning: {tmp_path / 'train'} lacks 1 of 2 files such as x-0001-of-2.tar; fetch them"
    assert remarks[1] == f"{tmp_path}: left out: 1 .md"
    shutil.copyfile(tmp_path / "train/x-0001-of-2.tar", tmp_path / "train/x-0001-of-3.tar")
    with pytest.raises(UserError, match="numbered of 2 and of 3, as of two versions"):
        open_dataset("folder", str(tmp_path), SIZE)


def test_a_folder_of_one_archive_is_told_from_it(tmp_path: Path) -> None:
    (tmp_path / "pets.zip").touch()
    with pytest.raises(UserError, match=r"holds pets\.zip; name that file as data_path"):
        open_dataset("folder", str(tmp_path), SIZE)


def test_parquet_in_a_folder_of_another_name(places: dict[str, Path], tmp_path: Path) -> None:
    """As the hub's CIFAR-10 has it, in plain_text; not where there are two, as of two variants of a data set."""
    shutil.copytree(places["parquet"] / "data", tmp_path / "plain_text")
    assert len(open_dataset("folder", str(tmp_path), SIZE, "val")) == 3
    (tmp_path / "other/train").mkdir(parents=True)
    shutil.copy(tmp_path / "plain_text/train-00000-of-00002.parquet", tmp_path / "other/train")
    with pytest.raises(UserError, match=r"holds other and plain_text, folders of \.parquet files; name one"):
        open_dataset("folder", str(tmp_path), SIZE)
    shutil.rmtree(tmp_path / "plain_text")
    assert len(open_dataset("folder", str(tmp_path), SIZE)) == 6


def test_parquet_beside_images_makes_no_other_data_set(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"ant": 1, "bee": 1})
    for name in ("ant", "bee"):
        (tmp_path / name / "boxes.parquet").touch()
    images = open_dataset("folder", str(tmp_path), SIZE)
    assert (images.class_keys, images.remarks) == (["ant", "bee"], [f"{tmp_path}: left out: 2 .parquet"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pets.7z", r"is no data set; name a folder, or a file that ends in \.parquet, \.tar"),
        ("pets.tar.gz", r"pets\.tar\.gz is compressed; unpack it with gunzip"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=said):
        open_dataset("folder", str(tmp_path / name), SIZE)


@pytest.mark.parametrize("name", ["x.parquet", "x.tar", "x.zip", "x.csv"])
@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\xff\xfe\0" * 500])
def test_what_is_damaged_is_one_sentence_that_names_it(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        open_dataset("folder", str(tmp_path / name), SIZE)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["parquet", "tar", "zip"])
def test_what_is_cut_off_is_refused(places: dict[str, Path], kind: str, tmp_path: Path) -> None:
    file = places[kind] if kind == "zip" else sorted((places[kind] / "data").glob("train*"))[0]
    content = file.read_bytes()
    for end in (len(content) // 2, len(content) // 3 // 512 * 512 + 100, 1000):
        cut = tmp_path / f"cut{end}{file.suffix}"
        cut.write_bytes(content[:end])
        with pytest.raises(UserError, match=r"is no whole|is damaged or cut off"):
            open_dataset("folder", str(cut), SIZE)
