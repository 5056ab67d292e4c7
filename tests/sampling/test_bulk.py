"""Drawing many images: an image follows from its label and seed, whatever it is drawn with."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data.crops import to_uint8
from models import sample
from models.checkerboard.config import CheckerboardDrawing as Drawing
from models.checkerboard.model import Checkerboard
from models.checkerboard.sampler import CheckerboardSampler as Sampler
from runtime import distributed
from sampling import bulk
from sampling.bulk import Kept, Request, draw_into, draw_many, draw_on_all_ranks
from sampling.folder import SampleFolder, prepare_folder
from sampling.options import Format
from tests.factory import random_codes, tiny_model

LABELS = [3, 7, 3, 0, 9, 3, 1]
DRAWING = Drawing(cfg=1.5, temperature=0.9, top_k=20)


@pytest.fixture(scope="module")
def model() -> Checkerboard:
    return tiny_model()


def drawn(
    model: Checkerboard, request: Request, indices: Sequence[int] | None = None
) -> tuple[list[int], Tensor, list[Tensor]]:
    """Indices, images and codes, the batches joined."""
    batches = list(draw_many(model, request, indices))
    codes = [torch.cat(scale) for scale in zip(*(out.codes for _, out in batches), strict=True)]
    return [i for wanted, _ in batches for i in wanted], torch.cat([out.images for _, out in batches]), codes


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_images_are_those_drawn_alone(batch_size: int, model: Checkerboard) -> None:
    indices, images, codes = drawn(model, Request(LABELS, DRAWING, seed=5, batch_size=batch_size))
    assert indices == list(range(7))
    for i, label in enumerate(LABELS):
        alone = sample(model, [label], cfg=1.5, temperature=0.9, top_k=20, seeds=[5 + i])
        assert torch.equal(images[i], alone.images[0])
        assert all(torch.equal(ours[i], theirs[0]) for ours, theirs in zip(codes, alone.codes, strict=True))
    assert len(images.flatten(1).unique(dim=0)) == 7


@pytest.mark.parametrize("indices", [[6], [5, 2], [0, 2, 4, 6], [1, 3, 5], []])
def test_a_subset_is_as_in_the_whole(indices: list[int], model: Checkerboard) -> None:
    request = Request(LABELS, DRAWING, batch_size=3)
    if not indices:
        assert list(draw_many(model, request, indices)) == []
        return
    _, images, codes = drawn(model, Request(LABELS, DRAWING, batch_size=2))
    found, subset, subset_codes = drawn(model, request, indices)
    assert found == indices
    assert torch.equal(subset, images[indices])
    assert all(torch.equal(ours, theirs[indices]) for ours, theirs in zip(subset_codes, codes, strict=True))


def test_the_last_batch_is_filled_up_and_cut(model: Checkerboard, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[list[int], list[int]]] = []

    class Recorded(Sampler):
        def __call__(self, labels: Tensor, seeds: Sequence[int], *keep: list[Tensor] | None) -> bulk.Samples:
            given.append((labels.tolist(), list(seeds)))
            return super().__call__(labels, seeds, *keep)

    monkeypatch.setattr(bulk, "Sampler", Recorded)
    batches = list(draw_many(model, Request(LABELS, DRAWING, seed=10, batch_size=3)))
    assert given == [([3, 7, 3], [10, 11, 12]), ([0, 9, 3], [13, 14, 15]), ([1, 1, 1], [16, 16, 16])]
    assert [indices for indices, _ in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    for indices, out in batches:
        for maps in ([out.images], out.codes, out.entropy, out.step, out.probability):
            assert {len(scale) for scale in maps} == {len(indices)}
    given.clear()
    list(draw_many(model, Request(LABELS[:2], DRAWING, batch_size=16)))
    assert given == [([3, 7], [0, 1])]  # a small request is not filled up


def test_kept_codes_stay_and_the_rest_is_drawn(model: Checkerboard) -> None:
    codes = [scale[0] for scale in random_codes(model, 1)]
    mask = [torch.rand(scale.shape) < 0.5 for scale in codes]
    _, images, found = drawn(model, Request(LABELS, DRAWING, batch_size=3, kept=Kept(mask, codes)))
    for kept, expected, scale in zip(mask, codes, found, strict=True):
        assert (scale[:, kept] == expected[kept]).all()
    assert (found[-1] != codes[-1]).any()
    assert len(images.flatten(1).unique(dim=0)) == 7
    everything = Kept([torch.ones_like(kept) for kept in mask], codes)
    _, images, _ = drawn(model, Request(LABELS[:2], DRAWING, kept=everything))
    assert torch.equal(images, model.decode(codes[-1].expand(2, -1, -1)))


def test_one_rank_draws_all(model: Checkerboard) -> None:
    request = Request(LABELS, DRAWING, batch_size=4)
    assert torch.equal(draw_on_all_ranks(model, request), drawn(model, request)[1])


def test_a_folder_gets_what_it_lacks_and_as_it_was_changed(model: Checkerboard, tmp_path: Path) -> None:
    request = Request(LABELS, DRAWING, seed=5, batch_size=3)
    for name in ("whole", "begun"):
        prepare_folder(tmp_path / name, {"seed": 5}, (7, 32, 32, 3), "npz", {})
    expected = to_uint8(drawn(model, request)[1])
    assert torch.equal(draw_into(tmp_path / "whole", model, request).first_images(7), expected)
    with SampleFolder(tmp_path / "begun") as begun:
        for indices, out in draw_many(model, request, [0, 1, 3, 4, 5]):
            begun.add(indices, to_uint8(out.images), out)
    again = draw_into(tmp_path / "begun", model, request, lambda pixels: 255 - pixels)
    assert again.todo.tolist() == [2, 6]
    expected[[2, 6]] = 255 - expected[[2, 6]]
    assert torch.equal(again.first_images(7), expected)


@pytest.mark.parametrize("file_format", ["png", "npz"])
def test_rank_0_sees_what_others_did_after_it_had_opened(
    file_format: Format, model: Checkerboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As over NFS, where others' images are seen once they have closed their files: here all appear at once."""
    request, folder = Request(LABELS, DRAWING, seed=5, batch_size=2), tmp_path / "drawn"
    expected = to_uint8(drawn(model, request)[1])
    prepare_folder(folder, {"seed": 5}, (7, 32, 32, 3), file_format, {"codes": model.num_locations})

    def other_rank() -> None:
        assert SampleFolder(folder).todo.tolist() == [1, 3, 5]  # rank 0 has closed its own by now
        with monkeypatch.context() as patch, SampleFolder(folder) as images:
            patch.setattr(distributed, "rank", lambda: 1)
            for indices, out in draw_many(model, request, [1, 3, 5]):
                images.add(indices, to_uint8(out.images), out)

    monkeypatch.setattr(distributed, "num_ranks", lambda: 2)
    monkeypatch.setattr(distributed, "barrier", other_rank)
    images = draw_into(folder, model, request)
    assert images.todo.tolist() == list(range(7))
    assert torch.equal(images.first_images(7), expected)
    assert images.maps["codes"][:].any(1).all()
    assert (images.num_done, images.duplicates()) == (7, [])
    images.finish(LABELS, [])
    assert not list(folder.glob(".*"))


def test_shares_are_of_what_rank_0_sees_missing(
    model: Checkerboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_folder(tmp_path / "drawn", {}, (7, 32, 32, 3), "npz", {})
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "num_ranks", lambda: 2)
    monkeypatch.setattr(distributed, "from_main", lambda todo: todo[[0, 2, 3, 5]])
    draw_into(tmp_path / "drawn", model, Request(LABELS, DRAWING))
    assert SampleFolder(tmp_path / "drawn").todo.tolist() == [0, 1, 3, 4, 6]
