"""Drawing many images: an image follows from its label and seed, whatever it is drawn with."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.autoencoder import to_uint8
from models.checkerboard.config import CheckerboardDrawing
from models.checkerboard.model import Checkerboard
from models.checkerboard.sampler import CheckerboardSampler
from models.draw import image_seed
from models.sampler import Sampler
from models.sampling import sample
from runtime import distributed
from runtime.errors import UserError
from runtime.progress import Progress
from sampling import bulk
from sampling.bulk import Constraint, Request, draw_into, draw_many, draw_on_all_ranks
from sampling.folder import SampleFolder
from sampling.options import Format
from tests.factory import random_codes, tiny_model

LABELS = [3, 7, 3, 0, 9, 3, 1]
DRAWING = CheckerboardDrawing(cfg=1.5, temperature=0.9, top_k=20)


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
        alone = sample(model, [label], cfg=1.5, temperature=0.9, top_k=20, seeds=[image_seed(5, i)])
        assert torch.equal(images[i], alone.images[0])
        assert all(torch.equal(ours[i], theirs[0]) for ours, theirs in zip(codes, alone.codes, strict=True))
    assert len(images.flatten(1).unique(dim=0)) == 7


def test_neighbouring_seeds_share_no_image(model: Checkerboard) -> None:
    labels = 20 * [3]
    drawn_by_seed = [drawn(model, Request(labels, DRAWING, seed=seed))[1] for seed in (0, 1, 2, 2**32 - 1)]
    assert len(torch.cat(drawn_by_seed).flatten(1).unique(dim=0)) == 4 * 20


@pytest.mark.parametrize("file_format", ["png", "npz"])
def test_nothing_is_stored_of_a_batch_that_is_not_finite(
    file_format: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled = tiny_model()
    with torch.no_grad():
        spoiled.lm_head.bias[5] = float("nan")
    folder = empty_folder(tmp_path / "drawn", file_format)
    with pytest.raises(UserError, match="logits are not finite from step 0 on"):
        draw_into(folder, spoiled, Request(LABELS, DRAWING, batch_size=3))
    assert folder.num_stored() == 0
    assert not list(folder.path.glob("*.[pn][np][gz]"))
    assert todo(folder) == list(range(7))


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

    draw = CheckerboardSampler.draw

    def noting(sampler: Sampler, labels: Tensor, seeds: Tensor) -> Iterator[int]:
        given.append((labels.tolist(), seeds.tolist()))
        return draw(sampler, labels, seeds)

    monkeypatch.setattr(CheckerboardSampler, "draw", noting)
    batches = list(draw_many(model, Request(LABELS, DRAWING, seed=10, batch_size=3)))
    seeds = [image_seed(10, i) for i in range(7)]
    assert given == [([3, 7, 3], seeds[:3]), ([0, 9, 3], seeds[3:6]), ([1, 1, 1], seeds[6:] * 3)]
    assert [indices for indices, _ in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    for indices, out in batches:
        for maps in ([out.images], out.codes, out.entropy, out.step, out.probability):
            assert {len(scale) for scale in maps} == {len(indices)}
    given.clear()
    list(draw_many(model, Request(LABELS[:2], DRAWING, batch_size=16)))
    assert given == [([3, 7], [0, 1])]  # a small request is not filled up


def test_a_sampler_that_was_made_before_draws_the_same(model: Checkerboard, monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request(LABELS, DRAWING, seed=5, batch_size=3)
    expected = drawn(model, request)[1]
    request = replace(request, sampler=bulk.sampler_of(model, request))
    monkeypatch.setattr(Checkerboard, "sampler", lambda *args: pytest.fail("another sampler was made"))
    for _ in range(2):
        assert torch.equal(drawn(model, request)[1], expected)


def test_kept_codes_stay_and_the_rest_is_drawn(model: Checkerboard) -> None:
    codes = [scale[0] for scale in random_codes(model, 1)]
    mask = [torch.rand(scale.shape) < 0.5 for scale in codes]
    _, images, found = drawn(model, Request(LABELS, DRAWING, batch_size=3, constraint=Constraint(mask, codes)))
    for kept, expected, scale in zip(mask, codes, found, strict=True):
        assert (scale[:, kept] == expected[kept]).all()
    assert (found[-1] != codes[-1]).any()
    assert len(images.flatten(1).unique(dim=0)) == 7
    everything = Constraint([torch.ones_like(kept) for kept in mask], codes)
    _, images, _ = drawn(model, Request(LABELS[:2], DRAWING, constraint=everything))
    assert torch.equal(images, model.decode(codes[-1].expand(2, -1, -1)))


def test_one_rank_draws_all(model: Checkerboard) -> None:
    request = Request(LABELS, DRAWING, batch_size=4)
    assert torch.equal(draw_on_all_ranks(model, request), drawn(model, request)[1])


def empty_folder(path: Path, file_format: Format = "npz", maps: Sequence[str] = ()) -> SampleFolder:
    folder = SampleFolder(path, (7, 32, 32, 3), file_format, maps)
    assert folder.prepare({"seed": 5})
    return folder


def todo(folder: SampleFolder) -> list[int]:
    folder.look()
    return folder.todo.tolist()


def test_a_folder_gets_what_it_lacks_and_as_it_was_changed(model: Checkerboard, tmp_path: Path) -> None:
    request = Request(LABELS, DRAWING, seed=5, batch_size=3)
    whole, begun = (empty_folder(tmp_path / name) for name in ("whole", "begun"))
    expected = to_uint8(drawn(model, request)[1])
    assert draw_into(whole, model, request) == 7
    assert torch.equal(whole.first_images(7), expected)
    begun.look()
    with begun.writing():
        for indices, out in draw_many(model, request, [0, 1, 3, 4, 5]):
            begun.add(indices, to_uint8(out.images), out)
    assert todo(begun) == [2, 6]
    assert draw_into(begun, model, request, lambda pixels: 255 - pixels) == 2
    expected[[2, 6]] = 255 - expected[[2, 6]]
    assert torch.equal(begun.first_images(7), expected)


@pytest.mark.parametrize("file_format", ["png", "npz"])
def test_rank_0_sees_what_others_did_after_it_had_opened(
    file_format: Format, model: Checkerboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As over NFS, where others' images are seen once they have closed their files: here all appear at once."""
    request = Request(LABELS, DRAWING, seed=5, batch_size=2)
    expected = to_uint8(drawn(model, request)[1])
    folder = empty_folder(tmp_path / "drawn", file_format, ["codes"])

    def other_rank(what: str) -> None:
        images = SampleFolder(folder.path, folder.shape, file_format, ["codes"])
        assert todo(images) == [1, 3, 5]  # rank 0 has written its own by now
        with monkeypatch.context() as patch, images.writing():
            patch.setattr(distributed, "rank", lambda: 1)
            for indices, out in draw_many(model, request, [1, 3, 5]):
                images.add(indices, to_uint8(out.images), out)

    monkeypatch.setattr(distributed, "num_ranks", lambda: 2)
    monkeypatch.setattr(distributed, "barrier", other_rank)
    assert draw_into(folder, model, request) == 7
    assert folder.num_stored() == 7
    assert torch.equal(folder.first_images(7), expected)
    codes = folder.read_map("codes", model.scale_sizes)
    assert all(torch.equal(*pair) for pair in zip(codes, drawn(model, request)[2], strict=True))
    assert folder.finish(LABELS) == []
    assert not list(folder.path.glob(".*"))


