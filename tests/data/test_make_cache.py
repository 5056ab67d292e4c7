"""Making the cache of codes: equal to the live path, killed at any moment, continued, verified, refused."""

import errno
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tqdm import tqdm

from data.cache import (
    DONE,
    MANIFEST,
    TODO,
    UNREADABLE,
    PartialCache,
    TokenCache,
    check_images,
    describe,
    partial_folder,
)
from data.images import CroppedImages, open_dataset
from data.labelled_images import LabelledImages
from data.make_cache import PAPER_SCALE_SIZES, CacheMaker
from models.autoencoder import Autoencoder
from models.loading.autoencoder import autoencoder_hash
from runtime.errors import UserError
from tests.factory import tiny_autoencoder
from tests.pictures import NumberedImages, damage, picture, write_pictures

SIZE = 32  # pixels; the autoencoder's stride is 4
SCALES = (1, 2, 3, 5, 8)


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    """Two channels a group at the lowest level: with one, group normalization makes all codes of a 1x1 scale equal."""
    return tiny_autoencoder(ch_mult=(1, 1, 2))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, autoencoder: Autoencoder) -> Path:
    """A folder ``pets`` of eight pictures of two classes, and ``cache``, made of it in one go."""
    root = tmp_path_factory.mktemp("made")
    write_pictures(root / "pets", {"ant": 5, "bee": 3})
    make(images_of(root / "pets"), autoencoder).create(root).rename(root / "cache")
    return root


@pytest.fixture
def pets(tmp_path: Path, made: Path) -> Path:
    return shutil.copytree(made / "pets", tmp_path / "pets")


@pytest.fixture
def cache(tmp_path: Path, made: Path) -> Path:
    return shutil.copytree(made / "cache", tmp_path / "cache")


@pytest.fixture(scope="module")
def undisturbed(made: Path) -> np.ndarray:
    """(N, K, L) codes of a cache made in one go."""
    return codes_of(made / "cache")


def images_of(pets: Path) -> LabelledImages:
    return open_dataset("folder", str(pets), SIZE)


def make(images: LabelledImages, autoencoder: Autoencoder, crop: str = "ten", **overrides: object) -> CacheMaker:
    """A maker of two images of ten crops at once."""
    scale_sizes, num_codes = overrides.pop("scale_sizes", SCALES), autoencoder.config.n_embed
    manifest = describe(images, SIZE, crop, scale_sizes, num_codes, autoencoder_hash(autoencoder))
    settings = {"batch_size": 20, "num_workers": 0} | overrides
    return CacheMaker(images, autoencoder, manifest, **settings)


def codes_of(folder: Path) -> np.ndarray:
    return np.load(folder / "codes.npy")


def status_of(folder: Path) -> list[int]:
    return np.load(partial_folder(folder) / "status.npy").tolist()


