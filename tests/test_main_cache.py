"""The cache by the command line: killed and continued, on one rank and two; verified; trained from; refused.

Images are held up by leases: a process that opens one waits, so that it can be killed at a known place.
"""

import errno
import fcntl
import json
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from torch import Tensor

import main as training
from data import cache
from data.batches import EpochBatches
from data.cache import DONE, TODO
from data.images import CroppedImages, open_dataset
from models.checkerboard.model import Checkerboard
from models.family import Loss, StepContext
from models.loading.autoencoder import save_autoencoder
from runtime.errors import UserError
from tests.command_factory import Outcome, call
from tests.factory import tiny_autoencoder
from tests.pictures import damage, picture, write_pictures
from tests.training_factory import exit_codes, main_command, start_process, start_ranks


def flushing_command(argv: list[str]) -> None:
    """``main_command`` that writes each group of images at once, as one does that is slow."""
    cache.FLUSH_EVERY = 0.0
    main_command(argv)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


NAME = "pets-32-ten"
KEPT: list[UserError] = []  # until the process ends


@dataclass(frozen=True)
class Work:
    """A folder with ``pets`` (twelve pictures of two classes), ``config.yaml``, an autoencoder and caches."""

    folder: Path

    @property
    def pictures(self) -> list[Path]:
        return sorted((self.folder / "pets").glob("*/*"))

    def flags(self, *more: str, cached: str = "cached") -> list[str]:
        return ["--config", str(self.folder / "config.yaml"), "--cached_path", str(self.folder / cached), *more]

    def codes(self, cached: str = "cached") -> np.ndarray:
        return np.load(self.folder / cached / NAME / "codes.npy")

    def status(self) -> list[int]:
        return np.load(self.folder / "cached" / f"{NAME}.partial" / "status.npy").tolist()

    def manifest(self, cached: str = "cached") -> dict[str, Any]:
        return json.loads((self.folder / cached / NAME / "manifest.json").read_text())

    @property
    def output(self) -> Path:
        """What a process of its own printed."""
        return self.folder / "output.txt"

    def write_config(self) -> None:
        weights = {"checkpoint_path": str(self.folder / "autoencoder" / "autoencoder.safetensors")}
        size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
        model = {"img_size": 32, "num_classes": 2, "autoenc": weights, "llama_config": size}
        args = {"data_path": str(self.folder / "pets"), "output_dir": str(self.folder / "run"), "device": "cpu"}
        args |= {"epochs": 1, "batch_size": 4, "num_workers": 0, "log_freq": 1, "eval_freq": 0}
        (self.folder / "config.yaml").write_text(yaml.safe_dump({"model": model, "args": args}))


@pytest.fixture
def work(tmp_path: Path) -> Work:
    write_pictures(tmp_path / "pets", {"ant": 7, "bee": 5})
    save_autoencoder(tiny_autoencoder(ch_mult=(1, 1, 2)), tmp_path / "autoencoder")
    work = Work(tmp_path)
    work.write_config()
    return work


def command(flags: list[str]) -> Outcome:
    """main.py in this process."""
    return call(training.main, *flags)


