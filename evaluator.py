"""Compare samples with a reference: Inception Score, FID, sFID, precision and recall, equal to the ADM evaluator's.

    python evaluator.py REF SAMPLES --output_file result.json

Either side is an npz of images (arr_0), a folder of PNGs at any depth, or a file of statistics (mu, sigma, mu_s,
sigma_s). A reference set of your own images:

    python evaluator.py --make_reference FOLDER OUT.npz --image_size 256

Digits and CIFAR-10 without any download: Fréchet distance of a small classifier's features, never called FID, and class
accuracy, real test images beside them:

    python evaluator.py pretrained_models/classifiers/digits-train.npz SAMPLES --features digits
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.compare import compare, figure_lines, report
from evaluation.features.choose import load_network
from evaluation.features.network import Network
from evaluation.image_sets import load_side
from evaluation.options import NetworkArgs
from evaluation.reference import make_reference
from runtime.command import run
from runtime.config import parse_flags
from runtime.device import pick_device
from runtime.errors import UserError
from runtime.files import write_json


@dataclass(frozen=True)
class EvaluatorArgs(NetworkArgs):
    """What to compare, and how.

    Attributes:
        reference: npz, folder or statistics file of the reference (REF); with --make_reference the npz to write.
        samples: npz, folder or statistics file of the samples (SAMPLES).
        output_file: JSON file to write: every figure, N of each side, hashes, settings and versions.
        device: of what torch computes: auto, cuda, mps or cpu; TensorFlow takes the GPU it finds.
        batch_size: images whose features are computed at once.
        make_reference: folder of images, at any depth, to make a reference set of.
        image_size: side of the centre crops of --make_reference, in pixels.
    """

    reference: str | None = None
    samples: str | None = None
    output_file: str | None = None
    device: str = "auto"
    batch_size: int = 64
    make_reference: str | None = None
    image_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reference is None or (self.samples is None) == (self.make_reference is None):
            raise UserError("usage: evaluator.py REF SAMPLES, or evaluator.py --make_reference FOLDER OUT.npz")
        if (self.image_size is None) != (self.make_reference is None):
            raise UserError("--make_reference needs the --image_size of its crops, which means nothing without it")
        if self.make_reference is not None and self.output_file is not None:
            raise UserError("--output_file is of a comparison; --make_reference FOLDER OUT.npz measures nothing")
        if not self.in_torch:
            self.refuse(("device",), f"--backend {self.backend}")
        if self.batch_size < 1 or (self.image_size is not None and self.image_size < 1):
            raise UserError("batch_size and image_size must be at least 1")


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "evaluator.py", __doc__, EvaluatorArgs, positional=("reference", "samples"))
    if args.output_file is not None and not Path(args.output_file).absolute().parent.is_dir():
        raise UserError(f"{args.output_file} cannot be written: its folder does not exist")
    network = load_network(args, pick_device(args.device))
    if args.make_reference is not None:
        target = Path(args.reference)
        _warn(make_reference(Path(args.make_reference), target, args.image_size, network, args.batch_size))
        print(f"wrote {target}")
        return
    result = evaluate(args, network)
    if args.output_file is not None:
        write_json(Path(args.output_file), result)


def evaluate(args: EvaluatorArgs, network: Network) -> dict[str, Any]:
    """Compute the figures, print them, and return what the output file holds."""
    by_neighbours = args.features == "inception" and not args.no_prec_recall
    reference = load_side(Path(args.reference), network, args.batch_size, use_cache=True, need_features=by_neighbours)
    samples = load_side(Path(args.samples), network, args.batch_size)
    figures = compare(reference, samples, network, by_neighbours)
    result = report(reference, samples, network, figures) | {"batch_size": args.batch_size}
    _warn(result["warnings"])
    print("\n".join(figure_lines(figures.labelled(samples.num_images), figures.of_real_images())))
    for name, side in (("reference", reference), ("samples", samples)):
        kind = "stored statistics" if side.stored else "images"
        print(f"{name}: {side.path}, N = {side.num_images or 'unknown'}, {kind}, SHA-256 {side.sha256}")
    print(f"{network.kind}: SHA-256 {network.sha256}")
    print("versions: " + ", ".join(f"{name} {number}" for name, number in result["versions"].items()))
    return result


def _warn(doubts: Sequence[str]) -> None:
    for doubt in doubts:
        print(f"warning: {doubt}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
