"""One set and a pair: what is stored, computed, kept, and warned of."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation import image_sets
from evaluation.compare import compare, metric_lines, report, warnings_of_pair
from evaluation.image_files import open_images
from evaluation.image_sets import ImageSet, check_reference, compute_features, load_image_set
from runtime import distributed
from runtime.errors import UserError
from tests.evaluation.fake_inception import WIDTH, FakeInception
from tests.limits import largest_file
from tests.training_factory import exit_codes, start_ranks


def pictures(count: int = 30, seed: int = 0, side: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(count, side, side, 3), dtype=np.uint8)


def save(path: Path, **arrays: np.ndarray) -> Path:
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **arrays)
    return path


def save_image(image: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def load(path: Path, **options: bool) -> ImageSet:
    return load_image_set(path, FakeInception(), 7, **options)


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where features are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/progressive-checkerboard/features"


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


def test_features_and_statistics_in_batches_are_those_of_all_at_once(tmp_path: Path) -> None:
    images = load(save(tmp_path / "a.npz", arr_0=pictures()))
    features, spatial = FakeInception()(pictures())
    np.testing.assert_allclose(images.features, features, rtol=1e-6)
    np.testing.assert_allclose(images.statistics[0].covariance, np.cov(features, rowvar=False), rtol=1e-5)
    np.testing.assert_allclose(images.statistics[1].covariance, np.cov(spatial, rowvar=False), rtol=1e-5)
    assert (images.shape, images.num_images, images.origin) == ((30, 8, 8), 30, "computed")


def test_features_are_kept_and_taken_from_there(tmp_path: Path, kept: Path) -> None:
    """In the user's cache folder, not beside the user's file, which may lie where nobody may write."""
    path = save(tmp_path / "images/a.npz", arr_0=pictures())
    inception = FakeInception()
    first, second = (load_image_set(path, inception, 7, cache=True) for _ in range(2))
    assert inception.num_seen == 30
    assert (len(files_in(kept)), files_in(path.parent)) == (1, [path])
    np.testing.assert_array_equal(first.features, second.features)
    np.testing.assert_array_equal(first.statistics[1].covariance, second.statistics[1].covariance)
    assert first.warnings == second.warnings


def test_what_decides_features_makes_them_others(tmp_path: Path, kept: Path) -> None:
    """Images, network, the versions of its libraries, and ours of reading."""
    path = save(tmp_path / "a.npz", arr_0=pictures())
    load_image_set(path, FakeInception(), 7, cache=True)
    networks = [FakeInception("other"), FakeInception(), FakeInception(), FakeInception()]
    networks[1].versions = {"fake": "2"}
    for network in networks[:2]:
        load_image_set(path, network, 7, cache=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_sets, "VERSION", -1)
        load_image_set(path, networks[2], 7, cache=True)
    save(path, arr_0=pictures(seed=1))
    images = load_image_set(path, networks[3], 7, cache=True)
    assert [network.num_seen for network in networks] == [30] * 4
    np.testing.assert_allclose(images.features, FakeInception()(pictures(seed=1))[0], rtol=1e-6)
    assert len(files_in(kept)) == 5


@pytest.mark.parametrize("damage", ["cut short", "not finite", "of fewer images", "of other names", "empty"])
def test_damaged_features_are_computed_again(
    damage: str, tmp_path: Path, kept: Path, capsys: pytest.CaptureFixture
) -> None:
    path = save(tmp_path / "a.npz", arr_0=pictures())
    whole = load(path, cache=True)
    (file,) = files_in(kept)
    with np.load(file) as content:
        arrays = dict(content)
    if damage == "cut short":
        file.write_bytes(file.read_bytes()[:500])
    elif damage == "empty":
        file.write_bytes(b"")
    else:
        arrays["features"][3, 1] = np.nan if damage == "not finite" else 0
        if damage == "of fewer images":
            arrays["features"] = arrays["features"][1:]
        if damage == "of other names":
            del arrays["sigma_s"]
        save(file, **arrays)
    np.testing.assert_array_equal(load(path, cache=True).features, whole.features)
    assert f"{file} is damaged; computing it again" in capsys.readouterr().out
    assert np.isfinite(np.load(file)["features"]).all()


def test_a_disk_that_is_full(tmp_path: Path, kept: Path, capsys: pytest.CaptureFixture) -> None:
    path = save(tmp_path / "a.npz", arr_0=pictures())
    with largest_file(1000):
        assert load(path, cache=True).shape == (30, 8, 8)
    assert "not kept for the next time: could not write" in capsys.readouterr().out
    assert not files_in(kept)


def test_a_cache_folder_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = save(tmp_path / "a.npz", arr_0=pictures())
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))  # a file
    assert load(path, cache=True).shape == (30, 8, 8)
    assert "set XDG_CACHE_HOME to a folder that can be written to" in capsys.readouterr().out
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda _: (_ for _ in ()).throw(KeyError()))  # as in some containers
    assert load(path, cache=True).shape == (30, 8, 8)
    assert "there is no home folder to keep files in; set XDG_CACHE_HOME" in capsys.readouterr().out


def test_what_is_left_out_is_said_of_kept_features_too(tmp_path: Path) -> None:
    """It is no part of the images."""
    for i, image in enumerate(pictures()):
        save_image(image, tmp_path / f"a/{i}.png")
    assert not any("left out" in warning for warning in load(tmp_path / "a", cache=True).warnings)
    (tmp_path / "a/.DS_Store").write_bytes(b"")
    assert f"{tmp_path / 'a'}: left out: 1 hidden" in load(tmp_path / "a", cache=True).warnings


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite(value: float, tmp_path: Path, kept: Path) -> None:
    class Broken(FakeInception):
        def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            pooled, spatial = super().__call__(images)
            if self.num_seen > 20:
                spatial[0, 1] = value
            return pooled, spatial

    path = save(tmp_path / "a.npz", arr_0=pictures())
    for cache in (False, True):
        with pytest.raises(
            UserError, match=r"a\.npz: the features of 3 images are not finite, first those of image 14"
        ):
            load_image_set(path, Broken(), 7, cache=cache)
    assert not files_in(kept)


def measure_on_rank(path: Path) -> None:
    """For ``start_ranks``: the features of the second rank's only batch are not finite."""
    distributed.set_up(torch.device("cpu"))
    network, rank = FakeInception(), distributed.rank()
    if rank == 1:
        network._pooled[0] = np.nan
    with pytest.raises(UserError, match="the features of 10 images are not finite"):
        compute_features(open_images(path), network, 20, all_ranks=True)
    distributed.tear_down()


