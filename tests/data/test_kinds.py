"""What each kind of place may hold that a user does not expect: names of classes, strays, damage, wrong labels."""

import io
import json
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data.files import UnreadableImageError
from data.images import open_dataset
from data.labelled_images import StoredImages
from data.report import data_report
from models.class_names import class_keys_of, imagenet_keys, imagenet_names
from runtime.errors import UserError
from tests.pictures import picture, write_pictures

pytestmark = pytest.mark.quick


def jpeg(seed: int) -> bytes:
    file = io.BytesIO()
    picture(24, 20, seed).save(file, "JPEG")
    return file.getvalue()


def opened(path: Path, split: str = "train") -> StoredImages:
    return open_dataset("folder", str(path), 32, split)


def refusal(path: Path, split: str = "train") -> str:
    """The one sentence that opening ends in."""
    with pytest.raises(UserError) as caught:
        opened(path, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Parquet


def write_parquet(
    path: Path, labels: list[Any], names: list[str] | None = None, group_rows: int = 2, **renamed: str
) -> Path:
    """One image a label; ``renamed`` are columns."""
    images = [{"bytes": jpeg(seed), "path": None} for seed in range(len(labels))]
    table = pa.table({renamed.get("image", "image"): images, renamed.get("label", "label"): labels})
    if names is not None:
        features = {renamed.get("label", "label"): {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group_rows)
    return path


def test_rows_are_read_in_any_order(tmp_path: Path) -> None:
    for number in range(3):
        write_parquet(tmp_path / f"data/train-{number}.parquet", [0] * 7, group_rows=3)
    images = opened(tmp_path)
    expected = [jpeg(seed) for _ in range(3) for seed in range(7)]
    order = np.random.default_rng(0).permutation(len(images)).tolist()
    assert [images.content(index) for index in order] == [expected[index] for index in order]
    assert images.keys[8] == "train-1.parquet/1"


def test_of_a_large_row_group_no_more_than_a_page_is_held(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    stored = [rng.bytes(50_000) for _ in range(400)]
    table = pa.table({"image": [{"bytes": content, "path": ""} for content in stored], "label": [0] * 400})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=400, write_batch_size=8, use_dictionary=False)
    del table
    images, before = opened(tmp_path / "x.parquet"), pa.total_allocated_bytes()
    for index in (399, 3, 4, 250):
        assert images.content(index) == stored[index]
        assert pa.total_allocated_bytes() - before < 6e6  # of 20 MB


def test_names_of_the_hub_are_the_classes(tmp_path: Path) -> None:
    images = opened(write_parquet(tmp_path / "x.parquet", [2, 0, 2], ["ant", "bee", "cat"]))
    assert (images.class_keys, images.labels) == (["ant", "bee", "cat"], [2, 0, 2])
    assert "warning: class bee has no image" in data_report(images)


def test_other_columns_are_taken_if_they_are_the_only_ones(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", [1, 0], ["ant", "bee"], image="img", label="coarse_label")
    assert opened(path).class_keys == ["ant", "bee"]
    table = pq.read_table(path)
    pq.write_table(table.append_column("fine_label", pa.array([5, 6])), path)
    said = refusal(path)
    assert str(path) in said
    assert all(name in said for name in ("img (struct", "coarse_label (int64)", "fine_label (int64)"))
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), path)
    assert "text (string), label (int64)" in refusal(path)


@pytest.mark.parametrize("name", ["width", "image_id", "id", "index", "__index_level_0__"])
def test_numbers_that_are_no_labels_are_not_taken(tmp_path: Path, name: str) -> None:
    path = write_parquet(tmp_path / "x.parquet", [3, 4], label=name)
    assert f"{name} (int64)" in refusal(path)
    table = pq.read_table(path)
    pq.write_table(table.append_column("label", pa.array([0.0, 1.0])), path)
    assert "label (double)" in refusal(path)
    for words in (pa.array([" wasp", "bee"]), pa.array(["wasp", "bee"], pa.large_string()).dictionary_encode()):
        pq.write_table(table.append_column("label", words), path)
        assert (opened(path).class_keys, opened(path).labels) == (["bee", "wasp"], [1, 0])


def test_files_of_one_data_set_have_one_kind_of_labels(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", [0])
    write_parquet(tmp_path / "train-1.parquet", ["bee"])
    assert "train-1.parquet has other labels than" in refusal(tmp_path)


def test_labels_that_are_not_published(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", [0, 1], ["ant", "bee"])
    write_parquet(tmp_path / "test-0.parquet", [-1, -1], ["ant", "bee"])
    assert f"{tmp_path}/test-0.parquet has no labels, only -1" in refusal(tmp_path, "val")
    assert opened(tmp_path).labels == [0, 1]
    assert "has no labels, only -1" in refusal(tmp_path / "test-0.parquet")


def test_large_labels_do_not_become_others(tmp_path: Path) -> None:
    table = pq.read_table(write_parquet(tmp_path / "x.parquet", [0, 1]))
    pq.write_table(table.set_column(1, "label", pa.array([0, 2**64 - 1], pa.uint64())), tmp_path / "x.parquet")
    assert f"is of class {2**64 - 1}, but" in refusal(tmp_path / "x.parquet")


def test_the_hubs_imagenet_has_imagenets_classes(tmp_path: Path) -> None:
    names = imagenet_names()
    names[517] += "2"  # a machine; the other crane is a bird
    assert class_keys_of(names) == imagenet_keys()
    assert class_keys_of(list(reversed(names))) == list(reversed(names))
    assert class_keys_of([*names[:-1], "something else"])[0] == names[0]
    images = opened(write_parquet(tmp_path / "x.parquet", [207, 999], names))
    assert (images.class_keys, images.class_names[207]) == (imagenet_keys(), "golden retriever")
    images = opened(write_parquet(tmp_path / "y.parquet", [207, 999]))
    assert images.class_keys == imagenet_keys()
    assert "taken for ImageNet's" in images.remarks[0]


@pytest.mark.parametrize(
    ("labels", "names", "said"),
    [
        ([0, -1], None, "row 1 of {} is of class -1, but there are 1 classes"),
        ([0, 3], ["a", "b"], "row 1 of {} is of class 3, but there are 2 classes"),
        ([0, 10**9], None, "row 1 of {} is of class 1000000000, but there may be 100000 classes"),
        ([None, None], None, "has no image with a label"),
    ],
)
def test_wrong_labels_of_rows(tmp_path: Path, labels: list[Any], names: list[str] | None, said: str) -> None:
    path = tmp_path / "x.parquet"
    write_parquet(path, labels, names)
    if labels[0] is None:
        pq.write_table(pq.read_table(path).set_column(1, "label", pa.array(labels, pa.int64())), path)
    assert said.format(path) in refusal(path)


def test_rows_without_label_or_image(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", [0, None, 1])
    images = opened(path)
    assert (images.keys, images.labels) == (["x.parquet/0", "x.parquet/2"], [0, 1])
    assert images.remarks == [f"{path}: left out: 1 rows without a label"]
    content = [
        {"bytes": None, "path": "a.jpg"},
        None,
        {"bytes": b"text", "path": "b.jpg"},
        {"bytes": jpeg(3), "path": ""},
    ]
    pq.write_table(pa.table({"image": content, "label": [0, 0, 0, 0]}), path)
    for index, said in enumerate(("row 0 of {} holds no image", "row 1 of {} holds no image", "row 2 of {} cannot be")):
        with pytest.raises(UnreadableImageError, match=said.format(path)):
            opened(path).read(index)
    assert opened(path).read(3).size == (24, 20)


def test_a_damaged_row_group_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", [0] * 4)
    expected, images = opened(path).content(3), opened(path)
    chunk = pq.read_metadata(path).row_group(0).column(0)
    content = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=f"row 0 of {path} cannot be read as an image"):
        images.read(0)
    assert images.content(3) == expected


def test_files_of_two_data_sets_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", [0], ["ant", "bee"])
    write_parquet(tmp_path / "train-1.parquet", [0], ["cat", "dog"])
    assert "train-1.parquet has other names of classes than" in refusal(tmp_path)


def test_large_row_groups_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "x.parquet", [0] * 4)
    assert opened(path).remarks == []
    monkeypatch.setattr("data.parquet_files.LARGE", 100)
    assert f"{path} has row groups of 0 MB, half of which" in opened(path).remarks[0]


# tar


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_members_of_a_key_are_an_image_and_its_class(tmp_path: Path) -> None:
    members = {"d/a.jpg": jpeg(0), "d/a.cls": b" 3\n", "d/a.json": b"{}", "b.cls": b"1", "b.JPEG": jpeg(1)}
    members |= {"c.jpg": jpeg(2), "e.cls": b"1", "f.png": jpeg(3), "f.cls": b"", "g.seg.png": jpeg(4), "._b.jpg": b""}
    path = write_tar(tmp_path / "x.tar", members)
    images = opened(path)
    assert (images.keys, images.labels) == (["x.tar/d/a", "x.tar/b"], [3, 1])
    assert images.class_keys == ["0", "1", "2", "3"]
    assert [images.content(index) for index in (1, 0)] == [jpeg(1), jpeg(0)]
    told = f"{path}: left out: 1 .cls without an image, 1 .json, 1 .png after more than one dot, "
    told += "1 hidden, 2 images without .cls"
    assert images.remarks == [told]
    assert "warning: class 0 has no image" in data_report(images)


def test_classes_of_shards_may_be_names(tmp_path: Path) -> None:
    classes = {"a": b"zebra", "b": "caf\u00e9".encode(), "c": b"zebra", "d": b"10"}
    members = {
        f"{key}{suffix}": content for key in classes for suffix, content in ((".cls", classes[key]), (".jpg", b""))
    }
    write_tar(tmp_path / "train-0.tar", members)
    write_tar(tmp_path / "val-0.tar", {"x.jpg": jpeg(0), "x.cls": b"zebra"})
    images = opened(tmp_path)
    assert (images.class_keys, images.labels) == (["10", "caf\u00e9", "zebra"], [2, 1, 2, 0])
    assert images.remarks == [f"{tmp_path}: classes are names, because caf\u00e9 is no number"]
    assert opened(tmp_path, "val").labels == [2]
    assert f"{tmp_path} has no held-out images of 10, caf\u00e9" in opened(tmp_path, "val").remarks
    write_tar(tmp_path / "val-1.tar", {"y.jpg": jpeg(0), "y.cls": b"yak"})
    assert refusal(tmp_path, "val").startswith(f"{tmp_path}/val-1.tar/y.jpg names the class yak, which the training")


def test_held_out_shards_have_the_classes_of_training(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", {"a.jpg": jpeg(0), "a.cls": b"4"})
    write_tar(tmp_path / "val-0.tar", {"a.jpg": jpeg(0), "a.cls": b"2"})
    assert opened(tmp_path, "val").class_keys == ["0", "1", "2", "3", "4"]
    write_tar(tmp_path / "val-0.tar", {"a.jpg": jpeg(0), "a.cls": b"5"})
    assert "val-0.tar/a.jpg is of class 5, but there are 5 classes" in refusal(tmp_path, "val")


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({}, "has no image with a class"),
        ({"a.jpg": b"", "b.jpg": b""}, r"has no image with a class, .* (left out: 2 images without .cls)"),
        ({"a.jpg": b"", "a.png": b"", "a.cls": b"1"}, "has two images of the key a"),
        ({"a.jpg": b"", "a.cls": b"-1"}, "x.tar/a.jpg is of class -1"),
        ({"a.jpg": b"", "a.cls": b"9" * 40}, "but there may be 100000 classes"),
        ({"a.jpg": b"", "a.cls": b"\xff"}, "x.tar/a.cls is no text in UTF-8"),
        ({"a.jpg": b"", "a.cls": b"ant\nbee"}, "x.tar/a.jpg is of class 'ant\\nbee', which is no name on one line"),
    ],
)
def test_wrong_shards(tmp_path: Path, members: dict[str, bytes], said: str) -> None:
    first, _, last = said.partition(".*")
    found = refusal(write_tar(tmp_path / "x.tar", members))
    assert first.strip(", ") in found
    assert last.strip() in found


def test_damage_of_a_shard(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.jpg": jpeg(0), "a.cls": b"0", "b.jpg": b"text", "b.cls": b"0"})
    images = opened(path)
    with pytest.raises(UnreadableImageError, match=f"{path}/b.jpg cannot be read as an image"):
        images.read(1)
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"b.cls")])
    assert opened_remark(path) == f"warning: {path} has no end mark, and may be cut off"
    path.write_bytes(content[:700])
    with pytest.raises(UnreadableImageError, match=r"a\.jpg is cut off"):
        images.read(0)
    path.unlink()
    with pytest.raises(UnreadableImageError, match=r"a\.jpg is missing"):
        images.read(0)


