"""A small classifier that ships with the project: features where Inception's are not to be had, and class accuracy.

experiments/train_classifier.py makes one. Letters: B images, H, W their sides in pixels, D features, K classes.
"""

import json
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, get_args
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from data.crops import to_floats
from evaluation.features.network import Network, too_little_memory
from evaluation.features.shipped import FOLDER, SIDE, ClassifierConfig, ClassifierName, Split, statistics_file
from evaluation.metrics import Statistics, fault_of_statistics, statistics_of
from runtime.device import exact_float32
from runtime.errors import UserError
from runtime.files import hash_file, whole


class ClassifierNetwork(nn.Module):
    """Six layers; a linear one without bias gives the classes, so that features times its weights are logits."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        stem, middle, deep, last = config.widths
        self.stem = nn.Conv2d(3, stem, kernel_size=4, stride=2, padding=1)
        self.body = nn.Sequential(
            nn.ReLU(),
            *_convolution(stem, middle),  # at 16 px
            nn.MaxPool2d(2),
            *_convolution(middle, deep),  # 8
            nn.MaxPool2d(2),
            *_convolution(deep, last),  # 4
            *_convolution(last, last),
        )
        self.head = nn.Linear(last, len(config.class_keys), bias=False)

    def features(self, images: Tensor) -> Tensor:
        """(B, D) of images (B, 3, 32, 32) in [-1, 1]."""
        return self.body(self.stem(images)).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K)."""
        return self.head(self.features(images))


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


class RealData(NamedTuple):
    """What is known of real images of the classifier's data."""

    num_images: int
    statistics: Statistics  # of their features
    accuracy: float  # share of them that the classifier recognises, 0..1


class Classifier(Network):
    """A trained classifier, ready to compute; UserError if its file is missing, or holds none."""

    kind, side, colour = "classifier", SIDE, False

    def __init__(self, name: ClassifierName, device: torch.device, folder: Path = FOLDER) -> None:
        self.name, self._folder, self._device = name, folder, device
        path = network_file(folder, name)
        self._network = _read_network(path).to(device)
        self.class_names = list(self._network.config.class_keys)
        self.class_weights = self._network.head.weight.detach().T.float().cpu().numpy()
        self.few = len(self.class_weights)
        self.sha256 = hash_file(path)
        self.versions = {"torch": torch.__version__}
        self.key_suffixes = (f"_{name}_{self.sha256[:8]}",)  # another training has others

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> tuple[np.ndarray]:
        """As in the base; images are resized to 32 px if they have other sides."""
        try:
            x = to_floats(torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2))
            if x.shape[2:] != (SIDE, SIDE):
                x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True)
            with exact_float32():
                return (self._network.features(x).cpu().numpy(),)
        except torch.OutOfMemoryError as error:
            raise too_little_memory(len(images)) from error

    def accuracy(self, features: np.ndarray, labels: np.ndarray) -> float:
        """Share of images, by features (N, D), that are recognised as their labels (N,)."""
        return float(((features @ self.class_weights).argmax(axis=1) == labels).mean())

    def real_data(self, split: Split) -> RealData:
        """What was measured of real images when the classifier was trained."""
        path = statistics_file(self.name, split, self._folder)
        try:
            with np.load(path) as file:
                statistics = Statistics.of_names(file, self.key_suffixes[0])
                fault = fault_of_statistics(statistics.mean, statistics.covariance)
                if fault:
                    raise ValueError(fault)
                return RealData(int(file["num_images"]), statistics, float(file["accuracy"]))
        except (BadZipFile, KeyError, OSError, EOFError, ValueError) as error:
            raise UserError(
                f"{path} is damaged, or of another training than {self.name}.safetensors ({error}); get both again"
            ) from error

    def save_real_data(self, split: Split, features: np.ndarray, labels: np.ndarray) -> RealData:
        """Write what ``real_data`` reads, a file that is also a reference."""
        real = RealData(len(features), statistics_of(features), self.accuracy(features, labels))
        with whole(statistics_file(self.name, split, self._folder)) as temporary:
            statistics = real.statistics.named(self.key_suffixes[0])
            np.savez(temporary, **statistics, num_images=real.num_images, accuracy=real.accuracy)
        return real


def network_file(folder: Path, name: str) -> Path:
    """The weights of a classifier of this name."""
    return folder / f"{name}.safetensors"


def save_network(network: ClassifierNetwork, folder: Path) -> Path:
    """Write a classifier in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    state, path = deepcopy(network).cpu().half().state_dict(), network_file(folder, network.config.name)
    with whole(path) as temporary:
        temporary.write_bytes(save(state, {"config": json.dumps(asdict(network.config))}))
    return path


def _read_network(path: Path) -> ClassifierNetwork:
    try:
        with safe_open(path, "pt") as file:
            values = json.loads((file.metadata() or {})["config"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        config = ClassifierConfig(values["name"], tuple(values["widths"]), tuple(values["class_keys"]))
        network = ClassifierNetwork(config).eval()
        network.load_state_dict(state)
    except (SafetensorError, KeyError, ValueError, RuntimeError, FileNotFoundError) as error:
        names = ", ".join(get_args(ClassifierName))
        raise UserError(f"{path} holds no classifier ({error}); the project ships those of {names}") from error
    return network
