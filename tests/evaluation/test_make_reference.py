"""A reference set made of one's own images: a folder of any sizes, or the split of a data set wherever it lies."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.compare import warnings_of_pair
from evaluation.image_sets import load_image_set
from evaluation.make_reference import FolderCrops, make_reference, open_crops
from evaluation.options import EvaluatorArgs
from runtime.errors import UserError
from tests.evaluation.fake_inception import SPATIAL_WIDTH, WIDTH, FakeInception
from tests.places import write_places


def photos(folder: Path) -> Path:
    """Images of several sizes, one of them grey."""
    random = np.random.default_rng(0)
    for i in range(12):
        path = folder / f"{i % 3}/{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(256, size=(20 + i, 31, 3), dtype=np.uint8)).save(path)
    Image.fromarray(random.integers(256, size=(24, 24), dtype=np.uint8)).save(folder / "0/grey.png")
    return folder


def arrays_of(target: Path) -> dict[str, np.ndarray]:
    with np.load(target) as file:
        return dict(file)


def test_a_reference_is_what_its_own_images_give(tmp_path: Path) -> None:
    target = tmp_path / "out.npz"
    warnings = make_reference(FolderCrops(photos(tmp_path / "a"), 16), target, FakeInception(), 4)
    arrays = arrays_of(target)
    assert set(arrays) == {"arr_0", "num_images", "mu", "sigma", "mu_s", "sigma_s"}
    assert (arrays["arr_0"].dtype, arrays["arr_0"].shape) == (np.uint8, (13, 16, 16, 3))
    assert (arrays["mu"].shape, arrays["sigma_s"].shape) == ((WIDTH,), (SPATIAL_WIDTH, SPATIAL_WIDTH))
    np.savez(tmp_path / "again.npz", arr_0=arrays["arr_0"])
    again = load_image_set(tmp_path / "again.npz", FakeInception(), 7)
    np.testing.assert_array_equal(again.statistics[0].covariance, arrays["sigma"])
    np.testing.assert_array_equal(again.statistics[1].mean, arrays["mu_s"])
    assert any("1 L" in warning for warning in warnings)


@pytest.mark.parametrize("features", [True, False])
def test_a_small_reference_is_warned_of_whenever_it_is_used(features: bool, tmp_path: Path) -> None:
    target = tmp_path / "out.npz"
    make_reference(FolderCrops(photos(tmp_path / "a"), 16), target, FakeInception(), 4)
    found = load_image_set(target, FakeInception(), 7, features=features)
    warnings = warnings_of_pair(found, found, FakeInception())
    assert any("13 images are fewer than 2048" in warning for warning in warnings)
    assert any("precision and recall are of its 13 images" in warning for warning in warnings) == features


def test_stored_statistics_may_be_of_more_images_than_the_file_holds(tmp_path: Path) -> None:
    """As ADM's are, which do not say of how many."""
    target = tmp_path / "out.npz"
    make_reference(FolderCrops(photos(tmp_path / "a"), 16), target, FakeInception(), 4)
    arrays = arrays_of(target)
    del arrays["num_images"]
    np.savez(tmp_path / "theirs.npz", **arrays)
    found = load_image_set(tmp_path / "theirs.npz", FakeInception(), 7)
    warnings = warnings_of_pair(found, found, FakeInception())
    assert not any("fewer than" in warning for warning in warnings)
    assert any("precision and recall are of its 13 images" in warning for warning in warnings)


def of_split(place: Path, target: Path, split: str) -> EvaluatorArgs:
    return EvaluatorArgs(reference=str(target), make_reference=str(place), image_size=8, split=split)


def test_the_same_images_make_the_same_reference_wherever_they_lie(tmp_path: Path) -> None:
    found = {}
    for kind, place in write_places(tmp_path / "places").items():
        args = of_split(place, tmp_path / f"{kind}.npz", "train")
        make_reference(open_crops(args), Path(args.reference), FakeInception(), 4)
        found[kind] = arrays_of(tmp_path / f"{kind}.npz")
    assert len(found) > 3
    expected = found.pop("folders")
    for kind, arrays in found.items():
        assert arrays.keys() == expected.keys(), kind
        for name, array in expected.items():
            np.testing.assert_array_equal(arrays[name], array, err_msg=f"{kind}: {name}")


def test_a_reference_is_never_overwritten_nor_left_half_made(tmp_path: Path) -> None:
    folder, target = photos(tmp_path / "a"), tmp_path / "out.npz"
    target.write_bytes(b"mine")
    args = EvaluatorArgs(reference=str(target), make_reference=str(folder), image_size=16)
    with pytest.raises(UserError, match="exists"):
        open_crops(args)
    assert target.read_bytes() == b"mine"
    (folder / "2/11.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"11\.png cannot be read"):
        make_reference(FolderCrops(folder, 16), tmp_path / "new.npz", FakeInception(), 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "out.npz"]
