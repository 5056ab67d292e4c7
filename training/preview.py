"""Metrics while a model trains, and of the digits that it draws at the end: drawn and measured on all ranks."""

import shutil
from pathlib import Path
from typing import Any

import torch

from evaluation.compare import metric_lines, warn
from evaluation.features.network import Inception, load_on_all_ranks
from evaluation.image_sets import check_reference
from evaluation.measure import Measurement
from evaluation.options import NetworkArgs
from models.config import Drawing
from models.family import Generator
from runtime import distributed
from runtime.errors import UserError
from sampling.bulk import Request
from sampling.labels import balanced_labels

FIRST_SEED, DIGITS_SEED = 1_000_000, 10_000  # other images than those of the grids
DIGITS_AT_ONCE = 50


class Evaluation:
    """Measures a model against a reference, by torch-fidelity's Inception or a classifier. Made and used on all ranks.

    Where Inception's weights are not named, they are the copy in the user's cache, downloaded once. Where that cannot
    be had a warning says so, and nothing is measured. A reference that is none is a UserError.
    """

    def __init__(self, args: NetworkArgs, reference: str | None, device: torch.device) -> None:
        place = Path(reference or args.shipped_reference)
        downloads = args.features == "inception" and args.inception_weights is None
        if args.features == "inception":
            check_reference(place, Inception.key_suffixes[0])
        self.measurement: Measurement | None = None
        try:
            network = load_on_all_ranks(args, device)
        except UserError as error:
            if not downloads:
                raise
            if distributed.is_main():
                warn([f"no FID during training: {error}"])
        else:
            self.measurement = Measurement(network, place)

    def measure(self, model: Generator, request: Request, folder: Path) -> dict[str, float]:
        """Metrics by name, on rank 0, which prints them, of the request's images; they pass through ``folder``."""
        if self.measurement is None:
            return {}
        result = measure_new(self.measurement, model, request, folder)
        metrics = {name: result[name] for name in result.get("metrics", ()) if result[name] is not None}
        if distributed.is_main():
            warn(result["warnings"])
            print(", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
        return metrics


def score_digits(model: Generator, count: int, drawing: Drawing, folder: Path) -> list[str]:
    """Lines, on rank 0: what the classifier that ships says of digits drawn on all ranks, and of real scans."""
    args = NetworkArgs(features="digits")
    measurement = Measurement(load_on_all_ranks(args, torch.device("cpu")), Path(args.shipped_reference))
    request = Request(balanced_labels(model, count), drawing, DIGITS_SEED, DIGITS_AT_ONCE)
    with torch.compiler.set_stance("force_eager"):  # a few shapes once: not worth compiling
        result = measure_new(measurement, model, request, folder)
    return metric_lines(result) if distributed.is_main() else []


def measure_new(measurement: Measurement, model: Generator, request: Request, folder: Path) -> dict[str, Any]:
    """Draw and measure images that pass through ``folder``; the result, on rank 0."""
    if distributed.is_main():
        shutil.rmtree(folder, ignore_errors=True)  # what a killed run left there may be of other weights
    try:
        return measurement.draw_and_measure(model, request, folder)
    finally:
        if distributed.is_main():
            shutil.rmtree(folder, ignore_errors=True)
