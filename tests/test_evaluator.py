"""The evaluator's command line: ADM's figures in TensorFlow from every kind of input, files, mistakes."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import evaluator
from data.files import IMAGE_SUFFIXES
from evaluation.features.network import Inception, downloaded, load_network
from evaluation.metrics import statistics_of
from evaluation.options import GRAPH_URL, NetworkArgs
from tests.command_factory import ROOT, Outcome, call, start_python

FIXTURE = ROOT / "tests/fixtures/evaluator"
GRAPH_NAME = GRAPH_URL.rpartition("/")[2]
GRAPH = FIXTURE / GRAPH_NAME
# Relative, but absolute for shares: fixtures/README.md.
TOLERANCES = {"Inception Score": 1e-4, "FID": 1e-3, "sFID": 1e-3}
SHARE_TOLERANCE = 0.01


def inception() -> Inception:
    return load_network(NetworkArgs(inception_graph=str(GRAPH)), torch.device("cpu"))


def test_tensorflow_without_the_gpu_that_torch_has_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inception()
    assert "GPU" not in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    inception()
    assert "warning: TensorFlow sees no GPU" in capsys.readouterr().err


def images_of(name: str) -> np.ndarray:
    with np.load(FIXTURE / f"{name}.npz") as file:
        return file["arr_0"]


def copy_npz(name: str, folder: Path) -> Path:
    return Path(shutil.copyfile(FIXTURE / f"{name}.npz", folder / f"{name}.npz"))


def save_folder(name: str, folder: Path) -> Path:
    for i, image in enumerate(images_of(name)):
        path = folder / name / f"class{i // 50}/{'deep/' if i % 50 < 9 else 'top/'}{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder / name


def save_with_statistics(folder: Path, with_images: bool = True) -> Path:
    """A reference as OpenAI's are; its statistics are NumPy's own of the graph's features."""
    arrays = {"arr_0": images_of("reference")} if with_images else {}
    pooled, spatial = inception()(images_of("reference"))
    for end, features in (("", pooled), ("_s", spatial)):
        features = features.astype(np.float64)
        arrays |= {f"mu{end}": features.mean(axis=0), f"sigma{end}": np.cov(features, rowvar=False)}
    np.savez(folder / "stored.npz", **arrays)
    return folder / "stored.npz"


def evaluate(reference: Path, samples: Path, *flags: str) -> tuple[dict[str, Any], Outcome]:
    result = samples.parent / "result.json"
    words = (str(reference), str(samples), "--inception_graph", str(GRAPH), "--output_file", str(result), *flags)
    outcome = call(evaluator.main, *words)
    assert outcome.code == 0, outcome.err
    return json.loads(result.read_text()), outcome


def assert_expected(result: dict[str, Any], *left_out: str) -> None:
    expected = json.loads((FIXTURE / "expected.json").read_text())
    for name, value in expected.items():
        found = result[f"{name}-250" if name.endswith("FID") else name]
        if name in left_out:
            assert found is None
        elif name in TOLERANCES:
            assert found == pytest.approx(value, rel=TOLERANCES[name]), name
        else:
            assert found == pytest.approx(value, abs=SHARE_TOLERANCE), name


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Outcome, Path]:
    """The figures of the fixture's two npz, what was said, and the folder of all files."""
    folder = tmp_path_factory.mktemp("measured")
    return *evaluate(copy_npz("reference", folder), copy_npz("samples", folder)), folder


def test_figures_from_npz(measured: tuple[dict[str, Any], Outcome, Path]) -> None:
    result, outcome, _ = measured
    assert_expected(result)
    assert (result["num_reference"], result["num_samples"]) == (300, 250)
    assert len(result["samples"]["sha256"]) == len(result["inception_sha256"]) == 64
    assert {"numpy", "tensorflow", "python"} <= result["versions"].keys()
    lines = outcome.out.splitlines()
    assert any(line.startswith("FID-250: 14.557") for line in lines)
    assert not any(line.startswith(("FID:", "sFID:")) for line in lines)
    assert any("N = 250" in line and result["samples"]["sha256"] in line for line in lines)
    assert any("N = 300" in line and result["reference"]["sha256"] in line for line in lines)
    assert outcome.err.count("fewer than 2048") == 2


def test_figures_from_folders_of_pngs(tmp_path: Path) -> None:
    """Nested; the order of paths is not that of the npz, which no figure of one split depends on."""
    result, _ = evaluate(save_folder("reference", tmp_path), save_folder("samples", tmp_path))
    assert_expected(result)


