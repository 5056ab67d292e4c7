"""Tiny models of RandAR for tests, and sampling by the plain reading of its definition, without a cache.

Letters: B images, L locations, n codes of a step, V codes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models.autoencoder import Autoencoder
from models.family import Generator
from models.llamagen.config import LlamaConfig
from models.llamagen.patches import signed_pairs
from models.randar.config import RandARConfig
from models.randar.model import RandAR
from models.randar.sequence import rotation_at
from models.randar.upscale import extrapolated_rotation
from models.scales import join_scales
from tests.factory import randomize

TINY_GPT = LlamaConfig(hidden_size=32, intermediate_size=96, num_attention_heads=2, num_hidden_layers=2)
CLASSES, SIDE, V = 10, 4, 64
L = SIDE * SIDE


def tiny_randar(seed: int = 0, autoencoder: Autoencoder | None = None, **overrides: Any) -> RandAR:
    """A model in eval mode whose every weight is random, of 4 x 4 codes out of 64, by default without an autoencoder.

    ``overrides`` are fields of RandARConfig.
    """
    side = 16 if autoencoder is None else autoencoder.config.stride
    tiny = {"img_size": SIDE * side, "num_classes": CLASSES, "vocab_size": V, "llama_config": TINY_GPT}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = RandAR(RandARConfig(**(tiny | overrides)), autoencoder)
        randomize(model)
    return model.eval()


def random_orders(batch: int, num_locations: int = L, seed: int = 0) -> Tensor:
    """(B, L)"""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(num_locations, generator=generator) for _ in range(batch)])


def order_of(step: Sequence[Tensor]) -> Tensor:
    """(B, L) the order that one code a step was drawn in, of the steps (B, S, S) of the only scale."""
    return step[0].flatten(1).argsort(dim=1)


def at_instructions(
    model: Generator,
    codes: Tensor,
    labels: Tensor,
    order: Tensor,
    known: int,
    drawn: int,
    lacking: Tensor | None = None,
) -> Tensor:
    """(B, n, V) logits of one causal pass over ``c q_1 x_1 .. q_known x_known q q ..`` at its last instructions.

    Of codes (B, L) by location, on the model's own grid or on one of twice the side; the inputs of the codes that are
    ``lacking`` (B, L) are zeros.
    """
    if codes.shape[1] == model.num_locations:
        table = model.rotation_table()
    else:
        size = model.config.llama_config
        table = signed_pairs(extrapolated_rotation(model.scale_sizes[0], size.head_dim, model.device))
    tokens, places = [model.embed_labels(labels)], [torch.zeros_like(labels)]
    for number in range(known + drawn):
        location = order[:, number]
        tokens.append(model.instructions(location[:, None], table)[:, 0])
        places.append(1 + location)
        if number < known:
            token = model.tok_embeddings(codes.gather(1, location[:, None]))[:, 0]
            if lacking is not None:
                token = token.masked_fill(lacking.gather(1, location[:, None]), 0)
            tokens.append(token)
            places.append(1 + location)
    x = model.transform(torch.stack(tokens, 1), rotation_at(table, torch.stack(places, 1)), "causal")
    return model.logits(x[:, -drawn:])


def scored_steps(
    model: Generator, codes: Sequence[Tensor], labels: Tensor, order: Tensor, counts: Sequence[int], known: int = 0
) -> tuple[Tensor, Tensor]:
    """Conditional and unconditional logits (B, L - known, V) of each code by steps of ``counts``, as drawn."""
    flat, rows = join_scales(codes), []
    for each in (labels, torch.full_like(labels, model.unconditional_label)):
        done, parts = known, []
        for count in counts:
            parts.append(at_instructions(model, flat, each, order, done, count))
            done += count
        rows.append(torch.cat(parts, dim=1))
    return rows[0], rows[1]
