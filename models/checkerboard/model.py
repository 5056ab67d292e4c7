"""The model: codes -> token inputs (Eq. 1) -> transformer -> logits -> loss (paper Sec. 3.1, formats.md M4, M5).

Letters: B batch, S side of a scale, L locations of all scales, l tokens of a call, b = 1 or B, D width, V codes,
C code dimension. ``sequence`` (B, L) holds the codes of all scales by location index, *not* in the order drawn; see
layout.py.
"""

from collections.abc import Mapping, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.autoencoder import Autoencoder, upsample_latents
from models.checkerboard.config import CheckerboardConfig, CheckerboardDrawing
from models.checkerboard.layout import (
    NO_LOCATION,
    Layout,
    block_causal_mask,
    fixed_layout,
    make_layout,
    random_positions,
)
from models.checkerboard.order import Blocks, sampling_blocks, training_blocks
from models.checkerboard.rope import RotaryEmbedding
from models.checkerboard.sampler import CheckerboardSampler
from models.family import Generator, Loss, StepContext
from models.linear import Linear, linear
from models.sampler import Sampler
from models.scales import join_scales, scale_slices
from models.transformer import (
    BlockCausal,
    Mask,
    Modulation,
    Transformer,
    flex_mask,
    float32_logits,
    head_loss,
    head_metrics,
)
from runtime.errors import UserError

INIT_STD = 0.02
FIXED_STEPS_PER_SCALE = 8  # of training with random_block_size: false
MLP_WIDTH = 64


class CodeMLP(nn.Module):
    """``C -> 64 -> 64 -> D`` with SiLU between."""

    def __init__(self, dim: int, width: int, last_bias: bool = True) -> None:
        super().__init__()
        hidden = max(MLP_WIDTH, dim)
        last = Linear(hidden, width, bias=last_bias)
        self.net = nn.Sequential(Linear(dim, hidden), nn.SiLU(), Linear(hidden, hidden), nn.SiLU(), last)

    def forward(self, latents: Tensor) -> Tensor:
        return self.net(latents)


