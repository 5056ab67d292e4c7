"""Images of twice the side that a model was trained on (RandAR Sec. 4; formats.md R6).

The codes of even rows and columns are a normal image, drawn first; the others follow, each between its neighbours.
Letters: B images, S side of the model's grid, L = S * S, 4L locations drawn, n codes, D width, d dimension of a head.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.config import at_scale
from models.llamagen.patches import axis_frequencies, rotation_of_angles, signed_pairs
from models.randar.config import RandARDrawing
from models.randar.sampler import RandARSampler
from models.sampler import Maps, Setting
from models.transformer import CosSin
from runtime.errors import UserError

if TYPE_CHECKING:
    from models.randar.model import RandAR

KEPT_FREQUENCIES = 2  # the highest ones of an axis turn as they do on the model's own grid


def extrapolated_rotation(side: int, head_dim: int, device: torch.device) -> Tensor:
    """(1 + 4 S * S, d / 2, 2) cosine and sine of a grid of side 2S: low frequencies turn no further than on S."""
    frequencies = axis_frequencies(head_dim, device)  # (d / 4,)
    slowed = torch.arange(len(frequencies), device=device) >= KEPT_FREQUENCIES
    frequencies = torch.where(slowed, frequencies * ((side - 1) / (2 * side - 1)), frequencies)
    return rotation_of_angles(torch.outer(torch.arange(2 * side, device=device), frequencies))


class UpscaleSampler(RandARSampler):
    """Draws the even locations by a sampler of the model's own size, then the others after them in one sequence."""

    @torch.inference_mode()
    def __init__(self, model: "RandAR", batch: int, drawing: RandARDrawing, compiled: bool = False) -> None:
        self.small = RandARSampler(model, batch, drawing.first_stage(), compiled)
        super().__init__(model, batch, drawing, compiled)
        self.side = self.scale_sizes[0]  # 2S
        self.first_location = self.small.num_locations  # so that their noise is not that of the small image
        at = torch.arange(self.num_locations, device=model.device)
        self.even = (at // self.side % 2 == 0) & (at % self.side % 2 == 0)  # (4L,)
        self.lacking = torch.zeros_like(self.sequence, dtype=torch.bool)  # (B, 4L) codes the last row set is not told
        self.stay_in_place(self.lacking)

    def strengths(self) -> tuple[float, ...]:
        drawing = self.drawing
        return (at_scale(drawing.cfg, 0), drawing.spatial_cfg) if drawing.spatial_cfg else super().strengths()

    def cache(self) -> list[Tensor]:
        return [*super().cache(), *self.small.cache()]

    def rotation_table(self) -> CosSin:
        model = self.model
        with torch.inference_mode(False):
            return signed_pairs(
                extrapolated_rotation(model.scale_sizes[0], model.config.llama_config.head_dim, model.device)
            )

    def _check_kept(self, keep: Maps, keep_codes: Maps) -> None:
        self.model.check_drawing(self.drawing, keeps=keep is not None or keep_codes is not None)

    def draw(self, labels: Tensor, seeds: Tensor) -> Iterator[int]:
        self.check_given_order()
        self.small.kept, self.small.given_order, self.first_step = None, self._small_order(), 0
        self.step_map.fill_(-1)  # nothing is placed yet
        yield from self.small.draw_all(labels, seeds)
        L = self.num_locations // 4
        self._place_small(seeds)
        counts = self.drawing.schedule(self.num_locations, num_known=L)
        self.first_step = self.model.num_steps(self.drawing.first_stage())
        yield from self.draw_after(L, counts, labels, seeds)

    def _small_order(self) -> Tensor | None:
        """(B, L) the given order of the even locations, as locations of the model's own grid."""
        if self.given_order is None:
            return None
        first = self.given_order[:, : self.num_locations // 4]
        if not self.even[first].all():
            raise UserError("the order of upscale 2 must begin with all locations of even row and column")
        return first // self.side // 2 * (self.side // 2) + first % self.side // 2

    def _place_small(self, seeds: Tensor) -> None:
        """Put what was drawn small into its places, and fix the order of the rest."""
        L, small = self.num_locations // 4, self.small
        uniforms = self.order_uniforms(seeds)
        half = self.side // 2
        even = 2 * (small.order // half * self.side + small.order % half)  # (B, L)
        # Uniforms lie below 1: with 2 added, even locations come behind all others.
        others = (uniforms + 2 * self.even).argsort(dim=1)[:, : 3 * L]
        self.order.copy_(torch.cat([even, others], dim=1) if self.given_order is None else self.given_order)
        self.sequence.scatter_(1, even, small.sequence.gather(1, small.order))
        self.step_map.scatter_(1, even, small.step_map.gather(1, small.order))
        order = small.order.expand(2, -1, -1)
        self.maps.scatter_(2, even.expand(2, -1, -1), small.maps.gather(2, order))
        ranked = (uniforms + 2 * ~self.even).argsort(dim=1)[:, : int(self.drawing.spatial_ratio * L)]
        self.lacking.zero_().scatter_(1, ranked, True)

    def embed_codes(self, locations: Tensor) -> Tensor:
        x = super().embed_codes(locations)
        if self.row_sets == 3:
            x[-self.batch :].masked_fill_(self.lacking.gather(1, locations).unsqueeze(-1), 0)
        return x

    def guide(self, logits: Tensor, strengths: Sequence[Setting]) -> Tensor:
        """``cond + cfg (cond - uncond) + spatial_cfg (uncond - lacking)``, which is the published sum in offsets."""
        if self.row_sets < 3:
            return super().guide(logits, strengths)
        cond, uncond, lacking = logits.chunk(3)
        cfg, spatial = strengths
        return cond + cfg * (cond - uncond) + spatial * (uncond - lacking)
