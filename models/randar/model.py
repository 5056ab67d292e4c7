"""RandAR: LlamaGen's GPT over codes in any order, each after a token that tells its location (formats.md R2, R4).

Letters: B batch, S side of the grid of codes, L = S * S locations, l of some of them, T tokens, D width, h heads,
d dimension of a head, V codes. A sequence is c q_1 x_1 q_2 x_2 .. q_L x_L: the class, then for each location, in the
order drawn, its instruction q and its code x. The output at q_i predicts the code of x_i.
"""

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.autoencoder import Autoencoder, to_uint8
from models.family import Loss, StepContext
from models.llamagen.model import INIT_STD, LlamaGen, seeded
from models.llamagen.patches import pair_rotation, rotate_pairs
from models.randar.config import RandARConfig, RandARDrawing
from models.randar.sampler import RandARSampler
from models.randar.sequence import checked_order, interleave, rotation_at
from models.randar.upscale import UpscaleSampler
from models.sampler import Sampler
from models.scales import raster_order
from models.transformer import CosSin, as_dtype
from runtime.errors import UserError


class RandAR(LlamaGen):
    """LlamaGen's GPT and one learned vector, from which the instructions of all locations are made by rotation."""

    Config, Drawing = RandARConfig, RandARDrawing
    learns_patches, takes_order = False, True

    def __init__(self, config: RandARConfig, autoencoder: Autoencoder | None = None) -> None:
        super().__init__(config, autoencoder)
        self.pos_instruct_embeddings = nn.Parameter(torch.empty(1, config.llama_config.hidden_size))
        nn.init.normal_(self.pos_instruct_embeddings, std=INIT_STD)

    @property
    def permutes_codes(self) -> bool:
        return self.config.scan_order == "random"

    @classmethod
    def from_state(cls, config: RandARConfig, autoencoder: Autoencoder | None, state: dict[str, Tensor]) -> Self:
        return cls(config, autoencoder)  # every table has the unconditional row, which LlamaGen's may lack

    def training_loss(self, codes: Sequence[Tensor], labels: Tensor, context: StepContext) -> Loss:
        labels = self.drop_labels(labels, context.rank_rng)
        order = self.draw_order(len(labels), context.rank_rng, context.shuffled)
        with seeded(context.rank_rng):
            outputs = self._outputs(codes, labels, order)
        return self._loss(outputs, self.in_order(codes, order).unsqueeze(2), context)

    def draw_order(self, batch: int, rng: torch.Generator | None, shuffled: float = 1.0) -> Tensor | None:
        """(B, L) a permutation an image, for models of random order; None of raster order.

        Of a share ``shuffled`` below 1, so many random places of raster order are permuted among themselves.
        """
        if not self.permutes_codes:
            return None
        order = torch.rand(batch, self.num_locations, device=self.device, generator=rng).argsort(dim=1)
        count = int(shuffled * self.num_locations)
        if count == self.num_locations:
            return order
        moved = order[:, :count]  # places in no order, and so a permutation of them
        raster = raster_order(batch, self.num_locations, self.device)
        return raster.scatter(1, moved.sort(dim=1).values, moved)

    def score(
        self,
        codes: Sequence[Tensor],
        labels: Tensor,
        order: Tensor | None = None,
        rng: torch.Generator | None = None,
        drawing: RandARDrawing | None = None,
    ) -> tuple[Tensor, Tensor]:
        order = self.draw_order(len(labels), rng) if order is None else order
        return self(codes, labels, order)[0], self.in_order(codes, order)

    def forward(self, codes: Sequence[Tensor], labels: Tensor, order: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, L, V) logits in the order drawn, and their mean cross-entropy in nats.

        Of (B, S, S) codes of the only scale and labels (B,). ``order`` (B, L) holds in row b the raster indices of
        image b in the order drawn; None is raster order.
        """
        if order is not None:
            order = checked_order(order, len(labels), self.num_locations, self.device)
        logits = self.logits(self._outputs(codes, labels, order))
        return logits, F.cross_entropy(logits.flatten(0, 1), self.in_order(codes, order).flatten())

    def _outputs(self, codes: Sequence[Tensor], labels: Tensor, order: Tensor | None) -> Tensor:
        """(B, L, D) outputs of the transformer, each of the token before the code that it is to predict."""
        if order is None:
            order = raster_order(len(labels), self.num_locations, self.device)
        targets, table = self.in_order(codes, order), self.rotation_table()
        instructions = self.instructions(order, table)
        tokens = self.token_dropout(self.tok_embeddings(targets))
        x = torch.cat([self.embed_labels(labels).unsqueeze(1), interleave(instructions, tokens)], dim=1)
        places = F.pad(interleave(1 + order, 1 + order), (1, 0))  # (B, 1 + 2L), the class token's is row 0
        # Nothing reads x_L: without it the sequence has 2L tokens, an even number.
        return self.transform(x[:, :-1], rotation_at(table, places[:, :-1]), "causal")[:, 1::2]

    def in_order(self, codes: Sequence[Tensor], order: Tensor | None) -> Tensor:
        """(B, L) codes in the order drawn, of (B, S, S) codes."""
        flat = codes[-1].flatten(1)
        return flat if order is None else flat.gather(1, order)

    def rotation_table(self) -> CosSin:
        """What ``rotate_pairs`` takes, (1 + L, d) each, for the class token and each location."""
        return pair_rotation(self.scale_sizes[0], self.config.llama_config.head_dim, self.device)

    def instructions(self, locations: Tensor, table: CosSin) -> Tensor:
        """(B, l, D) instruction tokens of locations (B, l)."""
        return F.embedding(locations, self.instructions_everywhere(table))

    def instructions_everywhere(self, table: CosSin) -> Tensor:
        """(L, D) instruction token of each location: the learned vector, its heads rotated to the place."""
        heads = self.pos_instruct_embeddings.unflatten(-1, (-1, self.config.llama_config.head_dim))  # (1, h, d)
        cos, sin = (part[1:].unsqueeze(1) for part in table)  # (L, 1, d)
        return as_dtype(rotate_pairs(heads, (cos, sin)).flatten(1), heads.dtype)

    def check_drawing(self, drawing: RandARDrawing, keeps: bool = False) -> None:
        super().check_drawing(drawing, keeps)
        if drawing.upscale == 1:
            return
        if "raster" in (self.config.scan_order, drawing.draw_order):
            raise UserError("upscale 2 draws in random order; it needs a model of that order, and no draw_order raster")
        if keeps:
            raise UserError("upscale 2 draws whole images; leave out what is to be kept (--edit), or draw at upscale 1")

    def sampler(self, batch: int, drawing: RandARDrawing, compiled: bool = False) -> Sampler:
        return (RandARSampler if drawing.upscale == 1 else UpscaleSampler)(self, batch, drawing, compiled)

    def to_uint8(self, images: Tensor) -> Tensor:
        """Rounded, but cut off where MaskGIT's tokenizer made them (formats.md R3)."""
        cut_off = self.autoencoder is not None and self.autoencoder.kind == "maskgit"
        return to_uint8(images) if cut_off else super().to_uint8(images)

    def scan_order(self, drawing: RandARDrawing) -> str:
        """The order that a drawing takes if none is given."""
        return self.config.scan_order if drawing.draw_order == "model" else drawing.draw_order

    def num_steps(self, drawing: RandARDrawing, num_kept: int = 0) -> int:
        """In raster order, codes that are kept are passed through as if they were drawn."""
        if drawing.upscale == 1:
            num_known = 0 if self.scan_order(drawing) == "raster" else num_kept
            return len(drawing.schedule(self.num_locations - num_known))
        first = len(drawing.first_stage().schedule(self.num_locations))
        return first + len(drawing.schedule(4 * self.num_locations, self.num_locations))
