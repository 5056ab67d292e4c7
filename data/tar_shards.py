"""WebDataset shards: tar files in which members of one key are an image and its class (``KEY.jpg`` and ``KEY.cls``).

``tarfile`` reads the headers once; images are then read by their place. The package webdataset streams shards instead:
images come in the order of the shards or nearly so, none can be asked for by its number, and how many there are is
not known. Here training draws an order over all images, and a cache of codes knows each by its key.
"""

import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from data.class_labels import labels_of, read_names
from data.files import IMAGE_SUFFIXES, UnreadableImageError, left_out_text
from data.labelled_images import StoredImages
from data.splits import split_shards
from runtime import distributed
from runtime.errors import UserError
from runtime.progress import Progress

CLASS = ".cls"
MAX_CLASS_BYTES = 1000
PEEKED = 100  # members that tell a shard from another tar


@dataclass
class Index:
    """What shards hold: a key, a place and a class of each image, and what was left out."""

    keys: list[str] = field(default_factory=list)  # SHARD/MEMBER, without the member's suffix
    members: list[tuple[int, str, int, int]] = field(
        default_factory=list
    )  # number of the shard, name, first byte, size
    words: list[str] = field(default_factory=list)  # the class, as it stands there
    left_out: Counter[str] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)


class TarImages(StoredImages):
    """Images in uncompressed tar files, ``keys`` being shard and member."""

    def __init__(
        self, name: str, shards: Sequence[Path], index: Index, labels: Sequence[int], class_keys: Sequence[str]
    ) -> None:
        self.shards = list(shards)
        self.members = [member for _, member, _, _ in index.members]
        self.places = np.array([(shard, start, size) for shard, _, start, size in index.members], np.int64)  # (N, 3)
        super().__init__(name, index.keys, labels, class_keys)

    def file_of(self, index: int) -> Path:
        return self.shards[self.places[index, 0]]

    def title(self, index: int) -> str:
        return f"{self.file_of(index)}/{self.members[index]}"

    def fetch(self, index: int) -> bytes:
        _, start, size = self.places[index].tolist()
        with self.file_of(index).open("rb", buffering=0) as file:
            file.seek(start)
            content = file.read(size)
        if len(content) < size:
            raise UnreadableImageError(f"{self.title(index)} is cut off; fetch the shard again")
        return content


def open_shards(root: Path, files: Sequence[Path], name: str, held_out: bool) -> TarImages:
    """The images of a split in tar files of one data set."""
    split = split_shards(root, files, held_out)
    index = index_shards(split.taken)
    if not index.keys:
        text = left_out_text(index.left_out)
        raise UserError(f"{root} has no image with a class, as KEY.jpg and KEY.cls, in its .tar files ({text})")
    training = index if split.training is split.taken else index_shards(split.training)
    names = read_names(dict.fromkeys((root, *(file.parent for file in files))))
    titles = [f"{split.taken[shard]}/{member}" for shard, member, _, _ in index.members]
    labels = labels_of(index.words, training.words, names, str(root), titles.__getitem__)
    images = TarImages(name, split.taken, index, labels.labels, labels.class_keys)
    text = left_out_text(index.left_out)
    images.remarks = [*split.remarks, *index.remarks, *labels.remarks, *([f"{root}: {text}"] if text else [])]
    return images


def is_shard(path: Path) -> bool:
    """Whether a tar holds a class among its first members, and not, say, other archives."""
    try:
        with tarfile.open(path, "r:") as tar:
            return any(member.name.endswith(CLASS) for member, _ in zip(tar, range(PEEKED), strict=False))
    except (tarfile.TarError, OSError):
        return False


def index_shards(shards: Sequence[Path]) -> Index:
    """Read all headers and classes.

    UserError: a shard is cut off or joined of two, a key has two images, a class is no text.
    """
    index = Index()
    hidden = not distributed.is_main()
    for number, shard in enumerate(Progress(shards, unit="shard", desc="reading headers", leave=False, disable=hidden)):
        try:
            _add_shard(index, number, shard)
        except (tarfile.TarError, OSError) as error:
            raise UserError(f"{shard} is no whole, uncompressed .tar ({error}); fetch or pack it again") from error
    return index


def _add_shard(index: Index, number: int, shard: Path) -> None:
    images: dict[str, tuple[int, str, int, int]] = {}
    words: dict[str, str] = {}
    with tarfile.open(shard, "r:") as tar:
        for member in tar:
            tar.members = []  # else it keeps all
            key, suffix = _key_of(member.name)
            if not member.isreg():
                index.left_out["links" if member.issym() or member.islnk() else "no files"] += not member.isdir()
            elif member.issparse():
                raise UserError(f"{shard}/{member.name} is stored with gaps; pack it again without --sparse")
            elif suffix not in (CLASS, *IMAGE_SUFFIXES):
                index.left_out[_kind_of_stray(member.name)] += 1
            elif key in (words if suffix == CLASS else images):
                raise UserError(
                    f"{shard} has two {'classes' if suffix == CLASS else 'images'} of the key {key}; mend it"
                )
            elif suffix == CLASS:
                words[key] = _class_in(tar, member, shard)
            else:
                images[key] = number, member.name, member.offset_data, member.size
    index.remarks += _check_end(shard, tar.offset)
    labelled = [key for key in images if words.get(key)]
    index.keys += [f"{shard.name}/{key}" for key in labelled]
    index.members += [images[key] for key in labelled]
    index.words += [words[key] for key in labelled]
    index.left_out[f"images without {CLASS}"] += len(images) - len(labelled)
    index.left_out[f"{CLASS} without an image"] += len(words.keys() - images.keys())


def _check_end(shard: Path, end: int) -> list[str]:
    """Refuse what follows the last member if it is not zeros, as ``tarfile`` does not; a warning if it is nothing."""
    with shard.open("rb") as file:
        file.seek(end)
        mark = file.read(tarfile.BLOCKSIZE)
        if mark and mark != bytes(tarfile.BLOCKSIZE):
            raise UserError(f"{shard} is damaged or cut off at byte {end}; fetch or pack it again")
        while padding := file.read(tarfile.RECORDSIZE):
            if padding.strip(b"\0"):
                raise UserError(
                    f"{shard} goes on after its end at byte {end}, as tars that were joined; keep each in a file of "
                    "its own, or pack them again"
                )
    return [] if mark else [f"warning: {shard} has no end mark, and may be cut off"]


def _key_of(name: str) -> tuple[str, str]:
    """A member's key and suffix, which begins with the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    stem, dot, suffix = file.partition(".")
    return folder + slash + stem, (dot + suffix).lower()


def _kind_of_stray(name: str) -> str:
    """What a member is called that is neither an image nor a class."""
    file = PurePosixPath(name).name
    kind = PurePosixPath(file).suffix.lower()
    if file.startswith("."):
        return "hidden"
    return f"{kind} after more than one dot" if kind in (CLASS, *IMAGE_SUFFIXES) else kind or "without suffix"


def _class_in(tar: tarfile.TarFile, member: tarfile.TarInfo, shard: Path) -> str:
    try:
        return tar.extractfile(member).read(MAX_CLASS_BYTES).decode("utf-8-sig").strip()
    except ValueError as error:
        raise UserError(f"{shard}/{member.name} is no text in UTF-8 ({error}); mend it") from error
