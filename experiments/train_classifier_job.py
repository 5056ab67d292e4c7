"""What train_classifier.py does once its arguments are understood. Letters: B images, H, W their sides in pixels."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from data.crops import crop_image
from data.images import CroppedImages, open_dataset
from data.labelled_images import LabelledImages
from evaluation.features.classifier import Classifier, ClassifierNetwork, network_file, save_network
from evaluation.features.shipped import SIDE, ClassifierConfig, ClassifierSize
from experiments.train_classifier import ClassifierArgs
from models.family import Loss, StepContext
from runtime import distributed
from runtime.config import plain
from runtime.device import pick_device
from runtime.errors import UserError
from runtime.lock import lock_folder
from runtime.progress import Progress
from training.run_folder import exports_to
from training.task import Task
from training.trainer import Trainer

BATCH_SIZE = 500  # images measured at once


class ClassifierTask(Task):
    """Trains a network to name the class of an image; ``held_out`` are images to measure on, centre crops."""

    precision = torch.float32

    def __init__(self, module: ClassifierNetwork, args: ClassifierArgs, held_out: CroppedImages) -> None:
        self.module, self.args, self.held_out = module, args, held_out

    def loss(self, batch: list[Tensor], context: StepContext) -> Loss:
        """Mean cross-entropy in nats of (images, labels)."""
        images, labels = batch
        logits = self.module(augment(images, self.args, context.rank_rng))
        return Loss(F.cross_entropy(logits, labels), lambda: {"accuracy": (logits.argmax(1) == labels).float().mean()})

    def show(self, module: ClassifierNetwork, folder: Path, name: str) -> Iterator[dict[str, float]]:
        """Accuracy on held-out images, 0..1."""
        device, right, count = module.head.weight.device, 0, len(self.held_out)
        for indices in torch.arange(count).split(BATCH_SIZE):
            images, labels = self.held_out.collate([self.held_out[int(i), 0] for i in indices])
            right += int((module(images.to(device)).argmax(1).cpu() == labels).sum())
        if distributed.is_main():
            tqdm.write(f"{name}: {right / count:.2%} of {count} held-out images recognised")
        yield {"held_out_accuracy": right / count}

    def describe(self) -> dict[str, Any]:
        return {"config": asdict(self.module.config), "class_keys": list(self.module.config.class_keys)}


def augment(images: Tensor, args: ClassifierArgs, rng: torch.Generator) -> Tensor:
    """Images (B, 3, H, W), each moved, mirrored and made noisy at random; their edges are repeated outwards."""
    batch, _, height, width = images.shape
    device, span = images.device, 2 * args.shift + 1
    padded = F.pad(images, (args.shift,) * 4, mode="replicate")
    rows = torch.randint(span, (batch, 1), generator=rng, device=device) + torch.arange(height, device=device)
    columns = torch.randint(span, (batch, 1), generator=rng, device=device) + torch.arange(width, device=device)
    if args.mirror:
        columns = torch.where(torch.rand(batch, 1, generator=rng, device=device) < 0.5, columns.flip(1), columns)
    first = torch.arange(batch, device=device)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[first, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if args.noise:
        moved = moved + args.noise * torch.randn(moved.shape, generator=rng, device=device)
    return moved


def train_classifier(size: ClassifierSize, args: ClassifierArgs, name: str) -> None:
    """Train, and export the classifier with what it makes of real images; ``name`` is the configuration's."""
    data = [open_dataset(args.dataset, args.data_path, SIDE, split) for split in ("train", "val")]
    device = distributed.set_up(pick_device(args.device))
    for remark in [*data[0].remarks, *data[1].remarks]:
        distributed.say(remark)
    torch.manual_seed(args.seed)
    network = ClassifierNetwork(ClassifierConfig(size.name, size.widths, tuple(data[0].class_keys)))
    folder = Path(args.output_dir or f"output/classifiers/{name}")
    distributed.say(
        f"{sum(p.numel() for p in network.parameters()):,} parameters; {len(data[0])} images, {len(data[1])} held out; "
        f"run folder {folder}"
    )
    task = ClassifierTask(network, args, CroppedImages(data[1], SIDE, "center"))
    settings = {"model": plain(size), "args": plain(args)}
    trainer = Trainer(task, CroppedImages(data[0], SIDE, args.crop), args, folder, device, settings)
    usual = folder / "classifier"
    target = Path(args.export_dir or usual)
    check_export(target, size.name, own=exports_to(folder, "args", target, usual))
    with lock_folder(folder):
        trainer.fit()
        if distributed.is_main():
            export(trainer.trained, data, target, device)
    distributed.tear_down()


def check_export(folder: Path, name: str, own: bool) -> None:
    """Refuse to replace a classifier, unless it is the run's ``own``."""
    place = network_file(folder, name)
    if place.exists() and not own:
        raise UserError(f"{place} is there already, of another run; move it away, or name another export_dir")


def export(network: ClassifierNetwork, data: Sequence[LabelledImages], folder: Path, device: torch.device) -> None:
    """Write the classifier, and what it makes of training and held-out images, as evaluator.py reads them."""
    path = save_network(network, folder)
    classifier = Classifier(network.config.name, device, folder)
    for split, images in zip(("train", "test"), data, strict=True):
        features = []
        for indices in Progress(torch.arange(len(images)).split(BATCH_SIZE), desc=f"features, {split}"):
            pixels = torch.stack([crop_image(images.read(int(i)), SIDE, "center", 0) for i in indices])
            features += classifier(pixels.permute(0, 2, 3, 1).numpy())
        real = classifier.save_real_data(split, np.concatenate(features), np.array(images.labels))
        print(f"{split}: {real.accuracy:.2%} of {real.num_images} images recognised")
    print(f"classifier: {path}, {path.stat().st_size / 1e6:.2f} MB")
