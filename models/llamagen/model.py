"""LlamaGen's GPT: a class token, then codes in raster order, each predicted from all before it (formats.md G1, G4, G5).

Letters: B batch, G side of the grid of codes, N = G * G codes, p side of a patch, M = (G / p) ** 2 patches (of single
codes, M = N), T tokens of a call, D width, h heads, d dimension of a head, V codes. Module names are the keys of the
published files.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.autoencoder import Autoencoder
from models.family import Generator, Loss, StepContext
from models.linear import Linear
from models.llamagen.config import LlamaGenConfig, LlamaGenDrawing
from models.llamagen.patches import by_patch, pair_rotation, patch_cross_entropy, rotate_pairs
from models.llamagen.sampler import LlamaGenSampler
from models.sampler import Sampler
from models.transformer import (
    Attention,
    FeedForward,
    KVCache,
    Mask,
    SameRotation,
    Start,
    as_dtype,
    float32_logits,
    head_loss,
    head_metrics,
)
from runtime.errors import UserError

INIT_STD = 0.02
EPS = 1e-5  # of the norms
OTHER_STREAM = 0x5851F42D  # tells dropout's random numbers from those of labels, whose seed it has


class Norm(nn.Module):
    """Root-mean-square norm in float32, and its weight in the precision of the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype == torch.float32:
            return F.rms_norm(x, self.weight.shape, self.weight, EPS)
        return as_dtype(F.rms_norm(x.float(), self.weight.shape, eps=EPS), x.dtype) * self.weight


def drop_path(probability: float) -> nn.Module:
    """What drops a branch of an image; models without it need no timm."""
    from timm.layers import DropPath

    return DropPath(probability)


class Layer(nn.Module):
    def __init__(self, config: LlamaGenConfig, index: int) -> None:
        super().__init__()
        size = config.llama_config
        self.attention = Attention(size, rotate_pairs)
        self.feed_forward = FeedForward(size)
        self.attention_norm, self.ffn_norm = Norm(size.hidden_size), Norm(size.hidden_size)
        self.drop = drop_path(config.drop_path(index)) if config.drop_path_rate else nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, rotation: SameRotation, index: int, mask: Mask, cache: KVCache | None, start: Start
    ) -> Tensor:
        """Takes what attention takes. With a cache, which is for sampling, nothing is dropped in any mode."""
        drops = cache is None
        attended = self.attention(self.attention_norm(x), rotation, index, mask, cache, start)
        x = x + (self.drop(attended) if drops else attended)
        fed = self.feed_forward(self.ffn_norm(x))
        return x + (self.drop(fed) if drops else fed)


