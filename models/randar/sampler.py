"""Sampling of several codes a step, in any order, with keys and values of all codes so far (formats.md R5, R6).

Letters: B images, R rows of a batch (2B if guided: conditional, then unconditional), L locations, n codes of a step,
n' codes that are known since the step before, T tokens of a call, D width, V codes to choose from.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from models.compiled import compiled_step
from models.config import at_scale
from models.draw import draw, guide
from models.randar.config import RandARDrawing
from models.randar.sequence import checked_order, interleave, rotation_at
from models.sampler import Sampler, Setting
from models.scales import raster_order
from models.transformer import KVCache, Start, float32_logits

if TYPE_CHECKING:
    from models.randar.model import RandAR


@dataclass(frozen=True)
class Step:
    """Where a step stands in the order drawn."""

    number: int  # within this sequence, from 0; the sampler adds ``first_step``
    known: slice  # of the L locations: those whose codes are fed now, drawn by the step before or kept
    drawn: slice  # those that are drawn

    @property
    def first(self) -> bool:
        """Whether the class token is fed."""
        return self.number == 0


class RandARSampler(Sampler):
    """Feeds the codes of the last step in their places, then the instructions of the next ones.

    A step's own instructions lie for the time being right behind one another; the next step overwrites all but the
    first. ``compiled`` compiles a step for each pair of lengths.
    """

    @torch.inference_mode()
    def __init__(self, model: "RandAR", batch: int, drawing: RandARDrawing, compiled: bool = False) -> None:
        super().__init__(model, batch, drawing, compiled)
        self.row_sets = 1 + len(self.strengths())
        self.num_tokens = 2 * self.num_locations  # the last code is never fed
        self.kv_cache = KVCache.zeros(
            model.config.llama_config, batch * self.row_sets, self.num_tokens, like=model.output.weight
        )
        self.table = self.rotation_table()
        self.instructions = model.instructions_everywhere(self.table)  # (L, D)
        self.head = model.output.weight.float()
        self.places = torch.arange(self.num_tokens, device=model.device)
        self.step_map = torch.zeros_like(self.sequence)
        self.first_step = 0  # number of the first step, where others came before
        self.order = raster_order(batch, self.num_locations, model.device).clone()  # (B, L)
        self.draw_codes = compiled_step(draw_codes, model.device.type) if compiled else draw_codes
        self.stay_in_place(self.step_map, self.order)

    def strengths(self) -> tuple[float, ...]:
        """How far each further row set guides, once all is drawn."""
        return (at_scale(self.drawing.cfg, 0),) if self.guided else ()

    def rotation_table(self) -> tuple[Tensor, Tensor]:
        return self.model.rotation_table()

    def draw(self, labels: Tensor, seeds: Tensor) -> Iterator[int]:
        self.check_given_order()
        if self.kept is not None and len(set(self.kept[0].sum(1).tolist())) > 1:
            yield from self._draw_apart(labels, seeds)
            return
        yield from self.draw_all(labels, seeds)

    def check_given_order(self) -> None:
        if self.given_order is not None:
            self.given_order = checked_order(self.given_order, self.batch, self.num_locations, self.model.device)

    def draw_all(self, labels: Tensor, seeds: Tensor) -> Iterator[int]:
        """Draw all locations that are not kept, yielding step numbers."""
        num_kept = self._lay_out(seeds)
        counts = self.drawing.schedule(self.num_locations - num_kept)
        yield from self.draw_after(num_kept, counts, labels, seeds)

    def draw_after(self, num_known: int, counts: Sequence[int], labels: Tensor, seeds: Tensor) -> Iterator[int]:
        """Draw all locations but the first ``num_known`` of the order, ``counts`` of them a step.

        The codes of the first ones are there.
        """
        drawing = self.drawing
        self.class_tokens = self.model.embed_labels(self.row_labels(labels))  # (R, D)
        temperature = self.setting(at_scale(drawing.temperature, 0), zero_is_special=True)
        noise = self.code_noise(seeds, self.order)
        numbers = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.long))
        numbers = (self.first_step + numbers).to(self.order.device).expand(self.batch, -1)
        self.step_map.scatter_(1, self.order[:, num_known:], numbers)
        known = slice(0, num_known)
        for number, count in enumerate(counts):
            step = Step(number, known, slice(known.stop, known.stop + count))
            share = known.stop / self.num_locations if drawing.cfg_schedule == "linear" else 1.0
            strengths = tuple(self.setting(share * strength) for strength in self.strengths())
            self.draw_codes(self, *self.fed(step), noise[:, step.drawn], strengths, temperature)
            known = step.drawn
            yield self.first_step + number

    def fed(self, step: Step) -> tuple[Tensor, Tensor, Start, bool]:
        """Locations (B, n') of known codes, locations (B, n) to draw, slots of the tokens, and if the class is fed.

        The sequence is c q_1 x_1 q_2 x_2 ..: c has slot 0, the i-th location, from 0, has q at 2i + 1 and x at 2i + 2.
        The first known location's q is in the cache since the step before, in its slot, so that the tokens start at its
        x. The n new q's take the slots right behind; only the first of them is where it belongs. The next step feeds
        the others again, in their own slots.
        """
        num_known, num_drawn = (part.stop - part.start for part in (step.known, step.drawn))
        start = 0 if step.first else 2 * step.known.start + 2
        length = 2 * num_known + num_drawn + (1 if step.first else -1)
        slots = self.places[start : start + length].clone() if self.compiled else start
        return self.order[:, step.known].contiguous(), self.order[:, step.drawn].contiguous(), slots, step.first

    def embed_codes(self, locations: Tensor) -> Tensor:
        """(R, n', D) inputs of the codes that lie at locations (B, n')."""
        return self.model.tok_embeddings(self.sequence.gather(1, locations)).repeat(self.row_sets, 1, 1)

    def guide(self, logits: Tensor, strengths: Sequence[Setting]) -> Tensor:
        """(B, n, V) logits of all rows (R, n, V), by as many ``strengths`` as there are further row sets."""
        return guide(logits, *strengths) if strengths else logits

    def step_of_location(self) -> Tensor:
        return self.step_map

    def _lay_out(self, seeds: Tensor) -> int:
        """Fix the order, kept locations first; return how many those are.

        In raster order kept locations stay in their places: a model of that order knows no other.
        """
        raster = self.model.scan_order(self.drawing) == "raster" and self.given_order is None
        if raster:
            order = raster_order(self.batch, self.num_locations, seeds.device)
        else:
            order = self.order_uniforms(seeds).argsort(dim=1) if self.given_order is None else self.given_order
        self.order.copy_(order)
        self.step_map.zero_()
        if self.kept is None or raster:
            return 0
        kept, codes = self.kept
        last = (~kept.gather(1, self.order)).long()
        self.order.copy_(self.order.gather(1, last.argsort(dim=1, stable=True)))
        self.sequence.copy_(codes)
        self.entropy.zero_()
        self.probability.fill_(math.nan)
        return int(kept[0].sum())

    def _draw_apart(self, labels: Tensor, seeds: Tensor) -> Iterator[int]:
        """Draw images that keep as many locations together, for steps of a batch are of one length."""
        num_kept, steps = self.kept[0].sum(1), itertools.count()
        self.step_map.fill_(self.num_locations)  # later than all steps: nothing is drawn yet
        for number in num_kept.unique():
            rows = (num_kept == number).nonzero()[:, 0]
            part = type(self)(self.model, len(rows), self.drawing, self.compiled)
            part.kept = tuple(values[rows] for values in self.kept)
            part.given_order = None if self.given_order is None else self.given_order[rows]
            for _ in part.draw(labels[rows], seeds[rows]):
                yield next(steps)
            self.sequence[rows], self.step_map[rows] = part.sequence, part.step_map
            self.maps[:, rows] = part.maps


def draw_codes(
    sampler: RandARSampler,
    known: Tensor,
    drawn: Tensor,
    start: Start,
    first: bool,
    noise: Tensor,
    strengths: Sequence[Setting],
    temperature: Setting,
) -> None:
    """One step: draw the codes of locations ``drawn`` (B, n) into the buffers of ``sampler``. Without syncs.

    ``known`` (B, n') are the locations whose codes are fed, ``start`` and ``first`` as of ``fed``, ``noise`` of
    ``drawn`` is for ``draw``, ``strengths`` for the guidance of this step.
    """
    model, sets = sampler.model, sampler.row_sets
    instructions = [F.embedding(locations, sampler.instructions).repeat(sets, 1, 1) for locations in (known, drawn)]
    before = interleave(instructions[0], sampler.embed_codes(known))  # (R, 2n', D)
    places = interleave(1 + known, 1 + known)
    if first:
        before = torch.cat([sampler.class_tokens.unsqueeze(1), before], dim=1)
        places = F.pad(places, (1, 0))
    else:  # the instruction of the first known code is in the cache already, in its own place
        before, places = before[:, 1:], places[:, 1:]
    x = torch.cat([before, instructions[1]], dim=1)  # (R, T, D)
    places = torch.cat([places, 1 + drawn], dim=1).repeat(sets, 1)
    slots = sampler.places[start : start + x.shape[1]] if isinstance(start, int) else start
    so_far = sampler.places[: start + x.shape[1]] if isinstance(start, int) else sampler.places
    mask = so_far <= slots[:, None]
    x = model.transform(x, rotation_at(sampler.table, places), mask, sampler.kv_cache, start)
    logits = sampler.guide(float32_logits(x[:, -drawn.shape[1] :], sampler.head), strengths)
    sampler.store(drawn, *draw(logits, noise, temperature, sampler.drawing.top_k, sampler.drawing.top_p))
