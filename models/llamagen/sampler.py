"""Sampling code by code, in raster order, with keys and values of all codes so far (formats.md G6).

Letters: B images, R rows of a batch (2B if guided: conditional, then unconditional), N codes of an image, V codes to
choose from, D width, d dimension of a head.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.compiled import compiled_step
from models.config import at_scale
from models.draw import draw, guide
from models.llamagen.config import LlamaGenDrawing
from models.llamagen.patches import pair_rotation
from models.sampler import Sampler, Setting
from models.transformer import KVCache, SameRotation, Start, float32_logits

if TYPE_CHECKING:
    from models.llamagen.model import LlamaGen


class LlamaGenSampler(Sampler):
    """Draws one code a step. The last code is never fed, so that N tokens have keys and values.

    ``compiled`` compiles a step: one graph for all of them, on CUDA a CUDA graph.
    """

    @torch.inference_mode()
    def __init__(self, model: "LlamaGen", batch: int, drawing: LlamaGenDrawing, compiled: bool = False) -> None:
        super().__init__(model, batch, drawing, compiled)
        size, N = model.config.llama_config, model.num_locations
        rows = batch * self.row_sets
        self.kv_cache = KVCache.zeros(size, rows, N, like=model.output.weight)
        self.inputs = model.output.weight.new_zeros(rows, 1, size.hidden_size)  # (R, 1, D) of the next step
        self.cos, self.sin = (part[:N] for part in pair_rotation(model.scale_sizes[0], size.head_dim, model.device))
        self.head = model.output.weight.float()
        self.tokens = torch.arange(N, device=model.device)
        self.draw_code = compiled_step(draw_code, model.device.type) if compiled else draw_code
        self.stay_in_place(self.inputs)

    def draw(self, labels: Tensor, seeds: Tensor) -> Iterator[int]:
        model, drawing = self.model, self.drawing
        self.inputs.copy_(model.embed_labels(self.row_labels(labels)).unsqueeze(1))
        noise = self.code_noise(seeds, self.tokens[None])
        temperature = self.setting(at_scale(drawing.temperature, 0), zero_is_special=True)
        for step in range(model.num_locations):
            cfg = self.setting(at_scale(drawing.cfg, 0) if drawing.guides(step) else 0.0)
            start = self.tokens[step : step + 1].clone() if self.compiled else step
            self.draw_code(self, start, noise[:, step, None], cfg, temperature)
            yield step

    def step_of_location(self) -> Tensor:
        return self.tokens[None]


def draw_code(sampler: LlamaGenSampler, start: Start, noise: Tensor, cfg: Setting, temperature: Setting) -> None:
    """One step: draw the code of token ``start`` into the buffers of ``sampler``, and make the input of the next.

    ``start`` is a number, or (1,) where it is compiled. ``noise`` (B, 1, n) is for ``draw``. Without syncs.
    """
    model = sampler.model
    unguided = not sampler.guided or (isinstance(cfg, float) and cfg == 0)
    rows = sampler.batch if unguided else len(sampler.inputs)
    if isinstance(start, int):
        mask, place = None, slice(start, start + 1)
    else:
        mask, place = sampler.tokens[None] <= start, start
    rotation = SameRotation((sampler.cos[place], sampler.sin[place]))
    x = model.transform(sampler.inputs[:rows], rotation, mask, sampler.kv_cache.first(rows), start)
    logits = float32_logits(x, sampler.head)  # (R, 1, V)
    logits = logits if unguided else guide(logits, cfg)
    found = draw(logits, noise, temperature, sampler.drawing.top_k, sampler.drawing.top_p)
    codes = sampler.store(sampler.tokens[place].expand(sampler.batch, 1), *found)
    sampler.inputs.copy_(model.tok_embeddings(codes).repeat(sampler.row_sets, 1, 1))
