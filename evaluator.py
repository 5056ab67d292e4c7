"""Compare samples with a reference: Inception Score, FID, sFID, precision and recall, equal to the ADM evaluator's.

    python evaluator.py REF SAMPLES --output_file result.json

Either is an npz of images (arr_0), a folder of PNGs at any depth, or a file of statistics (mu, sigma, mu_s, sigma_s). A
reference set of your own images:

    python evaluator.py --make_reference FOLDER OUT.npz --image_size 256

Digits and CIFAR-10 without any download: Fréchet distance of a small classifier's features, never called FID, and class
accuracy, real test images beside them:

    python evaluator.py pretrained_models/classifiers/digits-train.npz SAMPLES --features digits
"""

from collections.abc import Sequence

from evaluation.options import EvaluatorArgs
from runtime.command import run
from runtime.config import parse_flags


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "evaluator.py", __doc__, EvaluatorArgs, positional=("reference", "samples"))
    from evaluation.job import evaluate  # takes seconds to import

    evaluate(args)


if __name__ == "__main__":
    run(main)
