"""The contract of a family: what the trainer, sampling, evaluation and export know of a model, and nothing deeper.

Letters: B images, S side of a scale, L locations of all scales, V codes, C code dimension. A *location* is an index
into all scales concatenated, coarse to fine, each in raster order. Lists run over scales, coarse to fine.
"""

import copy
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from models.autoencoder import Autoencoder, to_uint8
from models.checks import INDEX_TYPES
from models.config import Drawing, GeneratorConfig
from models.pretrained import Pretrained
from models.scales import join_scales
from runtime.errors import UserError

if TYPE_CHECKING:
    from models.sampler import Sampler

DECODING_MEMORY, DECODING_BYTES = 2**31, 2**12  # that images decoded at once may take on a GPU, and a pixel takes


@dataclass(frozen=True)
class StepContext:
    """Where a batch stands in training, and its random choices."""

    step: int  # updates of the weights so far
    epoch: float  # passes over the data so far, with their fraction; exact
    batch: int  # number of the batch within the step
    step_rng: random.Random  # the same on every rank and for every batch of a step
    rank_rng: torch.Generator  # on the device, of this rank and batch alone
    patch_side: int = 1  # of the patches of codes to learn from, for families that learn from patches
    shuffled: float = 1.0  # share of the locations that a random order moves, for families that take an order
    logs: bool = True  # whether the loss's metrics are wanted


@dataclass(frozen=True)
class Loss:
    """What a batch gives in training."""

    value: Tensor  # to be minimized
    metrics: Callable[[], dict[str, Tensor]] = dict  # computes more, by name; for a context that logs


@dataclass(frozen=True)
class Samples:
    """Drawn images, and how they came about: (B, S, S) maps in raster order."""

    images: Tensor | None  # (B, 3, H, W) of the last scale, unclamped floats, about [-1, 1]; None without autoencoder
    codes: list[Tensor]
    entropy: list[Tensor]  # nats of the distribution each code was drawn from, after guidance and truncation
    step: list[Tensor]  # the step, counted over all scales from 0, that drew each location
    probability: list[Tensor]  # of the drawn code in that distribution; NaN where a code was kept

    def first(self, count: int, device: torch.device | str = "cpu") -> "Samples":
        """The first images, on a device."""
        maps = {f.name: [scale[:count].to(device) for scale in getattr(self, f.name)] for f in fields(self)[1:]}
        return Samples(images=None if self.images is None else self.images[:count].to(device), **maps)


