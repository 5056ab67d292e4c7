"""One set and a pair: what is stored, computed, kept, and warned of; a reference set made of a folder."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.compare import compare, warnings_of_pair
from evaluation.image_sets import ImageSet, load_image_set, make_reference
from runtime.errors import UserError
from tests.evaluation.fake_inception import SPATIAL_WIDTH, WIDTH, FakeInception
from tests.limits import largest_file


def pictures(count: int = 30, seed: int = 0, side: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(count, side, side, 3), dtype=np.uint8)


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def save_image(image: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def load(path: Path, **options: bool) -> ImageSet:
    return load_image_set(path, FakeInception(), 7, **options)


def caches(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.features-*"))


def test_features_and_statistics_in_batches_are_those_of_all_at_once(tmp_path: Path) -> None:
    images = load(save(tmp_path / "a.npz", arr_0=pictures()))
    features, spatial = FakeInception()(pictures())
    np.testing.assert_allclose(images.features, features, rtol=1e-6)
    np.testing.assert_allclose(images.statistics[0].covariance, np.cov(features, rowvar=False), rtol=1e-5)
    np.testing.assert_allclose(images.statistics[1].covariance, np.cov(spatial, rowvar=False), rtol=1e-5)
    assert (images.shape, images.stored) == ((30, 8, 8), False)


def test_features_are_kept_beside_and_taken_from_there(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", arr_0=pictures())
    inception = FakeInception()
    first, second = (load_image_set(path, inception, 7, cache=True) for _ in range(2))
    assert inception.num_seen == 30
    assert len(caches(tmp_path)) == 1
    np.testing.assert_array_equal(first.features, second.features)
    np.testing.assert_array_equal(first.statistics[1].covariance, second.statistics[1].covariance)
    assert first.warnings == second.warnings


def test_other_images_or_another_graph_are_computed_anew(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", arr_0=pictures())
    load_image_set(path, FakeInception(), 7, cache=True)
    other_graph = FakeInception("other")
    load_image_set(path, other_graph, 7, cache=True)
    save(path, arr_0=pictures(seed=1))
    other_images = FakeInception()
    images = load_image_set(path, other_images, 7, cache=True)
    assert (other_graph.num_seen, other_images.num_seen) == (30, 30)
    np.testing.assert_allclose(images.features, FakeInception()(pictures(seed=1))[0], rtol=1e-6)
    assert len(caches(tmp_path)) == 3


def test_a_damaged_cache_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = save(tmp_path / "a.npz", arr_0=pictures())
    whole = load(path, cache=True)
    (cache,) = caches(tmp_path)
    cache.write_bytes(cache.read_bytes()[:500])
    np.testing.assert_array_equal(load(path, cache=True).features, whole.features)
    assert "damaged; computing it again" in capsys.readouterr().out
    assert np.load(cache)["features"].shape == (30, WIDTH)


def test_a_disk_that_is_full(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = save(tmp_path / "a.npz", arr_0=pictures())
    with largest_file(1000):
        assert load(path, cache=True).shape == (30, 8, 8)
    assert "not kept for the next time: could not write" in capsys.readouterr().out
    assert not caches(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", arr_0=pictures())
    tmp_path.chmod(0o500)
    try:
        assert load(path, cache=True).shape == (30, 8, 8)
    finally:
        tmp_path.chmod(0o700)


def test_a_cache_of_a_folder_lies_beside_it(tmp_path: Path) -> None:
    for i, image in enumerate(pictures()):
        save_image(image, tmp_path / f"a/{i}.png")
    load(tmp_path / "a", cache=True)
    assert len(caches(tmp_path)) == 1
    assert not caches(tmp_path / "a")


def test_stored_statistics_win_and_images_give_the_features(tmp_path: Path) -> None:
    stored = {"mu": np.full(WIDTH, 3.0), "sigma": 2 * np.eye(WIDTH)}
    path = save(tmp_path / "a.npz", arr_0=pictures(), **stored)
    images = load(path)
    assert images.stored
    assert images.statistics[1] is None
    np.testing.assert_array_equal(images.statistics[0].covariance, stored["sigma"])
    assert images.features.shape == (30, WIDTH)
    assert not any("fewer than" in warning for warning in images.warnings)


def test_no_image_is_read_that_is_not_needed(tmp_path: Path) -> None:
    inception = FakeInception()
    path = save(tmp_path / "a.npz", arr_0=pictures(), mu=np.zeros(WIDTH), sigma=np.eye(WIDTH))
    images = load_image_set(path, inception, 7, features=False)
    assert (images.features, images.shape, inception.num_seen) == (None, None, 0)


def test_statistics_of_both(tmp_path: Path) -> None:
    inception = FakeInception()
    pair = [
        load(save(tmp_path / f"{i}.npz", mu=np.full(WIDTH, float(i)), sigma=np.eye(WIDTH) * (1 + i))) for i in range(2)
    ]
    metrics = compare(*pair, inception)
    assert metrics.pop("FID-unknown") == pytest.approx(WIDTH + WIDTH * (np.sqrt(2) - 1) ** 2)
    assert metrics == dict.fromkeys(("Inception Score", "sFID-unknown", "Precision", "Recall"))


def test_statistics_of_other_features_are_refused(tmp_path: Path) -> None:
    first = load(save(tmp_path / "a.npz", arr_0=pictures()))
    second = load(save(tmp_path / "b.npz", mu=np.zeros(9), sigma=np.eye(9)))
    with pytest.raises(UserError, match=r"statistics of 9 features, .* of 5"):
        compare(second, first, FakeInception())


def test_names_carry_the_number_of_samples_below_50k(tmp_path: Path) -> None:
    images = load(save(tmp_path / "a.npz", arr_0=pictures()))
    for count, suffix in ((30, "-30"), (49_999, "-49999"), (50_000, "")):
        samples = replace(images, shape=(count, 8, 8))
        assert {f"FID{suffix}", f"sFID{suffix}"} <= compare(images, samples, FakeInception()).keys()


def test_too_few_images_for_any_metric(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds 3 images; give at least 4"):
        load(save(tmp_path / "a.npz", arr_0=pictures(3)))


def test_clean_sets_have_no_warnings(tmp_path: Path) -> None:
    reference, samples = (load(save(tmp_path / f"{seed}.npz", arr_0=pictures(2048, seed, side=4))) for seed in (1, 2))
    assert warnings_of_pair(reference, samples, FakeInception()) == []


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (pictures(2047, side=4), "2047 images are fewer than 2048"),
        (np.repeat(pictures()[..., :1], 3, axis=3), "all images are greyscale"),
        (np.concatenate([pictures(), pictures(4), pictures(4)]), "8 of 38 images are exact duplicates"),
        (pictures()[:, :, :6].copy(), "images of 6 x 8 pixels are stretched"),
    ],
)
def test_warnings_on_a_set(images: np.ndarray, says: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", arr_0=images)
    found = [warning for warning in load(path).warnings if says in warning]
    assert len(found) == 1
    assert found[0].startswith(f"{path}: ")


def test_warnings_on_a_pair(tmp_path: Path) -> None:
    reference, samples = pictures(seed=1), pictures(seed=2)
    samples[3:5] = reference[8]
    pair = [load(save(tmp_path / f"{i}.npz", arr_0=images)) for i, images in enumerate((reference, samples))]
    assert "2 of 30 samples are exact copies of reference images" in warnings_of_pair(*pair, FakeInception())
    larger = load(save(tmp_path / "large.npz", arr_0=pictures(side=10)))
    found = warnings_of_pair(pair[0], larger, FakeInception())
    assert any("the reference has 8 x 8 pixels, the samples 10 x 10" in warning for warning in found)


def photos(folder: Path) -> Path:
    """Images of several sizes, one of them grey."""
    random = np.random.default_rng(0)
    for i in range(12):
        save_image(random.integers(256, size=(20 + i, 31, 3), dtype=np.uint8), folder / f"{i % 3}/{i:02d}.png")
    Image.fromarray(random.integers(256, size=(24, 24), dtype=np.uint8)).save(folder / "0/grey.png")
    return folder


def test_a_reference_is_what_its_own_images_give(tmp_path: Path) -> None:
    target = tmp_path / "out.npz"
    warnings = make_reference(photos(tmp_path / "a"), target, 16, FakeInception(), 4)
    with np.load(target) as file:
        arrays = dict(file)
    assert set(arrays) == {"arr_0", "mu", "sigma", "mu_s", "sigma_s"}
    assert (arrays["arr_0"].dtype, arrays["arr_0"].shape) == (np.uint8, (13, 16, 16, 3))
    assert (arrays["mu"].shape, arrays["sigma_s"].shape) == ((WIDTH,), (SPATIAL_WIDTH, SPATIAL_WIDTH))
    again = load(save(tmp_path / "again.npz", arr_0=arrays["arr_0"]))
    np.testing.assert_array_equal(again.statistics[0].covariance, arrays["sigma"])
    np.testing.assert_array_equal(again.statistics[1].mean, arrays["mu_s"])
    assert any("1 L" in warning for warning in warnings)


def test_a_reference_is_never_overwritten_nor_left_half_made(tmp_path: Path) -> None:
    folder, target = photos(tmp_path / "a"), tmp_path / "out.npz"
    target.write_bytes(b"mine")
    with pytest.raises(UserError, match="exists"):
        make_reference(folder, target, 16, FakeInception(), 4)
    assert target.read_bytes() == b"mine"
    (folder / "2/11.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"11\.png cannot be read"):
        make_reference(folder, tmp_path / "new.npz", 16, FakeInception(), 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "out.npz"]