class LlamaGen(Generator):
    """LlamaGen's GPT; ``class_rows`` is num_classes for published weights that lack the unconditional row."""

    Config, Drawing = LlamaGenConfig, LlamaGenDrawing
    needs_autoencoder, learns_patches = False, True
    class_table = "cls_embedding.embedding_table.weight"

    def __init__(
        self, config: LlamaGenConfig, autoencoder: Autoencoder | None = None, class_rows: int | None = None
    ) -> None:
        super().__init__(config, autoencoder)
        if autoencoder is not None and autoencoder.config.n_embed != config.vocab_size:
            raise UserError(
                f"vocab_size is {config.vocab_size}, but the autoencoder has {autoencoder.config.n_embed} codes; set "
                "vocab_size to that, or name another autoencoder"
            )
        D, V = config.llama_config.hidden_size, config.vocab_size
        self.activation_checkpointing = False
        self.cls_embedding = nn.ModuleDict(
            {"embedding_table": nn.Embedding(class_rows or config.num_classes + 1, D)}  # the last is unconditional
        )
        self.tok_embeddings = nn.Embedding(V, D)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.llama_config.num_hidden_layers))
        self.norm = Norm(D)
        self.output = Linear(D, V, bias=False)
        self.token_dropout = nn.Dropout(config.dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """N(0, 0.02), without scaling by depth, and the head zeros."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INIT_STD)
        nn.init.zeros_(self.output.weight)

    @classmethod
    def from_state(cls, config: LlamaGenConfig, autoencoder: Autoencoder | None, state: dict[str, Tensor]) -> Self:
        table = state.get(cls.class_table)
        lacks_row = table is not None and table.shape[:1] == (config.num_classes,)
        return cls(config, autoencoder, class_rows=config.num_classes if lacks_row else None)

    @property
    def num_codes(self) -> int:
        return self.config.vocab_size

    @property
    def has_unconditional_row(self) -> bool:
        return self.cls_embedding["embedding_table"].num_embeddings > self.config.num_classes

    def prepare_training(self, attention: str, compiled: bool, activation_checkpointing: bool) -> None:
        if attention != "sdpa":
            name = self.config.architecture
            raise UserError(f"{name} has the attention sdpa alone, which is causal without a mask; set attention sdpa")
        self.activation_checkpointing = activation_checkpointing
        if compiled:
            # Each layer has its own drop path rate, and each stage its own number of patches: a graph for every pair.
            config, graphs = torch._dynamo.config, 8 * len(self.layers)
            config.recompile_limit = max(graphs, config.recompile_limit)
            config.accumulated_recompile_limit = max(graphs, config.accumulated_recompile_limit)
            for layer in self.layers:
                layer.compile(dynamic=False)  # one graph a stage: torch's dynamic one fails at the third length

    def large_layers(self) -> Sequence[nn.Module]:
        return self.layers

    def training_loss(self, codes: Sequence[Tensor], labels: Tensor, context: StepContext) -> Loss:
        labels = self.drop_labels(labels, context.rank_rng)
        with seeded(context.rank_rng):
            outputs = self._outputs(codes, labels, context.patch_side)
        return self._loss(outputs, by_patch(codes[-1], context.patch_side), context)

    def _loss(self, outputs: Tensor, targets: Tensor, context: StepContext) -> Loss:
        """Of transformer outputs (B, M, D), one a patch, and the patches' codes (B, M, p * p)."""
        head, logits = self.output.weight.float(), None
        if targets.shape[2] == 1:
            loss = head_loss(outputs, targets, head)
        else:
            logits = self.logits(outputs)
            loss = patch_cross_entropy(logits, targets)
        if not context.logs:
            return Loss(loss)
        if logits is None:
            _, hits = head_metrics(outputs, targets.squeeze(2), head)
        else:
            hits = (logits.argmax(-1, keepdim=True) == targets).float()
        return Loss(loss, lambda: {"accuracy": hits.mean()})

    def forward(self, codes: Sequence[Tensor], labels: Tensor, patch_size: int = 1) -> tuple[Tensor, Tensor]:
        """(B, M, V) logits, row m of patch m in raster order, and their mean cross-entropy in nats.

        Of (B, G, G) codes of the only scale and labels (B,). ``patch_size`` is p: a patch's input is the mean of its
        codes' embeddings, and its one distribution is scored against each of its codes.
        """
        logits = self.logits(self._outputs(codes, labels, patch_size))
        return logits, patch_cross_entropy(logits, by_patch(codes[-1], patch_size))

    def _outputs(self, codes: Sequence[Tensor], labels: Tensor, patch_size: int) -> Tensor:
        """(B, M, D) outputs of the transformer, each of the patch before the one that it is to predict."""
        x = self.inputs(codes[-1], labels, patch_size)  # (B, M, D)
        sides = codes[-1].shape[1] // patch_size
        rotation = pair_rotation(sides, self.config.llama_config.head_dim, x.device)
        rotation = SameRotation(tuple(part[: x.shape[1]] for part in rotation))
        return self.transform(x, rotation, "causal")

    def inputs(self, codes: Tensor, labels: Tensor, patch_size: int = 1) -> Tensor:
        """(B, M, D) the class token and the inputs of all patches but the last, of codes (B, G, G)."""
        patches = by_patch(codes, patch_size)[:, :-1]  # (B, M - 1, p * p)
        tokens = self.tok_embeddings(patches).mean(2)
        return self.token_dropout(torch.cat([self.embed_labels(labels).unsqueeze(1), tokens], dim=1))

    def embed_labels(self, labels: Tensor) -> Tensor:
        """(B, D) class tokens."""
        if not self.config.class_cond:
            labels = torch.full_like(labels, self.unconditional_label)
        return self.cls_embedding["embedding_table"](labels)

    def transform(
        self, x: Tensor, rotation: SameRotation, mask: Mask = None, cache: KVCache | None = None, start: Start = 0
    ) -> Tensor:
        """Outputs (B, T, D), after the last norm, of the inputs (B, T, D) of tokens ``start...start + T``."""
        for index, layer in enumerate(self.layers):
            inputs = (x, rotation, index, mask, cache, start)
            keeps_less = self.activation_checkpointing and self.training
            x = checkpoint(layer, *inputs, use_reentrant=False) if keeps_less else layer(*inputs)
        return self.norm(x)

    def logits(self, x: Tensor) -> Tensor:
        """(B, T, V) float32 logits of outputs (B, T, D)."""
        return float32_logits(x, self.output.weight.float())

    def check_labels(self, labels: Tensor) -> None:
        super().check_labels(labels)
        if (labels == self.unconditional_label).any() and not self.has_unconditional_row:
            raise UserError("this model was trained without unconditional labels; name a class for each image")

    def check_drawing(self, drawing: LlamaGenDrawing, keeps: bool = False) -> None:
        super().check_drawing(drawing, keeps)
        if drawing.uses_cfg and self.config.class_cond and not self.has_unconditional_row:
            raise UserError("this model was trained without unconditional labels and cannot be guided; set cfg 0")

    def sampler(self, batch: int, drawing: LlamaGenDrawing, compiled: bool = False) -> Sampler:
        return LlamaGenSampler(self, batch, drawing, compiled)

    def num_steps(self, drawing: LlamaGenDrawing, num_kept: int = 0) -> int:
        return self.num_locations

    def to_uint8(self, images: Tensor) -> Tensor:
        """Rounded, where the checkerboard's rule cuts off (formats.md G7)."""
        return (127.5 * images.float() + 128).clamp(0, 255).to(torch.uint8)


@contextmanager
def seeded(rng: torch.Generator) -> Iterator[None]:
    """Let dropout follow from a step's generator: it takes none, but draws from the device's own."""
    devices = [rng.device] if rng.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(rng.initial_seed() ^ OTHER_STREAM)
        yield