def test_shares_are_of_what_rank_0_sees_missing(
    model: Checkerboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = empty_folder(tmp_path / "drawn")
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "num_ranks", lambda: 2)
    monkeypatch.setattr(distributed, "from_main", lambda missing, what: missing[[0, 2, 3, 5]])
    assert draw_into(folder, model, Request(LABELS, DRAWING)) == 4
    assert todo(folder) == [0, 1, 3, 4, 6]


def test_images_that_are_gone_again_are_an_error(
    model: Checkerboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = empty_folder(tmp_path / "drawn", "png")
    monkeypatch.setattr(distributed, "barrier", (tmp_path / "drawn/000003.png").unlink)
    with pytest.raises(UserError, match="drawn still lacks 1 images; run the same command again to go on"):
        draw_into(folder, model, Request(LABELS, DRAWING))
    assert todo(folder) == [3]


@pytest.mark.parametrize("file_format", ["png", "npz"])
def test_the_bar_counts_images(
    file_format: Format, model: Checkerboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From those that were there; the last count is of all."""
    counts: list[tuple[int, int]] = []

    class Bar(Progress):
        def close(self) -> None:
            counts.append((self.initial, self.n))
            super().close()

    folder = empty_folder(tmp_path / "drawn", file_format)
    folder.look()
    request = Request(LABELS, DRAWING, batch_size=2)
    with folder.writing():
        for indices, out in draw_many(model, request, [1, 4, 5]):
            folder.add(indices, to_uint8(out.images), out)
    (tmp_path / "drawn/000004.png").unlink(missing_ok=True)
    monkeypatch.setattr(bulk, "Progress", Bar)
    draw_into(folder, model, request)
    assert counts[0] == ((2, 7) if file_format == "png" else (3, 7))
