"""Compare samples with a reference: Inception Score, FID, sFID, precision and recall, equal to the ADM evaluator's.

    python evaluator.py REF SAMPLES --output_file result.json

Either is an npz of images (arr_0), a folder of PNGs at any depth, or a file of statistics (mu, sigma, mu_s, sigma_s). A
reference set of your own images, of a folder, or of the held-out part of what main.py trains on:

    python evaluator.py --make_reference FOLDER OUT.npz --image_size 256
    python evaluator.py --make_reference DATA_PATH OUT.npz --image_size 256 --split val

Digits and CIFAR-10 without any download: Fréchet distance of a small classifier's features, never called FID, and class
accuracy, real test images beside them:

    python evaluator.py pretrained_models/classifiers/digits-train.npz SAMPLES --features digits
"""

from collections.abc import Sequence
from pathlib import Path

from evaluation.options import EvaluatorArgs
from runtime.command import run
from runtime.config import parse_flags
from runtime.files import prepare_output, write_json


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "evaluator.py", __doc__, EvaluatorArgs, positional=("reference", "samples"))
    prepare_output(args.output_file)
    from evaluation.compare import print_report, warn  # takes seconds to import
    from evaluation.features.network import load_network
    from evaluation.image_sets import check_images
    from evaluation.make_reference import make_reference, open_crops
    from evaluation.measure import Measurement
    from runtime.device import pick_device

    reference = Path(args.reference)
    if args.make_reference is not None:
        crops = open_crops(args)  # before the network is fetched
        network = load_network(args, pick_device(args.device))
        warn(make_reference(crops, reference, network, args.batch_size))
        num_images, height, width = crops.shape
        print(f"wrote {reference}: N = {num_images} images of {width} x {height} pixels, and their statistics")
        return
    for path in (reference, Path(args.samples)):
        check_images(path)  # likewise
    network = load_network(args, pick_device(args.device))
    result = Measurement(network, reference, not args.no_prec_recall, args.batch_size).measure(Path(args.samples))
    warn(result["warnings"])
    print_report(result)
    if args.output_file is not None:
        write_json(Path(args.output_file), result)
        print(f"everything measured: {args.output_file}")


def command() -> None:
    """``checkerboard-evaluate``."""
    run(main)


if __name__ == "__main__":
    command()
