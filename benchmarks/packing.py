"""The images of class folders in every other kind of place, for measuring and for tests: the same bytes and labels."""

import csv
import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from zipfile import ZipFile

import pyarrow as pa
import pyarrow.parquet as pq

from data.labelled_images import StoredImages

SHARDS = 2  # files of a split


def pack(splits: dict[str, StoredImages], folder: Path, group_rows: int = 100) -> dict[str, Path]:
    """Write images, by the names of their splits, as parquet, tar, zip and csv; return the ``data_path`` of each."""
    paths = {kind: folder / name for kind, name in (("parquet", "parquet"), ("tar", "tar"))}
    paths |= {"zip": folder / "images.zip", "csv": folder / "images.csv"}
    for kind in ("parquet", "tar"):
        (paths[kind] / "data").mkdir(parents=True)
    for split, images in splits.items():
        size = -(-len(images) // SHARDS)
        for number in range(SHARDS):
            rows = range(len(images))[number * size : (number + 1) * size]
            shard = f"{split}-{number:05d}-of-{SHARDS:05d}"
            write_parquet(paths["parquet"] / f"data/{shard}.parquet", images, rows, group_rows)
            write_tar(paths["tar"] / f"data/{shard}.tar", images, rows)
        (paths["tar"] / "classes.txt").write_text("\n".join(images.class_keys) + "\n")
    write_zip(paths["zip"], splits)
    write_csv(paths["csv"], splits)
    return paths


def write_parquet(path: Path, images: StoredImages, rows: Iterable[int], group_rows: int) -> None:
    """As the hub's library does: bytes and path of each image, its label, and the classes' names beside."""
    label = {"names": images.class_keys, "_type": "ClassLabel"}
    features = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
    columns = {"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64()}
    schema = pa.schema(columns, metadata={"huggingface": json.dumps(features)})
    with pq.ParquetWriter(path, schema) as writer:
        group: list[dict[str, object]] = []
        for row in (*rows, None):
            if group and (row is None or len(group) == group_rows):
                writer.write_table(pa.Table.from_pylist(group, schema))
                group = []
            if row is not None:
                image = {"bytes": images.content(row), "path": Path(images.keys[row]).name}
                group.append({"image": image, "label": images.labels[row]})


def write_tar(path: Path, images: StoredImages, rows: Iterable[int]) -> None:
    """As WebDataset's shards: KEY.jpg or the like, and KEY.cls with the label."""
    with tarfile.open(path, "w") as tar:
        for row in rows:
            key = Path(images.keys[row])
            for suffix, content in ((key.suffix.lower(), images.content(row)), (".cls", b"%d" % images.labels[row])):
                member = tarfile.TarInfo(str(key.with_suffix(suffix)))
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def write_zip(path: Path, splits: dict[str, StoredImages]) -> None:
    """As SPLIT/CLASS/IMAGE, stored as they are."""
    with ZipFile(path, "w") as archive:
        for split, images in splits.items():
            for row, key in enumerate(images.keys):
                archive.writestr(f"{split}/{key}", images.content(row))


def write_csv(path: Path, splits: dict[str, StoredImages]) -> None:
    """A table of files where they are."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "class", "split"))
        for split, images in splits.items():
            rows: Sequence[int] = range(len(images))
            writer.writerows((images.file_of(i), images.class_keys[images.labels[i]], split) for i in rows)