@contextmanager
def blocked(path: Path) -> Iterator[int]:
    """A picture that nobody can open: whoever tries waits. Yields the file's lease for ``wait_at``."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # comes when somebody waits
    lease = os.open(path, os.O_RDWR)
    fcntl.fcntl(lease, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    try:
        yield lease
    finally:
        os.close(lease)
        signal.signal(signal.SIGIO, before)


def wait_at(lease: int, process: BaseProcess) -> None:
    """Return as soon as a process waits for the picture."""
    while fcntl.fcntl(lease, fcntl.F_GETLEASE) == fcntl.F_WRLCK:
        process.join(0.02)
        assert process.is_alive(), "main.py ended too early"


def wait_until_done(work: Work, count: int) -> None:
    """Return once the codes of so many images are on the disk."""
    end = time.monotonic() + 120
    while work.status().count(DONE) < count:
        assert time.monotonic() < end, "no more images were done"
        time.sleep(0.02)


@pytest.mark.processes
def test_creation_survives_kills(work: Work) -> None:
    flags = ("--create_cache", "--batch_size", "20")  # two images of ten crops at once
    assert command(work.flags(*flags, cached="undisturbed")).code == 0
    for number, done in ((4, 4), (9, 8)):
        path = work.pictures[number]
        with blocked(path) as lease:
            process = start_process(work.output, flushing_command, work.flags(*flags))
            wait_at(lease, process)
            wait_until_done(work, done)  # it reads ahead of what it encodes
            process.kill()
            assert exit_codes([process]) == [-signal.SIGKILL]
        assert work.status() == [DONE] * done + [TODO] * (12 - done)
        assert not (work.folder / "cached" / NAME).exists()
    outcome = command(work.flags(*flags))
    assert outcome.code == 0
    assert "4 of 4 images" in outcome.err  # the rest alone
    assert np.array_equal(work.codes(), work.codes("undisturbed"))
    assert work.manifest() == work.manifest("undisturbed")
    assert len(np.unique(work.codes())) > 20
    assert [path.name for path in (work.folder / "cached").iterdir()] == [NAME]


@pytest.mark.ranks
def test_two_ranks_killed_half_way_and_continued_by_one(work: Work) -> None:
    flags = ("--create_cache", "--batch_size", "20")
    assert command(work.flags(*flags, cached="undisturbed")).code == 0
    paths = work.pictures[4:6]  # in the second group of either rank
    with blocked(paths[0]) as first, blocked(paths[1]) as second:
        ranks = start_ranks(work.folder, 2, flushing_command, work.flags(*flags))
        for lease, rank in zip((first, second), ranks, strict=True):
            wait_at(lease, rank)
        wait_until_done(work, 4)
        for rank in ranks:
            rank.terminate()  # as torchrun passes it on when a job's time is up
        assert exit_codes(ranks) == [-signal.SIGTERM] * 2
    assert work.status() == [DONE] * 4 + [TODO] * 8
    assert command(work.flags(*flags)).code == 0
    assert np.array_equal(work.codes(), work.codes("undisturbed"))


def test_verification(work: Work) -> None:
    assert command(work.flags("--create_cache", "--batch_size", "20")).code == 0
    outcome = command(work.flags("--verify_cache", "5", "--batch_size", "20"))
    assert outcome.code == 0
    assert outcome.out.startswith(f"0 of {5 * 10 * 204} codes differ")
    codes = np.load(work.folder / "cached" / NAME / "codes.npy", mmap_mode="r+")
    codes[:] = (codes + 1) % 64
    codes.flush()
    outcome = command(work.flags("--verify_cache", "5", "--batch_size", "20"))
    assert f"{5 * 10 * 204} of {5 * 10 * 204} codes differ" in outcome.out
    assert "does not hold the codes of these images" in outcome.error()


@pytest.mark.parametrize(
    ("scales", "expected"),
    [("model", [1, 2, 4, 8]), ("paper", [1, 2, 3, 4, 5, 6, 7, 8]), ("[1, 3]", [1, 2, 3, 4, 8])],
    ids=["model", "paper", "list"],
)
def test_cached_scales(work: Work, scales: str, expected: list[int]) -> None:
    outcome = command(work.flags("--create_cache", "--cache_scales", scales, "--crop", "center"))
    assert outcome.code == 0
    name = "pets-32-center"
    manifest = json.loads((work.folder / "cached" / name / "manifest.json").read_text())
    assert manifest["scale_sizes"] == expected
    assert manifest["num_images"] == 12
    assert manifest["class_keys"] == ["ant", "bee"]
    num_codes = sum(side**2 for side in expected)
    assert np.load(work.folder / "cached" / name / "codes.npy").shape == (12, 1, num_codes)
    assert f"the cache takes {2 * 12 * num_codes / 1e9:.3g} GB" in outcome.out


def test_scales_to_cache_lie_within_the_models(work: Work) -> None:
    said = command(work.flags("--create_cache", "--cache_scales", "[2, 16]", "--crop", "center")).error()
    assert said == "cache_scales holds 16; sides of scales lie between 1 and the model's 8"


def record_batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Tensor], Tensor]]:
    """A list that the codes and labels of every training step are put in."""
    seen = []
    training_loss = Checkerboard.training_loss

    def noting(self: Checkerboard, codes: list[Tensor], labels: Tensor, context: StepContext) -> Loss:
        seen.append((codes, labels))
        return training_loss(self, codes, labels, context)

    monkeypatch.setattr(Checkerboard, "training_loss", noting)
    return seen


def test_training_sees_the_same_codes_from_images_and_from_the_cache(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = record_batches(monkeypatch)
    live = ("--output_dir", str(work.folder / "live"))
    assert command(work.flags(*live)).code == 0
    assert command(work.flags("--create_cache", "--batch_size", "20")).code == 0
    assert command(work.flags("--use_cache")).code == 0
    assert len(seen) == 6  # three steps of four images each
    for (codes, labels), (cached, cached_labels) in zip(seen[:3], seen[3:], strict=True):
        assert torch.equal(labels, cached_labels)
        assert [tuple(scale.shape) for scale in codes] == [(4, side, side) for side in (1, 2, 4, 8)]
        differing = sum(int((ours != theirs).sum()) for ours, theirs in zip(codes, cached, strict=True))
        assert differing <= 1  # batches of another size round otherwise

    images = open_dataset("folder", str(work.folder / "pets"), 32)
    crops = CroppedImages(images, 32, "ten")
    autoencoder = tiny_autoencoder(ch_mult=(1, 1, 2))
    sampler = EpochBatches(len(images), crops.num_crops, batch_size=4, seed=0, epoch=0)
    for pairs, (codes, labels) in zip(sampler, seen[:3], strict=True):
        pixels, expected_labels = crops.collate([crops[pair] for pair in pairs])
        assert torch.equal(labels, expected_labels)
        for ours, theirs in zip(codes, autoencoder.tokenize(pixels, (1, 2, 4, 8)), strict=True):
            assert torch.equal(ours, theirs)
    checkpoints = [
        torch.load(work.folder / run / "checkpoint-last.pth", weights_only=True)["step"] for run in ("live", "run")
    ]
    assert checkpoints == [3, 3]


def test_a_cache_of_the_papers_scales_serves_another_pyramid(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command(work.flags("--create_cache", "--batch_size", "20")).code == 0
    seen = record_batches(monkeypatch)
    assert command(work.flags("--use_cache", "--scale_ratio", "3")).code == 0
    assert [scale.shape[-1] for scale in seen[0][0]] == [1, 3, 8]
    cached, (index, crop) = work.codes(), next(iter(EpochBatches(12, 10, 4, seed=0, epoch=0)))[0]
    assert seen[0][0][1][0].flatten().tolist() == cached[index, crop, 5:14].tolist()


# Refusals.


def test_another_autoencoder_is_refused(work: Work) -> None:
    assert command(work.flags("--create_cache", "--crop", "center")).code == 0
    save_autoencoder(tiny_autoencoder(1, ch_mult=(1, 1, 2)), work.folder / "autoencoder")
    for flag in ("--use_cache", "--create_cache"):
        said = command(work.flags(flag, "--crop", "center")).error()
        assert "pets-32-center was made with autoencoder_sha256" in said
        assert "make it again by --create_cache --rebuild_cache" in said
    said = command(work.flags("--verify_cache", "3", "--crop", "center")).error()
    assert "was made with autoencoder_sha256" in said


def test_a_stale_cache_is_made_again_if_asked(work: Work) -> None:
    """It is moved aside; a good one, or one that is half made, is gone on with."""
    make = work.flags("--create_cache", "--rebuild_cache", "--crop", "center")
    assert command(make).code == 0
    caches = work.folder / "cached"
    place = next(path for path in caches.iterdir() if path.is_dir())
    old = files_of(place)
    assert "is complete already" in command(make).out
    save_autoencoder(tiny_autoencoder(1, ch_mult=(1, 1, 2)), work.folder / "autoencoder")
    assert "the earlier" in command(make).out
    assert files_of(place.with_name(place.name + ".1")) == old
    assert files_of(place).keys() == old.keys()
    assert files_of(place) != old
    codes = np.load(place / "codes.npy", mmap_mode="r+")
    codes[:] = 60_000
    codes.flush()
    assert (
        "make it again by --create_cache --rebuild_cache"
        in command(work.flags("--use_cache", "--crop", "center")).error()
    )
    assert command(make).code == 0
    assert command(work.flags("--use_cache", "--crop", "center")).code == 0
    place.rename(place.with_name(place.name + ".partial"))
    assert command(make).code == 0
    assert sorted(path.name for path in caches.iterdir() if path.is_dir()) == [
        place.name, place.name + ".1", place.name + ".2",
    ]  # fmt: skip
    assert "create_cache" in command(work.flags("--use_cache", "--rebuild_cache")).error()


def test_changed_data_is_refused(work: Work) -> None:
    assert command(work.flags("--create_cache", "--crop", "center")).code == 0
    picture(40, 40, seed=99).save(work.folder / "pets" / "bee" / "new.png")
    for flags in (("--use_cache", "--check_images"), ("--use_cache", "--create_cache")):
        said = command(work.flags(*flags, "--crop", "center")).error()
        assert "was made with num_images 12, not 13" in said


def test_a_cache_serves_without_its_images(work: Work) -> None:
    flags = ("--crop", "center", "--use_cache")
    assert command(work.flags("--create_cache", "--crop", "center")).code == 0
    (work.folder / "pets").rename(work.folder / "elsewhere")
    for more in ((), ("--create_cache",)):
        outcome = command(work.flags(*flags, *more, "--output_dir", str(work.folder / f"run{len(more)}")))
        assert outcome.code == 0, outcome.err
        assert "--check_images compares" in outcome.out
    saved = torch.load(work.folder / "run0" / "checkpoint-last.pth", weights_only=True)
    assert (saved["class_keys"], saved["class_names"]) == (["ant", "bee"], ["ant", "bee"])
    assert "no image folder at" in command(work.flags(*flags, "--check_images")).error()
    assert "num_classes is 3; set num_classes 2" in command(work.flags(*flags, "--num_classes", "3")).error()


def test_a_cache_serves_by_another_path_of_its_images(work: Work) -> None:
    assert command(work.flags("--create_cache", "--crop", "center")).code == 0
    (work.folder / "links").mkdir()
    (work.folder / "links/pets").symlink_to(work.folder / "pets")
    flags = ("--crop", "center", "--use_cache", "--data_path", str(work.folder / "links/pets"))
    outcome = command(work.flags(*flags))
    assert outcome.code == 0, outcome.err


def test_a_cache_of_another_folder_of_the_same_name_is_refused(work: Work) -> None:
    assert command(work.flags("--create_cache", "--crop", "center")).code == 0
    write_pictures(work.folder / "others/pets", {"ant": 8, "bee": 8})
    flags = ("--crop", "center", "--use_cache", "--data_path", str(work.folder / "others/pets"))
    said = command(work.flags(*flags)).error()
    assert f"made of the images in {work.folder / 'pets'}, not of those in {work.folder / 'others/pets'}" in said
    assert not (work.folder / "run").exists()


def test_check_images_needs_a_cache(work: Work) -> None:
    assert "means nothing without a cache" in command(work.flags("--check_images")).error()


@pytest.mark.parametrize("flags", [("--create_cache",), ("--create_cache", "--use_cache"), ()])
def test_a_wrong_class_count_is_refused(work: Work, flags: tuple[str, ...]) -> None:
    said = command(work.flags(*flags, "--num_classes", "1000")).error()
    assert said == "pets has 2 classes, but num_classes is 1000; set num_classes 2"
    assert not (work.folder / "cached").exists()


def test_a_missing_cache_is_refused(work: Work) -> None:
    said = command(work.flags("--use_cache")).error()
    assert said.endswith(f"no cache of codes at {work.folder / 'cached' / NAME}; make it by adding --create_cache")


def test_a_cache_that_another_process_makes_is_left_to_it(work: Work) -> None:
    (work.folder / "cached").mkdir()
    with FileLock(work.folder / "cached" / f"{NAME}.lock"):
        said = command(work.flags("--create_cache")).error()
    assert said.startswith("another process is making the cache ")
    assert list((work.folder / "cached").glob("*.partial")) == []
    assert command(work.flags("--create_cache", "--batch_size", "20")).code == 0
    assert [path.name for path in (work.folder / "cached").iterdir()] == [NAME]


def test_a_full_disk(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, start: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    said = command(work.flags("--create_cache")).error()
    assert "No space left on device; free some space and run the same command again" in said


@pytest.mark.parametrize("flag", ["--create_cache", "--epochs=1"])
@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.processes)])
def test_too_many_unreadable_images(work: Work, flag: str, num_workers: int) -> None:
    broken = [work.pictures[number] for number in (1, 4, 7)]
    for path in broken:
        damage(path, "truncated")
    flags = work.flags(flag, f"--num_workers={num_workers}")
    if num_workers:
        (code,) = exit_codes([start_process(work.output, main_command, flags)])
        outcome = Outcome(code, "", work.output.read_text())
    else:
        outcome = command(flags)
    skipped = re.findall(r"skipped: (\S+)", outcome.err)
    assert len(skipped) in ((2, 3) if num_workers else (2,))  # a worker reads on until the program ends
    assert set(skipped) <= set(map(str, broken))
    assert outcome.code == 2
    error = "error: 2 unreadable images, over 1 % of the data; mend it (--check_data lists them)\n"
    assert outcome.err.endswith(error)


def train_and_keep_the_error(argv: Sequence[str]) -> None:
    """For ``start_process``."""
    try:
        training.main(argv)
    except UserError as error:
        KEPT.append(error)
        print(type(error).__name__, flush=True)


@pytest.mark.processes
def test_workers_end_with_a_program_that_keeps_the_error(work: Work) -> None:
    """A kept traceback keeps the loader alive; the program must not wait forever for workers that ignore signals."""
    for number in (1, 4, 7):
        damage(work.pictures[number], "truncated")
    process = start_process(work.output, train_and_keep_the_error, work.flags("--epochs=1", "--num_workers=1"))
    assert exit_codes([process]) == [0]
    assert work.output.read_text().endswith("UserError\n")
