"""What draws images of a family, batch after batch, step by step, into buffers that are made once.

Letters: B images, R rows of a batch (each image conditional, then unconditional), S side of a scale, L locations of all
scales, l of some of them. A *location* is an index into all scales concatenated, coarse to fine, each in raster order.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from models.checks import as_labels, check_codes, checked_maps, checked_seeds
from models.config import Drawing
from models.draw import code_noise
from models.family import Generator, Samples
from models.noise import ORDER, uniforms
from models.scales import scale_slices, split_scales
from models.transformer import KVCache
from runtime.errors import UserError

Maps = Sequence[Tensor] | None  # (B, S, S) of each scale, if there are any
Setting = float | Tensor  # a number, as compiled code takes it


class Sampler(ABC):
    """Draws batches of ``batch`` images, step by step, into buffers made once; ``drawing`` is checked settings."""

    kv_cache: KVCache | None = None  # of R rows, if the family has one

    @torch.inference_mode()
    def __init__(self, model: Generator, batch: int, drawing: Drawing, compiled: bool = False) -> None:
        self.model, self.batch, self.drawing, self.compiled = model, batch, drawing, compiled
        self.guided = drawing.uses_cfg and model.config.class_cond
        self.row_sets = 1 + self.guided  # how often each image is in the batch: an unconditional half runs beside
        self.scale_sizes = list(drawing.sampled_sizes(model.scale_sizes))
        self.num_locations = sum(side * side for side in self.scale_sizes)  # L
        # By location, (B, L) each: codes drawn so far, their entropy and probability.
        self.sequence = torch.zeros(batch, self.num_locations, dtype=torch.long, device=model.device)
        self.maps = torch.zeros(2, batch, self.num_locations, device=model.device)
        self.entropy, self.probability = self.maps  # views
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

    def cache(self) -> list[Tensor]:
        """Keys and values: what it holds beside the weights."""
        return [] if self.kv_cache is None else [*self.kv_cache.keys, *self.kv_cache.values]

    def row_labels(self, labels: Tensor) -> Tensor:
        """(R,) labels of all rows, of those of images (B,); row sets after the first are unconditional."""
        unconditional = torch.full_like(labels, self.model.unconditional_label)
        return torch.cat([labels, unconditional.repeat(self.row_sets - 1)])

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
        drawn = {"codes": self.sequence, "entropy": self.entropy, "probability": self.probability}
        drawn["step"] = self.step_of_location().expand(self.batch, -1)
        maps = {name: split_scales(values.clone(), self.scale_sizes) for name, values in drawn.items()}
        images = None if self.model.autoencoder is None else self.model.decode(maps["codes"][-1])
        self._check_finite(images)
        return Samples(images=images, **maps)

    def _check_finite(self, images: Tensor | None) -> None:
        """Refuse a batch whose logits, seen by their entropy, or images are not finite; one look once all is drawn."""
        if self.entropy.isfinite().all() and (images is None or images.isfinite().all()):
            return
        single = self.model.dtype == torch.float32
        mend = "take another checkpoint" if single else "draw with --dtype float32, or take another checkpoint"
        drawn = self.step_of_location().expand(self.batch, -1)[~self.entropy.isfinite()]
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
