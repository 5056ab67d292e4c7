"""Compare two sides: every figure under an honest name, and all that it depends on.

Letters: N images, H, W their sides in pixels.
"""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np

from evaluation.features.classifier import Classifier, RealData
from evaluation.features.network import InceptionNetwork, Network
from evaluation.image_files import LABELS
from evaluation.image_sets import Side
from evaluation.metrics import Statistics, frechet_distance, inception_score
from evaluation.neighbours import precision_recall
from runtime.errors import UserError

FULL = 50_000  # samples whose FID needs no N beside its name


def with_count(distance: str, num_samples: int | None) -> str:
    """A Fréchet distance's name, with the number of samples if it is below 50,000 or unknown."""
    return distance if num_samples is not None and num_samples >= FULL else f"{distance}-{num_samples or 'unknown'}"


class Figures(Protocol):
    """What is measured; None for what the sides have no images, statistics or labels for."""

    def labelled(self, num_samples: int | None) -> dict[str, float | None]:
        """By name; a Fréchet distance of fewer than 50,000 samples carries their number."""

    def of_real_images(self) -> dict[str, float | None]:
        """The same figures of real images in place of samples, if they are known."""


@dataclass(frozen=True)
class InceptionFigures:
    """ADM's figures."""

    inception_score: float | None
    fid: float
    sfid: float | None
    precision: float | None
    recall: float | None

    def labelled(self, num_samples: int | None) -> dict[str, float | None]:
        return {
            "Inception Score": self.inception_score,
            with_count("FID", num_samples): self.fid,
            with_count("sFID", num_samples): self.sfid,
            "Precision": self.precision,
            "Recall": self.recall,
        }

    def of_real_images(self) -> dict[str, float | None]:
        return {}


@dataclass(frozen=True)
class ClassFigures:
    """What a classifier of ours gives: of the samples, and of the real test images that its training set aside."""

    name: str
    distance: float
    accuracy: float | None
    real_distance: float
    real: RealData

    def labelled(self, num_samples: int | None) -> dict[str, float | None]:
        return {with_count(f"FD-{self.name}", num_samples): self.distance, "Class accuracy": self.accuracy}

    def of_real_images(self) -> dict[str, float | None]:
        other = replace(self, distance=self.real_distance, accuracy=self.real.accuracy)
        return other.labelled(self.real.num_images)


def compare(
    reference: Side, samples: Side, network: InceptionNetwork | Classifier, with_prec_recall: bool = True
) -> Figures:
    """All figures that the two sides have the data for.

    Raises:
        UserError: their statistics are of different features.
    """
    if isinstance(network, Classifier):
        return _compare_classes(reference, samples, network)
    precision = recall = None
    if with_prec_recall and reference.features is not None and samples.features is not None:
        precision, recall = precision_recall(reference.features, samples.features, network.squared_distances)
    has_spatial = reference.spatial is not None and samples.spatial is not None
    return InceptionFigures(
        inception_score=None if samples.features is None else inception_score(samples.features, network.class_weights),
        fid=_distance(reference, samples, reference.statistics, samples.statistics),
        sfid=_distance(reference, samples, reference.spatial, samples.spatial) if has_spatial else None,
        precision=precision,
        recall=recall,
    )


def _compare_classes(reference: Side, samples: Side, classifier: Classifier) -> ClassFigures:
    known = samples.features is not None and samples.labels is not None
    real = classifier.real_data("test")
    return ClassFigures(
        name=classifier.name,
        distance=_distance(reference, samples, reference.statistics, samples.statistics),
        accuracy=classifier.accuracy(samples.features, samples.labels) if known else None,
        real_distance=frechet_distance(reference.statistics, real.statistics),
        real=real,
    )


def _distance(reference: Side, samples: Side, first: Statistics, second: Statistics) -> float:
    if first.mean.shape != second.mean.shape:
        raise UserError(
            f"{reference.path} has statistics of {len(first.mean)} features, {samples.path} of {len(second.mean)}; "
            "compute both with one network, at one resolution"
        )
    return frechet_distance(first, second)


def doubts(reference: Side, samples: Side, network: Network) -> list[str]:
    """All warnings: of each side, and of the pair."""
    found = [*reference.warnings, *samples.warnings]
    if reference.shape and samples.shape and reference.shape[1:] != samples.shape[1:]:
        (height, width), (other_height, other_width) = reference.shape[1:], samples.shape[1:]
        found.append(
            f"the reference has {width} x {height} pixels, the samples {other_width} x {other_height}; their figures "
            "compare with no one's"
        )
    if reference.digests is not None and samples.digests is not None:
        copies = int(np.isin(samples.digests, reference.digests).sum())
        if copies:
            found.append(f"{copies} of {samples.num_images} samples are exact copies of reference images")
    if network.class_names and samples.labels is None:
        unsaid = f"{samples.path} does not say its classes, by samples.json, {LABELS} or class folders"
        found += [f"{doubt}; there is no class accuracy" for doubt in samples.label_doubts or [unsaid]]
    return found


def report(reference: Side, samples: Side, network: Network, figures: Figures) -> dict[str, Any]:
    """Figures, and everything that decides them, as JSON takes it; ``figures`` names which entries are figures."""
    measured = figures.labelled(samples.num_images)
    return {
        **measured,
        "figures": list(measured),
        "real_images": figures.of_real_images(),
        "num_samples": samples.num_images,
        "num_reference": reference.num_images,
        "samples": _describe(samples),
        "reference": _describe(reference),
        f"{network.kind.lower()}_sha256": network.sha256,
        "warnings": doubts(reference, samples, network),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "pillow", "torch")},
            **network.versions,
        },
        "sampling": samples.settings,
    }


def figure_lines(measured: Mapping[str, float | None], real: Mapping[str, float | None]) -> list[str]:
    """A line for each figure, that of real images beside it if there is one; both as ``Figures`` gives them."""
    lines = [f"{name}: {'not measured' if v is None else format(v, '.6g')}" for name, v in measured.items()]
    for i, (name, value) in enumerate(real.items()):
        lines[i] += f" (real test images: {name} {value:.6g})"
    return lines


def _describe(side: Side) -> dict[str, Any]:
    return {
        "path": str(side.path),
        "sha256": side.sha256,
        "resolution": None if side.shape is None else list(side.shape[1:]),
        "statistics": "stored" if side.stored else "computed",
    }
