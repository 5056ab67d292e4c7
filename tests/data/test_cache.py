"""The cache's files: what is written is read again, whatever is wrong is refused in one line."""

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from data.batches import EpochBatches
from data.cache import (
    DONE,
    MANIFEST,
    TODO,
    UNREADABLE,
    VERSION,
    Manifest,
    PartialCache,
    TokenCache,
    begin_cache,
    describe,
    partial_folder,
)
from data.images import CroppedImages
from models.loading.autoencoder import autoencoder_hash
from runtime.errors import UserError
from tests.factory import randomize, tiny_autoencoder
from tests.pictures import NumberedImages

pytestmark = pytest.mark.quick
NUM_CODES = 16384  # of LlamaGen's tokenizer, the largest that we read
PETS = Manifest(
    version=VERSION,
    dataset="pets",
    num_images=40,
    img_size=64,
    crop="ten",
    scale_sizes=[1, 2, 3, 4, 8],
    num_codes=NUM_CODES,
    autoencoder_sha256="a" * 64,
    images_sha256="b" * 64,
    class_keys=["n02099601", "ant"],
    class_names=["golden retriever", "ant"],
    data_path="/pets",
)
LABELS = [index % 2 for index in range(PETS.num_images)]


def random_codes(manifest: Manifest) -> Tensor:
    """(N, K, L) codes over the whole range, the smallest and the largest among them."""
    codes = torch.randint(NUM_CODES, manifest.shape)
    codes.view(-1)[:2] = torch.tensor([0, NUM_CODES - 1])
    return codes


def write_cache(folder: Path, codes: Tensor, manifest: Manifest = PETS) -> Path:
    begin_cache(folder, manifest, LABELS)
    partial = PartialCache(folder)
    for indices in np.array_split(np.random.permutation(len(codes)), 7):
        partial.write(indices.tolist(), codes[indices], indices.tolist())
    return partial.finish()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_cache(tmp_path / PETS.folder_name, random_codes(PETS))


def refusal(folder: Path, expected: Manifest = PETS) -> str:
    """What opening the cache says; one line."""
    with pytest.raises(UserError) as caught:
        TokenCache(folder, expected, PETS.scale_sizes)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_shape_and_size_of_the_papers_cache() -> None:
    paper = replace(PETS, num_images=1_281_167, scale_sizes=[1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 13, 16])
    assert paper.shape == (1_281_167, 10, 850)
    assert paper.num_bytes == 21_779_839_000  # 17 kB an image
    assert replace(paper, crop="center").shape == (1_281_167, 1, 850)
    assert paper.folder_name == "pets-64-ten"


def test_every_code_comes_back(tmp_path: Path) -> None:
    codes = random_codes(PETS)
    cache = TokenCache(write_cache(tmp_path / "cache", codes), PETS, PETS.scale_sizes)
    assert (len(cache), cache.num_crops) == (40, 10)
    for crop in range(10):
        indices = np.random.permutation(40)
        batch, labels = cache.__getitems__([(int(index), crop) for index in indices])
        assert labels.dtype == torch.int64
        assert labels.tolist() == [LABELS[index] for index in indices]
        start = 0
        for side, scale in zip(PETS.scale_sizes, batch, strict=True):
            assert scale.dtype == torch.int64
            assert torch.equal(scale, codes[indices, crop, start : start + side**2].view(40, side, side))
            start += side**2


def test_a_code_that_the_autoencoder_does_not_have_is_refused(tmp_path: Path) -> None:
    codes = random_codes(PETS)
    codes[5, 2, -1] = NUM_CODES
    cache = TokenCache(write_cache(tmp_path / "cache", codes), PETS, [8])
    cache.__getitems__([(5, 1), (4, 2)])
    with pytest.raises(UserError, match=r"cache is damaged: it holds code 16384; make it again"):
        cache.__getitems__([(5, 2), (4, 2)])


@pytest.mark.parametrize("scale_sizes", [[1, 2, 4, 8], [4], [8, 1], [1, 2, 3, 4, 8]])
def test_a_subset_of_the_scales(tmp_path: Path, scale_sizes: list[int]) -> None:
    codes = random_codes(PETS)
    wanted = replace(PETS, scale_sizes=scale_sizes)
    cache = TokenCache(write_cache(tmp_path / "cache", codes), wanted, scale_sizes)
    starts = {1: 0, 2: 1, 3: 5, 4: 14, 8: 30}
    batch, _ = cache.__getitems__([(7, 3), (0, 9)])
    for side, scale in zip(scale_sizes, batch, strict=True):
        start = starts[side]
        expected = torch.stack([codes[7, 3, start : start + side**2], codes[0, 9, start : start + side**2]])
        assert torch.equal(scale, expected.view(2, side, side))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_loader_gets_whole_batches(folder: Path, num_workers: int) -> None:
    cache = TokenCache(folder, PETS, [2, 8])
    sampler = EpochBatches(40, 10, batch_size=16, seed=0, epoch=0)
    loader = DataLoader(cache, batch_sampler=sampler, collate_fn=cache.collate, num_workers=num_workers)
    for pairs, (codes, labels) in zip(sampler, loader, strict=True):
        expected, expected_labels = cache.__getitems__(pairs)
        assert [tuple(scale.shape) for scale in codes] == [(16, 2, 2), (16, 8, 8)]
        assert all(torch.equal(a, b) for a, b in zip(codes, expected, strict=True))
        assert torch.equal(labels, expected_labels)


