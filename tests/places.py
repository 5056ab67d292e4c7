"""A small data set in every kind of place."""

from pathlib import Path

from PIL import Image

from benchmarks.packing import pack
from data.images import open_dataset
from tests.pictures import picture, write_pictures

KINDS = ("folders", "parquet", "tar", "zip", "csv")
ORIENTATION, ON_ITS_SIDE = 0x112, 6  # EXIF


def write_places(root: Path) -> dict[str, Path]:
    """The ``data_path`` of each kind: two splits of two classes, one image on its side and one half transparent."""
    write_pictures(root / "folders/train", {"ant": 5, "bee": 4})
    write_pictures(root / "folders/val", {"ant": 1, "bee": 2})
    exif = Image.Exif()
    exif[ORIENTATION] = ON_ITS_SIDE
    picture(40, 30, seed=7).save(root / "folders/train/ant/turned.jpg", exif=exif)
    clear = picture(30, 30, seed=8).convert("RGBA")
    clear.putalpha(picture(30, 30, seed=9).convert("L"))
    clear.save(root / "folders/train/bee/clear.webp", lossless=True)
    splits = {split: open_dataset("folder", str(root / "folders"), 32, split) for split in ("train", "val")}
    return {"folders": root / "folders"} | pack(splits, root, group_rows=2)