class Checkerboard(Generator):
    """The progressive checkerboard; ``project_source`` is false for published weights without ``src_latents_proj``."""

    Config, Drawing = CheckerboardConfig, CheckerboardDrawing
    class_table = "class_embeddings.weight"

    def __init__(self, config: CheckerboardConfig, autoencoder: Autoencoder, project_source: bool = True) -> None:
        super().__init__(config, autoencoder)
        if not autoencoder.unit_norm:
            raise UserError(
                f"the checkerboard takes latents of unit norm, but this autoencoder is of the kind {autoencoder.kind}; "
                "name one of LlamaGen's kind as model.autoenc, or take another architecture"
            )
        # Of attention in forward; the sampler needs no mask. Compiled code would be made anew for each choice of parts.
        self.use_flex_attention, self.attends_in_parts = False, True
        llama, C = config.llama_config, autoencoder.config.embed_dim
        D, V = llama.hidden_size, autoencoder.config.n_embed
        self.class_embeddings = nn.Embedding(config.num_classes + 1, D)  # the last row is unconditional
        self.embed_positions = nn.Embedding(self.num_locations, D)
        self.embed_codevecs_mlp = CodeMLP(C, D)
        self.src_latents_proj = Linear(D, D) if project_source else nn.Identity()
        self.combine_inputs = Linear(4 * D, D)
        self.empty_token_emb = nn.Parameter(torch.empty(D))
        self.empty_token_pos = nn.Parameter(torch.empty(D))
        self.transformer = Transformer(llama)
        self.rope = RotaryEmbedding(self.scale_sizes, llama.head_dim, llama.num_attention_heads, config.mixing_layers)
        self.lm_head = Linear(D, V)
        self.head_mlp = CodeMLP(C, D, last_bias=False) if config.use_head_mlp else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """All initialization: N(0, 0.02), then the parts that start at a value of their own (formats.md M4, M5)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INIT_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.empty_token_emb, std=INIT_STD)
        nn.init.normal_(self.empty_token_pos, std=INIT_STD)
        nn.init.zeros_(self.lm_head.weight)
        self.rope.reset_parameters()
        for module in self.modules():
            if isinstance(module, Modulation):
                module.reset_parameters()

    @classmethod
    def from_state(cls, config: CheckerboardConfig, autoencoder: Autoencoder, state: dict[str, Tensor]) -> Self:
        model = cls(config, autoencoder, project_source="src_latents_proj.weight" in state)
        if model.rope.mixing_coeffs is None:
            state.pop("rope.mixing_coeffs", None)  # published files may hold the empty (0, heads) table
        return model

    def initialize_from(self, saved: Mapping[str, Tensor], source: str) -> list[str]:
        own = self.state_dict()
        if "src_latents_proj.weight" not in own or "src_latents_proj.weight" in saved:
            return super().initialize_from(saved, source)
        identity = {"src_latents_proj.weight": torch.eye(*own["src_latents_proj.weight"].shape)}
        identity["src_latents_proj.bias"] = torch.zeros_like(own["src_latents_proj.bias"])
        remark = "src_latents_proj starts as the identity, which its absence there means"
        return [*super().initialize_from({**saved, **identity}, source), remark]

    def prepare_training(self, attention: str, compiled: bool, activation_checkpointing: bool) -> None:
        if attention == "flex" and self.device.type != "cuda":
            raise UserError("attention flex trains on CUDA alone; set attention sdpa")
        self.use_flex_attention = attention == "flex"
        self.transformer.activation_checkpointing = activation_checkpointing
        self.attends_in_parts = not compiled
        if compiled:
            self.transformer.compile()

    def large_layers(self) -> Sequence[nn.Module]:
        layers = self.transformer.layers  # which do not run their modulations themselves
        return [part for of in layers for part in (of.input_modulation, of.post_attention_modulation, of)]

    def training_loss(self, codes: Sequence[Tensor], labels: Tensor, context: StepContext) -> Loss:
        if self.config.random_block_size:
            blocks = training_blocks(self.scale_sizes, context.step_rng)
        else:
            blocks = sampling_blocks(self.scale_sizes, FIXED_STEPS_PER_SCALE)
        layout = self.layout(blocks, self.order_uniforms(len(labels), context.rank_rng))
        outputs, targets = self._outputs(codes, labels, layout, context.rank_rng)
        head = self.head_parameters()
        loss = head_loss(outputs, targets, *head)
        if not context.logs:
            return Loss(loss)
        metrics = head_metrics(outputs, targets, *head)
        return Loss(loss, lambda: scale_metrics(*metrics, layout.scale_sizes))

    def score(
        self,
        codes: Sequence[Tensor],
        labels: Tensor,
        order: Tensor | None = None,
        rng: torch.Generator | None = None,
        drawing: CheckerboardDrawing | None = None,
    ) -> tuple[Tensor, Tensor]:
        if order is not None:
            self.check_takes_order()
        blocks = (drawing or CheckerboardDrawing()).blocks(self.scale_sizes)
        layout = self.layout(blocks, self.order_uniforms(len(labels), rng))
        return self(codes, labels, layout=layout)[0], in_scan_order(join_scales(codes), layout)

    def sampler(self, batch: int, drawing: CheckerboardDrawing, compiled: bool = False) -> Sampler:
        return CheckerboardSampler(self, batch, drawing, compiled)

    def num_steps(self, drawing: CheckerboardDrawing, num_kept: int = 0) -> int:
        return sum(map(len, drawing.blocks(self.scale_sizes)))

    def undrawn_latents(self, codes: Sequence[Tensor], scale: int) -> Tensor:
        """Those of the previous scale, upsampled."""
        side = self.scale_sizes[scale]
        sources = self.source_latents(join_scales(codes), scale, self.codebook())
        return sources.transpose(1, 2).unflatten(2, (side, side)).float()

    def layout(self, blocks: Blocks, order_uniforms: Tensor | None = None) -> Layout:
        """The model's scan order under the given blocks, on its device; (B, L) numbers sort it if it is random."""
        if self.config.scan_order != "random":
            fixed = tuple(map(tuple, blocks))
            return fixed_layout(tuple(self.scale_sizes), self.config.scan_order, fixed, self.device)
        if order_uniforms is None:
            raise UserError("a model of random scan order needs numbers to order the locations by")
        positions = random_positions(self.scale_sizes, order_uniforms)
        return make_layout(self.scale_sizes, blocks, positions).to(self.device)

    def order_uniforms(self, batch: int, generator: torch.Generator | None) -> Tensor | None:
        """(B, L) numbers that order the locations of each image of a model of random order; None for other models."""
        if self.config.scan_order != "random":
            return None
        return torch.rand(batch, self.num_locations, device=self.device, generator=generator)

    def forward(
        self,
        codes: Sequence[Tensor],
        labels: Tensor,
        steps_per_scale: int = 4,
        *,
        layout: Layout | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(B, L, V) logits in scan order, each told of the tokens before its block, and their mean cross-entropy, nats.

        Of (B, S, S) codes of each scale and labels (B,). A ``layout`` wins over ``steps_per_scale``; ``generator``, on
        the device, draws random scan orders, and in training mode what labels are dropped and codes replaced.
        """
        if layout is None:
            blocks = sampling_blocks(self.scale_sizes, steps_per_scale)
            layout = self.layout(blocks, self.order_uniforms(len(labels), generator))
        outputs, targets = self._outputs(codes, labels, layout, generator)
        logits = self.logits(outputs, *self.head_parameters())
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def _outputs(
        self, codes: Sequence[Tensor], labels: Tensor, layout: Layout, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """(B, L, D) outputs of the transformer and (B, L) codes that they are to predict, in scan order."""
        sequence = join_scales(codes)  # (B, L)
        context, prev_context, labels = self._training_noise(sequence, labels, generator)

        codebook = self.codebook()
        scales = range(len(self.scale_sizes))
        sources = torch.cat([self.source_latents(context, i, codebook) for i in scales], dim=1)  # (B, L, C)
        x = self.location_inputs(layout, slice(None), sources)  # (B, L, D)
        x = x + self.content_inputs(prev_context, layout.prev_positions, codebook)  # (B, L, D)
        class_embedding = self.embed_labels(labels)  # (B, D)
        x = torch.cat([class_embedding.unsqueeze(1), x], dim=1)  # (B, 1 + L, D)
        x = self.transformer(
            x,
            self.transformer.modulations(class_embedding),
            self.rope(layout.positions, layout.prev_positions),
            mask=self._mask(layout.steps),
        )
        return x[:, 1:], in_scan_order(sequence, layout)

    def _mask(self, steps: Tensor) -> Mask:
        """Of steps (L,), as is fastest on the device."""
        if self.use_flex_attention and self.training:  # compiled there alone
            return flex_mask(steps)
        if self.attends_in_parts and steps.device.type == "cpu":
            return BlockCausal.of_steps(steps)
        return block_causal_mask(steps)

    def embed_labels(self, labels: Tensor) -> Tensor:
        """(B, D) class embeddings, both the first token and the modulation's input."""
        if not self.config.class_cond:
            labels = torch.full_like(labels, self.unconditional_label)
        return self.class_embeddings(labels)

    def source_latents(self, sequence: Tensor, scale: int, codebook: Tensor) -> Tensor:
        """(B, n, C) latents of the previous scale upsampled to this one, by location; zeros for the first scale."""
        side, C = self.scale_sizes[scale], self.autoencoder.config.embed_dim
        if scale == 0:
            return self.embed_positions.weight.new_zeros(len(sequence), side * side, C)
        prev_side = self.scale_sizes[scale - 1]
        prev_codes = sequence[:, scale_slices(self.scale_sizes)[scale - 1]].unflatten(1, (prev_side, prev_side))
        upsampled = upsample_latents(F.embedding(prev_codes, codebook).permute(0, 3, 1, 2), side)
        return upsampled.flatten(2).transpose(1, 2).to(self.embed_positions.weight.dtype)

    def location_inputs(self, layout: Layout, tokens: slice, sources: Tensor) -> Tensor:
        """(B, l, D) the part of Eq. 1 that is known before the previous block is drawn, for a run of whole scales.

        ``sources`` are (B, l, C) latents upsampled from the previous scale, by location.
        """
        positions, prev_positions = layout.positions[:, tokens], layout.prev_positions[:, tokens]
        weight_pos, weight_src, weight_prev_pos, _ = self.combine_inputs.weight.chunk(4, dim=1)
        pos = self.embed_positions(positions)  # (b, l, D)
        prev_pos = self.embed_positions(prev_positions.clamp(min=0))
        prev_pos = torch.where((prev_positions == NO_LOCATION).unsqueeze(-1), self.empty_token_pos, prev_pos)
        src = self.src_latents_proj(self.embed_codevecs_mlp(sources))  # (B, l, D), by location
        first = tokens.start or 0
        order = (positions - first).unsqueeze(-1).expand(len(src), -1, src.shape[-1])
        x = linear(src.gather(1, order), weight_src, self.combine_inputs.bias)
        return x + linear(pos, weight_pos) + linear(prev_pos, weight_prev_pos)

    def content_inputs(self, sequence: Tensor, prev_positions: Tensor, codebook: Tensor) -> Tensor:
        """The rest of Eq. 1: codes (B, L) of the previous block at ``prev_positions`` (b, l), as inputs (B, l, D)."""
        codes = sequence.gather(1, prev_positions.clamp(min=0).expand(len(sequence), -1))
        latents = F.embedding(codes, codebook)  # (B, l, C)
        prev = self.embed_codevecs_mlp(latents.to(self.embed_positions.weight.dtype))
        prev = torch.where((prev_positions == NO_LOCATION).unsqueeze(-1), self.empty_token_emb, prev)
        return linear(prev, self.combine_inputs.weight.chunk(4, dim=1)[3])

    def head_parameters(self) -> tuple[Tensor, Tensor]:
        """(V, D) weight and (V,) bias of the output layer, float32; under autocast too."""
        weight = self.lm_head.weight
        with torch.autocast(weight.device.type, enabled=False):
            if self.head_mlp is not None:
                weight = weight + self.head_mlp(self.codebook().to(weight.dtype))
            return weight.float(), self.lm_head.bias.float()

    @staticmethod
    def logits(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """(B, l, V) logits of transformer outputs (B, l, D): computed in float32, under autocast too."""
        return float32_logits(x, weight, bias)

    def _training_noise(
        self, sequence: Tensor, labels: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Codes seen by the next scale, codes seen by the next block, and labels; noisy in training mode only."""
        if not self.training:
            return sequence, sequence, labels
        labels = self.drop_labels(labels, generator)
        replaced = torch.rand(sequence.shape, device=self.device, generator=generator) < self.config.random_replace
        noise = torch.randint(self.num_codes, sequence.shape, device=self.device, generator=generator)
        noisy = torch.where(replaced, noise, sequence)
        return (sequence, noisy, labels) if self.config.random_replace_sampled else (noisy, sequence, labels)


def in_scan_order(sequence: Tensor, layout: Layout) -> Tensor:
    """(B, L) values by location -> the same in the order drawn: the targets of the logits."""
    return sequence.gather(1, layout.positions.expand(len(sequence), -1))


def scale_metrics(nats: Tensor, hits: Tensor, scale_sizes: Sequence[int]) -> dict[str, Tensor]:
    """Mean cross-entropy (nats) and top-1 accuracy of each scale, keyed ``loss_scale_S`` and ``accuracy_scale_S``.

    Of the ``head_metrics`` (B, L) of all codes, scale by scale.
    """
    found = {}
    for side, tokens in zip(scale_sizes, scale_slices(scale_sizes), strict=True):
        found[f"loss_scale_{side}"] = nats[:, tokens].mean()
        found[f"accuracy_scale_{side}"] = hits[:, tokens].mean()
    return found