def test_figures_from_stored_statistics(tmp_path: Path) -> None:
    result, _ = evaluate(save_with_statistics(tmp_path), copy_npz("samples", tmp_path))
    assert_expected(result)
    assert result["reference"]["statistics"] == "stored"


def test_statistics_without_images_leave_out_precision_and_recall(tmp_path: Path) -> None:
    result, outcome = evaluate(save_with_statistics(tmp_path, with_images=False), copy_npz("samples", tmp_path))
    assert_expected(result, "Precision", "Recall")
    assert "Precision: not measured" in outcome.out


def test_the_batch_size_decides_nothing_and_options_stand_before_the_paths(tmp_path: Path) -> None:
    reference, samples = copy_npz("reference", tmp_path), copy_npz("samples", tmp_path)
    result = tmp_path / "result.json"
    flags = ("--no_prec_recall", "--batch_size", "1", "--output_file", str(result))
    outcome = call(evaluator.main, *flags, str(reference), f"--inception_graph={GRAPH}", str(samples))
    assert outcome.code == 0, outcome.err
    assert_expected(json.loads(result.read_text()), "Precision", "Recall")
    assert "Recall: not measured" in outcome.out


def test_the_second_time_the_reference_is_not_computed(measured: tuple[dict[str, Any], Outcome, Path]) -> None:
    first, _, folder = measured
    second, outcome = evaluate(folder / "reference.npz", folder / "samples.npz")
    assert first == second
    assert " of 250 images" in outcome.err
    assert " of 300 images" not in outcome.err
    assert sorted(path.name for path in folder.iterdir()) == ["reference.npz", "result.json", "samples.npz"]


def test_a_process_of_its_own(tmp_path: Path) -> None:
    """As users call it: no other module has been imported, and no line of TensorFlow's reaches the user's stdout."""
    paths = (str(tmp_path / "reference.npz"), str(tmp_path / "samples.npz"))
    for path in paths:
        np.savez(path, images_of("samples")[:20])
    outcome = start_python("evaluator.py", *paths, "--inception_graph", str(GRAPH))
    assert outcome.code == 0, outcome.err
    names = [line.split(":")[0] for line in outcome.out.splitlines()]
    assert names == [
        "Inception Score", "FID-20", "sFID-20", "Precision", "Recall", "reference", "samples", "Inception", "versions"
    ]  # fmt: skip