def assert_same_codes(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Equal but for the odd code: batches of another size round otherwise, which few codes hang on."""
    assert ours.shape == theirs.shape
    assert (ours != theirs).sum() <= max(1, ours.size // 1000)


def wait_status(pid: int) -> int:
    return os.waitpid(pid, 0)[1]


def fork(action: Callable[[], object]) -> int:
    """Run in a child process; its id."""
    pid = os.fork()
    if pid == 0:
        tqdm.set_lock(threading.RLock())  # the common one would stay locked for us if it died holding it
        try:
            action()
        finally:
            os._exit(1)
    return pid


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# The same codes as live training.


@pytest.mark.parametrize("crop", ["ten", "five", "center"])
def test_codes_are_those_of_the_live_path(tmp_path: Path, pets: Path, autoencoder: Autoencoder, crop: str) -> None:
    images = images_of(pets)
    maker = make(images, autoencoder, crop)
    cached = TokenCache(maker.create(tmp_path / "caches"), maker.manifest, SCALES)
    live = CroppedImages(images, SIZE, crop)
    assert cached.num_crops == live.num_crops
    pairs = [(index, number) for number in range(live.num_crops) for index in range(len(images))]
    pixels, labels = live.collate([live[pair] for pair in pairs])  # other batches than the maker's
    expected = autoencoder.tokenize(pixels, SCALES)
    codes, cached_labels = cached.__getitems__(pairs)
    for ours, theirs in zip(codes, expected, strict=True):
        assert_same_codes(ours.numpy(), theirs.numpy())
    assert torch.equal(cached_labels, labels)
    assert len(codes[-1].unique()) > 20  # the tokenizer tells images apart
    assert len(codes[-1].flatten(1).unique(dim=0)) == len(pairs)  # and crops


@pytest.mark.parametrize(("batch_size", "num_workers"), [(1, 0), (30, 2), (1000, 0)])
def test_codes_do_not_depend_on_batches_and_workers(
    tmp_path: Path, pets: Path, autoencoder: Autoencoder, undisturbed: np.ndarray, batch_size: int, num_workers: int
) -> None:
    maker = make(images_of(pets), autoencoder, batch_size=batch_size, num_workers=num_workers)
    assert_same_codes(codes_of(maker.create(tmp_path / "caches")), undisturbed)


def test_paper_scales_make_850_codes() -> None:
    assert sum(side**2 for side in PAPER_SCALE_SIZES) == 850
    assert {1, 2, 4, 8, 16} | {1, 4, 16} | {1, 2, 5, 16} | {1, 2, 3, 4, 6, 8, 11, 16} <= set(PAPER_SCALE_SIZES)


def test_codes_that_do_not_fit_two_bytes_are_refused(pets: Path) -> None:
    describe(images_of(pets), SIZE, "ten", SCALES, 65536, "a hash")
    with pytest.raises(UserError, match="65537"):
        describe(images_of(pets), SIZE, "ten", SCALES, 65537, "a hash")


# Killed and continued.


def flush_each_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.cache.FLUSH_EVERY", 0.0)


def kill_before_the_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.files.json.dumps", lambda *args, **kwargs: die())


def kill_between_codes_and_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the second group, half written."""
    write = PartialCache.write

    def torn(self: PartialCache, indices: list[int], codes: torch.Tensor, checksums: list[int]) -> None:
        if (self.status == DONE).any():
            self.codes[indices[0]] = 63 - codes[0].numpy()
            die()
        write(self, indices, codes, checksums)

    monkeypatch.setattr(PartialCache, "write", torn)


def kill_before_the_last_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PartialCache, "finish", lambda self: die())


@pytest.mark.processes
@pytest.mark.parametrize(
    ("moment", "done"),
    [
        (kill_before_the_manifest, None),
        (kill_between_codes_and_status, [DONE] * 2 + [TODO] * 6),
        (kill_before_the_last_name, [DONE] * 8),
    ],
)
def test_a_kill_at_the_worst_moments(
    tmp_path: Path,
    pets: Path,
    autoencoder: Autoencoder,
    undisturbed: np.ndarray,
    moment: Callable[[pytest.MonkeyPatch], None],
    done: list[int] | None,
) -> None:
    images = images_of(pets)
    maker = make(images, autoencoder)
    folder = tmp_path / "caches" / maker.manifest.folder_name

    def killed() -> None:
        flush_each_group(pytest.MonkeyPatch())
        moment(pytest.MonkeyPatch())
        maker.create(tmp_path / "caches")

    assert os.WTERMSIG(wait_status(fork(killed))) == signal.SIGKILL
    assert not folder.exists()
    assert partial_folder(folder).exists()
    if done is not None:
        assert status_of(folder) == done
    read = record_reads(images)
    assert maker.create(tmp_path / "caches") == folder
    assert not partial_folder(folder).exists()
    assert np.array_equal(codes_of(folder), undisturbed)
    assert read == [index for index in range(8) if done is None or done[index] == TODO]  # nothing is done twice
    assert maker.verify(folder, 8, seed=0)[0] == 0