def test_a_spawned_worker_gets_the_files_and_not_their_content(folder: Path) -> None:
    """Where processes do not fork (macOS, Windows), loaders pickle the dataset: 22 GB a worker if by content."""
    cache = TokenCache(folder, PETS, [2, 8])
    sent = pickle.dumps(cache)
    assert len(sent) < cache.codes.nbytes / 20
    received = pickle.loads(sent)
    for ours, theirs in zip(cache.__getitems__([(3, 4)])[0], received.__getitems__([(3, 4)])[0], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells how a file is mapped")
def test_the_system_does_not_read_ahead(folder: Path) -> None:
    """Reading ahead, up to megabytes for each row, made random rows of a cache of 22 GB a hundred times slower."""
    cache = TokenCache(folder, PETS, [2, 8])
    after_name = Path("/proc/self/smaps").read_text().split(str(folder / "codes.npy"))[1]
    flags = next(line for line in after_name.splitlines() if line.startswith("VmFlags:"))
    assert "rr" in flags.split()  # random read
    assert len(cache) == 40


OTHER_VALUES = {
    "version": VERSION + 1,
    "dataset": "cars",
    "num_images": 41,
    "img_size": 32,
    "crop": "five",
    "scale_sizes": [1, 2, 4, 16],
    "num_codes": 4096,
    "autoencoder_sha256": "c" * 64,
    "images_sha256": "d" * 64,
    "class_keys": ["ant", "n02099601"],
    "class_names": ["dog", "ant"],
    "data_path": "/moved/pets",
}
WELCOME = ("class_names", "data_path")


@pytest.mark.parametrize("field", WELCOME)
def test_reworded_class_names_and_moved_images_are_welcome(folder: Path, field: str) -> None:
    TokenCache(folder, replace(PETS, **{field: OTHER_VALUES[field]}), [2, 8])


@pytest.mark.parametrize("field", [field.name for field in fields(Manifest) if field.name not in WELCOME])
def test_a_cache_of_something_else_is_refused_with_the_reason(folder: Path, field: str) -> None:
    said = refusal(folder, replace(PETS, **{field: OTHER_VALUES[field]}))
    assert f"was made with {field} " in said
    found, wanted = (str(value)[:50] for value in (getattr(PETS, field), OTHER_VALUES[field]))
    assert found in said
    assert wanted in said
    assert "make it again by --create_cache --rebuild_cache" in said
    assert len(said) < 400


def test_more_scales_than_wanted_are_welcome_and_fewer_are_not(folder: Path) -> None:
    TokenCache(folder, replace(PETS, scale_sizes=[2, 8]), [2, 8])
    assert "made with scale_sizes" in refusal(folder, replace(PETS, scale_sizes=[2, 5, 8]))


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"3", b'{"version": 1,', b"\x00" * 300, b"\xff\xfe\x80", b"{}"],
    ids=["empty", "list", "null", "number", "truncated", "zeros", "binary", "no fields"],
)
def test_a_damaged_manifest_is_one_line(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)
    assert "make" in refusal(folder)


@pytest.mark.parametrize("change", [{"version": 0}, {"crops": 10}])
def test_a_manifest_of_another_version_is_refused(folder: Path, change: dict[str, int]) -> None:
    (folder / MANIFEST).write_text(json.dumps(asdict(PETS) | change))
    assert "another version" in refusal(folder)


def test_no_cache(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere").endswith("make it by adding --create_cache")


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def one_less(path: Path) -> None:
    np.save(path, np.load(path)[:-1])


@pytest.mark.parametrize("name", ["codes.npy", "labels.npy", "status.npy"])
@pytest.mark.parametrize(
    "spoil", [cut, one_less, Path.unlink, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"text")]
)
def test_damaged_arrays_are_one_line(folder: Path, name: str, spoil: Callable[[Path], object]) -> None:
    spoil(folder / name)
    said = refusal(folder)
    assert "is damaged" in said
    assert "make it again by --create_cache --rebuild_cache" in said