def test_joined_shards_are_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.jpg": jpeg(0), "a.cls": b"0"})
    path.write_bytes(path.read_bytes() + bytes(10**6))
    assert opened(path).remarks == []
    path.write_bytes(path.read_bytes() + write_tar(tmp_path / "y.tar", {"b.jpg": jpeg(1), "b.cls": b"0"}).read_bytes())
    assert f"{path} goes on after its end at byte" in refusal(path)


def test_members_that_are_not_stored_whole(tmp_path: Path) -> None:
    """Links are counted. Of a file with gaps the bytes are not those of the image."""
    path = write_tar(tmp_path / "x.tar", {"a.jpg": jpeg(0), "a.cls": b"\xef\xbb\xbf0"})
    with tarfile.open(path, "a") as tar:
        for name, kind in (("b.jpg", tarfile.LNKTYPE), ("c.jpg", tarfile.SYMTYPE), ("d.jpg", tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a.jpg"
            tar.addfile(member)
    assert (opened(path).class_keys, opened(path).labels) == (["0"], [0])
    assert opened_remark(path) == f"{path}: left out: 2 links, 1 no files"
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo("e.jpg")
        member.type = tarfile.GNUTYPE_SPARSE
        tar.addfile(member)
    assert f"{path}/e.jpg is stored with gaps" in refusal(path)


def opened_remark(path: Path) -> str:
    return opened(path).remarks[0]


# zip


def write_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("above", ["", "wrapped/", "train/", "wrapped/train/"])
def test_class_folders_in_an_archive(tmp_path: Path, above: str, method: int) -> None:
    members = {f"{above}{name}": jpeg(seed) for seed, name in enumerate(("bee/1.jpg", "ant/2.jpg", "ant/more/1.jpg"))}
    members |= {"__MACOSX/ant/._2.jpg": b"", f"{above}ant/notes.txt": b"", "../x.jpg": b"", "C:/y.jpg": b""}
    path = write_zip(tmp_path / "pets.zip", members, method)
    images = opened(path)
    assert images.keys == ["ant/2.jpg", "ant/more/1.jpg", "bee/1.jpg"]
    assert (images.class_keys, images.labels, images.name) == (["ant", "bee"], [0, 0, 1], "pets")
    assert [images.content(index) for index in (2, 0, 1)] == [jpeg(0), jpeg(1), jpeg(2)]
    said = " ".join(images.remarks)
    assert all(text in said for text in ("1 .txt", "1 __MACOSX", "2 paths that lead out of the archive"))


def test_an_archive_of_one_class_is_not_unwrapped(tmp_path: Path) -> None:
    assert opened(write_zip(tmp_path / "x.zip", {"ant/1.jpg": b"", "ant/2.jpg": b""})).class_keys == ["ant"]


def test_only_a_letter_before_a_colon_leads_out_of_an_archive(tmp_path: Path) -> None:
    images = opened(write_zip(tmp_path / "x.zip", {"cat:/1.jpg": b"", "dog/1.jpg": b"", "D:/bee/1.jpg": b""}))
    assert images.class_keys == ["cat:", "dog"]
    assert "1 paths that lead out of the archive" in " ".join(images.remarks)


def test_damaged_labels_of_a_table_are_one_sentence(tmp_path: Path) -> None:
    """The footer, which is read first, is whole."""
    path = write_parquet(tmp_path / "x.parquet", [0, 1], ["ant", "bee"])
    content = bytearray(path.read_bytes())
    footer = 8 + int.from_bytes(content[-8:-4], "little")
    content[4:-footer] = bytes(len(content) - 4 - footer)
    path.write_bytes(content)
    assert f"{path} is no whole .parquet file" in refusal(path)


def test_a_folder_that_is_taken_for_a_wrapper_is_named(tmp_path: Path) -> None:
    """And in a folder train it is the class."""
    members = {"face/0/1.jpg": b"", "face/1/2.jpg": b""}
    images = opened(write_zip(tmp_path / "x.zip", members))
    assert images.class_keys == ["0", "1"]
    assert images.remarks[0].startswith(f"{tmp_path}/x.zip: face/ is taken for a wrapper")
    for name in ("x.zip", "train.zip"):
        path = write_zip(tmp_path / name, {f"train/{member}": content for member, content in members.items()})
        images = opened(path if name == "x.zip" else tmp_path)
        assert (images.class_keys, images.keys, images.remarks) == (["face"], ["face/0/1.jpg", "face/1/2.jpg"], [])


@pytest.mark.parametrize("how", ["extra", "utf-8", "cp437", "another's extra"])
def test_names_of_an_archive_without_the_flag_of_utf_8(tmp_path: Path, how: str) -> None:
    """As Info-ZIP, macOS and DOS write them; a field that is of another name does not count."""
    name = "caf\u00e9/1.jpg"
    raw = name.encode("utf-8" if how == "utf-8" else "cp437")
    crc = zlib.crc32(raw) if how == "extra" else 0
    field = struct.pack("<BI", 1, crc) + (name if how == "extra" else "other/1.jpg").encode()
    extra = struct.pack("<HHBHH", 0x5455, 1, 0, 0x7075, len(field)) + field
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("?" * len(raw))
        info.extra = extra if "extra" in how else b""
        archive.writestr(info, jpeg(0))
    path.write_bytes(path.read_bytes().replace(b"?" * len(raw), raw))
    images = opened(path)
    assert (images.keys, images.class_keys, images.content(0)) == ([name], ["caf\u00e9"], jpeg(0))
    assert len(images.remarks) == ("cp437" in how or "another" in how)


def test_an_archive_of_windows_has_folders(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"train\\ant\\1.jpg": b"", "train\\bee\\": b"", "./train\\bee\\2.jpg": b""})
    assert opened(path).keys == ["ant/1.jpg", "bee/2.jpg"]


def test_wrong_archives(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    assert "must hold CLASS/IMAGE.jpg" in refusal(write_zip(path, {}))
    assert "images without classes go into one, such as all/" in refusal(write_zip(path, {"a.png": b""}))
    assert "no empty class (bee hold none" in refusal(write_zip(path, {"ant/1.jpg": b"", "bee/": b""}))
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "w") as archive:
        for _ in range(2):
            archive.writestr("ant/1.jpg", b"")
    assert "holds ant/1.jpg twice" in refusal(path)
    write_zip(path, {"ant/1.jpg": b"", "ant/2.jpg": b""}, zipfile.ZIP_BZIP2)
    assert f"{path}/ant/1.jpg is packed in an uncommon way; unpack" in refusal(path)
    content = bytearray(write_zip(path, {"ant/1.jpg": b"12"}).read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1  # the flag of encryption in the directory
    path.write_bytes(content)
    assert f"{path}/ant/1.jpg is encrypted; unpack" in refusal(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damage_within_an_archive(tmp_path: Path, method: int) -> None:
    path = write_zip(tmp_path / "x.zip", {"ant/1.jpg": jpeg(0), "ant/2.jpg": jpeg(1), "ant/3.jpg": b"text"}, method)
    images = opened(path)
    content = bytearray(path.read_bytes())
    middle = content.index(b"ant/1.jpg") + 300
    content[middle] ^= 255
    path.write_bytes(content)
    for index in (0, 2):
        with pytest.raises(UnreadableImageError, match=f"{path}/ant/{index + 1}.jpg (is damaged|cannot be read)"):
            images.read(index)
    assert images.content(1) == jpeg(1)


def test_a_size_that_lies_fills_no_memory(tmp_path: Path) -> None:
    """Of what a member unpacks to, no more is unpacked than the archive says."""
    path = write_zip(tmp_path / "x.zip", {"ant/1.jpg": bytes(10**7)})
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\1\2")
    content[place + 16 : place + 20] = struct.pack("<I", zlib.crc32(bytes(100)))
    content[place + 24 : place + 28] = struct.pack("<I", 100)
    path.write_bytes(content)
    images = opened(path)
    tracemalloc.start()
    with pytest.raises(UnreadableImageError, match="is damaged"):
        images.read(0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6  # of 10 MB


# csv


@pytest.fixture
def files(tmp_path: Path) -> Path:
    write_pictures(tmp_path, {"photos": 4})
    return tmp_path


def write_csv(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    (folder / "table.csv").write_text(text, encoding=encoding)
    return folder / "table.csv"


@pytest.mark.parametrize("header", ["path,class", "Filename , LABEL", "file,class"])
def test_a_table_names_paths_and_classes(files: Path, header: str) -> None:
    rows = f"photos/001.png,zebra\r\n\r\n{files}/photos/000.jpg,ant\r\n./photos/002.jpg,zebra\r\n"
    images = opened(write_csv(files, f"{header}\r\n{rows}", "utf-8-sig"))
    assert images.keys == ["photos/001.png", "photos/000.jpg", "photos/002.jpg"]
    assert (images.class_keys, images.labels, images.name) == (["ant", "zebra"], [1, 0, 1], "table")
    with Image.open(files / "photos/001.png") as image:
        assert np.array_equal(images.read(0), image)


def test_a_table_may_tell_splits_and_numbers(files: Path) -> None:
    rows = "photos/000.jpg,2,train\nphotos/001.png,0,training\nphotos/002.jpg,1,val\nphotos/003.png,2,test\n"
    path = write_csv(files, f"path,class,split\n{rows.replace('training', 'train')}")
    train, rest = opened(path), opened(path, "val")
    assert (train.labels, rest.labels, rest.keys) == ([2, 0], [1], ["photos/002.jpg"])
    assert train.class_keys == rest.class_keys == ["0", "1", "2"]
    (files / "classes.txt").write_text("ant\nbee\ncat\n")
    assert opened(path).class_keys == ["ant", "bee", "cat"]
    write_csv(files, f"path,class,split\n{rows}".replace(",val", ",evaluation"))
    assert "has the split evaluation; name one of train," in refusal(path)
    (files / "train.csv").write_text(rows.join(("path,class,split\n", "")).replace("training", "train"))
    assert "has a column split, but its name says the split too" in refusal(files)


def test_numbers_with_zeros_before_them_are_names(files: Path) -> None:
    images = opened(write_csv(files, "path,class\nphotos/000.jpg,010\nphotos/001.png,002\n"))
    assert (images.class_keys, images.labels) == (["002", "010"], [1, 0])


def test_rows_that_are_left_out_are_counted(files: Path) -> None:
    rows = ["photos/000.jpg,a", "photos/001.png,", ",a", "photos/000.jpg,a", "photos/gone.jpg,a"]
    path = write_csv(files, "path,class\n" + "\n".join(rows))
    images = opened(path)
    assert images.keys == ["photos/000.jpg", "photos/gone.jpg"]
    told = "left out: 1 rows that repeat another, 1 rows without a class, 1 rows without a path"
    assert images.remarks == [f"{path}: {told}"]
    with pytest.raises(UnreadableImageError, match=f"{files}/photos/gone.jpg is missing"):
        images.read(1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must have a header with one of path, file, filename; it begins with"),
        ("path,width\na,1\n", "must have a header with one of class, label; it begins with path, width"),
        ("path;class\na;1\n", "{} begins with path;class; separate the columns by commas"),
        ("path,class\nphotos/000.jpg,2.0\nphotos/001.png,10.0\n", "line 2 of {} is of class 2.0; write whole numbers"),
        ('path,class\nphotos/000.jpg,"a\nb"\n', "line 3 of {} is of class 'a\\nb', which is no name on one line"),
        ("path,class\nphotos/000.jpg,a\0b\n", "line 2 of {} is of class 'a\\x00b', which is no name on one line"),
        ("path,file,class\na,b,c\n", "must have a header with one of path, file, filename"),
        ("path,class\n", "has no row with a path and a class (it is empty)"),
        ("path,class\na.jpg,b,c\n", "line 2 of {} has 3 fields, but the header 2"),
        ("path,class\nnowhere/a.jpg,b\n", "names {folder}/nowhere/a.jpg, which is not there"),
        ("path,class\nphotos/000.jpg,a\nphotos/000.jpg,b\n", "line 3 of {} names photos/000.jpg again"),
        ("path,class\nphotos/000.jpg,-3\n", "line 2 of {} is of class -3"),
        ('path,class\n"photos/000.jpg,-3\n', "is no comma-separated text"),
    ],
)
def test_wrong_tables(files: Path, text: str, said: str) -> None:
    path = write_csv(files, text)
    found = refusal(path)
    assert said.format(path, folder=files) in found
    assert str(path) in found


def test_a_table_in_another_encoding_is_refused(files: Path) -> None:
    assert "is no comma-separated text in UTF-8" in refusal(
        write_csv(files, "path,class\nphotos/000.jpg,caf\xe9", "latin1")
    )
