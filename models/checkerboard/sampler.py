"""Sampling: staged guidance, block by block, scale by scale (paper Sec. 3.1, 4.1; formats.md M6).

Letters: B images, R rows of a batch (2B if guided: conditional, then unconditional), l tokens of a block, T tokens of a
call (the class token rides with the first block), L of all scales, V codes, S side of a scale.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.checkerboard.config import CheckerboardDrawing
from models.checkerboard.layout import Layout, block_causal_mask
from models.checkerboard.rope import Rotary
from models.compiled import compiled_step
from models.config import at_scale
from models.draw import draw, guide
from models.sampler import Sampler, Setting
from models.scales import scale_slices
from models.transformer import KVCache

if TYPE_CHECKING:
    from models.checkerboard.model import Checkerboard


@dataclass(frozen=True)
class Block:
    """What a step needs to know of the tokens it draws; the same for every batch."""

    tokens: slice  # of the L tokens
    positions: Tensor  # (b, l) their locations
    prev_positions: Tensor  # (b, l) the locations whose codes they are told of
    rotary: Rotary  # of the T tokens
    mask: Tensor | None  # (T, tokens so far) where attention is allowed, None for everywhere; compiled, (T, 1 + L)
    start: int | Tensor  # index of the first of the T tokens; compiled, (T,) indices of all
    first: bool  # whether the class token is among them


class CheckerboardSampler(Sampler):
    """Computes once what does not depend on the batch: buffers, blocks, rotations, head.

    ``compiled`` compiles a step for each block length: static shapes, one graph, CUDA graphs on CUDA.
    """

    @torch.inference_mode()
    def __init__(self, model: "Checkerboard", batch: int, drawing: CheckerboardDrawing, compiled: bool = False) -> None:
        super().__init__(model, batch, drawing, compiled)
        rows, num_tokens = batch * self.row_sets, 1 + model.num_locations
        self.kv_cache = KVCache.zeros(model.config.llama_config, rows, num_tokens, like=model.lm_head.weight)
        self.codebook, self.head = model.codebook(), model.head_parameters()
        self.layout: Layout | None = None
        self.draw_block = compiled_step(draw_block, model.device.type) if compiled else draw_block
        self.stay_in_place()

    def draw(self, labels: Tensor, seeds: Tensor) -> Iterator[int]:
        self._begin(labels, seeds)
        first_step = 0
        for scale, blocks in enumerate(self.blocks):
            yield from self._draw_scale(scale, first_step)
            first_step += len(blocks)

    def step_of_location(self) -> Tensor:
        return self.layout.step_of_location()

    def _begin(self, labels: Tensor, seeds: Tensor) -> None:
        """Compute what depends on labels and seeds alone."""
        model = self.model
        random_order = model.config.scan_order == "random"
        if self.layout is None or random_order:
            self._place(self.order_uniforms(seeds) if random_order else None)
        self.noise = self.code_noise(seeds, self.layout.positions)
        self.class_embedding = model.embed_labels(self.row_labels(labels))  # (R, D)
        self.modulations = model.transformer.modulations(self.class_embedding)

    def _draw_scale(self, scale: int, first_step: int) -> Iterator[int]:
        """Draw the blocks of one scale, yielding each step's number; those before it are drawn."""
        model, drawing = self.model, self.drawing
        tokens = scale_slices(model.scale_sizes)[scale]
        inputs = model.location_inputs(self.layout, tokens, model.source_latents(self.sequence, scale, self.codebook))
        temperature = self.setting(at_scale(drawing.temperature, scale), zero_is_special=True)
        for step, block in enumerate(self.blocks[scale], start=first_step):
            cfg = at_scale(drawing.cfg, scale) if step >= drawing.cfg_start_step else 0.0
            in_scale = slice(block.tokens.start - tokens.start, block.tokens.stop - tokens.start)
            noise = self.noise[:, block.tokens]
            self.draw_block(self, block, inputs[:, in_scale], noise, self.setting(cfg), temperature)
            yield step

    def _place(self, order_uniforms: Tensor | None) -> None:
        """Lay out order and blocks; (B, L) numbers order the locations of models of random order."""
        model = self.model
        self.layout = model.layout(self.drawing.blocks(model.scale_sizes), order_uniforms)
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
            if mask is None:
                mask = torch.ones(stop - start, stop, dtype=torch.bool, device=self.model.device)
            mask = torch.nn.functional.pad(mask, (0, 1 + self.model.num_locations - stop))
        return Block(
            tokens=tokens,
            positions=layout.positions[:, tokens].contiguous(),
            prev_positions=layout.prev_positions[:, tokens].contiguous(),
            rotary=rotary.slice(slice(start, stop)),
            mask=mask,
            start=torch.arange(start, stop, device=self.model.device) if self.compiled else start,
            first=first,
        )


def draw_block(
    sampler: CheckerboardSampler, block: Block, inputs: Tensor, noise: Tensor, cfg: Setting, temperature: Setting
) -> None:
    """One step: draw a block's codes into the buffers of ``sampler``. Free of Python randomness and of syncs.

    ``inputs`` (B, l, D) is the part of its inputs that its scale determines; ``noise`` (B, l, n) is for ``draw``.
    """
    model, length = sampler.model, inputs.shape[1]
    x = inputs + model.content_inputs(sampler.sequence, block.prev_positions, sampler.codebook)
    x = x.repeat(2, 1, 1) if sampler.guided else x
    x = torch.cat([sampler.class_embedding.unsqueeze(1), x], dim=1) if block.first else x
    x = model.transformer(x, sampler.modulations, block.rotary, block.mask, sampler.kv_cache, block.start)
    logits = model.logits(x[:, -length:], *sampler.head)
    if sampler.guided:
        unguided = isinstance(cfg, float) and cfg == 0
        logits = logits.chunk(2)[0] if unguided else guide(logits, cfg)
    codes, probability, entropy = draw(logits, noise, temperature, sampler.drawing.top_k, sampler.drawing.top_p)
    sampler.store(block.positions.expand(codes.shape), codes, probability, entropy)
