"""Sampling: staged guidance, block by block, scale by scale (paper Sec. 3.1, 4.1; method.md Sec. 6).

Letters: B images, l tokens of a block, L of all scales, V codes, S side of a scale. Nothing here knows files or ranks.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.checkerboard import Checkerboard
from models.errors import UserError
from models.scan_order import Layout, Remainder, block_causal_mask, sampling_blocks
from models.transformer import KVCache

MIN_TEMPERATURE = 1e-4  # below it, logits divided by it overflow


@dataclass(frozen=True)
class Samples:
    """What ``sample`` drew. Lists run over scales, small ones first; maps are in raster order.

    Attributes:
        images: (B, 3, H, W) of the last scale, unclamped floats, about [-1, 1].
        codes: (B, S, S) drawn codes.
        entropy: (B, S, S) nats of the distribution each code was drawn from.
        step: (B, S, S) the step, counted over all scales from 0, that drew each location.
        probability: (B, S, S) of the drawn code in that distribution.
    """

    images: Tensor
    codes: list[Tensor]
    entropy: list[Tensor]
    step: list[Tensor]
    probability: list[Tensor]


def guide(logits: Tensor, cfg: float) -> Tensor:
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
    logits: Tensor, uniforms: Tensor, temperature: float, top_k: int, top_p: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One code a token by inverse CDF, its probability and the entropy of its distribution, each (B, l).

    Args:
        logits: (B, l, V) after guidance, float32.
        uniforms: (B, l) in [0, 1), one number a token.
        temperature: divides the logits; 0 takes the likeliest code, with entropy 0 and probability 1.
        top_k: codes kept; 0 keeps all.
        top_p: probability mass kept; 1 keeps all.
    """
    if temperature == 0:
        codes = logits.argmax(-1)
        return codes, torch.ones_like(uniforms), torch.zeros_like(uniforms)
    probs = truncate(logits / temperature, top_k, top_p).softmax(-1)
    cdf = probs.cumsum(-1)
    # The factor keeps the threshold below the last sum, so that a code of probability 0 is never reached.
    threshold = uniforms.unsqueeze(-1) * (1 - 2.0**-22) * cdf[..., -1:]
    codes = torch.searchsorted(cdf, threshold, right=True)  # (B, l, 1)
    return codes.squeeze(-1), probs.gather(-1, codes).squeeze(-1), torch.special.entr(probs).sum(-1)


