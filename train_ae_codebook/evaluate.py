"""Judge an autoencoder on held-out images, scale by scale.

    python train_ae_codebook/evaluate.py --autoencoder pretrained_models/digits --dataset digits --img_size 32

Prints a table; writes it as JSON, and a grid of originals over reconstructions, where asked to. SSIM is scikit-image's,
of scales that have the 7 pixels of its window. With Inception's weights it measures rFID of the full size too.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, the project is not on the path

from runtime.command import run
from runtime.config import parse_flags
from train_ae_codebook.options import EvaluateArgs


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "train_ae_codebook/evaluate.py", __doc__, EvaluateArgs)
    from train_ae_codebook.measure import evaluate  # takes seconds to import

    evaluate(args)


if __name__ == "__main__":
    run(main)
