"""Sampling: staged guidance, block by block, scale by scale (paper Sec. 3.1, 4.1; method.md Sec. 6).

Letters: B images, R rows of a batch (2B if guided: conditional, then unconditional), l tokens of a block, T tokens of a
call (the class token rides with the first block), L of all scales, V codes, S side of a scale. Nothing here knows files
or ranks.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from models.checkerboard import Checkerboard
from models.errors import UserError
from models.rope import Rotary
from models.scan_order import Layout, Remainder, block_causal_mask, sampling_blocks
from models.transformer import KVCache

MIN_TEMPERATURE = 1e-4  # below it, logits divided by it overflow
MIN_TOP_P = 1e-6  # far below any use; far smaller ones are 0 in float32
NUM_SEEDS = 2**32  # torch's generator on the CPU tells no more apart
MAX_CFG = 1000  # far beyond any use; logits multiplied by much more overflow
MAX_COMPILED_SHAPES = 64  # block lengths times batch sizes that one process may compile
Schedule = float | Sequence[float]  # one value, or one for each scale


@dataclass(frozen=True)
class Samples:
    """What ``sample`` drew. Lists run over scales, small ones first; maps are in raster order.

    Attributes:
        images: (B, 3, H, W) of the last scale, unclamped floats, about [-1, 1].
        codes: (B, S, S) drawn codes.
        entropy: (B, S, S) nats of the distribution each code was drawn from, after guidance and truncation.
        step: (B, S, S) the step, counted over all scales from 0, that drew each location.
        probability: (B, S, S) of the drawn code in that distribution; NaN where a code was kept.
    """

    images: Tensor
    codes: list[Tensor]
    entropy: list[Tensor]
    step: list[Tensor]
    probability: list[Tensor]


@dataclass(frozen=True)
class Drawing:
    """The settings that decide which images are drawn, as ``sample`` explains them."""

    steps_per_scale: int = 4
    cfg: Schedule = 1.5
    cfg_start_step: int = 5
    temperature: Schedule = 1.0
    top_k: int = 0
    top_p: float = 1.0
    remainder: Remainder = "separate"

    def check(self, model: Checkerboard, labels: Tensor) -> None:
        """Refuse settings and labels (B,) that make no sense for a model, before anything is spent on them.

        Raises:
            UserError: naming the setting and its range.
        """
        sampling_blocks(model.scale_sizes, self.steps_per_scale)
        _check_labels(labels, model.config.num_classes)
        for name in ("cfg", "temperature"):
            values = getattr(self, name)
            if isinstance(values, Sequence) and len(values) != len(model.scale_sizes):
                raise UserError(
                    f"{name} has {len(values)} values; give one number, or one for each of the scales "
                    f"{', '.join(map(str, model.scale_sizes))}"
                )
        scales = range(len(model.scale_sizes))
        for temperature in (at_scale(self.temperature, scale) for scale in scales):
            if not (temperature == 0 or MIN_TEMPERATURE <= temperature < math.inf):
                raise UserError(
                    f"temperature is {temperature}; it must be 0 (likeliest code), or {MIN_TEMPERATURE} or more"
                )
        for cfg in (at_scale(self.cfg, scale) for scale in scales):
            if not abs(cfg) <= MAX_CFG:
                raise UserError(f"cfg is {cfg}; it must lie between -{MAX_CFG} and {MAX_CFG}, 0 for no guidance")
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}; it must be 0 (keep all) or more")
        if not MIN_TOP_P <= self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; it must be at least {MIN_TOP_P} and at most 1 (keep all)")
        if self.cfg_start_step < 0:
            raise UserError(f"cfg_start_step is {self.cfg_start_step}; steps count from 0")

    def unguided_scales(self, scale_sizes: Sequence[int]) -> list[int]:
        """Sides of the scales whose value of ``cfg`` is lost, because all their steps come before ``cfg_start_step``.

        One number for all scales is meant to be lost at the first ones, but not at all of them.
        """
        lost, first = [], 0
        for scale, lengths in enumerate(sampling_blocks(scale_sizes, self.steps_per_scale, self.remainder)):
            first += len(lengths)
            if at_scale(self.cfg, scale) and first <= self.cfg_start_step:
                lost.append(scale_sizes[scale])
        return lost if isinstance(self.cfg, Sequence) or len(lost) == len(scale_sizes) else []

    @property
    def uses_cfg(self) -> bool:
        return any(self.cfg) if isinstance(self.cfg, Sequence) else self.cfg != 0


def at_scale(value: Schedule, scale: int) -> float:
    """A setting's value at the scale of this index."""
    return float(value[scale] if isinstance(value, Sequence) else value)


