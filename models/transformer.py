"""Blockwise-causal transformer with adaptive modulation and a key-value cache (paper Sec. 3.1, formats.md M4).

Letters: B batch, T tokens of a call (the class token is token 0), D width, h heads, d = D / h.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.config import TransformerConfig
from models.linear import MANY_LOGITS, Linear, linear, linear_cross_entropy

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask  # takes seconds, which few need

PART = 96  # the fewest tokens that attend by one call


class BlockCausal(NamedTuple):
    """``block_causal_mask`` in parts: queries from and to, with their mask if they may not see all keys up to there.

    A fifth faster than one mask on a CPU: keys after a part are left out.
    """

    parts: Sequence[tuple[int, int, Tensor | None]]

    @classmethod
    def of_steps(cls, steps: Tensor) -> Self:
        """Of (L,) steps in order; the class token comes before."""
        steps = F.pad(steps, (1, 0), value=-1)
        found, first = [], 0
        ends = [*(steps.diff().nonzero().flatten() + 1).tolist(), len(steps)]
        for end in ends:
            if end - first >= PART or end == ends[-1]:
                allowed = steps[first:end, None] >= steps[None, :end]
                found.append((first, end, None if allowed.all() else allowed))
                first = end
        return cls(found)


Mask: TypeAlias = "Tensor | BlockMask | BlockCausal | Literal['causal'] | None"
ShiftScale = tuple[Tensor, Tensor]  # (B, 1, D) each
Modulations = tuple[ShiftScale, ShiftScale]  # before attention and before the feed-forward layer
Start = int | Tensor
CosSin = tuple[Tensor, Tensor]  # broadcast over what is rotated


class Rotations(Protocol):
    def of_layer(self, layer: int) -> CosSin:
        """The pair for ``rotate`` on queries and keys (B, 2, h, T, d) of a layer."""


def rotate(x: Tensor, cos_sin: CosSin) -> Tensor:
    """``x * cos + rotate_half(x) * sin`` over the last dimension, ``cos_sin`` being ``signed`` (cos, sin).

    rotate_half(x) = cat(-second half, first half) is a roll, its sign moved into ``cos_sin``: 3 operations, not 5.
    """
    return torch.addcmul(x * cos_sin[0], x.roll(x.shape[-1] // 2, dims=-1), cos_sin[1])


@dataclass(frozen=True)
class SameRotation:
    """One rotation of all layers."""

    cos_sin: CosSin

    def of_layer(self, layer: int) -> CosSin:
        return self.cos_sin


def signed(rotation: Iterable[Tensor]) -> CosSin:
    """(cos, sin) -> what ``rotate`` takes: the sine negative in its first half."""
    cos, sin = rotation
    first, second = sin.chunk(2, dim=-1)
    return cos, torch.cat([-first, second], dim=-1)


def as_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x.to(dtype)`` without a call where there is nothing to do: thousands are saved for each image."""
    return x if x.dtype == dtype else x.to(dtype)


class KVCache:
    """Keys and values of every token so far, allocated once for the whole image."""

    def __init__(self, keys: list[Tensor], values: list[Tensor]) -> None:
        self.keys, self.values = keys, values  # (B, h, T, d) of each layer

    @classmethod
    def zeros(cls, config: TransformerConfig, batch: int, max_tokens: int, like: Tensor) -> Self:
        """An empty one, of the type and on the device of ``like``."""
        shape = (batch, config.num_attention_heads, max_tokens, config.head_dim)
        made = ([like.new_zeros(shape) for _ in range(config.num_hidden_layers)] for _ in range(2))
        return cls(*made)

    def first(self, batch: int) -> "KVCache":
        """The first rows of the batch, in the same memory."""
        if batch == len(self.keys[0]):
            return self
        return KVCache([keys[:batch] for keys in self.keys], [values[:batch] for values in self.values])

    def append(self, layer: int, start: Start, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, h, T, d) of new tokens of one layer; return all those that they may attend to.

        ``start`` is the index of the first new token, for the tokens up to the last one; or (T,) indices of all new
        tokens, for the whole cache, whose shape is always the same.
        """
        keys, values = self.keys[layer], self.values[layer]
        if isinstance(start, Tensor):
            return keys.index_copy_(2, start, k), values.index_copy_(2, start, v)
        end = start + k.shape[2]
        keys[:, :, start:end] = k
        values[:, :, start:end] = v
        return keys[:, :, :end], values[:, :, :end]


class RMSNorm(nn.Module):
    """Root-mean-square norm with a weight, computed in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        weight = as_dtype(self.weight, torch.float32)
        return as_dtype(F.rms_norm(as_dtype(x, torch.float32), weight.shape, weight, eps=1e-6), x.dtype)


