"""Train the small classifier whose features evaluator.py --features compares.

    python -m experiments.train_classifier --config experiments/classifier_digits.yaml
    python -m experiments.train_classifier --config experiments/classifier_cifar10.yaml

The same command again goes on where the run stopped. The finished classifier, the statistics of its training images
(a reference) and of held-out ones go to the run folder's classifier/, or to --export_dir; evaluator.py looks in
pretrained_models/classifiers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.features.shipped import SIDE, ClassifierSize
from runtime.command import run
from runtime.config import option, parse_config
from runtime.errors import UserError
from training.options import LoopArgs


@dataclass(frozen=True)
class ClassifierArgs(LoopArgs):
    """The ``args:`` section of a configuration."""

    shift: int = option(3, "pixels that an image is moved by at most, each way")
    mirror: bool = option(False, "show half of the images mirrored")
    noise: float = option(0.0, "standard deviation of noise that is added, of pixels in [-1, 1]")
    export_dir: str | None = option(None, "folder of the finished classifier; default the run folder's classifier/")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype not in ("auto", "float32"):
            raise UserError(f"dtype is {self.dtype}; a classifier is trained in float32")
        if not 0 <= self.shift < SIDE or self.noise < 0:
            raise UserError(f"shift {self.shift} must lie in 0..{SIDE - 1}, and noise {self.noise} not below 0")


def main(argv: Sequence[str]) -> None:
    sections = {"model": ClassifierSize, "args": ClassifierArgs}
    settings, name = parse_config(argv, "experiments.train_classifier", __doc__, sections)
    from experiments.train_classifier_job import train_classifier  # takes seconds to import

    train_classifier(settings["model"], settings["args"], name)


if __name__ == "__main__":
    run(main)