def record_reads(images: LabelledImages) -> list[int]:
    """A list that every image read from now on is noted in."""
    read, numbers = images.read_with_checksum, []

    def noting(index: int) -> object:
        numbers.append(index)
        return read(index)

    images.read_with_checksum = noting
    return numbers


@pytest.mark.processes
def test_kills_in_full_work(tmp_path: Path, pets: Path, autoencoder: Autoencoder) -> None:
    """Three lives on one folder, killed from outside as soon as some more groups are written."""
    maker = make(images_of(pets), autoencoder, batch_size=10)  # one image a group
    undisturbed = codes_of(maker.create(tmp_path / "undisturbed"))
    folder = tmp_path / "caches" / maker.manifest.folder_name
    before = 0
    for groups in (1, 2, 1):
        reading, writing = os.pipe()

        def announcing(writing: int = writing) -> None:
            write = PartialCache.write

            def write_and_tell(
                self: PartialCache, indices: list[int], codes: torch.Tensor, checksums: list[int]
            ) -> None:
                write(self, indices, codes, checksums)
                os.write(writing, b".")

            flush_each_group(pytest.MonkeyPatch())
            pytest.MonkeyPatch().setattr(PartialCache, "write", write_and_tell)
            maker.create(tmp_path / "caches")

        pid = fork(announcing)
        os.close(writing)
        for _ in range(groups):
            assert os.read(reading, 1) == b"."
        os.kill(pid, signal.SIGKILL)
        assert os.WTERMSIG(wait_status(pid)) == signal.SIGKILL
        os.close(reading)
        done = status_of(folder).count(DONE)
        assert done >= before + groups
        before = done
    assert before < 8
    assert np.array_equal(codes_of(maker.create(tmp_path / "caches")), undisturbed)


@pytest.mark.processes
@pytest.mark.parametrize(("end", "done"), [(die, 4), (signal.default_int_handler, 6)], ids=["killed", "interrupted"])
def test_what_was_not_flushed_is_not_done(
    tmp_path: Path,
    pets: Path,
    autoencoder: Autoencoder,
    undisturbed: np.ndarray,
    end: Callable[..., object],
    done: int,
) -> None:
    """Groups of two images at 3, 6 and 9 s, flushed when 5 s have passed, then the end: Ctrl-C still flushes."""
    maker = make(images_of(pets), autoencoder)
    folder = tmp_path / "caches" / maker.manifest.folder_name

    def ended() -> None:
        write, flush, patch = PartialCache.write, PartialCache.flush, pytest.MonkeyPatch()
        clock, flushed = iter([0.0, 3.0, 6.0, 6.0, 9.0]), []
        patch.setattr("data.cache.time.monotonic", lambda: next(clock, 9.0))

        def ending(self: PartialCache, indices: list[int], codes: torch.Tensor, checksums: list[int]) -> None:
            assert (self.status == DONE).tolist() == [index in flushed for index in range(8)]
            write(self, indices, codes, checksums)
            if 5 in indices:
                end(signal.SIGINT, None) if end is not die else die()

        def noting(self: PartialCache) -> None:
            flushed.extend(self.written)
            flush(self)

        patch.setattr(PartialCache, "write", ending)
        patch.setattr(PartialCache, "flush", noting)
        maker.create(tmp_path / "caches")

    status = wait_status(fork(ended))
    assert os.WIFSIGNALED(status) == (end is die)
    assert status_of(folder) == [DONE] * done + [TODO] * (8 - done)
    assert np.array_equal(np.load(partial_folder(folder) / "codes.npy")[:done], undisturbed[:done])
    assert np.array_equal(codes_of(maker.create(tmp_path / "caches")), undisturbed)


