"""Settings of training: the ``args:`` section of a configuration."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.options import CropRecipe, DatasetName
from evaluation.metrics import NEIGHBOURS
from evaluation.options import FeaturesName, NetworkArgs
from runtime.config import option
from runtime.errors import UserError, check_at_least, check_probabilities
from training.schedules import cosine_factor, lr_factor, patch_side, stage_ends


@dataclass(frozen=True)
class LoopArgs:
    """How to train, whatever the model."""

    output_dir: str | None = option(
        None, "folder of the run; default output/ and the configuration's name. Running again goes on there."
    )
    resume: str | None = option(None, "checkpoint or folder that a new run goes on from; a run's own comes first")
    dataset: DatasetName = option(
        "folder",
        "folder (images of your own, as data_path says), cifar10, food101 or celeba (torchvision's files), digits "
        "(built in)",
    )
    data_path: str = option(
        "data/imagenet",
        "root of the dataset; of your own images CLASS/IMAGE, or train/CLASS/IMAGE and val/ or test/CLASS/IMAGE, or "
        "parquet or tar files in a folder, a .zip or a .csv",
    )
    crop: CropRecipe = option(
        "ten",
        "training crops: ten, ten105 (of an image 1.05 times the size, not 1.1), twenty (both), five (not mirrored), "
        "flip (the centre and its mirror image) or center",
    )
    epochs: int = option(110, "passes over the data")
    batch_size: int = option(128, "images a batch on each rank; while a cache is made, crops encoded at once")
    accum_steps: int = option(1, "batches whose gradients are averaged for one step; multiplies the images of a step")
    lr: float = option(1e-4, "learning rate, not scaled by the batch")
    betas: tuple[float, float] = option((0.9, 0.95), "of AdamW")
    weight_decay: float = option(0.01, "of AdamW; none on biases and other one-dimensional parameters")
    warmup_epochs: float = option(1.0, "epochs over which the learning rate rises linearly from 0")
    lr_drops: dict[float, float] = option(
        dict,
        "epoch, or below 1 share of the run -> factor on the learning rate from there on; shares follow --epochs",
    )
    clip_grad: float = option(0.0, "largest norm of the gradient; 0 does not clip")
    ema: bool = option(False, "also average the weights")
    ema_decay: float = option(0.9999, "of the average")
    ema_warmup: bool = option(True, "let the decay be 1 - (1 + t)^(-2/3) at most after t steps")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto",
        "auto (bfloat16 where the GPU or CPU has it, else float32), float32, bfloat16, or float16 with loss scaling",
    )
    tf32: bool = option(
        False,
        "let CUDA compute by TF32 what is in float32 (the logits; of an autoencoder, all): faster, with 10 bits of the "
        "fraction",
    )
    device: str = option("auto", "auto, cuda, mps or cpu")
    seed: int = option(0, "of every random choice; the same seed on the same machine gives the same run")
    num_workers: int = option(4, "processes that load images")
    log_freq: int = option(50, "steps between log entries; the last step of a run has one too")
    eval_freq: int = option(10, "epochs between grids of samples; 0 draws them at the end alone")
    save_minutes: float = option(10.0, "minutes between checkpoints within an epoch; one comes after every epoch too")
    shard: bool = option(
        False, "under torchrun, share weights and the optimizer's state out over the ranks (FSDP): for large models"
    )
    keep_freq: int = option(0, "epochs between checkpoints kept as checkpoint-EPOCH.pth; 0 keeps the last alone")

    def __post_init__(self) -> None:
        check_at_least(1, self, "epochs", "batch_size", "accum_steps", "log_freq")
        check_at_least(0, self, "lr", "weight_decay", "warmup_epochs", "clip_grad", "num_workers", "seed")
        check_at_least(0, self, "eval_freq", "keep_freq", "save_minutes")
        if not all(0 <= beta < 1 for beta in self.betas) or not 0 <= self.ema_decay < 1:
            raise UserError(f"betas {list(self.betas)} and ema_decay {self.ema_decay} must lie in 0..1, 1 excluded")
        if any(factor <= 0 for factor in self.lr_drops.values()) or any(start < 0 for start in self.lr_drops):
            raise UserError(f"lr_drops {self.lr_drops} must hold factors above 0, at epochs or shares from 0 on")
        if self.warmup_epochs > self.epochs:
            raise UserError(
                f"warmup_epochs is {self.warmup_epochs:g}, more than the {self.epochs} of the run; lower it"
            )
        late = next((start for start in self.lr_drops if start >= max(1, self.epochs)), None)
        if late is not None:
            raise UserError(
                f"lr_drops has epoch {late:g}, which a run of {self.epochs} does not come to; give shares of the run, "
                "as in --lr_drops '{0.7: 0.3, 0.9: 0.3}', or none by --lr_drops '{}'"
            )
        if self.dataset == "digits" and self.data_path != LoopArgs.data_path:
            raise UserError(
                f"the built-in digits have no data_path {self.data_path}; add --dataset folder for your images"
            )
        self._refuse_idle({"ema_decay": not self.ema, "ema_warmup": not self.ema}, "ema false", "set ema true")
        if self.shard and (self.ema or self.keep_freq):
            raise UserError("shard neither averages weights nor keeps checkpoints; set ema false and keep_freq 0")
        if self.seed >= 2**63:
            raise UserError(f"seed is {self.seed}; it must be below 2**63")

    def _refuse_idle(self, idle: dict[str, bool], beside: str, mend: str = "leave it out") -> None:
        """Refuse settings that do nothing, unless they have their defaults."""
        for name, does_nothing in idle.items():
            default = {} if name == "lr_drops" else getattr(type(self), name)
            if does_nothing and getattr(self, name) != default:
                shown = str(default).lower() if isinstance(default, bool) else default
                raise UserError(f"{name} means nothing with {beside}; {mend}, or set {name} {shown}")

    def lr_at(self, epoch: float, steps_per_epoch: int) -> float:
        """Learning rate after so many epochs: linear warm-up, then the drops so far (formats.md M5)."""
        rate = self.lr
        if epoch < self.warmup_epochs:
            rate *= epoch / self.warmup_epochs
        for start, factor in self.lr_drops.items():
            rate *= factor if epoch >= (start * self.epochs if start < 1 else start) else 1.0
        return rate


@dataclass(frozen=True)
class TrainArgs(LoopArgs):
    """The ``args:`` section of a configuration of main.py."""

    check_data: bool = option(False, "report the classes and unreadable files of the dataset, and stop")
    create_cache: bool = option(False, "write the cache of codes first; without --use_cache, stop there")
    rebuild_cache: bool = option(
        False,
        "with create_cache: move a cache aside that is of other images or another autoencoder, or lacks images that "
        "have been mended, and make it again",
    )
    use_cache: bool = option(False, "train from the cache of codes")
    verify_cache: int = option(
        0, "encode this many images of the cache again, report how many codes differ, and stop; 0 does not"
    )
    check_images: bool = option(
        False, "compare a cache with the images before it is used; without it, --use_cache needs no images at all"
    )
    cached_path: str = option("data/cached", "folder of caches")
    cache_scales: Literal["paper", "model"] | tuple[int, ...] = option(
        "paper",
        "scales to cache: paper (the twelve of the published cache, for all 256 px configurations; of a larger image, "
        "these and the model's), model (this model's) or a list of sides (these and the model's)",
    )
    code_paths: tuple[str, ...] = option(
        (),
        "folders of codes as LlamaGen or RandAR extracts them, instead of images; of several, each visit takes one at "
        "random",
    )
    patch_level: int = option(
        1, "stages of Next Patch Prediction, 1 to 4: L stages learn from patches of 2^(L-1), .., 2, 1 codes a side"
    )
    epoch_rate: float = option(0.5, "share of all epochs at which the last stage begins, and so on for those before it")
    schedule: Literal["drops", "stages", "cosine"] = option(
        "drops",
        "drops (warm-up, then lr_drops), stages (each stage of patches warms up and decays to end_lr anew), or cosine "
        "(warm-up, then along a half cosine to end_lr)",
    )
    decay_ratio: float = option(0.2, "of schedule stages: share of a stage's end in which the rate decays")
    end_lr: float = option(1e-5, "of schedules stages and cosine: learning rate at the end of each stage, or the run")
    adaptive_order: bool = option(
        False,
        "of randar in random order: after 5,000 steps permute a share of the locations of raster order alone, namely "
        "the calibration error of held-out codes over 0.05, measured every 500 steps",
    )
    weights_init: str | None = option(
        None, "checkpoint whose weights a new run starts from; what does not fit is listed and starts fresh"
    )
    attention: Literal["sdpa", "flex"] = option(
        "sdpa", "sdpa, or flex for FlexAttention (compiled; skips blocks that are masked whole)"
    )
    compile: bool = option(False, "compile the transformer; the first steps take longer")
    activation_checkpointing: bool = option(
        False, "keep less for the gradients, compute it again: less memory, more time"
    )
    val_images: int = option(
        0, "held-out images, evenly spaced, whose loss is logged as val_loss every eval_freq epochs; 0 for none"
    )
    eval_samples: int = option(
        0, "images drawn every eval_freq epochs, on all ranks, for FID, IS, precision and recall; 0 measures nothing"
    )
    eval_reference: str | None = option(
        None,
        "what they are compared with, as evaluator.py takes it and makes it; default with eval_features the training "
        "images of the classifier",
    )
    eval_features: FeaturesName = option(
        "inception", "inception, or the classifier of digits or cifar10, for FD and class accuracy instead"
    )
    inception_weights: str | None = option(
        None, "torch-fidelity's weights-inception-2015-12-05-6726825d.pth; default a copy downloaded once"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, self, "val_images", "eval_samples", "verify_cache")
        compared = self.eval_reference is not None or self.eval_features != "inception"
        if (self.eval_samples > 0) != compared:
            raise UserError(
                "eval_samples goes with eval_reference or eval_features: how many images, and what to compare with"
            )
        if self.eval_reference is not None and not Path(self.eval_reference).exists():
            raise UserError(f"no eval_reference at {self.eval_reference}; evaluator.py --make_reference makes one")
        if 0 < self.eval_samples <= NEIGHBOURS:
            raise UserError(f"eval_samples is {self.eval_samples}; it must be at least {NEIGHBOURS + 1}, better 2048")
        if self.inception_weights is not None and (not self.eval_samples or self.eval_features != "inception"):
            raise UserError("inception_weights means nothing without eval_samples by inception; leave it out")
        if self.rebuild_cache and not self.create_cache:
            raise UserError("rebuild_cache means nothing without create_cache; add it, or leave rebuild_cache out")
        if self.check_images and not (self.use_cache or self.create_cache):
            raise UserError("check_images means nothing without a cache; add --use_cache, or leave it out")
        if self.shard and (self.eval_samples or self.val_images):
            raise UserError("shard measures nothing while it trains; leave eval_samples and val_images out")
        beside = [name for name in ("use_cache", "create_cache", "verify_cache", "check_data") if getattr(self, name)]
        if self.code_paths and beside:
            mend = " and ".join(f"{name} {0 if name == 'verify_cache' else 'false'}" for name in beside)
            raise UserError(f"code_paths are codes already; set {mend}")
        if self.code_paths and self.adaptive_order:
            raise UserError("adaptive_order measures on held-out images; train from images or a cache, not code_paths")
        if self.code_paths and self.val_images:
            raise UserError("val_images are images; train from images or a cache, not code_paths, or leave it out")
        self._check_stages()

    def _check_stages(self) -> None:
        """Refuse settings of stages that make no sense, or do nothing."""
        check_at_least(1, self, "patch_level")
        stage_ends(self.epochs, self.patch_level, self.epoch_rate)
        check_at_least(0, self, "end_lr")
        check_probabilities(self, "decay_ratio")
        if self.schedule != "drops" and not self.lr:
            raise UserError(f"lr is 0; schedule {self.schedule} needs a learning rate above 0")
        idle = {"decay_ratio": self.schedule != "stages", "end_lr": self.schedule == "drops"}
        idle |= {"epoch_rate": self.patch_level <= 1, "lr_drops": self.schedule != "drops"}
        self._refuse_idle(idle, f"schedule {self.schedule} and patch_level {self.patch_level}")

    @property
    def network(self) -> NetworkArgs:
        """What measures while the model trains."""
        if self.eval_features != "inception":
            return NetworkArgs(features=self.eval_features)
        return NetworkArgs(backend="torch", inception_weights=self.inception_weights)

    def patch_side(self, epoch: int) -> int:
        """Side of the patches of codes that an epoch learns from."""
        return patch_side(epoch, epochs=self.epochs, patch_level=self.patch_level, epoch_rate=self.epoch_rate)

    def lr_at(self, epoch: float, steps_per_epoch: int) -> float:
        if self.schedule == "drops":
            return super().lr_at(epoch, steps_per_epoch)
        if self.schedule == "cosine":
            whole = {"epochs": self.epochs, "warmup_epochs": self.warmup_epochs, "end_factor": self.end_lr / self.lr}
            return self.lr * cosine_factor(epoch, **whole)
        names = ("epochs", "patch_level", "epoch_rate", "warmup_epochs", "decay_ratio", "lr", "end_lr")
        settings = {name: getattr(self, name) for name in names}
        step = round(epoch * steps_per_epoch)  # as if all epochs had had as many: a run may go on with other batches
        return self.lr * lr_factor(step, steps_per_epoch=steps_per_epoch, **settings)
