"""What lies at the ``data_path`` of one's own images: class folders, or files of one of four kinds."""

from collections import Counter
from pathlib import Path

from data.class_folders import read_class_folders
from data.class_labels import NAMES_FILES
from data.csv_tables import is_table, open_table, open_tables
from data.files import holds_images, left_out_text, list_files, subfolders
from data.labelled_images import ImageFiles, StoredImages
from data.parquet_files import is_parquet_of_images, open_parquet
from data.splits import NAMES
from data.tar_shards import is_shard, open_shards
from data.zip_images import open_zip, open_zips
from runtime.errors import UserError

PARQUET, TAR, ZIP, CSV = KINDS = (".parquet", ".tar", ".zip", ".csv")
COMPRESSED = (".gz", ".tgz")
HOLDERS = ("data", "default")  # folders that hold the files in repositories of the hub


def name_of(path: Path) -> str:
    """What images are called in caches and logs: as their folder, or their file without its suffix."""
    path = path.absolute()
    return path.stem if path.suffix.lower() in KINDS else path.name


def open_place(root: Path, held_out: bool) -> StoredImages:
    """The training images at a path, or the held-out ones. UserError: there are none, or no one kind of them."""
    name = name_of(root)
    if root.is_dir():
        return _open_folder(root, name, held_out)
    if not root.exists():
        raise UserError(
            f"no image folder at {root}; link or unpack one there, or set data_path (or dataset, see --help)"
        )
    kind = root.suffix.lower()
    if kind in COMPRESSED:
        raise UserError(f"{root} is compressed; unpack it with gunzip, and name what comes out")
    if kind not in KINDS:
        raise UserError(f"{root} is no data set; name a folder, or a file that ends in {', '.join(KINDS)}")
    if kind in (PARQUET, TAR):
        return (open_parquet if kind == PARQUET else open_shards)(root, [root], name, held_out)
    return (open_zip if kind == ZIP else open_table)(root, name, held_out)


def _open_folder(root: Path, name: str, held_out: bool) -> StoredImages:
    files, left_out = _files_in(root)
    folders = any(holds_images(folder, 1) for folder in subfolders(root).files) if files else True
    kinds = _kinds_beside_folders(root, files) if files and folders else files
    if len(kinds) > 1 or (kinds and folders and CSV not in kinds):
        there = [*(listed[0].name for listed in kinds.values()), *(["class folders"] if folders else [])]
        raise UserError(f"{root} holds {' and '.join(there)}; move what is not meant away, or name one as data_path")
    if not kinds:
        alone = [] if subfolders(root).files else list_files(root, (ZIP, CSV)).files
        if alone:
            raise UserError(f"{root} holds {alone[0].name}; name that file as data_path")
        return _open_class_folders(root, name, held_out)
    ((kind, listed),) = kinds.items()
    if kind in (PARQUET, TAR):
        images = (open_parquet if kind == PARQUET else open_shards)(root, listed, name, held_out)
        images.remarks = [*images.remarks, *([f"{root}: {text}"] if (text := left_out_text(left_out)) else [])]
        return images
    by_split = {path.stem.lower(): path for path in listed}
    if len(by_split) < len(listed):
        raise UserError(f"{root} has {', '.join(path.name for path in listed)}, two of one split; move one away")
    images = (open_zips if kind == ZIP else open_tables)(root, by_split, name, held_out)
    if folders:
        told = f"{root}: {listed[0].name} says what the images are; folders beside it only hold them"
        images.remarks = [*images.remarks, told]
    return images


def _open_class_folders(root: Path, name: str, held_out: bool) -> ImageFiles:
    found = read_class_folders(root, held_out)
    images = ImageFiles(name, found.folder, found.keys, found.labels, found.class_keys)
    images.remarks = found.remarks
    return images


def _files_in(root: Path) -> tuple[dict[str, list[Path]], Counter[str]]:
    """Files by kind that may be a data set, and what else there is beside them: of .zip and .csv those of a split."""
    folders, left_out = [root], Counter[str]()
    for folder in subfolders(root).files:
        if folder.name.lower() in NAMES:
            folders.append(folder)
        elif folder.name.lower() in HOLDERS:
            folders += [folder, *_of_splits(folder)]
    if not any(list_files(folder, KINDS).files for folder in folders):
        folders += _parquet_folders(root)
    files: dict[str, list[Path]] = {}
    for folder in folders:
        found = list_files(folder, KINDS)
        left_out += found.left_out
        for path in found.files:
            kind = path.suffix.lower()
            if kind in (PARQUET, TAR) or (folder == root and path.stem.lower() in NAMES):
                files.setdefault(kind, []).append(path)
            else:
                left_out[kind] += 1
    left_out[".txt"] -= sum((folder / name).is_file() for folder in folders for name in NAMES_FILES)
    return files, left_out


def _of_splits(folder: Path) -> list[Path]:
    return [inner for inner in subfolders(folder).files if inner.name.lower() in NAMES]


def _parquet_folders(root: Path) -> list[Path]:
    """The one folder of parquet files, by whatever name, as the hub's of CIFAR-10, and those of splits in it."""
    others = [folder for folder in subfolders(root).files if not holds_images(folder, 2)]  # than class folders
    folders = [[folder, *_of_splits(folder)] for folder in others]
    held = [parts for parts in folders if any(list_files(part, (PARQUET,)).files for part in parts)]
    if len(held) > 1:
        names = " and ".join(parts[0].name for parts in held)
        raise UserError(f"{root} holds {names}, folders of .parquet files; name one as data_path")
    return held[0] if held else []


def _kinds_beside_folders(root: Path, files: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """Those kinds that are data sets themselves, and not what the folders were unpacked from, or lists of something."""
    unpacked = {folder.name for folder in subfolders(root).files}
    is_data = {PARQUET: is_parquet_of_images, TAR: is_shard, CSV: is_table, ZIP: lambda path: path.stem not in unpacked}
    kept = {kind: [path for path in listed if is_data[kind](path)] for kind, listed in files.items()}
    return {kind: listed for kind, listed in kept.items() if listed}
