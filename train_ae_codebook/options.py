"""Settings of autoencoders' training; no torch, so that --help answers at once."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from data.options import CropRecipe, DatasetName
from evaluation.features.shipped import ClassifierName
from runtime.config import option
from runtime.errors import UserError, check_at_least, check_probabilities
from training.options import LoopArgs

MIN_DISCRIMINATED = 8  # pixels of an image


@dataclass(frozen=True)
class ImageArgs(LoopArgs):
    """Settings of every training of autoencoders."""

    precisions: ClassVar[tuple[str, ...]] = ("auto", "float32")
    img_size: int = option(32, "side of the full images, in pixels")
    commitment: float = option(0.25, "weight of the pull of latents towards their codes")
    export_dir: str | None = option(None, "folder of the finished autoencoder; default the run folder's autoencoder/")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype not in self.precisions:
            raise UserError(f"dtype is {self.dtype}; this autoencoder is trained in {' or '.join(self.precisions[1:])}")
        check_at_least(0, self, "commitment")

    def check_steps(self, total: int) -> None:
        """Refuse a run of ``total`` steps that ends before it has done all that it was asked for."""


@dataclass(frozen=True)
class PyramidArgs(ImageArgs):
    """Settings of a training over the sizes of a pyramid."""

    scale_sizes: tuple[int, ...] = option((1, 2, 4, 8), "sides of the code maps of the pyramid to represent")
    full_size_share: float = option(
        0.5,
        "probability of the full size outright; otherwise a step's size is drawn evenly, from scratch among the "
        "smaller ones, for a new codebook among all",
    )
    revive_freq: int = option(50, "steps between revivals of dead codes; 0 never revives")
    dead_below: float = option(0.03, "a code is dead if used less than this share of an equal one")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_probabilities(self, "full_size_share")
        check_at_least(0, self, "revive_freq", "dead_below")
        if not self.scale_sizes or min(self.scale_sizes) < 1:
            raise UserError(f"scale_sizes is {list(self.scale_sizes)}; name at least one side, each at least 1")

    def draw_side(self, others: Sequence[int], rng: random.Random) -> int:
        """Side of the code maps of one step: the largest with probability ``full_size_share``, else of ``others``."""
        whole = not others or rng.random() < self.full_size_share
        return max(self.scale_sizes) if whole else rng.choice(others)


@dataclass(frozen=True)
class AutoencoderArgs(PyramidArgs):
    """The ``args:`` section of a configuration of train_ae_codebook/main.py; ``dtype`` auto is float32."""

    precisions: ClassVar[tuple[str, ...]] = ("auto", "float32", "bfloat16")
    start: str | None = option(
        None, "autoencoder a new run starts from, codes too if it has n_embed: LlamaGen's vq_ds16_c2i.pt, or a folder"
    )
    perceptual: float = option(0.0, "weight of the distance of EfficientNet-Lite0's features; 0 has none")
    discriminator: float = option(
        0.0, "weight of passing full-size reconstructions for real before a discriminator trained beside; 0 has none"
    )
    discriminator_start: float = option(
        1000, "steps, or below 1 share of the run, that the autoencoder trains without it"
    )
    discriminator_lr: float = option(1e-4, "its learning rate, of Adam")
    export_dtype: Literal["float32", "float16"] = option("float32", "precision of the finished file, not of computing")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, self, "perceptual", "discriminator", "discriminator_start", "discriminator_lr")
        for name in ("discriminator_start", "discriminator_lr"):
            if not self.discriminator and getattr(self, name) != getattr(AutoencoderArgs, name):
                raise UserError(f"{name} means nothing without a discriminator; give discriminator a weight above 0")
        if self.discriminator and self.img_size < MIN_DISCRIMINATED:
            raise UserError(
                f"the discriminator takes images of at least {MIN_DISCRIMINATED} pixels, not {self.img_size}"
            )

    def check_steps(self, total: int) -> None:
        """Refuse a run of ``total`` steps that ends before its discriminator begins."""
        if self.discriminator and total <= self.discriminator_start:
            raise UserError(
                f"the run has {total} steps, and the discriminator begins after {self.discriminator_start:g}; lower "
                "discriminator_start, as to 0.4, a share of the run, or raise epochs"
            )

    def discriminates(self, step: int, epoch: float) -> bool:
        """Whether the discriminator has begun in a step, counted from 0, after so many epochs."""
        begins = self.discriminator_start
        return bool(self.discriminator) and (epoch >= begins * self.epochs if begins < 1 else step >= begins)


@dataclass(frozen=True)
class VQVAEArgs(ImageArgs):
    """The ``args:`` section beside a ``vqvae:`` one; the defaults are the CIFAR-10 random-order baseline's."""

    crop: CropRecipe = "center"
    epochs: int = 77
    batch_size: int = 256
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup_epochs: float = 0.0
    variance: float = option(
        0.0632869, "of the data's pixels in [0, 1]: divides the mean square error; the default is CIFAR-10's"
    )
    codebook_decay: float = option(0.99, "of the moving averages of latents that the codes are")
    codebook_start: Literal["normal", "latents"] = option(
        "normal",
        "normal (random, as published; all latents share a code for some 600 steps) or latents (of the first step)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_probabilities(self, "codebook_decay")
        if self.variance <= 0:
            raise UserError(f"variance is {self.variance}; it must be above 0")


@dataclass(frozen=True)
class RequantizeArgs(PyramidArgs):
    """The ``requantize:`` section of a configuration; the defaults are the paper's."""

    img_size: int = 256
    scale_sizes: tuple[int, ...] = (1, 2, 4, 8, 16)
    full_size_share: float = 0.1
    commitment: float = 0.001
    revive_freq: int = 1000
    dead_below: float = 1e-4
    epochs: int = 1
    batch_size: int = 32
    lr: float = 1e-4
    betas: tuple[float, float] = (0.5, 0.9)
    weight_decay: float = 0.0
    warmup_epochs: float = 0.0
    start: str = option(
        "pretrained_models/llamagen/vq_ds16_c2i.pt",
        "autoencoder to keep but for its codebook: LlamaGen's vq_ds16_c2i.pt, or a folder",
    )
    n_embed: int = option(4096, "number of new codes")
    moment_steps: int = option(1000, "first steps, which only gather what the codebook starts from")
    revive_after: int = option(2000, "step after which dead codes are revived")
    codebook_start: Literal["gaussian", "kmeans"] = option(
        "gaussian", "gaussian (random, with the moments of each scale) or kmeans (centres of latents of those steps)"
    )
    codebook_update: Literal["gradient", "ema"] = option(
        "gradient", "gradient (of the loss) or ema (moving averages of each code's latents)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, self, "n_embed", "moment_steps")

    def check_steps(self, total: int) -> None:
        """Refuse a run of ``total`` steps that ends before it has a codebook."""
        if total <= self.moment_steps:
            raise UserError(
                f"the run has {total} steps, and the first {self.moment_steps} only gather moments; lower moment_steps "
                "or batch_size, or raise epochs"
            )


@dataclass(frozen=True)
class EvaluateArgs:
    """What to judge."""

    autoencoder: str | None = option(None, "folder of an autoencoder, or its file (LlamaGen's, published or ours)")
    dataset: DatasetName = option(
        "folder",
        "folder (images of your own, as data_path says), cifar10, food101 or celeba (torchvision's files), digits "
        "(built in)",
    )
    data_path: str = option(
        "data/imagenet",
        "root of the dataset: class folders, parquet or tar files, a .zip or a .csv; held-out images are those of val "
        "or test",
    )
    split: Literal["val", "train"] = option("val", "val for held-out images, train for those to train on")
    img_size: int = option(256, "side of the full images, in pixels")
    scale_sizes: tuple[int, ...] = option((), "sides of the code maps to judge; by default the full one and its halves")
    num_images: int = option(0, "how many images, evenly spaced over the split; 0 takes all")
    output_file: str | None = option(None, "JSON to write")
    grid: str | None = option(None, "PNG to write: originals over reconstructions at every scale")
    features: ClassifierName | None = option(
        None,
        "digits or cifar10: also compare reconstructions with real training images in the features of a small "
        "classifier that ships with the project, and count what it recognises",
    )
    inception_weights: str | None = option(None, "torch-fidelity's weights-inception-2015-12-05-6726825d.pth, for rFID")
    inception_graph: str | None = option(None, "ADM's classify_image_graph_def.pb, for rFID by TensorFlow")
    device: str = option("auto", "auto, cuda, mps or cpu")

    def __post_init__(self) -> None:
        if self.autoencoder is None:
            raise UserError("name the --autoencoder to judge: a folder, or a file of weights")
        check_at_least(1, self, "img_size")
        if self.grid is not None and Path(self.grid).suffix.lower() != ".png":
            raise UserError(f"grid is {self.grid}; name a .png file")
        if self.num_images < 0:
            raise UserError(f"num_images is {self.num_images}; give a number of images, or 0 for all")
        if self.inception_weights is not None and self.inception_graph is not None:
            raise UserError("inception_weights and inception_graph are the same network; name one of them")
        if self.scale_sizes and min(self.scale_sizes) < 1:
            raise UserError(f"scale_sizes is {list(self.scale_sizes)}; each must be at least 1")
