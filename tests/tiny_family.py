"""A second family, for tests, and the example of CONTRIBUTING.md: codes one by one, each told of four neighbours.

Letters: B images, R rows of a batch (2B if guided: conditional, then unconditional), S side of the code map, L = S * S
locations in raster order, l of them in a call, D width, V codes, C code dimension.

A family is a ``Config``, a ``Drawing``, a ``Generator``, a ``Sampler``, and an entry in ``models.config.FAMILIES`` that
names the first three. In ``models/`` the first two lie in a ``config.py`` without torch, as ``--help`` answers before
torch is loaded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.autoencoder import Autoencoder
from models.config import Drawing, Family, GeneratorConfig, at_scale
from models.draw import draw, guide
from models.family import Generator, Loss, StepContext
from models.sampler import Sampler
from models.scales import join_scales
from runtime.config import option
from runtime.errors import check_at_least, check_probabilities

FAMILY = Family(
    config="tests.tiny_family:TinyConfig",
    drawing="tests.tiny_family:TinyDrawing",
    generator="tests.tiny_family:Tiny",
)
Direction = Literal["rows", "columns"]
DIRECTIONS: tuple[Direction, ...] = ("rows", "columns")
# Neighbours that are drawn before a location: (across, along) what is drawn line by line.
NEIGHBOURS = ((0, -1), (-1, -1), (-1, 0), (-1, 1))


@dataclass(frozen=True)
class TinyConfig(GeneratorConfig):
    """The ``model:`` section of a configuration."""

    architecture: Literal["tiny"] = "tiny"
    width: int = option(64, "D, of the hidden layers")
    label_drop: float = option(0.1, "probability, in training, that a label is dropped to unconditional")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, self, "width")
        check_probabilities(self, "label_drop")


@dataclass(frozen=True)
class TinyDrawing(Drawing):
    """What decides a drawing."""

    direction: Direction = option("rows", "draw row by row, or column by column")


class Tiny(Generator):
    """Predicts each code of the only scale from its class, its location and the four neighbours drawn before it.

    Args:
        config: the ``model:`` section.
        autoencoder: tokenizer and decoder; moves with the model, but is none of its parameters or state.
    """

    Config, Drawing = TinyConfig, TinyDrawing

    def __init__(self, config: TinyConfig, autoencoder: Autoencoder) -> None:
        super().__init__(config, autoencoder)
        D, C, V = config.width, autoencoder.config.embed_dim, autoencoder.config.n_embed
        self.embed_classes = nn.Embedding(config.num_classes + 1, D)  # the last row is unconditional
        self.embed_locations = nn.Embedding(self.num_locations, D)
        self.embed_directions = nn.Embedding(len(DIRECTIONS), D)
        self.embed_neighbours = nn.Linear(len(NEIGHBOURS) * C, D)
        self.hidden = nn.Linear(D, D)
        self.head = nn.Linear(D, V)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, codes: Sequence[Tensor], labels: Tensor, direction: Direction = "rows") -> tuple[Tensor, Tensor]:
        """Predict every code from the codes before it.

        Args:
            codes: (B, S, S) of the only scale.
            labels: (B,) class indices; ``num_classes`` is unconditional.
            direction: of the drawing.

        Returns:
            (B, L, V) logits in the order drawn, and their mean cross-entropy in nats.
        """
        sequence, order = join_scales(codes), self.order(direction)  # (B, L), (L,)
        logits = self.logits(sequence, labels, order, direction)  # (B, L, V)
        return logits, F.cross_entropy(logits.flatten(0, 1), sequence[:, order].flatten())

    def training_loss(self, codes: Sequence[Tensor], labels: Tensor, context: StepContext) -> Loss:
        """Of a direction that is the same on all ranks, with some labels dropped on each."""
        direction = context.step_rng.choice(DIRECTIONS)
        uniforms = torch.rand(labels.shape, device=self.device, generator=context.rank_rng)
        labels = labels.masked_fill(uniforms < self.config.label_drop, self.unconditional_label)
        logits, loss = self(codes, labels, direction)
        targets = join_scales(codes)[:, self.order(direction)]
        return Loss(loss, lambda: {"accuracy": (logits.argmax(-1) == targets).float().mean()})

    def sampler(self, batch: int, drawing: TinyDrawing, compiled: bool = False) -> Sampler:
        return TinySampler(self, batch, drawing, compiled)

    def num_steps(self, drawing: TinyDrawing, num_kept: int = 0) -> int:
        return self.num_locations

    def order(self, direction: Direction) -> Tensor:
        """(L,) locations in the order drawn."""
        rows = torch.arange(self.num_locations, device=self.device)
        side = self.scale_sizes[-1]
        return rows if direction == "rows" else rows.view(side, side).T.flatten()

    def logits(self, sequence: Tensor, labels: Tensor, locations: Tensor, direction: Direction) -> Tensor:
        """The one function that training and sampling share.

        Args:
            sequence: (B, L) codes by location; those that are not yet drawn have no effect.
            labels: (B,) class indices.
            locations: (l,) to predict.
            direction: of the drawing, which decides who the neighbours are.

        Returns:
            (B, l, V) float32.
        """
        if not self.config.class_cond:
            labels = torch.full_like(labels, self.unconditional_label)
        x = self.embed_neighbours(self._neighbours(sequence, locations, direction))  # (B, l, D)
        x = x + self.embed_classes(labels).unsqueeze(1) + self.embed_locations(locations)
        x = x + self.embed_directions.weight[DIRECTIONS.index(direction)]
        return self.head(F.silu(self.hidden(F.silu(x)))).float()  # (B, l, V)

    def _neighbours(self, sequence: Tensor, locations: Tensor, direction: Direction) -> Tensor:
        """(B, l, 4C) latents of the neighbours; zeros beyond the image."""
        side, V = self.scale_sizes[-1], self.autoencoder.config.n_embed
        framed = F.pad(sequence.unflatten(1, (side, side)), (1, 1, 1, 1), value=V)  # (B, S + 2, S + 2)
        offsets = torch.tensor(NEIGHBOURS, device=self.device)
        down, right = (offsets if direction == "rows" else offsets.flip(1)).unbind(1)  # (4,) each
        y, x = (locations // side + 1).unsqueeze(1), (locations % side + 1).unsqueeze(1)  # (l, 1) each
        latents = F.pad(self.codebook(), (0, 0, 0, 1)).to(self.dtype)  # (V + 1, C)
        return latents[framed[:, y + down, x + right]].flatten(2)


class TinySampler(Sampler):
    """Draws one location a step. There is no cache: a step reads four codes.

    Args:
        model: of any device and precision.
        batch: B, images of every batch.
        drawing: checked settings.
        compiled: compile a step.
    """

    def __init__(self, model: Tiny, batch: int, drawing: TinyDrawing, compiled: bool = False) -> None:
        super().__init__(model, batch, drawing)
        self.order = model.order(drawing.direction)
        self.logits = torch.compile(model.logits, dynamic=False) if compiled else model.logits

    def draw(self, labels: Tensor, seeds: Tensor) -> Iterator[int]:
        drawing = self.drawing
        cfg, temperature = at_scale(drawing.cfg, 0), at_scale(drawing.temperature, 0)
        noise = self.code_noise(seeds, torch.arange(self.num_locations)[None])  # (B, L, n)
        labels = self.row_labels(labels)  # (R,)
        for step, location in enumerate(self.order.split(1)):  # (1,)
            sequence = self.sequence.repeat(self.row_sets, 1)  # (R, L)
            logits = self.logits(sequence, labels, location, drawing.direction)  # (R, 1, V)
            logits = guide(logits, cfg) if self.guided else logits  # (B, 1, V)
            codes, probability, entropy = draw(logits, noise[:, location], temperature, drawing.top_k, drawing.top_p)
            self.store(location.expand(self.batch, 1), codes, probability, entropy)
            yield step

    def step_of_location(self) -> Tensor:
        return self.order.argsort().unsqueeze(0)  # (1, L)