def _check_labels(labels: Tensor, num_classes: int) -> None:
    if labels.ndim != 1 or len(labels) == 0 or labels.is_floating_point():
        raise UserError(
            f"labels have shape {tuple(labels.shape)} and type {labels.dtype}; give one class index an image"
        )
    wrong = labels[(labels < 0) | (labels > num_classes)]
    if len(wrong):
        raise UserError(f"label {wrong[0].item()} is out of range; this model has classes 0 to {num_classes - 1}")


def guide(logits: Tensor, cfg: float | Tensor) -> Tensor:
    """``cond + cfg * (cond - uncond)`` of logits (2B, l, V) whose second half is unconditional."""
    cond, uncond = logits.chunk(2)
    return cond + cfg * (cond - uncond)


def truncate(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits (B, l, V) with -inf outside the ``top_k`` likeliest and outside the smallest set of mass ``top_p``."""
    if 0 < top_k < logits.shape[-1]:
        kept, codes = logits.topk(top_k, dim=-1)
        logits = torch.full_like(logits, -torch.inf).scatter(-1, codes, kept)
    if top_p < 1:
        ranked, codes = logits.sort(dim=-1, descending=True)
        probs = ranked.softmax(-1)
        mass_before = probs.cumsum(-1) - probs
        outside = torch.zeros_like(mass_before, dtype=torch.bool).scatter(-1, codes, mass_before >= top_p)
        logits = logits.masked_fill(outside, -torch.inf)
    return logits


def draw(
    logits: Tensor, waits: Tensor, temperature: float | Tensor, top_k: int, top_p: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One code a token, its probability and the entropy of its distribution, each (B, l).

    The code whose wait is shortest for its probability is drawn, which happens with that probability (Gumbel-max).
    Two codes seldom come so close that rounding decides; an inverse CDF has a threshold next to each of V codes.

    Args:
        logits: (B, l, V) after guidance, float32.
        waits: (B, l, V) above 0, exponentially distributed.
        temperature: divides the logits; the number 0 takes the likeliest code, with entropy 0 and probability 1.
        top_k: codes kept; 0 keeps all.
        top_p: probability mass kept; 1 keeps all.
    """
    if isinstance(temperature, float | int) and temperature == 0:
        codes = logits.argmax(-1)
        certain = torch.ones(codes.shape, device=codes.device)
        return codes, certain, torch.zeros_like(certain)
    probs = truncate(logits / temperature, top_k, top_p).softmax(-1)
    codes = (probs / waits).argmax(-1, keepdim=True)  # (B, l, 1)
    return codes.squeeze(-1), probs.gather(-1, codes).squeeze(-1), torch.special.entr(probs).sum(-1)


def draw_uniforms(generators: Sequence[torch.Generator], *shape: int) -> Tensor:
    """(B, *shape) in [0, 1): each image's own, so that no image depends on its batch; drawn on the CPU."""
    return torch.stack([torch.rand(shape, generator=generator) for generator in generators])


def waits_of(uniforms: Tensor) -> Tensor:
    """Exponentially distributed numbers from those in [0, 1), which are changed; never 0 or infinite."""
    return uniforms.mul_(1 - 2.0**-23).add_(2.0**-25).neg_().log1p_().neg_()


def sample(
    model: Checkerboard,
    labels: Tensor | Sequence[int],
    steps_per_scale: int = 4,
    cfg: Schedule = 1.5,
    cfg_start_step: int = 5,
    temperature: Schedule = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seeds: Sequence[int] | None = None,
    remainder: Remainder = "separate",
    keep: Sequence[Tensor] | None = None,
    keep_codes: Sequence[Tensor] | None = None,
    compiled: bool = False,
) -> Samples:
    """Draw one image a label.

    Args:
        model: in eval mode or not; nothing is dropped here.
        labels: (B,) class indices; ``num_classes`` is unconditional.
        steps_per_scale: blocks that each scale is drawn in; 4 at ratio 2 and 8 at ratio 4 make 17 steps.
        cfg: guidance, ``cond + cfg * (cond - uncond)``, one number or one for each scale; 0 is off, and if it is off
            everywhere no unconditional half is run.
        cfg_start_step: first step, counted over all scales from 0, that is guided.
        temperature: divides the logits, one number or one for each scale; 0 takes the likeliest code.
        top_k: codes kept at each draw; 0 keeps all.
        top_p: probability mass kept at each draw; 1 keeps all.
        seeds: one an image, 0 to 2**32 - 1; without them they are drawn from torch's global generator. An image's
            randomness follows from its seed alone, on every device. Rounding may depend on the batch size and decide
            where two codes are within it: in float32 in less than one of a thousand images, in bfloat16 in many.
        remainder: locations left over by equal blocks are a step of their own (``separate``, as published) or are
            drawn with the last full block (``fold``).
        keep: (B, S, S) of each scale, True where the code of ``keep_codes`` stays instead of a drawn one: editing.
        keep_codes: (B, S, S) codes of each scale, for instance ``model.tokenize`` of images to edit.
        compiled: compile the drawing of a block, once for each block length; pays off for many images.

    Raises:
        UserError: a label or setting is out of range.
    """
    try:
        labels = torch.as_tensor(labels)
    except (ValueError, TypeError) as error:
        raise UserError(f"labels are {labels}; give one class index an image") from error
    drawing = Drawing(steps_per_scale, cfg, cfg_start_step, temperature, top_k, top_p, remainder)
    drawing.check(model, labels)
    if seeds is not None and len(seeds) != len(labels):
        raise UserError(f"{len(seeds)} seeds for {len(labels)} labels; give one an image")
    if drawing.uses_cfg and not model.config.class_cond:
        warnings.warn("cfg has no effect on an unconditional model", stacklevel=2)
    seeds = torch.randint(NUM_SEEDS, (len(labels),)).tolist() if seeds is None else [int(seed) for seed in seeds]
    if not all(0 <= seed < NUM_SEEDS for seed in seeds):
        raise UserError("seeds must lie between 0 and 2**32 - 1")
    return Sampler(model, len(labels), drawing, compiled)(labels, seeds, keep, keep_codes)


@dataclass(frozen=True)
class Block:
    """What a step needs to know of the tokens it draws; the same for every batch.

    Attributes:
        tokens: which of the L tokens.
        positions: (b, l) their locations.
        prev_positions: (b, l) the locations whose codes they are told of.
        rotary: rotations of the T tokens.
        mask: (T, tokens so far) where attention is allowed, None where all of it is; compiled, (T, 1 + L).
        start: index of the first of the T tokens; compiled, (T,) indices of all.
        first: whether the class token is among them.
    """

    tokens: slice
    positions: Tensor
    prev_positions: Tensor
    rotary: Rotary
    mask: Tensor | None
    start: int | Tensor
    first: bool


class Sampler:
    """Draws batches of one size. What does not depend on the batch is computed once: buffers, blocks, rotations, head.

    Args:
        model: of any device and precision.
        batch: B, images of every batch.
        drawing: checked settings.
        compiled: compile a step for each block length: static shapes, one graph, CUDA graphs on CUDA.
    """

    @torch.inference_mode()
    def __init__(self, model: Checkerboard, batch: int, drawing: Drawing, compiled: bool = False) -> None:
        self.model, self.batch, self.drawing, self.compiled = model, batch, drawing, compiled
        self.guided = drawing.uses_cfg and model.config.class_cond
        rows, num_tokens = batch * (1 + self.guided), 1 + model.num_locations
        weight = model.lm_head.weight
        self.sequence = torch.zeros(batch, model.num_locations, dtype=torch.long, device=model.device)  # by location
        self.maps = torch.zeros(2, batch, model.num_locations, device=model.device)  # entropy, probability; by location
        self.cache = KVCache(model.config.llama_config, rows, num_tokens, like=weight)
        self.codebook, self.head = model.codebook(), model.head_parameters()
        self.kept: tuple[Tensor, Tensor] | None = None
        self.layout: Layout | None = None
        self.step = compiled_step(model.device.type) if compiled else draw_block
        if compiled and model.device.type == "cuda":  # CUDA graphs write to these where they are
            for buffer in (self.sequence, self.maps, *self.cache.keys, *self.cache.values):
                torch._dynamo.mark_static_address(buffer)

    @torch.inference_mode()
    def __call__(
        self,
        labels: Tensor,
        seeds: Sequence[int],
        keep: Sequence[Tensor] | None = None,
        keep_codes: Sequence[Tensor] | None = None,
    ) -> Samples:
        """Draw a batch; arguments as of ``sample``, one label and seed an image."""
        self.begin(labels, seeds, keep, keep_codes)
        for scale in range(len(self.model.scale_sizes)):
            self.draw_scale(scale)
        return self.samples()

    @torch.inference_mode()
    def begin(
        self,
        labels: Tensor,
        seeds: Sequence[int],
        keep: Sequence[Tensor] | None = None,
        keep_codes: Sequence[Tensor] | None = None,
    ) -> None:
        """Compute what depends on labels and seeds alone."""
        model = self.model
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        order_uniforms = draw_uniforms(self.generators, model.num_locations)  # of every model, random order or not
        if self.layout is None or model.config.scan_order == "random":
            self._place(order_uniforms.to(model.device))
        labels = labels.long().to(model.device)
        if self.guided:
            labels = torch.cat([labels, torch.full_like(labels, model.unconditional_label)])
        self.class_embedding = model.embed_labels(labels)  # (R, D)
        self.modulations = model.transformer.modulations(self.class_embedding)
        self.kept = self._check_kept(keep, keep_codes)
        self.next_step = 0

    @torch.inference_mode()
    def draw_scale(self, scale: int) -> None:
        """Draw the blocks of one scale; those before it are drawn."""
        model, drawing = self.model, self.drawing
        tokens = self.layout.scale_slices()[scale]
        inputs = model.location_inputs(self.layout, tokens, model.source_latents(self.sequence, scale, self.codebook))
        temperature = self._setting(at_scale(drawing.temperature, scale), zero_is_special=True)
        waits = self._draw_waits(inputs.shape[1])
        for block in self.blocks[scale]:
            cfg = at_scale(drawing.cfg, scale) if self.next_step >= drawing.cfg_start_step else 0.0
            in_scale = slice(block.tokens.start - tokens.start, block.tokens.stop - tokens.start)
            self.step(self, block, inputs[:, in_scale], waits[:, in_scale], self._setting(cfg), temperature)
            self.next_step += 1

    @torch.inference_mode()
    def samples(self) -> Samples:
        """What was drawn; the last scale is decoded."""
        layout = self.layout
        steps = torch.empty_like(layout.positions).scatter_(
            1, layout.positions, layout.steps.expand_as(layout.positions)
        )
        codes = _by_scale(self.sequence.clone(), layout)
        entropy, probability = self.maps.clone()
        return Samples(
            images=self.model.decode(codes[-1]),
            codes=codes,
            entropy=_by_scale(entropy, layout),
            step=_by_scale(steps.expand(self.batch, -1), layout),
            probability=_by_scale(probability, layout),
        )

    def _place(self, order_uniforms: Tensor) -> None:
        """Lay out order and blocks; (B, L) numbers order the locations of models of random order."""
        model, drawing = self.model, self.drawing
        self.layout = model.layout(drawing.steps_per_scale, drawing.remainder, order_uniforms)
        rotary = model.rope(self.layout.positions, self.layout.prev_positions).packed()
        if self.guided and len(self.layout.positions) > 1:
            rotary = rotary.repeat(2)
        self.blocks, start = [], 0
        for lengths in self.layout.blocks:
            self.blocks.append([])
            for length in lengths:
                self.blocks[-1].append(self._block(slice(start, start + length), rotary))
                start += length

    def _block(self, tokens: slice, rotary: Rotary) -> Block:
        layout, first = self.layout, tokens.start == 0
        start, stop = 0 if first else 1 + tokens.start, 1 + tokens.stop
        mask = block_causal_mask(layout.steps[tokens]) if first else None
        if self.compiled:  # every step attends to the whole cache, so that blocks of one length share one graph
            so_far = (
                torch.ones(stop - start, stop, dtype=torch.bool, device=self.model.device) if mask is None else mask
            )
            mask = torch.nn.functional.pad(so_far, (0, 1 + self.model.num_locations - stop))
        return Block(
            tokens=tokens,
            positions=layout.positions[:, tokens].contiguous(),
            prev_positions=layout.prev_positions[:, tokens].contiguous(),
            rotary=rotary.slice(slice(start, stop)),
            mask=mask,
            start=torch.arange(start, stop, device=self.model.device) if self.compiled else start,
            first=first,
        )

    def _draw_waits(self, length: int) -> Tensor:
        """(B, length, V) for ``draw``."""
        uniforms = draw_uniforms(self.generators, length, len(self.codebook))
        if self.model.device.type == "cuda":  # copied while the device works on
            uniforms = uniforms.pin_memory()
        return waits_of(uniforms.to(self.model.device, non_blocking=True))

    def _setting(self, value: float, zero_is_special: bool = False) -> float | Tensor:
        """Compiled code takes numbers as tensors: another value is no other graph."""
        if not self.compiled or (zero_is_special and value == 0):
            return value
        return torch.full((), value, device=self.model.device)

    def _check_kept(
        self, keep: Sequence[Tensor] | None, keep_codes: Sequence[Tensor] | None
    ) -> tuple[Tensor, Tensor] | None:
        """(B, L) whether each location keeps its code, and those codes, by location."""
        if keep is None and keep_codes is None:
            return None
        shapes = [(self.batch, side, side) for side in self.model.scale_sizes]
        for name, maps in (("keep", keep), ("keep_codes", keep_codes)):
            if maps is None or [tuple(scale.shape) for scale in maps] != shapes:
                raise UserError(f"{name} must be a list of one map for each scale, of shapes {shapes}")
        kept, codes = (torch.cat([scale.flatten(1) for scale in maps], dim=1) for maps in (keep, keep_codes))
        num_codes = len(self.codebook)
        if codes.min() < 0 or codes.max() >= num_codes:
            raise UserError(f"keep_codes must lie between 0 and {num_codes - 1}")
        return kept.bool().to(self.model.device), codes.long().to(self.model.device)


def draw_block(
    run: Sampler, block: Block, inputs: Tensor, waits: Tensor, cfg: float | Tensor, temperature: float | Tensor
) -> None:
    """One step: draw a block's codes into the buffers of ``run``. Free of Python randomness and of syncs.

    Args:
        run: whose earlier blocks are drawn.
        block: the block.
        inputs: (B, l, D) the part of its inputs that its scale determines.
        waits: (B, l, V) random numbers.
        cfg: guidance of this step.
        temperature: of this step.
    """
    model, length = run.model, inputs.shape[1]
    x = inputs + model.content_inputs(run.sequence, block.prev_positions, run.codebook)
    x = x.repeat(2, 1, 1) if run.guided else x
    x = torch.cat([run.class_embedding.unsqueeze(1), x], dim=1) if block.first else x
    x = model.transformer(x, run.modulations, block.rotary, block.mask, run.cache, block.start)
    logits = model.logits(x[:, -length:], *run.head)
    if run.guided:
        unguided = isinstance(cfg, float) and cfg == 0
        logits = logits.chunk(2)[0] if unguided else guide(logits, cfg)
    codes, probability, entropy = draw(logits, waits, temperature, run.drawing.top_k, run.drawing.top_p)
    locations = block.positions.expand(codes.shape)
    if run.kept is not None:
        kept, kept_codes = (values.gather(1, locations) for values in run.kept)
        codes = torch.where(kept, kept_codes, codes)
        probability = probability.masked_fill(kept, math.nan)
    run.sequence.scatter_(1, locations, codes)
    run.maps.scatter_(2, locations.expand(2, -1, -1), torch.stack([entropy, probability]))


@lru_cache
def compiled_step(device_type: str) -> Callable[..., None]:
    """``draw_block`` as one graph for each shape."""
    torch._dynamo.config.recompile_limit = max(MAX_COMPILED_SHAPES, torch._dynamo.config.recompile_limit)
    mode = "reduce-overhead" if device_type == "cuda" else None
    return torch.compile(draw_block, fullgraph=True, dynamic=False, mode=mode)


def _by_scale(values: Tensor, layout: Layout) -> list[Tensor]:
    """(B, L) by location -> a (B, S, S) map for each scale."""
    slices = zip(layout.scale_sizes, layout.scale_slices(), strict=True)
    return [values[:, locations].unflatten(1, (side, side)) for side, locations in slices]
