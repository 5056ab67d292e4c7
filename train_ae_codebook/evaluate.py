"""Judge an autoencoder on held-out images, scale by scale.

    python train_ae_codebook/evaluate.py --autoencoder pretrained_models/digits --dataset digits --img_size 32

Prints a table; writes it as JSON, and a grid of originals over reconstructions, where asked to. SSIM is scikit-image's,
of scales that have the 7 pixels of its window. With Inception's weights it measures rFID of the full size too.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, the project is not on the path

from data.options import DatasetName
from runtime.command import run
from runtime.config import parse_flags
from runtime.errors import UserError


@dataclass(frozen=True)
class EvaluateArgs:
    """What to judge.

    Attributes:
        autoencoder: folder of an autoencoder, or its file (LlamaGen's, published or ours).
        dataset: folder (class folders of images), cifar10, food101 or celeba (torchvision's files), digits (built in).
        data_path: root of the dataset; a folder's held-out images are in val/CLASS or test/CLASS.
        split: val for held-out images, train for those to train on.
        img_size: side of the full images, in pixels.
        scale_sizes: sides of the code maps to judge; by default the full one, halved down to 1.
        num_images: how many images, evenly spaced over the split; 0 takes all.
        output_file: JSON to write.
        grid: PNG to write: originals over reconstructions at every scale.
        inception_weights: torch-fidelity's weights-inception-2015-12-05-6726825d.pth, for rFID by torch.
        inception_graph: ADM's classify_image_graph_def.pb, for rFID by TensorFlow.
        device: auto, cuda, mps or cpu.
    """

    autoencoder: str | None = None
    dataset: DatasetName = "folder"
    data_path: str = "data/imagenet"
    split: Literal["val", "train"] = "val"
    img_size: int = 256
    scale_sizes: tuple[int, ...] = ()
    num_images: int = 0
    output_file: str | None = None
    grid: str | None = None
    inception_weights: str | None = None
    inception_graph: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.autoencoder is None:
            raise UserError("name the --autoencoder to judge: a folder, or a file of weights")
        if self.img_size < 1:
            raise UserError(f"img_size is {self.img_size}; it must be at least 1")
        if self.grid is not None and Path(self.grid).suffix.lower() != ".png":
            raise UserError(f"grid is {self.grid}; name a .png file")
        if self.num_images < 0:
            raise UserError(f"num_images is {self.num_images}; give a number of images, or 0 for all")
        if self.inception_weights is not None and self.inception_graph is not None:
            raise UserError("inception_weights and inception_graph are the same network; name one of them")
        if self.scale_sizes and min(self.scale_sizes) < 1:
            raise UserError(f"scale_sizes is {list(self.scale_sizes)}; each must be at least 1")


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "train_ae_codebook/evaluate.py", __doc__, EvaluateArgs)
    from train_ae_codebook.evaluate_job import evaluate  # takes seconds to import

    evaluate(args)


if __name__ == "__main__":
    run(main)