class _Frozen:
    """Keeps a module out of its owner's parameters and state; copies of the owner share it."""

    def __init__(self, module: nn.Module | None) -> None:
        self.module = module and module.eval().requires_grad_(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Frozen":
        return self


class Generator(Pretrained, nn.Module, ABC):
    """Predicts the codes of a frozen autoencoder, one block after another.

    The autoencoder moves to the model's device, but its weights are not in the model's state. A deep copy shares it
    until one of the two moves. Some families can do without one, and draw codes alone.
    """

    Config: ClassVar[type[GeneratorConfig]]
    Drawing: ClassVar[type[Drawing]]
    needs_autoencoder: ClassVar[bool] = True
    class_table: ClassVar[str | None] = None  # the weights (K + 1, D) of K classes and, last, of none
    learns_patches: ClassVar[bool] = False  # whether training_loss heeds the context's patch_side
    takes_order: ClassVar[bool] = False  # whether codes can be scored and drawn in an order that the caller gives

    def __init__(self, config: GeneratorConfig, autoencoder: Autoencoder | None) -> None:
        super().__init__()
        self.config = config
        self.class_names: list[str] | None = None  # for people; set by whoever knows the data
        self.recommended: dict[str, Any] = {}  # settings of a drawing, for those that are not given
        self._frozen = _Frozen(autoencoder)
        self.scale_sizes = list(config.scale_sizes(None if autoencoder is None else autoencoder.config.stride))
        self.num_locations = sum(side * side for side in self.scale_sizes)  # L

    @abstractmethod
    def forward(self, codes: Sequence[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, V) logits in the order drawn, and their mean cross-entropy in nats, by teacher forcing."""

    def score(
        self,
        codes: Sequence[Tensor],
        labels: Tensor,
        order: Tensor | None = None,
        rng: torch.Generator | None = None,
        drawing: Drawing | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(B, L, V) logits by teacher forcing, and the codes (B, L) that they are of, both in the order drawn.

        Codes are scored in ``order`` (B, L) if the family takes one, else in the model's own; if that is random,
        ``rng`` draws it. Blocks are those of the ``drawing``: codes of one block do not see each other.
        """
        if order is not None:
            self.check_takes_order()
        return self(codes, labels)[0], join_scales(codes)

    def check_takes_order(self) -> None:
        """Refuse a given order, if the family has one of its own."""
        if not self.takes_order:
            raise UserError(f"{self.config.architecture} draws codes in an order of its own; leave out order")

    @abstractmethod
    def training_loss(self, codes: Sequence[Tensor], labels: Tensor, context: StepContext) -> Loss:
        """The loss of codes (B, S, S) of each scale and labels (B,); draws blocks, orders and noise itself."""

    @abstractmethod
    def sampler(self, batch: int, drawing: Drawing, compiled: bool = False) -> "Sampler":
        """What draws batches of ``batch`` images with checked settings; to be made once and used often."""

    def check_drawing(self, drawing: Drawing, keeps: bool = False) -> None:
        """Refuse settings that make no sense for this model, ``keeps`` with codes that stay, by a UserError."""
        drawing.check(self.scale_sizes)

    @abstractmethod
    def num_steps(self, drawing: Drawing, num_kept: int = 0) -> int:
        """Steps that one image takes, of which so many locations keep their codes."""

    def prepare_training(self, attention: str, compiled: bool, activation_checkpointing: bool) -> None:
        """Set how, not what, the training computes, ``attention`` by sdpa or flex; UserError if that cannot be."""
        if attention != "sdpa" or compiled or activation_checkpointing:
            raise UserError(
                f"{self.config.architecture} has neither attention {attention} nor compile nor activation_checkpointing"
            )

    def large_layers(self) -> Sequence[nn.Module]:
        """Modules that hold most of the weights and are called one after another, inner ones before those around them.

        A training that is shared out over ranks gathers the weights of one at a time.
        """
        return ()

    def undrawn_latents(self, codes: Sequence[Tensor], scale: int) -> Tensor:
        """(B, C, S, S) latents that stand for a scale's locations in pictures until they are drawn: zeros are grey."""
        shape = (len(codes[0]), self.autoencoder.config.embed_dim, *codes[scale].shape[1:])
        return torch.zeros(shape, device=self.device)

    @classmethod
    def from_state(cls, config: GeneratorConfig, autoencoder: Autoencoder, state: dict[str, Tensor]) -> Self:
        """A model that weights under our names fit; keys without meaning are removed from ``state``.

        It is made on the meta device, so it may hold no tensors but parameters and buffers that are saved.
        """
        return cls(config, autoencoder)

    def initialize_from(self, saved: Mapping[str, Tensor], source: str) -> list[str]:
        """Copy what fits of another model's weights, called ``source``; return a remark on each tensor that does not.

        For another image size or pyramid: tables whose rows change keep their fresh values.
        """
        own = self.state_dict()
        fits = {key: value for key, value in saved.items() if key in own and value.shape == own[key].shape}
        if 2 * len(fits) < len(own):
            raise UserError(f"{source} has no weights that fit this model; name a checkpoint of a like one")
        self.load_state_dict(fits, strict=False)
        remarks = [f"{len(fits)} of {len(own)} tensors start from {source}"]
        for key, value in own.items():
            if key not in fits:
                shapes = f"{tuple(saved[key].shape)} there, {tuple(value.shape)} here" if key in saved else "not there"
                remarks.append(f"not loaded, freshly initialized: {key} ({shapes})")
        return remarks + [f"not loaded: {key} (this model has none)" for key in saved if key not in own]

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """The autoencoder follows to a device as a copy, for others may share it; its precision stays."""
        super()._apply(fn, recurse)
        if self.autoencoder is not None and next(self.autoencoder.parameters()).device != self.device:
            self._frozen = _Frozen(copy.deepcopy(self.autoencoder).to(self.device))
        return self

    @property
    def autoencoder(self) -> Autoencoder | None:
        return self._frozen.module

    @property
    def num_codes(self) -> int:
        """V."""
        return self.autoencoder.config.n_embed

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def permutes_codes(self) -> bool:
        """Whether training draws orders by ``shuffled`` of its context."""
        return False

    @property
    def unconditional_label(self) -> int:
        return self.config.num_classes

    def codebook(self) -> Tensor:
        """(V, C) latents of all codes."""
        return self.autoencoder.codebook()

    def tokenize(self, images: Tensor) -> list[Tensor]:
        """Codes (B, S, S) of each scale of images (B, 3, H, W), floats in [-1, 1]; else a UserError."""
        size = self.config.img_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size) or not images.is_floating_point():
            raise UserError(
                f"images have shape {tuple(images.shape)} and type {images.dtype}; give floats in [-1, 1] of shape "
                f"(B, 3, {size}, {size})"
            )
        return self.autoencoder.tokenize(images, tuple(self.scale_sizes))

    def decode(self, codes: Tensor) -> Tensor:
        """Images (B, 3, H, W), unclamped floats, of the codes (B, S, S) of one scale; some at once.

        On the CPU each is decoded alone: its convolutions round differently in other batches, and an image should not.
        """
        num_bytes = DECODING_BYTES * (codes.shape[-1] * self.autoencoder.config.stride) ** 2
        at_once = 1 if self.device.type == "cpu" else max(1, DECODING_MEMORY // num_bytes)
        return torch.cat([self.autoencoder.decode(part) for part in codes.split(at_once)])

    def to_uint8(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) of ``decode`` as uint8, by the 8-bit rule that the family's figures were measured by."""
        return to_uint8(images)

    def drop_labels(self, labels: Tensor, rng: torch.Generator | None) -> Tensor:
        """(B,) labels, in training some of them made unconditional."""
        dropped = torch.rand(labels.shape, device=self.device, generator=rng) < self.config.label_drop
        return labels.masked_fill(dropped & self.training, self.unconditional_label)

    def check_labels(self, labels: Tensor) -> None:
        """Refuse what are no class indices (B,) of this model; ``num_classes`` is unconditional, and for some all."""
        if labels.ndim != 1 or len(labels) == 0 or labels.dtype not in INDEX_TYPES:
            raise UserError(
                f"labels have shape {tuple(labels.shape)} and type {labels.dtype}; give one class index an image"
            )
        labels = labels.long()  # small types cannot hold the numbers below
        if not self.config.class_cond and (labels != self.unconditional_label).any():
            raise UserError(f"this model knows no classes; give {self.unconditional_label} as the label of each image")
        wrong = labels[(labels < 0) | (labels > self.config.num_classes)]
        if len(wrong):
            raise UserError(
                f"label {wrong[0].item()} is out of range; this model has classes 0 to {self.config.num_classes - 1}"
            )
