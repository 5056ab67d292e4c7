"""Compare two sets of images: every metric under an honest name, and all that it depends on."""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from tqdm import tqdm

from evaluation.features.classifier import Classifier
from evaluation.features.network import Inception, Network, library_versions
from evaluation.image_files import LABELS
from evaluation.image_sets import ImageSet
from evaluation.metrics import SPLIT, frechet_distance, inception_score, is_by_class, precision_recall
from runtime.errors import UserError

FULL = 50_000  # samples whose FID needs no N beside its name
NUM_OF_REFERENCE = 10_000  # images of ADM's references of 256 pixels, to which precision and recall are compared
SCORE, SHUFFLED_SCORE = "Inception Score", "Inception Score (shuffled)"
Metrics = dict[str, float | None]  # by name; None for what the sets have no images, statistics or labels for


def with_count(distance: str, num_samples: int | None) -> str:
    """A Fréchet distance's name, with the number of samples if it is below 50,000 or unknown."""
    return distance if num_samples is not None and num_samples >= FULL else f"{distance}-{num_samples or 'unknown'}"


def compare(reference: ImageSet, samples: ImageSet, network: Inception | Classifier) -> Metrics:
    """All metrics that the two sets have the data for. UserError if their statistics are of different features."""
    count, features, distance = samples.num_images, samples.features, _distance(reference, samples)
    if isinstance(network, Classifier):
        accuracy = None if samples.labels is None else network.accuracy(features, samples.labels)
        return {with_count(f"FD-{network.name}", count): distance, "Class accuracy": accuracy}
    precision = recall = None
    if reference.features is not None and features is not None:
        precision, recall = precision_recall(reference.features, features, network.squared_distances)
    scores: Metrics = {SCORE: None if features is None else inception_score(features, network.class_weights)}
    if features is not None and is_by_class(features, network.class_weights):
        shuffled = np.random.default_rng(0).permutation(len(features))
        scores[SHUFFLED_SCORE] = inception_score(features, network.class_weights, order=shuffled)
    return {
        **scores,
        with_count("FID", count): distance,
        with_count("sFID", count): _distance(reference, samples, kind=1),
        "Precision": precision,
        "Recall": recall,
    }


def _distance(reference: ImageSet, samples: ImageSet, kind: int = 0) -> float | None:
    """Of one kind of features, if both have statistics of it."""
    first, second = reference.statistics[kind], samples.statistics[kind]
    if first is None or second is None:
        return None
    if first.mean.shape != second.mean.shape:
        raise UserError(
            f"{reference.path} has statistics of {len(first.mean)} features, {samples.path} of {len(second.mean)}; "
            "compute both with one network, at one resolution"
        )
    return frechet_distance(first, second)


def warnings_of_pair(reference: ImageSet, samples: ImageSet, network: Network) -> list[str]:
    """All warnings: of each set, and of the pair."""
    found = [*reference.warnings, *samples.warnings]
    if reference.shape and samples.shape and reference.shape[1:] != samples.shape[1:]:
        sizes = [f"{width} x {height}" for _, height, width in (reference.shape, samples.shape)]
        found.append(
            f"the reference has {sizes[0]} pixels, the samples {sizes[1]}; such metrics compare with no others"
        )
    by_neighbours = reference.features is not None and not network.class_names
    if by_neighbours and reference.shape[0] < NUM_OF_REFERENCE:
        found.append(
            f"{reference.path}: precision and recall are of its {reference.shape[0]} images; only those of as many "
            "compare"
        )
    if reference.digests is not None and samples.digests is not None:
        copies = int(np.isin(samples.digests, reference.digests).sum())
        if copies:
            found.append(f"{copies} of {samples.num_images} samples are exact copies of reference images")
    if network.class_names and samples.labels is None:
        unsaid = f"{samples.path} does not say its classes, by samples.json, {LABELS} or class folders"
        found += [f"{warning}; there is no class accuracy" for warning in samples.label_warnings or [unsaid]]
    return found


def report(reference: ImageSet, samples: ImageSet, network: Inception | Classifier) -> dict[str, Any]:
    """Metrics, which ``metrics`` names, those of a classifier's real images, and all that decides them, for JSON."""
    metrics, real_images = compare(reference, samples, network), {}
    if isinstance(network, Classifier):
        real = network.real_data("test")
        distance = frechet_distance(reference.statistics[0], real.statistics)
        real_images = {with_count(f"FD-{network.name}", real.num_images): distance, "Class accuracy": real.accuracy}
    warnings = warnings_of_pair(reference, samples, network)
    if SHUFFLED_SCORE in metrics:
        warnings.append(
            f"{samples.path}: the images come in order of class, so that the parts of {SPLIT} that the Inception Score "
            f"is the mean of hold few classes each and make it too low; {SHUFFLED_SCORE} is that of a random order"
        )
    return {
        **metrics,
        "metrics": list(metrics),
        "real_images": real_images,
        "num_samples": samples.num_images,
        "num_reference": reference.num_images,
        "samples": _describe(samples),
        "reference": _describe(reference),
        f"{network.kind.lower()}_sha256": network.sha256,
        "warnings": warnings,
        "versions": library_versions(network),
        "sampling": samples.settings,
    }


def _describe(images: ImageSet) -> dict[str, Any]:
    return {
        "path": str(images.path),
        "sha256": images.sha256,
        "resolution": images.shape and list(images.shape[1:]),
        "statistics": images.origin,
    }


def metric_lines(result: Mapping[str, Any]) -> list[str]:
    """A line for each metric of a ``report``, that of real images beside it if there is one."""
    values = [(name, result[name]) for name in result["metrics"]]
    lines = [f"{name}: {'not measured' if value is None else format(value, '.6g')}" for name, value in values]
    for i, (name, value) in enumerate(result["real_images"].items()):
        lines[i] += f" (real test images: {name} {value:.6g})"
    return lines


def print_report(result: Mapping[str, Any]) -> None:
    """What of a ``report`` a person wants to see, beside its warnings."""
    print("\n".join(metric_lines(result)))
    for name in ("reference", "samples"):
        images, count = result[name], result[f"num_{name}"] or "unknown"
        origin = images["statistics"]
        kind = {"computed": "images", "stored": "stored statistics"}.get(origin, f"statistics {origin}")
        print(f"{name}: {images['path']}, N = {count}, {kind}, SHA-256 {images['sha256']}")
    kind = "Inception" if "inception_sha256" in result else "classifier"
    print(f"{kind}: SHA-256 {result[f'{kind.lower()}_sha256']}")
    print("versions: " + ", ".join(f"{name} {number}" for name, number in result["versions"].items()))


def warn(texts: Iterable[str]) -> None:
    """Print warnings, a line each, to stderr."""
    for text in texts:
        tqdm.write(f"warning: {text}", file=sys.stderr)