@pytest.mark.ranks
def test_features_that_are_not_finite_end_all_ranks(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", arr_0=pictures())
    assert exit_codes(start_ranks(tmp_path, 2, measure_on_rank, path)) == [0, 0], (tmp_path / "rank1.txt").read_text()


def test_stored_statistics_win_and_images_give_the_features(tmp_path: Path) -> None:
    stored = {"mu": np.full(WIDTH, 3.0), "sigma": 2 * np.eye(WIDTH)}
    path = save(tmp_path / "a.npz", arr_0=pictures(), **stored)
    images = load(path)
    assert images.origin == "stored"
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


@pytest.mark.parametrize("more", [(), ("mu_s", "sigma_s")])
def test_statistics_of_another_network_are_refused(more: tuple[str, ...], tmp_path: Path) -> None:
    """At once, and before samples are drawn."""
    arrays = {name: np.zeros(9) if name.startswith("mu") else np.eye(9) for name in ("mu", "sigma", *more)}
    path = save(tmp_path / "b.npz", **arrays)
    for refused in (lambda: load(path), lambda: check_reference(path, "", WIDTH)):
        with pytest.raises(UserError, match=r"b\.npz holds statistics of 9 features, but this network has 5"):
            refused()
    with pytest.raises(UserError, match=r"b\.npz holds statistics of"):
        check_reference(path, "_digits")


def test_statistics_of_other_programs_are_named(tmp_path: Path) -> None:
    reference = load(save(tmp_path / "a.npz", mu=np.zeros(WIDTH), sigma=np.eye(WIDTH)))
    samples = load(save(tmp_path / "b.npz", arr_0=pictures()))
    result = report(reference, samples, FakeInception())
    assert (result["reference"]["statistics"], result["num_reference"]) == ("of another program", None)
    assert result["FID-30"] > 0
    assert (result["sFID-30"], result["Precision"], result["Recall"]) == (None, None, None)
    (warning,) = (text for text in result["warnings"] if text.startswith(str(tmp_path / "a.npz")))
    assert "of another program: FID is comparable only if its Inception weights and its resizing are ADM's" in warning


def test_statistics_that_are_none_name_their_file(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", mu=np.zeros(WIDTH), sigma=np.eye(WIDTH) - 1.0)
    for refused in (lambda: load(path), lambda: check_reference(path, "")):
        with pytest.raises(UserError, match=r"a\.npz: .*negative eigenvalue"):
            refused()


class Classes(FakeInception):
    """Sees the class, which is an image's first byte."""

    class_weights = 8 * np.eye(WIDTH, dtype=np.float32)

    def __init__(self) -> None:
        super().__init__()
        self.class_weights = Classes.class_weights

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.eye(WIDTH, dtype=np.float32)[images[:, 0, 0, 0]], super().__call__(images)[1]


@pytest.mark.parametrize("by_class", [False, True])
def test_a_score_of_images_by_class_stands_beside_a_shuffled_one(by_class: bool, tmp_path: Path) -> None:
    """ADM's is that of the order given; both are under their names, and a warning says why."""
    images = pictures(12_000, side=2)
    images[:, 0, 0, 0] = np.arange(12_000) % WIDTH
    if by_class:
        images = images[np.argsort(images[:, 0, 0, 0], kind="stable")]
    pair = [load_image_set(save(tmp_path / "a.npz", arr_0=images), Classes(), 500) for _ in range(2)]
    pair[0].features = None  # precision and recall take long
    result = report(*pair, Classes())
    warned = [text for text in result["warnings"] if "the images come in order of class" in text]
    if by_class:
        assert result["metrics"][:2] == ["Inception Score", "Inception Score (shuffled)"]
        assert result["Inception Score"] < 3 < 4.9 < result["Inception Score (shuffled)"] < 5
        assert len(warned) == 1
        lines = metric_lines(result)
        assert lines[1].startswith("Inception Score (shuffled): 4.9")
    else:
        assert "Inception Score (shuffled)" not in result
        assert result["Inception Score"] > 4.9
        assert warned == []


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
    (warning,) = warnings_of_pair(reference, samples, FakeInception())  # of a file of images as of stored statistics
    assert "1.npz: precision and recall are of its 2048 images; only those of as many compare" in warning
    large = replace(reference, shape=(10_000, 4, 4), warnings=[])
    assert warnings_of_pair(large, samples, FakeInception()) == []


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
