"""The model: codes -> token inputs (Eq. 1) -> transformer -> logits -> loss (paper Sec. 3.1, method.md Sec. 4, 5).

Letters: B batch, S side of a scale, L locations of all scales, l tokens of a call, b = 1 or B, D width, V codes,
C code dimension. ``sequence`` (B, L) holds the codes of all scales by location index, *not* in the order drawn; see
scan_order.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.autoencoder import Autoencoder, upsample_latents
from models.errors import UserError
from models.rope import RotaryEmbedding
from models.scan_order import (
    NO_LOCATION,
    Layout,
    Remainder,
    ScanOrder,
    block_causal_mask,
    compute_scale_sizes,
    fixed_positions,
    make_layout,
    random_positions,
    sampling_blocks,
)
from models.transformer import Modulation, Transformer, TransformerConfig, as_dtype, flex_mask

INIT_STD = 0.02
MLP_WIDTH = 64


@dataclass(frozen=True)
class AutoencoderPaths:
    """Files of the frozen autoencoder; relative paths are tried from the checkpoint's folder, then from here.

    Attributes:
        config_path: YAML of the autoencoder's architecture; without one it is read off the weights.
        checkpoint_path: weights: .pth (published or LlamaGen) or .safetensors.
        params: settings that override the YAML's.
    """

    config_path: str | None = None
    checkpoint_path: str | None = None
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelConfig:
    """The ``model:`` section of a configuration, the published schema.

    Attributes:
        img_size: side of the images, in pixels.
        scale_ratio: side of a scale over the side of the one before it.
        scale_min_size: side of the smallest scale.
        single_scale: predict the largest scale alone.
        class_cond: condition on class labels; false trains one unconditional model.
        num_classes: number of classes.
        random_block_size: draw block sizes in training; false trains with 8 steps a scale.
        random_replace: probability, in training, that an input code is replaced by a random one.
        random_replace_sampled: replace codes of the previous block instead of the previous scale.
        label_drop: probability, in training, that a label is dropped to unconditional.
        use_head_mlp: add an MLP of the codebook to the output weights.
        scan_order: checkerboard, raster, or random: a fresh permutation for each image and scale.
        num_mixing_layers: layers whose keys mix two positions: a number from the first on; null or all for every layer.
        autoenc: files of the autoencoder.
        llama_config: size of the transformer.
    """

    img_size: int = 256
    scale_ratio: float = 2.0
    scale_min_size: int = 1
    single_scale: bool = False
    class_cond: bool = True
    num_classes: int = 1000
    random_block_size: bool = True
    random_replace: float = 0.1
    random_replace_sampled: bool = False
    label_drop: float = 0.1
    use_head_mlp: bool = False
    scan_order: ScanOrder = "checkerboard"
    num_mixing_layers: int | str | None = None
    autoenc: AutoencoderPaths = field(default_factory=AutoencoderPaths)
    llama_config: TransformerConfig = field(default_factory=TransformerConfig)

    def __post_init__(self) -> None:
        for name in ("random_replace", "label_drop"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is a probability; {getattr(self, name)} does not lie between 0 and 1")
        if self.num_classes < self.class_cond:
            raise UserError(f"num_classes is {self.num_classes}; a class-conditional model needs at least 1")
        if self.scan_order not in get_args(ScanOrder):
            raise UserError(f"scan_order {self.scan_order!r} is unknown; choose {', '.join(get_args(ScanOrder))}")
        layers = self.num_mixing_layers
        if isinstance(layers, str) and layers != "all":
            raise UserError(f"num_mixing_layers {layers!r} is unknown; give a number, all, or null")
        if isinstance(layers, int) and not 0 <= layers <= self.llama_config.num_hidden_layers:
            raise UserError(f"num_mixing_layers {layers} must lie between 0 and the number of layers")

    @property
    def mixing_layers(self) -> int:
        """Number of layers, from the first on, whose keys mix two positions."""
        every = self.num_mixing_layers is None or self.num_mixing_layers == "all"
        return self.llama_config.num_hidden_layers if every else int(self.num_mixing_layers)


class CodeMLP(nn.Module):
    """``C -> 64 -> 64 -> D`` with SiLU between."""

    def __init__(self, dim: int, width: int, last_bias: bool = True) -> None:
        super().__init__()
        hidden = max(MLP_WIDTH, dim)
        last = nn.Linear(hidden, width, bias=last_bias)
        self.net = nn.Sequential(nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), last)

    def forward(self, latents: Tensor) -> Tensor:
        return self.net(latents)


class _Frozen:
    """Keeps a module out of its owner's parameters and state; copies of the owner share it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module.eval().requires_grad_(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Frozen":
        return self