def test_stand_ins_of_unreadable_images_are_those_of_live_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next readable image in order, round the end; its label too."""
    broken = {0, 5, 6, 7, 1000, 1002, 1997, 1998, 1999}
    images = NumberedImages(2000, broken)
    manifest = replace(PETS, num_images=2000, crop="center", scale_sizes=[1])
    begin_cache(tmp_path / "cache", manifest, images.labels)
    partial = PartialCache(tmp_path / "cache")
    readable = [index for index in range(2000) if index not in broken]
    partial.write(readable, torch.tensor(readable).view(-1, 1, 1), readable)
    partial.status[sorted(broken)] = UNREADABLE
    cache = TokenCache(partial.finish(), manifest, [1])
    live = CroppedImages(images, 8, "center")
    codes, labels = cache.__getitems__([(index, 0) for index in range(2000)])
    expected = [live[index, 0][1] for index in range(2000)]
    assert labels.tolist() == expected
    assert codes[0].flatten().tolist() == expected
    assert labels[1997] == 1
    assert len(capsys.readouterr().err.splitlines()) == len(broken)


def test_images_count_as_done_only_after_their_codes_are_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_cache(tmp_path / "cache", PETS, LABELS)
    partial = PartialCache(tmp_path / "cache")
    codes = random_codes(PETS)[:2]
    status_at_flush = []
    monkeypatch.setattr(
        np.memmap, "flush", lambda array: status_at_flush.append((array is partial.codes, partial.status.tolist()))
    )
    partial.write([3, 8], codes, [3, 8])
    assert status_at_flush == []
    partial.flush()
    assert status_at_flush == [(True, [TODO] * 40), (False, [TODO] * 40)]
    assert np.flatnonzero(partial.status == DONE).tolist() == [3, 8]
    assert np.array_equal(partial.codes[[3, 8]], codes.numpy())


def test_an_unfinished_cache_keeps_its_name_and_says_what_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    begin_cache(folder, PETS, LABELS)
    partial = PartialCache(folder)
    partial.write([0, 39], random_codes(PETS)[:2], [0, 39])
    with pytest.raises(UserError, match="still lacks 38 images; run the same command again"):
        partial.finish()
    assert not folder.exists()
    begin_cache(folder, PETS, LABELS)  # going on keeps what is done
    assert np.flatnonzero(PartialCache(folder).status).tolist() == [0, 39]
    with pytest.raises(UserError, match="made with autoencoder_sha256"):
        begin_cache(folder, replace(PETS, autoencoder_sha256="e" * 64), LABELS)


def test_a_beginning_without_a_manifest_is_begun_again(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    begin_cache(folder, PETS, LABELS)
    PartialCache(folder).write([0], random_codes(PETS)[:1], [0])
    (partial_folder(folder) / MANIFEST).unlink()
    cut(partial_folder(folder) / "codes.npy")
    begin_cache(folder, PETS, LABELS)
    assert not PartialCache(folder).status.any()
    assert PartialCache(folder).codes.shape == PETS.shape


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot reserve disk space")
def test_the_disk_space_is_taken_at_the_beginning(tmp_path: Path) -> None:
    begin_cache(tmp_path / "cache", PETS, LABELS)
    file = (partial_folder(tmp_path / "cache") / "codes.npy").stat()
    assert file.st_size >= PETS.num_bytes
    assert file.st_blocks * 512 >= PETS.num_bytes


@pytest.mark.parametrize(
    ("key", "matters"),
    [
        ("encoder.conv_in.weight", True),
        ("encoder.mid.1.q.bias", True),
        ("quant_conv.bias", True),
        ("quantize.embedding", True),
        ("decoder.conv_out.weight", False),
        ("post_quant_conv.weight", False),
        ("cluster_usage_train", False),
    ],
)
def test_the_hash_is_of_the_weights_that_decide_codes(key: str, matters: bool) -> None:
    autoencoder = tiny_autoencoder()
    before = autoencoder_hash(autoencoder)
    assert before == autoencoder_hash(tiny_autoencoder())
    with torch.no_grad():
        autoencoder.state_dict()[key].view(-1)[-1] += 1e-3
    assert (autoencoder_hash(autoencoder) != before) == matters


def test_every_encoder_weight_is_in_the_hash() -> None:
    autoencoder = tiny_autoencoder()
    before = autoencoder_hash(autoencoder)
    randomize(autoencoder.decoder)
    assert autoencoder_hash(autoencoder) == before
    seen = {before}
    for parameter in [*autoencoder.encoder.parameters(), *autoencoder.quant_conv.parameters()]:
        with torch.no_grad():
            parameter.view(-1)[0] += 1e-3
        seen.add(autoencoder_hash(autoencoder))
    assert len(seen) == 1 + len([*autoencoder.encoder.parameters(), *autoencoder.quant_conv.parameters()])


def test_a_manifest_describes_the_images() -> None:
    images, rest = NumberedImages(3, set()), (32, "ten", (1, 2), 64, "a" * 64)
    manifest = describe(images, *rest)
    assert manifest.shape == (3, 10, 5)
    assert json.loads(json.dumps(asdict(manifest))) == asdict(manifest)
    assert describe(NumberedImages(3, {1}), *rest) == manifest
    images.labels[1] = 2
    relabelled = describe(images, *rest)
    images.labels[1], images.keys[1] = 1, "other"
    renamed = describe(images, *rest)
    assert len({manifest.images_sha256, relabelled.images_sha256, renamed.images_sha256}) == 3
