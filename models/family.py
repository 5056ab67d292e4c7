"""The contract of a family: what the trainer, sampling, evaluation and export know of a model, and nothing deeper.

Letters: B images, S side of a scale, L locations of all scales, V codes, C code dimension. A *location* is an index
into all scales concatenated, coarse to fine, each in raster order. Lists run over scales, coarse to fine.
"""

import copy
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from models.autoencoder import Autoencoder, to_uint8
from models.config import Drawing, GeneratorConfig
from models.draw import INDEX_TYPES, as_labels, check_codes, checked_maps, checked_seeds, code_noise
from models.noise import ORDER, uniforms
from models.pretrained import Pretrained
from models.scales import join_scales, scale_slices, split_scales
from runtime.errors import UserError

DECODING_MEMORY, DECODING_BYTES = 2**31, 2**12  # that images decoded at once may take on a GPU, and a pixel takes

Maps = Sequence[Tensor] | None  # (B, S, S) of each scale, if there are any
Setting = float | Tensor  # a number, as compiled code takes it


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
    """An autoregressive model over the codes of a frozen autoencoder, which moves with it but is none of its state.

    A deep copy shares the autoencoder until one of the two moves. Some families do without one, and draw codes alone.
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

        That is ``order`` (B, L) for families that take one; else the model's own, which ``rng`` draws if it is random.
        Codes that a ``drawing`` draws at once do not see each other where scales are drawn in blocks.
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


class Sampler(ABC):
    """Draws batches of ``batch`` images, step by step, into buffers made once; ``drawing`` is checked settings."""

    @torch.inference_mode()
    def __init__(self, model: Generator, batch: int, drawing: Drawing, compiled: bool = False) -> None:
        self.model, self.batch, self.drawing, self.compiled = model, batch, drawing, compiled
        self.guided = drawing.uses_cfg and model.config.class_cond  # an unconditional half runs beside
        self.scale_sizes = list(drawing.sampled_sizes(model.scale_sizes))
        self.num_locations = sum(side * side for side in self.scale_sizes)  # L
        # By location: (B, L) codes drawn so far, and (2, B, L) their entropy and probability.
        self.sequence = torch.zeros(batch, self.num_locations, dtype=torch.long, device=model.device)
        self.maps = torch.zeros(2, batch, self.num_locations, device=model.device)
        self.kept: tuple[Tensor, Tensor] | None = None  # (B, L) whether a location keeps its code, and those codes
        self.given_order: Tensor | None = None
        self.first_location = 0  # number of the first one, as an image's noise counts them
        self.made_for = (model.device, model.dtype)
        self.finished = False  # whether all steps of a batch are drawn

    def __call__(
        self,
        labels: Tensor | Sequence[int],
        seeds: Sequence[int],
        keep: Maps = None,
        keep_codes: Maps = None,
        order: Tensor | None = None,
    ) -> Samples:
        """Draw a batch of labels (B,) and seeds; where ``keep`` is True, the code of ``keep_codes`` stays: editing.

        ``order`` (B, L) of families that take one: locations in the order to draw them.
        """
        for _ in self.steps(labels, seeds, keep, keep_codes, order):
            pass
        return self.samples()

    @torch.inference_mode()
    def steps(
        self,
        labels: Tensor | Sequence[int],
        seeds: Sequence[int],
        keep: Maps = None,
        keep_codes: Maps = None,
        order: Tensor | None = None,
    ) -> Iterator[int]:
        """As a call, but step by step: yields the number of each once it is drawn; then ``samples`` has them."""
        if order is not None:
            self.model.check_takes_order()
        self.kept, self.given_order = self._check_kept(keep, keep_codes), order
        self.finished, labels = False, as_labels(labels)
        self.model.check_labels(labels)
        if self.made_for != (self.model.device, self.model.dtype):
            raise UserError("the model has moved to another device or precision; make another sampler")
        checked = checked_seeds(seeds, len(labels), self.batch)
        yield from self.draw(labels.long().to(self.model.device), checked.to(self.model.device))
        self.finished = True

    @abstractmethod
    def draw(self, labels: Tensor, seeds: Tensor) -> Iterator[int]:
        """Draw every location of a batch of labels (B,) and seeds (B,) by ``store``, yielding each step's number."""

    @abstractmethod
    def step_of_location(self) -> Tensor:
        """(B or 1, L) the step that drew each location."""

    @abstractmethod
    def cache(self) -> list[Tensor]:
        """Keys and values: what it holds beside the weights."""

    def code_noise(self, seeds: Tensor, order: Tensor) -> Tensor:
        """(B, L, n) noise for ``models.draw.draw`` of seeds (B,), of locations in the order (B or 1, L) drawn."""
        return code_noise(seeds, self.first_location + order, self.model.num_codes)

    def order_uniforms(self, seeds: Tensor) -> Tensor:
        """(B, L) numbers by location, to be sorted for a random order."""
        locations = self.first_location + torch.arange(self.num_locations, device=seeds.device)
        return uniforms(seeds, locations[None], 1, ORDER).squeeze(-1)

    def setting(self, value: float, zero_is_special: bool = False) -> Setting:
        """Compiled code takes numbers as tensors: another value is no other graph."""
        if not self.compiled or (zero_is_special and value == 0):
            return value
        return torch.full((), value, device=self.model.device)

    def stay_in_place(self, *buffers: Tensor) -> None:
        """CUDA graphs of compiled code write to these where they are; other buffers make other CUDA graphs alone."""
        if self.compiled:
            for buffer in (self.sequence, self.maps, *self.cache(), *buffers):
                torch._dynamo.mark_static_address(buffer, guard=False)

    def store(self, locations: Tensor, codes: Tensor, probability: Tensor, entropy: Tensor) -> Tensor:
        """Put what was drawn for locations (B, l), each (B, l), into the buffers; kept codes come first.

        Returns the codes (B, l) that are there now.
        """
        if self.kept is not None:
            kept, kept_codes = (values.gather(1, locations) for values in self.kept)
            codes = torch.where(kept, kept_codes, codes)
            probability = probability.masked_fill(kept, math.nan)
        self.sequence.scatter_(1, locations, codes)
        self.maps.scatter_(2, locations.expand(2, -1, -1), torch.stack([entropy, probability]))
        return codes

    @torch.inference_mode()
    def samples(self) -> Samples:
        """What was drawn; the last scale is decoded. Numbers that are not finite, or steps left, are a UserError."""
        if not self.finished:
            raise UserError("the samples are not drawn yet; go through all steps first")
        steps = self.step_of_location().expand(self.batch, -1)
        maps = (self.sequence.clone(), *self.maps.clone(), steps.clone())
        codes, entropy, probability, step = (split_scales(values, self.scale_sizes) for values in maps)
        images = None if self.model.autoencoder is None else self.model.decode(codes[-1])
        self._check_finite(images)
        return Samples(images, codes, entropy, step, probability)

    def _check_finite(self, images: Tensor | None) -> None:
        """Refuse a batch whose logits, seen by their entropy, or images are not finite; one look once all is drawn."""
        if self.maps[0].isfinite().all() and (images is None or images.isfinite().all()):
            return
        single = self.model.dtype == torch.float32
        mend = "take another checkpoint" if single else "draw with --dtype float32, or take another checkpoint"
        drawn = self.step_of_location().expand(self.batch, -1)[~self.maps[0].isfinite()]
        if len(drawn):
            first = int(drawn.min())
            location = int((self.step_of_location() == first).nonzero()[0, 1])
            scales = zip(self.scale_sizes, scale_slices(self.scale_sizes), strict=True)
            side = next(side for side, locations in scales if location < locations.stop)
            raise UserError(f"the logits are not finite from step {first} on, at the scale of side {side}; {mend}")
        raise UserError("the decoded images are not finite; take another autoencoder")

    def _check_kept(self, keep: Maps, keep_codes: Maps) -> tuple[Tensor, Tensor] | None:
        if keep is None and keep_codes is None:
            return None
        shapes = [(self.batch, side, side) for side in self.scale_sizes]
        kept, codes = (checked_maps(maps, shapes, name) for name, maps in (("keep", keep), ("keep_codes", keep_codes)))
        check_codes(codes, self.model.num_codes)
        return kept.bool().to(self.model.device), codes.long().to(self.model.device)