def draw_uniforms(seeds: Sequence[int], *shape: int) -> Tensor:
    """(B, *shape) in [0, 1): each image's own, so that no image depends on its batch."""
    return torch.stack([torch.rand(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@torch.inference_mode()
def sample(
    model: Checkerboard,
    labels: Tensor | Sequence[int],
    steps_per_scale: int = 4,
    cfg: float = 1.5,
    cfg_start_step: int = 5,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seeds: Sequence[int] | None = None,
    remainder: Remainder = "separate",
) -> Samples:
    """Draw one image a label.

    Args:
        model: in eval mode or not; nothing is dropped here.
        labels: (B,) class indices; ``num_classes`` is unconditional.
        steps_per_scale: blocks that each scale is drawn in; 4 at ratio 2 and 8 at ratio 4 make 17 steps.
        cfg: guidance, ``cond + cfg * (cond - uncond)``; 0 is off and runs no unconditional half.
        cfg_start_step: first step, counted over all scales from 0, that is guided.
        temperature: divides the logits; 0 takes the likeliest code.
        top_k: codes kept at each draw; 0 keeps all.
        top_p: probability mass kept at each draw; 1 keeps all.
        seeds: one an image; without them they are drawn from torch's global generator.
        remainder: locations left over by equal blocks are a step of their own (``separate``, as published) or are
            drawn with the last full block (``fold``).

    Raises:
        UserError: a label or setting is out of range.
    """
    labels = torch.as_tensor(labels)
    check_settings(model, labels, steps_per_scale, cfg, cfg_start_step, temperature, top_k, top_p)
    if seeds is not None and len(seeds) != len(labels):
        raise UserError(f"{len(seeds)} seeds for {len(labels)} labels; give one an image")
    if cfg and not model.config.class_cond:
        warnings.warn("cfg has no effect on an unconditional model", stacklevel=3)
    seeds = torch.randint(2**62, (len(labels),)).tolist() if seeds is None else [int(seed) for seed in seeds]
    uniforms, order_uniforms = draw_uniforms(seeds, 2, model.num_locations).to(model.device).unbind(1)  # (B, L) each
    layout = model.layout(steps_per_scale, remainder, order_uniforms)
    run = _BlockRun(model, labels.long().to(model.device), layout, guided=cfg != 0 and model.config.class_cond)
    maps = torch.empty(2, len(labels), model.num_locations, device=model.device)  # entropy, probability; by location
    step, start = 0, 0
    for scale, lengths in enumerate(layout.blocks):
        run.begin_scale(scale)
        for length in lengths:
            tokens = slice(start, start + length)
            logits = run.block_logits(tokens)
            if run.guided:
                logits = guide(logits, cfg) if step >= cfg_start_step else logits.chunk(2)[0]
            codes, probability, entropy = draw(logits, uniforms[:, tokens], temperature, top_k, top_p)
            locations = layout.positions[:, tokens].expand_as(codes)
            run.sequence.scatter_(1, locations, codes)
            maps.scatter_(2, locations.expand(2, -1, -1), torch.stack([entropy, probability]))
            step, start = step + 1, start + length
    steps = torch.empty_like(layout.positions).scatter_(1, layout.positions, layout.steps.expand_as(layout.positions))
    codes = _by_scale(run.sequence, layout)
    return Samples(
        images=model.decode(codes[-1]),
        codes=codes,
        entropy=_by_scale(maps[0], layout),
        step=_by_scale(steps.expand(len(labels), -1), layout),
        probability=_by_scale(maps[1], layout),
    )


class _BlockRun:
    """The state of drawing one batch: codes so far, cache, and what depends on label, order or scale alone."""

    def __init__(self, model: Checkerboard, labels: Tensor, layout: Layout, guided: bool) -> None:
        self.model, self.layout, self.guided = model, layout, guided
        self.sequence = labels.new_zeros(len(labels), model.num_locations)  # (B, L) by location
        self.first_scale_token = 0
        if guided:
            labels = torch.cat([labels, torch.full_like(labels, model.unconditional_label)])
        self.class_embedding = model.embed_labels(labels)  # (B or 2B, D)
        self.modulations = model.transformer.modulations(self.class_embedding)
        self.rotary = model.rope(layout.positions, layout.prev_positions)
        if guided and len(layout.positions) > 1:
            self.rotary = self.rotary.repeat(2)
        self.head = model.head_parameters()
        max_tokens = 1 + model.num_locations
        self.cache = KVCache(model.config.llama_config, len(labels), max_tokens, like=self.class_embedding)

    def begin_scale(self, scale: int) -> None:
        """Compute what the scale's inputs take from the scale before."""
        tokens = self.layout.scale_slices()[scale]
        self.first_scale_token = tokens.start
        sources = self.model.source_latents(self.sequence, scale)
        self.scale_inputs = self.model.location_inputs(self.layout, tokens, sources)

    def block_logits(self, tokens: slice) -> Tensor:
        """(B or 2B, l, V) logits of one block, whose earlier blocks are drawn."""
        in_scale = slice(tokens.start - self.first_scale_token, tokens.stop - self.first_scale_token)
        x = self.scale_inputs[:, in_scale]
        x = x + self.model.content_inputs(self.sequence, self.layout.prev_positions[:, tokens])
        x = x.repeat(2, 1, 1) if self.guided else x
        mask, start = None, 1 + tokens.start
        if tokens.start == 0:  # the class token rides with the first block
            x = torch.cat([self.class_embedding.unsqueeze(1), x], dim=1)
            mask, start = block_causal_mask(self.layout.steps[tokens]), 0
        rotary = self.rotary.slice(slice(start, 1 + tokens.stop))
        x = self.model.transformer(x, self.modulations, rotary, mask, self.cache, start)
        return self.model.logits(x[:, -(tokens.stop - tokens.start) :], *self.head)


def _by_scale(values: Tensor, layout: Layout) -> list[Tensor]:
    """(B, L) by location -> a (B, S, S) map for each scale."""
    slices = zip(layout.scale_sizes, layout.scale_slices(), strict=True)
    return [values[:, locations].unflatten(1, (side, side)) for side, locations in slices]


def check_settings(
    model: Checkerboard,
    labels: Tensor,
    steps_per_scale: int,
    cfg: float,
    cfg_start_step: int,
    temperature: float,
    top_k: int,
    top_p: float,
) -> None:
    """Refuse labels (B,) and settings of ``sample`` that make no sense, before anything is spent on them."""
    sampling_blocks(model.scale_sizes, steps_per_scale)
    num_classes = model.config.num_classes
    if labels.ndim != 1 or len(labels) == 0 or labels.is_floating_point():
        raise UserError(f"labels have shape {tuple(labels.shape)} and type {labels.dtype}; give one index an image")
    wrong = labels[(labels < 0) | (labels > num_classes)]
    if len(wrong):
        raise UserError(f"label {wrong[0].item()} is out of range; this model has classes 0 to {num_classes - 1}")
    if not (temperature == 0 or MIN_TEMPERATURE <= temperature < math.inf):
        raise UserError(f"temperature is {temperature}; it must be 0 (likeliest code), or {MIN_TEMPERATURE} or more")
    if not math.isfinite(cfg):
        raise UserError(f"cfg is {cfg}; it must be a finite number, 0 for no guidance")
    if top_k < 0:
        raise UserError(f"top_k is {top_k}; it must be 0 (keep all) or more")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p is {top_p}; it must be above 0 and at most 1 (keep all)")
    if cfg_start_step < 0:
        raise UserError(f"cfg_start_step is {cfg_start_step}; steps count from 0")