class Checkerboard(nn.Module):
    """The progressive-checkerboard autoregressive model over the codes of a frozen autoencoder.

    Args:
        config: the ``model:`` section.
        autoencoder: tokenizer and decoder; moves with the model, but is none of its parameters or state.
        project_source: False for published weights without ``src_latents_proj``.
    """

    def __init__(self, config: ModelConfig, autoencoder: Autoencoder, project_source: bool = True) -> None:
        super().__init__()
        self.config = config
        self.class_names: list[str] | None = None  # for people; set by whoever knows the data
        self.use_flex_attention = False  # in forward; the sampler needs no mask
        self._frozen = _Frozen(autoencoder)
        self.scale_sizes = list(
            compute_scale_sizes(
                config.img_size,
                len(autoencoder.config.ch_mult),
                config.scale_ratio,
                config.scale_min_size,
                config.single_scale,
            )
        )
        self.num_locations = sum(side * side for side in self.scale_sizes)
        D, C, V = config.llama_config.hidden_size, autoencoder.config.embed_dim, autoencoder.config.n_embed
        self.class_embeddings = nn.Embedding(config.num_classes + 1, D)  # the last row is unconditional
        self.embed_positions = nn.Embedding(self.num_locations, D)
        self.embed_codevecs_mlp = CodeMLP(C, D)
        self.src_latents_proj = nn.Linear(D, D) if project_source else nn.Identity()
        self.combine_inputs = nn.Linear(4 * D, D)
        self.empty_token_emb = nn.Parameter(torch.empty(D))
        self.empty_token_pos = nn.Parameter(torch.empty(D))
        self.transformer = Transformer(config.llama_config)
        self.rope = RotaryEmbedding(
            self.scale_sizes,
            config.llama_config.head_dim,
            config.llama_config.num_attention_heads,
            config.mixing_layers,
        )
        self.lm_head = nn.Linear(D, V)
        self.head_mlp = CodeMLP(C, D, last_bias=False) if config.use_head_mlp else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """All initialization: N(0, 0.02), then the parts that start at a value of their own (method.md Sec. 4, 5)."""
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

    def _apply(self, fn: Any, recurse: bool = True) -> "Checkerboard":
        super()._apply(fn, recurse)
        self.autoencoder.to(self.device)  # follows to a device; its precision stays
        return self

    @property
    def autoencoder(self) -> Autoencoder:
        return self._frozen.module

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    @property
    def unconditional_label(self) -> int:
        return self.config.num_classes

    def tokenize(self, images: Tensor) -> list[Tensor]:
        """Codes (B, S, S) of each scale of images (B, 3, H, W) in [-1, 1]; the image size must be the model's."""
        size = self.config.img_size
        if images.shape[-2:] != (size, size):
            raise UserError(f"images are {tuple(images.shape[-2:])} pixels; this model takes {size} x {size}")
        return self.autoencoder.tokenize(images, tuple(self.scale_sizes))

    def decode(self, codes: Tensor) -> Tensor:
        """Images (B, 3, H, W), unclamped floats, of the codes (B, S, S) of one scale.

        On the CPU each is decoded alone: its convolutions round differently in other batches, and an image should not.
        """
        parts = codes.split(1) if self.device.type == "cpu" else [codes]
        return torch.cat([self.autoencoder.decode(part) for part in parts])

    def layout(
        self, steps_per_scale: int, remainder: Remainder = "separate", order_uniforms: Tensor | None = None
    ) -> Layout:
        """The order and blocks of sampling with ``steps_per_scale`` steps, on the model's device.

        Args:
            steps_per_scale: blocks that each scale is divided into.
            remainder: see ``sampling_blocks``.
            order_uniforms: as for ``layout_of_blocks``.
        """
        return self.layout_of_blocks(sampling_blocks(self.scale_sizes, steps_per_scale, remainder), order_uniforms)

    def layout_of_blocks(self, blocks: Sequence[Sequence[int]], order_uniforms: Tensor | None = None) -> Layout:
        """The model's scan order under the given block lengths, on its device.

        Args:
            blocks: block lengths of each scale.
            order_uniforms: (B, L) random numbers that order the locations of a model of random order, which needs them.
        """
        if self.config.scan_order == "random":
            if order_uniforms is None:
                raise UserError("a model of random scan order needs numbers to order the locations by")
            positions = random_positions(self.scale_sizes, order_uniforms)
        else:
            positions = fixed_positions(self.scale_sizes, self.config.scan_order)
        return make_layout(self.scale_sizes, blocks, positions).to(self.device)

    def draw_order(self, batch: int, generator: torch.Generator | None) -> Tensor | None:
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
        """Predict every token from the tokens before its block.

        Args:
            codes: (B, S, S) codes of each scale.
            labels: (B,) class indices; ``num_classes`` is unconditional.
            steps_per_scale: steps that each scale's tokens are divided into; ignored if ``layout`` is given.
            layout: order and blocks, for instance drawn at random for a training step.
            generator: of random scan orders, and of label dropping and random replacement, which happen in training
                mode only; on the model's device.

        Returns:
            (B, L, V) logits in scan order, and the mean cross-entropy over all tokens, in nats.
        """
        if layout is None:
            layout = self.layout(steps_per_scale, order_uniforms=self.draw_order(len(labels), generator))
        sequence = torch.cat([scale.flatten(1) for scale in codes], dim=1)  # (B, L)
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
            mask=flex_mask(layout.steps) if self.use_flex_attention else block_causal_mask(layout.steps),
        )
        logits = self.logits(x[:, 1:], *self.head_parameters())  # (B, L, V)
        return logits, F.cross_entropy(logits.flatten(0, 1), in_scan_order(sequence, layout).flatten())

    def embed_labels(self, labels: Tensor) -> Tensor:
        """(B, D) class embeddings, both the first token and the modulation's input."""
        if not self.config.class_cond:
            labels = torch.full_like(labels, self.unconditional_label)
        return self.class_embeddings(labels)

    def codebook(self) -> Tensor:
        """(V, C) latents of all codes."""
        return self.autoencoder.quantize.codebook()

    def source_latents(self, sequence: Tensor, scale: int, codebook: Tensor) -> Tensor:
        """(B, n, C) latents of the previous scale upsampled to this one, by location; zeros for the first scale."""
        side, C = self.scale_sizes[scale], self.autoencoder.config.embed_dim
        if scale == 0:
            return self.embed_positions.weight.new_zeros(len(sequence), side * side, C)
        prev_side = self.scale_sizes[scale - 1]
        start = sum(s * s for s in self.scale_sizes[: scale - 1])
        prev_codes = sequence[:, start : start + prev_side * prev_side].unflatten(1, (prev_side, prev_side))
        upsampled = upsample_latents(F.embedding(prev_codes, codebook).permute(0, 3, 1, 2), side)
        return upsampled.flatten(2).transpose(1, 2).to(self.embed_positions.weight.dtype)

    def location_inputs(self, layout: Layout, tokens: slice, sources: Tensor) -> Tensor:
        """The part of Eq. 1 that is known before the previous block is drawn, for a run of whole scales.

        Args:
            layout: order and blocks.
            tokens: the run, as a slice of the L tokens.
            sources: (B, l, C) latents upsampled from the previous scale, by location.

        Returns:
            (B, l, D): positions, source latents and bias through their columns of ``combine_inputs``.
        """
        positions, prev_positions = layout.positions[:, tokens], layout.prev_positions[:, tokens]
        weight_pos, weight_src, weight_prev_pos, _ = self.combine_inputs.weight.chunk(4, dim=1)
        pos = self.embed_positions(positions)  # (b, l, D)
        prev_pos = self.embed_positions(prev_positions.clamp(min=0))
        prev_pos = torch.where((prev_positions == NO_LOCATION).unsqueeze(-1), self.empty_token_pos, prev_pos)
        src = self.src_latents_proj(self.embed_codevecs_mlp(sources))  # (B, l, D), by location
        first = tokens.start or 0
        order = (positions - first).unsqueeze(-1).expand(len(src), -1, src.shape[-1])
        x = F.linear(src.gather(1, order), weight_src, self.combine_inputs.bias)
        return x + F.linear(pos, weight_pos) + F.linear(prev_pos, weight_prev_pos)

    def content_inputs(self, sequence: Tensor, prev_positions: Tensor, codebook: Tensor) -> Tensor:
        """The rest of Eq. 1: codes (B, L) of the previous block at ``prev_positions`` (b, l), as inputs (B, l, D)."""
        codes = sequence.gather(1, prev_positions.clamp(min=0).expand(len(sequence), -1))
        latents = F.embedding(codes, codebook)  # (B, l, C)
        prev = self.embed_codevecs_mlp(latents.to(self.embed_positions.weight.dtype))
        prev = torch.where((prev_positions == NO_LOCATION).unsqueeze(-1), self.empty_token_emb, prev)
        return F.linear(prev, self.combine_inputs.weight.chunk(4, dim=1)[3])

    def head_parameters(self) -> tuple[Tensor, Tensor]:
        """(V, D) weight and (V,) bias of the output layer, float32."""
        weight = self.lm_head.weight
        if self.head_mlp is not None:
            weight = weight + self.head_mlp(self.codebook().to(weight.dtype))
        return weight.float(), self.lm_head.bias.float()

    @staticmethod
    def logits(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """(B, l, V) float32 logits of transformer outputs (B, l, D)."""
        return as_dtype(F.linear(as_dtype(x, torch.float32), weight, bias), torch.float32)

    def _training_noise(
        self, sequence: Tensor, labels: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Codes seen by the next scale, codes seen by the next block, and labels; noisy in training mode only."""
        if not self.training:
            return sequence, sequence, labels
        dropped = torch.rand(labels.shape, device=self.device, generator=generator) < self.config.label_drop
        labels = torch.where(dropped, self.unconditional_label, labels)
        replaced = torch.rand(sequence.shape, device=self.device, generator=generator) < self.config.random_replace
        num_codes = self.autoencoder.config.n_embed
        noise = torch.randint(num_codes, sequence.shape, device=self.device, generator=generator)
        noisy = torch.where(replaced, noise, sequence)
        return (sequence, noisy, labels) if self.config.random_replace_sampled else (noisy, sequence, labels)


def in_scan_order(sequence: Tensor, layout: Layout) -> Tensor:
    """(B, L) values by location -> the same in the order drawn: the targets of the logits."""
    return sequence.gather(1, layout.positions.expand(len(sequence), -1))


def scale_statistics(logits: Tensor, codes: Sequence[Tensor], layout: Layout) -> dict[str, Tensor]:
    """Mean cross-entropy (nats) and top-1 accuracy of each scale, keyed ``loss_scale_S`` and ``accuracy_scale_S``.

    Args:
        logits: (B, L, V) in scan order.
        codes: (B, S, S) codes of each scale.
        layout: the order and blocks the logits were computed with.
    """
    targets = in_scan_order(torch.cat([scale.flatten(1) for scale in codes], dim=1), layout)
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    correct = (logits.argmax(-1) == targets).float()
    stats = {}
    for side, tokens in zip(layout.scale_sizes, layout.scale_slices(), strict=True):
        stats[f"loss_scale_{side}"] = losses[:, tokens].mean()
        stats[f"accuracy_scale_{side}"] = correct[:, tokens].mean()
    return stats
