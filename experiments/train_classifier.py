"""Train the small classifier whose features evaluator.py --features compares.

    python -m experiments.train_classifier --config experiments/classifier_digits.yaml
    python -m experiments.train_classifier --config experiments/classifier_cifar10.yaml

The same command again goes on where the run stopped. The finished classifier, the statistics of its training images
(a reference) and of held-out ones go to the run folder's classifier/, or to --export_dir; evaluator.py looks in
pretrained_models/classifiers.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from data.crops import crop_image
from data.images import CroppedImages, LabelledImages, open_dataset
from evaluation.features.classifier import (
    Classifier,
    ClassifierConfig,
    ClassifierNetwork,
    ClassifierSize,
    RealData,
    save_network,
)
from evaluation.features.shipped import SIDE, Split
from models.family import Loss, StepContext
from runtime import distributed
from runtime.command import run
from runtime.config import parse_config, plain
from runtime.device import pick_device
from runtime.errors import UserError
from runtime.lock import lock_folder
from training.options import LoopArgs
from training.task import Task, Trainer

BATCH_SIZE = 500  # images measured at once


@dataclass(frozen=True)
class ClassifierArgs(LoopArgs):
    """The ``args:`` section of a configuration.

    Attributes:
        shift: pixels that an image is moved by at most, each way.
        mirror: show half of the images mirrored.
        noise: standard deviation of noise that is added, of pixels in [-1, 1].
        export_dir: folder of the finished classifier; default the run folder's classifier/.
    """

    shift: int = 3
    mirror: bool = False
    noise: float = 0.0
    export_dir: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype not in ("auto", "float32"):
            raise UserError(f"dtype is {self.dtype}; a classifier is trained in float32")
        if not 0 <= self.shift < SIDE or self.noise < 0:
            raise UserError(f"shift {self.shift} must lie in 0..{SIDE - 1}, and noise {self.noise} not below 0")


class ClassifierTask(Task):
    """Trains a ``ClassifierNetwork`` to name the class of an image."""

    def __init__(self, module: ClassifierNetwork, args: ClassifierArgs, held_out: Dataset) -> None:
        self.module, self.args, self.held_out = module, args, held_out

    def loss(self, batch: list[Tensor], context: StepContext) -> Loss:
        """Mean cross-entropy in nats of (images, labels)."""
        images, labels = batch
        logits = self.module(augment(images, self.args, context.rank_rng))
        return Loss(F.cross_entropy(logits, labels), lambda: {"accuracy": (logits.argmax(1) == labels).float().mean()})

    def precision(self) -> torch.dtype | None:
        return torch.float32

    def show(self, module: ClassifierNetwork, folder: Path, name: str) -> dict[str, float]:
        """Accuracy on held-out images."""
        accuracy = held_out_accuracy(module, self.held_out)
        if distributed.is_main():
            tqdm.write(f"{name}: {accuracy:.2%} of {len(self.held_out)} held-out images recognised")
        return {"held_out_accuracy": accuracy}

    def describe(self) -> dict[str, Any]:
        return {"config": asdict(self.module.config), "class_keys": list(self.module.config.class_keys)}


def augment(images: Tensor, args: ClassifierArgs, generator: torch.Generator) -> Tensor:
    """Images (B, 3, H, W), each moved, mirrored and made noisy at random; their edges are repeated outwards."""
    batch, _, height, width = images.shape
    device, span = images.device, 2 * args.shift + 1
    padded = F.pad(images, (args.shift,) * 4, mode="replicate")
    rows, columns = (
        torch.randint(span, (batch, 1), generator=generator, device=device) + torch.arange(side, device=device)
        for side in (height, width)
    )
    if args.mirror:
        mirrored = torch.rand(batch, 1, generator=generator, device=device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    first = torch.arange(batch, device=device)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[first, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if args.noise:
        moved = moved + args.noise * torch.randn(moved.shape, generator=generator, device=device)
    return moved


def held_out_accuracy(module: ClassifierNetwork, images: CroppedImages) -> float:
    """Share of images recognised, 0..1."""
    device, right = module.head.weight.device, 0
    for indices in torch.arange(len(images)).split(BATCH_SIZE):
        pixels, labels = images.collate([images[int(i), 0] for i in indices])
        right += int((module(pixels.to(device)).argmax(1).cpu() == labels).sum())
    return right / len(images)


def main(argv: Sequence[str]) -> None:
    sections = {"model": ClassifierSize, "args": ClassifierArgs}
    settings, name = parse_config(argv, "experiments.train_classifier", __doc__, sections)
    size, args = settings["model"], settings["args"]
    data = [open_dataset(args.dataset, args.data_path, SIDE, split) for split in ("train", "val")]
    device = distributed.set_up(pick_device(args.device))
    torch.manual_seed(args.seed)
    network = ClassifierNetwork(ClassifierConfig(size.name, size.widths, tuple(data[0].class_keys)))
    folder = Path(args.output_dir or f"output/classifiers/{name}")
    if distributed.is_main():
        print(f"{sum(p.numel() for p in network.parameters()):,} parameters; run folder {folder}")
    task = ClassifierTask(network, args, CroppedImages(data[1], SIDE, "center"))
    kept = {key: plain(value) for key, value in settings.items()}
    trainer = Trainer(task, CroppedImages(data[0], SIDE, args.crop), args, folder, device, kept)
    with lock_folder(folder):
        trainer.fit()
        if distributed.is_main():
            export(trainer.trained, data, Path(args.export_dir or folder / "classifier"), device)
    distributed.tear_down()


def export(network: ClassifierNetwork, data: Sequence[LabelledImages], folder: Path, device: torch.device) -> None:
    """Write the classifier, and what it makes of the training images and of held-out ones."""
    path = save_network(network, folder)
    classifier = Classifier(network.config.name, device, folder)
    for split, images in zip(("train", "test"), data, strict=True):
        real = measure(classifier, images, split)
        print(f"{split}: {real.accuracy:.2%} of {real.num_images} images recognised")
    print(f"classifier: {path}, {path.stat().st_size / 1e6:.2f} MB")


def measure(classifier: Classifier, images: LabelledImages, split: Split) -> RealData:
    """Features of all images, centre crops, read as evaluator.py reads them; written beside the classifier."""
    features = []
    for indices in tqdm(torch.arange(len(images)).split(BATCH_SIZE), desc=f"features, {split}"):
        pixels = torch.stack([crop_image(images.read(int(i)), SIDE, "center", 0) for i in indices])
        features += classifier(pixels.permute(0, 2, 3, 1).numpy())
    return classifier.save_real_data(split, np.concatenate(features), np.array(images.labels))


if __name__ == "__main__":
    run(main)