def test_a_complete_cache_is_left_alone(
    tmp_path: Path, pets: Path, autoencoder: Autoencoder, capsys: pytest.CaptureFixture[str]
) -> None:
    images = images_of(pets)
    folder = make(images, autoencoder).create(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    read = record_reads(images)
    assert make(images, autoencoder, scale_sizes=(2, 8)).create(tmp_path) == folder  # fewer scales are in it
    assert read == []
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert "is complete already" in capsys.readouterr().out


def test_another_autoencoders_cache_is_not_overwritten(tmp_path: Path, pets: Path, autoencoder: Autoencoder) -> None:
    folder = make(images_of(pets), autoencoder).create(tmp_path)
    before = codes_of(folder)
    with pytest.raises(UserError, match="made with autoencoder_sha256"):
        make(images_of(pets), tiny_autoencoder(1, ch_mult=(1, 1, 2))).create(tmp_path)
    assert np.array_equal(codes_of(folder), before)


@pytest.mark.processes
def test_a_half_made_cache_of_more_scales_is_finished_as_begun(
    tmp_path: Path, pets: Path, autoencoder: Autoencoder, undisturbed: np.ndarray
) -> None:
    """Begun with the paper's scales, continued with the model's: they are among them."""
    maker = make(images_of(pets), autoencoder)

    def killed() -> None:
        flush_each_group(pytest.MonkeyPatch())
        kill_between_codes_and_status(pytest.MonkeyPatch())
        maker.create(tmp_path / "caches")

    wait_status(fork(killed))
    folder = make(images_of(pets), autoencoder, scale_sizes=(2, 8)).create(tmp_path / "caches")
    assert np.array_equal(codes_of(folder), undisturbed)


@pytest.mark.processes
def test_a_half_made_cache_of_fewer_scales_is_refused(tmp_path: Path, pets: Path, autoencoder: Autoencoder) -> None:
    maker = make(images_of(pets), autoencoder, scale_sizes=(2, 8))

    def killed() -> None:
        kill_before_the_last_name(pytest.MonkeyPatch())
        maker.create(tmp_path)

    wait_status(fork(killed))
    with pytest.raises(UserError, match=r"partial was made with scale_sizes \[2, 8\], not \[1, 2, 3, 5, 8\]"):
        make(images_of(pets), autoencoder).create(tmp_path)


# Unreadable images.


def test_unreadable_images_follow_the_live_rule(
    tmp_path: Path, pets: Path, autoencoder: Autoencoder, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unreadable last image: the first one stands in, with its label."""
    damage(pets / "bee" / "002.jpg", "truncated")
    images = images_of(pets)
    maker = make(images, autoencoder)
    folder = maker.create(tmp_path / "caches")
    assert np.load(folder / "status.npy").tolist() == [DONE] * 7 + [UNREADABLE]
    assert capsys.readouterr().err.count(f"skipped: {pets / 'bee' / '002.jpg'} cannot be read") == 1
    cached, live = TokenCache(folder, maker.manifest, SCALES), CroppedImages(images, SIZE, "ten")
    pairs = [(index, crop) for index in (6, 7) for crop in range(10)]
    pixels, labels = live.collate([live[pair] for pair in pairs])
    codes, cached_labels = cached.__getitems__(pairs)
    for ours, theirs in zip(codes, autoencoder.tokenize(pixels, SCALES), strict=True):
        assert torch.equal(ours, theirs)
    assert cached_labels.tolist() == labels.tolist() == [1] * 10 + [0] * 10


def test_images_that_have_been_mended_are_taken_by_a_rebuilt_cache(
    tmp_path: Path, pets: Path, autoencoder: Autoencoder, undisturbed: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    """A complete cache says that it lacks one; made again, the earlier one is moved aside."""
    path = pets / "bee" / "002.jpg"
    content = path.read_bytes()
    damage(path, "truncated")
    maker = make(images_of(pets), autoencoder)
    folder = maker.create(tmp_path)
    maker.create(tmp_path, rebuild=True)  # nothing to gain yet
    assert not folder.with_name(f"{folder.name}.1").exists()
    path.write_bytes(content)
    assert maker.create(tmp_path) == folder
    assert "1 of its images could not be read" in capsys.readouterr().out
    assert np.array_equal(codes_of(maker.create(tmp_path, rebuild=True)), undisturbed)
    assert np.load(folder / "status.npy").tolist() == [DONE] * 8
    assert np.load(folder.with_name(f"{folder.name}.1") / "status.npy")[-1] == UNREADABLE
    maker.create(tmp_path, rebuild=True)
    assert not folder.with_name(f"{folder.name}.2").exists()


def test_too_many_unreadable_images_stop_creation_until_they_are_mended(
    tmp_path: Path, pets: Path, autoencoder: Autoencoder, undisturbed: np.ndarray
) -> None:
    broken = [pets / "ant" / "002.jpg", pets / "bee" / "001.png"]
    whole = [path.read_bytes() for path in broken]
    for path in broken:
        damage(path, "text")
    maker = make(images_of(pets), autoencoder)
    for _ in range(2):  # running it again does not make it forget
        with pytest.raises(UserError, match="2 unreadable images, over 1 % of the data"):
            maker.create(tmp_path / "caches")
    assert status_of(tmp_path / "caches" / maker.manifest.folder_name)[:2] == [DONE, DONE]
    for path, content in zip(broken, whole, strict=True):
        path.write_bytes(content)
    assert np.array_equal(codes_of(maker.create(tmp_path / "caches")), undisturbed)


def test_one_percent_is_counted_of_all_images(tmp_path: Path, autoencoder: Autoencoder) -> None:
    images = NumberedImages(300, {3, 4, 299})
    folder = make(images, autoencoder, "center", scale_sizes=(1,)).create(tmp_path / "three")
    assert np.flatnonzero(np.load(folder / "status.npy") == UNREADABLE).tolist() == [3, 4, 299]
    with pytest.raises(UserError, match="4 unreadable images"):
        make(NumberedImages(300, {3, 4, 5, 299}), autoencoder, "center", scale_sizes=(1,)).create(tmp_path / "four")


# Disk space.


def test_too_little_space_is_refused_before_anything_is_written(
    tmp_path: Path, pets: Path, autoencoder: Autoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = make(images_of(pets), autoencoder)
    needed = maker.manifest.num_bytes
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    with pytest.raises(UserError, match=r"does not fit under .*; free space or set cached_path"):
        maker.create(tmp_path / "caches")
    assert list((tmp_path / "caches").iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed))
    maker.create(tmp_path / "caches")


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot reserve disk space")
def test_a_disk_that_is_full_after_all_leaves_nothing_that_looks_begun(
    tmp_path: Path, pets: Path, autoencoder: Autoencoder, undisturbed: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, start: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    maker = make(images_of(pets), autoencoder)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match="No space left") as caught:
            maker.create(tmp_path / "caches")
    assert caught.value.errno == errno.ENOSPC
    assert not (partial_folder(tmp_path / "caches" / maker.manifest.folder_name) / MANIFEST).exists()
    assert np.array_equal(codes_of(maker.create(tmp_path / "caches")), undisturbed)


# Verification.


def test_verification_counts_the_codes_that_differ(cache: Path, pets: Path, autoencoder: Autoencoder) -> None:
    assert make(images_of(pets), autoencoder).verify(cache, 100, seed=0)[0] == 0
    codes = np.load(cache / "codes.npy", mmap_mode="r+")
    codes[2, 7, [0, 50]] += 1
    codes[5, 0, -1] += 1
    codes.flush()
    assert make(images_of(pets), autoencoder).verify(cache, 8, seed=0)[0] == 3
    assert make(images_of(pets), autoencoder, scale_sizes=(2, 8)).verify(cache, 8, seed=0)[0] == 3


def test_verification_draws_a_sample(cache: Path, pets: Path, autoencoder: Autoencoder) -> None:
    images = images_of(pets)
    read = record_reads(images)
    samples = []
    for seed in (0, 1, 2, 0):
        make(images, autoencoder).verify(cache, 3, seed)
        samples.append(tuple(read))
        read.clear()
    assert samples[0] == samples[3]
    assert len(set(samples)) == 3
    assert all(len(set(sample)) == 3 for sample in samples)


def test_a_picture_that_changed_is_found(cache: Path, pets: Path, autoencoder: Autoencoder) -> None:
    picture(60, 45, seed=99).save(pets / "ant" / "003.png")
    assert make(images_of(pets), autoencoder).verify(cache, 8, seed=0)[0] > 100


def test_a_cache_of_images_that_changed_is_refused(cache: Path, pets: Path, autoencoder: Autoencoder) -> None:
    """Another picture under the same name, complete or half made."""
    check_images(cache, images_of(pets))
    before = codes_of(cache)
    shutil.copyfile(pets / "ant" / "001.png", pets / "bee" / "001.png")
    with pytest.raises(UserError, match=r"other images: bee/001\.png has changed since; make it again"):
        check_images(cache, images_of(pets))
    maker = make(images_of(pets), autoencoder)
    folder = cache.rename(cache.with_name(maker.manifest.folder_name))
    with pytest.raises(UserError, match="has changed since"):
        maker.create(folder.parent)
    partial = folder.rename(partial_folder(folder))
    with pytest.raises(UserError, match="has changed since"):
        maker.create(folder.parent)
    assert np.array_equal(codes_of(partial), before)


def test_a_cache_with_other_labels_is_refused(cache: Path, pets: Path) -> None:
    np.save(cache / "labels.npy", np.zeros(8, dtype=np.int64))
    with pytest.raises(UserError, match="its labels are not the data's"):
        check_images(cache, images_of(pets))


def test_unreadable_images_are_not_verified(tmp_path: Path, pets: Path, autoencoder: Autoencoder) -> None:
    damage(pets / "ant" / "001.png", "empty")
    maker = make(images_of(pets), autoencoder)
    assert maker.verify(maker.create(tmp_path), 8, seed=0)[0] == 0


def test_verification_names_an_image_that_has_become_unreadable(
    cache: Path, pets: Path, autoencoder: Autoencoder
) -> None:
    damage(pets / "ant" / "001.png", "empty")
    with pytest.raises(UserError, match=r"001\.png cannot be read as an image"):
        make(images_of(pets), autoencoder).verify(cache, 8, seed=0)


def test_verification_refuses_what_it_cannot_compare(cache: Path, pets: Path, autoencoder: Autoencoder) -> None:
    with pytest.raises(UserError, match="no cache of codes"):
        make(images_of(pets), autoencoder).verify(cache / "nowhere", 1, seed=0)
    with pytest.raises(UserError, match="made with autoencoder_sha256"):
        make(images_of(pets), tiny_autoencoder(1, ch_mult=(1, 1, 2))).verify(cache, 1, seed=0)
    os.truncate(cache / "codes.npy", 3000)
    with pytest.raises(UserError, match="is damaged"):
        make(images_of(pets), autoencoder).verify(cache, 1, seed=0)


def test_several_machines_do_not_write_one_cache(
    pets: Path, autoencoder: Autoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their pages of one file would overwrite each other's; a cache that is there serves them all."""
    maker, several = make(images_of(pets), autoencoder, crop="center"), [True]
    monkeypatch.setattr("runtime.distributed.on_several_machines", lambda: several[0])
    with pytest.raises(UserError, match="several machines cannot write one cache"):
        maker.create(tmp_path / "caches")
    for several[0] in (False, True):
        assert maker.create(tmp_path / "caches").exists()
