"""Compare samples with a reference: Inception Score, FID, sFID, precision and recall, equal to the ADM evaluator's.

    python evaluator.py REF SAMPLES --output_file result.json

Either side is an npz of images (arr_0), a folder of PNGs at any depth, or a file of statistics (mu, sigma, mu_s,
sigma_s). A reference set of your own images:

    python evaluator.py --make_reference FOLDER OUT.npz --image_size 256
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engine.command import run
from engine.config import parse_flags
from engine.device import pick_device
from engine.metrics.evaluate import compare, report
from engine.metrics.files import write_json
from engine.metrics.inception_tf import TensorFlowInception
from engine.metrics.reference import make_reference
from engine.metrics.sides import Inception, load_side
from models.errors import UserError


@dataclass(frozen=True)
class EvaluatorArgs:
    """What to compare, and how.

    Attributes:
        reference: npz, folder or statistics file of the reference (REF); with --make_reference the npz to write.
        samples: npz, folder or statistics file of the samples (SAMPLES).
        output_file: JSON file to write: every figure, N of each side, hashes, settings and versions.
        no_prec_recall: leave out precision and recall, the slowest part of large sets.
        backend: tensorflow, which is ADM's own, or torch: the same weights in torch-fidelity's Inception, without
            TensorFlow; its roundings differ, precision and recall in the second digit.
        inception_graph: ADM's classify_image_graph_def.pb; default a copy downloaded once to the user's cache.
        inception_weights: of --backend torch: torch-fidelity's weights-inception-2015-12-05-6726825d.pth; default a
            copy downloaded once to the user's cache.
        device: of --backend torch: auto, cuda, mps or cpu; TensorFlow takes the GPU it finds.
        batch_size: images whose features are computed at once.
        make_reference: folder of images, at any depth, to make a reference set of.
        image_size: side of the centre crops of --make_reference, in pixels.
    """

    reference: str | None = None
    samples: str | None = None
    output_file: str | None = None
    no_prec_recall: bool = False
    backend: Literal["tensorflow", "torch"] = "tensorflow"
    inception_graph: str | None = None
    inception_weights: str | None = None
    device: str = "auto"
    batch_size: int = 64
    make_reference: str | None = None
    image_size: int | None = None

    def __post_init__(self) -> None:
        if self.reference is None or (self.samples is None) == (self.make_reference is None):
            raise UserError("usage: evaluator.py REF SAMPLES, or evaluator.py --make_reference FOLDER OUT.npz")
        if (self.image_size is None) != (self.make_reference is None):
            raise UserError("--make_reference needs the --image_size of its crops, which means nothing without it")
        if self.make_reference is not None and self.output_file is not None:
            raise UserError("--output_file is of a comparison; --make_reference FOLDER OUT.npz measures nothing")
        unused = {"tensorflow": ("inception_weights", "device"), "torch": ("inception_graph",)}[self.backend]
        for name in unused:
            if getattr(self, name) != getattr(EvaluatorArgs, name):
                raise UserError(f"--{name} means nothing with --backend {self.backend}; leave it out")
        if self.batch_size < 1 or (self.image_size is not None and self.image_size < 1):
            raise UserError("batch_size and image_size must be at least 1")


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "evaluator.py", __doc__, EvaluatorArgs, positional=("reference", "samples"))
    if args.output_file is not None and not Path(args.output_file).absolute().parent.is_dir():
        raise UserError(f"{args.output_file} cannot be written: its folder does not exist")
    inception = load_inception(args)
    if args.make_reference is not None:
        target = Path(args.reference)
        _warn(make_reference(Path(args.make_reference), target, args.image_size, inception, args.batch_size))
        print(f"wrote {target}")
        return
    result = evaluate(args, inception)
    if args.output_file is not None:
        write_json(Path(args.output_file), result)


def load_inception(args: EvaluatorArgs) -> Inception:
    """The backend; the other's libraries are not imported."""
    if args.backend == "torch":
        from engine.metrics.inception_torch import TorchInception

        weights = None if args.inception_weights is None else Path(args.inception_weights)
        return TorchInception(weights, pick_device(args.device))
    return TensorFlowInception(None if args.inception_graph is None else Path(args.inception_graph))


def evaluate(args: EvaluatorArgs, inception: Inception) -> dict[str, Any]:
    """Compute the figures, print them, and return what the output file holds."""
    reference = load_side(
        Path(args.reference), inception, args.batch_size, use_cache=True, need_features=not args.no_prec_recall
    )
    samples = load_side(Path(args.samples), inception, args.batch_size)
    figures = compare(reference, samples, inception, not args.no_prec_recall)
    result = report(reference, samples, inception, figures) | {"batch_size": args.batch_size}
    _warn(result["warnings"])
    for name, value in figures.labelled(samples.num_images).items():
        print(f"{name}: {'not measured' if value is None else format(value, '.6g')}")
    for name, side in (("reference", reference), ("samples", samples)):
        kind = "stored statistics" if side.stored else "images"
        print(f"{name}: {side.path}, N = {side.num_images or 'unknown'}, {kind}, SHA-256 {side.sha256}")
    print(f"Inception: SHA-256 {inception.sha256}")
    print("versions: " + ", ".join(f"{name} {number}" for name, number in result["versions"].items()))
    return result


def _warn(doubts: Sequence[str]) -> None:
    for doubt in doubts:
        print(f"warning: {doubt}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