def test_make_reference(tmp_path: Path) -> None:
    """Images of the right size are taken as they are, so that the reference gives the fixture's figures."""
    folder = save_folder("reference", tmp_path)
    target = tmp_path / "made.npz"
    outcome = call(
        evaluator.main, "--make_reference", str(folder), str(target), "--image_size", "32",
        "--inception_graph", str(GRAPH),
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert f"wrote {target}: N = 300 images of 32 x 32 pixels" in outcome.out
    result, _ = evaluate(target, copy_npz("samples", tmp_path))
    assert_expected(result)
    assert result["reference"]["statistics"] == "stored"


def test_settings_of_our_samples_are_recorded(tmp_path: Path) -> None:
    folder = tmp_path / "drawn"
    folder.mkdir()
    copy_npz("samples", folder)
    settings = {"cfg": 1.5, "seed": 3, "checkpoint_sha256": "ab", "images": [{"seed": 3}]}
    (folder / "samples.json").write_text(json.dumps(settings))
    result, _ = evaluate(copy_npz("reference", tmp_path), folder)
    assert result["sampling"] == {"cfg": 1.5, "seed": 3, "checkpoint_sha256": "ab"}


def test_statistics_of_another_program(tmp_path: Path) -> None:
    """pytorch-fid's and clean-fid's files: the figure is ours, and what it is worth is said."""
    with np.load(save_with_statistics(tmp_path)) as file:
        np.savez_compressed(tmp_path / "theirs.npz", mu=file["mu"], sigma=file["sigma"])
    result, outcome = evaluate(tmp_path / "theirs.npz", copy_npz("samples", tmp_path))
    assert_expected(result, "sFID", "Precision", "Recall")
    assert f"reference: {tmp_path / 'theirs.npz'}, N = unknown, statistics of another program" in outcome.out
    assert "warning: " in outcome.err
    assert "FID is comparable only if" in outcome.err
    digits = ("--features", "digits")
    assert "another program wrote (mu, sigma)" in refusal(
        str(tmp_path / "theirs.npz"), result["samples"]["path"], *digits
    )


def refusal(*argv: str) -> str:
    return call(evaluator.main, *argv).error()


def test_mistakes_on_the_command_line(tmp_path: Path) -> None:
    reference = str(copy_npz("reference", tmp_path))
    assert "REF SAMPLES" in refusal()
    assert "REF SAMPLES" in refusal(reference)
    assert "--image_size" in refusal("--make_reference", str(tmp_path), "out.npz")
    assert "--image_size" in refusal(reference, reference, "--image_size", "8")
    assert "--output_file" in refusal("--make_reference", "a", "b.npz", "--image_size", "8", "--output_file", "c")
    assert "leave it out" in refusal(reference, reference, "--split", "val")
    torchvisions = ("--dataset", "cifar10", "--image_size", "8", "--make_reference", str(tmp_path), "out.npz")
    assert "--split val" in refusal(*torchvisions)
    assert "did you mean --batch_size" in refusal(reference, reference, "--batchsize", "8")
    assert "third belongs to no option" in refusal(reference, reference, "third")
    assert "at least 1" in refusal(reference, reference, "--batch_size", "0")
    assert "R.json cannot be written" in refusal(reference, reference, "--output_file", f"{reference}/R.json")


def test_mistakes_in_files(tmp_path: Path) -> None:
    graph = f"--inception_graph={GRAPH}"
    reference = str(copy_npz("reference", tmp_path))
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes((FIXTURE / "samples.npz").read_bytes()[:300_000])
    assert f"{damaged} is damaged, still being written, or no npz" in refusal(reference, str(damaged), graph)
    (tmp_path / "empty").mkdir()
    assert IMAGE_SUFFIXES[0] in refusal(reference, str(tmp_path / "empty"), graph)
    assert "does not exist" in refusal(reference, "nowhere.npz", graph)
    assert "nowhere.pb" in refusal(reference, reference, "--inception_graph", "nowhere.pb")
    other = tmp_path / "graph.pb"
    other.write_bytes(b"\xff" * 50)
    assert "no frozen TensorFlow graph" in refusal(reference, reference, "--inception_graph", str(other))
    other.write_bytes(b"")
    assert "not ADM's Inception graph" in refusal(reference, reference, "--inception_graph", str(other))


# The graph


def test_sets_are_looked_at_before_a_network_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    reference = str(copy_npz("reference", tmp_path))
    (tmp_path / "empty").mkdir()
    made = ("--image_size", "8", "--make_reference")
    for words, says in (
        ((reference, "nowhere.npz"), "nowhere.npz does not exist"),
        (("nowhere.npz", reference), "nowhere.npz does not exist"),
        ((reference, str(tmp_path / "empty")), "holds no images"),
        ((*made, "nowhere", "out.npz"), "nowhere is no folder"),
        ((*made, "nowhere", "out.npz", "--split", "val"), "no image folder at nowhere"),
        ((*made, str(tmp_path / "empty"), str(tmp_path / "out.npz")), "holds no images"),
        ((*made, str(tmp_path), reference), f"{reference} exists"),
        ((*made, str(save_folder("reference", tmp_path)), f"{reference}/out.npz"), "out.npz cannot be written"),
    ):
        assert says in refusal(*words)
    assert not (tmp_path / "cache").exists()


def test_offline_one_line_says_what_to_fetch_and_where_to_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    message = refusal(*(str(FIXTURE / f"{name}.npz") for name in ("reference", "samples")))
    place = tmp_path / "progressive-checkerboard" / GRAPH_NAME
    assert f"fetch {GRAPH_URL}" in message
    assert f"put it at {place}" in message
    assert not list(place.parent.iterdir())
    shutil.copyfile(GRAPH, place)
    assert downloaded(GRAPH_URL, "--inception_graph") == place  # by hand: there is nothing to compare it with


def test_distances_are_of_half_precision_unless_they_overflow() -> None:
    network = inception()
    random = np.random.default_rng(0)
    features = random.normal(size=(20, 2048)).astype(np.float32)
    exact = ((features[:, None].astype(np.float64) - features) ** 2).sum(axis=-1)
    small = network.squared_distances(features, features)
    assert (small == small.astype(np.float16)).all()
    np.testing.assert_allclose(small, exact, atol=16)
    large = network.squared_distances(100 * features, 100 * features)
    assert np.isfinite(large).all()
    np.testing.assert_allclose(large, 1e4 * exact, atol=1e-5 * 1e4 * exact.max())
    assert (large >= 0).all()


def test_features_of_the_graph_are_finite_and_of_the_layers_named() -> None:
    pooled, spatial = inception()(images_of("samples")[:3])
    assert pooled.shape == (3, 2048)
    assert len(spatial) == 3
    assert spatial.shape[1] % 7 == 0
    assert statistics_of(pooled).covariance.shape == (2048, 2048)