class Modulation(nn.Module):
    """Shift and scale of a normalized input from the class embedding, ``h * scale + shift`` (no 1 +)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = Linear(width, 2 * width)

    def reset_parameters(self) -> None:
        """Start as the identity: weight 0, shift 0, scale 1 (formats.md M5)."""
        nn.init.zeros_(self.linear.weight)
        with torch.no_grad():
            shift, scale = self.linear.bias.chunk(2)
            shift.zero_()
            scale.fill_(1.0)

    def forward(self, class_embedding: Tensor) -> ShiftScale:
        """(B, 1, D) shift and scale of class embeddings (B, D)."""
        return self.linear(F.silu(class_embedding)).unsqueeze(1).chunk(2, dim=-1)


def float32_logits(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Logits (B, T, V) of outputs (B, T, D), computed in float32, under autocast too, by a float32 head (V, D)."""
    with torch.autocast(x.device.type, enabled=False):
        return linear(as_dtype(x, torch.float32), weight, bias)


def head_loss(x: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Mean cross-entropy in nats of the ``float32_logits`` of outputs (B, T, D) with targets, as many as B T."""
    with torch.autocast(x.device.type, enabled=False):
        rows = as_dtype(x, torch.float32).flatten(0, 1)
        return linear_cross_entropy(rows, weight, targets.flatten(), bias)


@torch.no_grad()
def head_metrics(x: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats of each target (B, T), and 1 where it has the largest logit, else 0; as ``head_loss``.

    A part of the logits at a time: a step that logs needs no more memory than others.
    """
    rows_at_once = max(1, MANY_LOGITS // len(weight))
    parts = zip(x.flatten(0, 1).split(rows_at_once), targets.flatten().split(rows_at_once), strict=True)
    measured = []  # (2, rows) of each part
    for rows, wanted in parts:
        logits = float32_logits(rows, weight, bias)
        hits = logits.argmax(-1) == wanted
        measured.append(torch.stack([F.cross_entropy(logits, wanted, reduction="none"), hits.float()]))
    nats, hits = torch.cat(measured, dim=1).view(2, *targets.shape)
    return nats, hits


def modulate(x: Tensor, shift_scale: ShiftScale) -> Tensor:
    shift, scale = shift_scale
    return torch.addcmul(shift, x, scale)


class Attention(nn.Module):
    """``apply_rotation`` rotates queries and keys: ``rotate``, or another that the family needs."""

    def __init__(self, config: TransformerConfig, apply_rotation: Callable[[Tensor, CosSin], Tensor] = rotate) -> None:
        super().__init__()
        self.apply_rotation = apply_rotation
        self.num_heads = config.num_attention_heads
        self.wqkv = Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.wo = Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self, x: Tensor, rotary: Rotations, layer: int, mask: Mask, cache: KVCache | None, start: Start
    ) -> Tensor:
        qkv = self.wqkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, T, 3, h, d)
        qkv = qkv.permute(0, 2, 3, 1, 4)  # (B, 3, h, T, d)
        v = qkv[:, 2]
        rotated = self.apply_rotation(qkv[:, :2], rotary.of_layer(layer))
        q, k = (rotated if _mixed_on_cpu(x) else as_dtype(rotated, v.dtype)).unbind(1)  # (B, h, T, d)
        if cache is not None:
            k, v = cache.append(layer, start, k, v)
        return self.wo(attend(q, k, v, mask).transpose(1, 2).reshape(x.shape))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """(B, h, T, d) of queries (B, h, T, d), and of the keys and values that ``mask`` is of.

    Mixed precision on a CPU computes it in float32: bfloat16 is no faster there, and its gradients up to five times as
    slow.
    """
    if _mixed_on_cpu(q):
        with torch.autocast("cpu", enabled=False):
            return attend(q.float(), k.float(), v.float(), mask)
    if isinstance(mask, BlockCausal):
        parts = (attend(q[:, :, first:end], k[:, :, :end], v[:, :, :end], part) for first, end, part in mask.parts)
        return torch.cat(list(parts), dim=2)
    if isinstance(mask, str):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    if mask is None or isinstance(mask, Tensor):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return compiled_flex_attention()(q, k, v, block_mask=mask)


def _mixed_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and torch.is_autocast_enabled("cpu")


@lru_cache
def compiled_flex_attention() -> Callable[..., Tensor]:
    """FlexAttention is fast only when compiled."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def flex_mask(steps: Tensor) -> "BlockMask":
    """``block_causal_mask`` of (L,) steps for FlexAttention, which skips blocks that are masked whole."""
    from torch.nn.attention.flex_attention import create_block_mask

    steps = F.pad(steps, (1, 0), value=-1)
    length = len(steps)
    return create_block_mask(
        lambda b, h, query, key: steps[query] >= steps[key], None, None, length, length, device=steps.device
    )


class FeedForward(nn.Module):
    """SwiGLU: ``w2(silu(w1 x) * w3 x)``."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.w1 = Linear(config.hidden_size, config.ffn_size, bias=False)
        self.w3 = Linear(config.hidden_size, config.ffn_size, bias=False)
        self.w2 = Linear(config.ffn_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class TransformerLayer(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.hidden_size)
        self.ffn_norm = RMSNorm(config.hidden_size)
        self.input_modulation = Modulation(config.hidden_size)
        self.post_attention_modulation = Modulation(config.hidden_size)

    def modulations(self, class_embedding: Tensor) -> Modulations:
        return self.input_modulation(class_embedding), self.post_attention_modulation(class_embedding)

    def forward(self, x: Tensor, modulations: Modulations, *attending: Any) -> Tensor:
        """``attending`` is all that attention takes but its input."""
        h = modulate(self.attention_norm(x), modulations[0])
        x = x + self.attention(h, *attending)
        h = modulate(self.ffn_norm(x), modulations[1])
        return x + self.feed_forward(h)


class Transformer(nn.Module):
    """A stack of layers under one class embedding."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False  # in training, keep each layer's input alone and compute the rest again
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size)

    def modulations(self, class_embedding: Tensor) -> list[Modulations]:
        """Every layer's shifts and scales; they depend on the class embedding (B, D) alone."""
        return [layer.modulations(class_embedding) for layer in self.layers]

    def forward(
        self,
        x: Tensor,
        modulations: list[Modulations],
        rotary: Rotations,
        mask: Mask = None,
        cache: KVCache | None = None,
        start: Start = 0,
    ) -> Tensor:
        """Run the inputs (B, T, D) of tokens ``start...start + T``, in the order drawn; add them to the cache.

        ``mask`` is (T, tokens so far), True where attention is allowed, or the same as blocks or for FlexAttention;
        "causal"; or None where all is allowed. ``start`` is the index of the first token, or (T,) of all (see
        ``KVCache.append``).
        """
        checkpointing = self.activation_checkpointing and self.training
        for index, (layer, modulation) in enumerate(zip(self.layers, modulations, strict=True)):
            inputs = (x, modulation, rotary, index, mask, cache, start)
            x = checkpoint(layer, *inputs, use_reentrant=False) if checkpointing else layer(*inputs)
        return self.norm(x)
