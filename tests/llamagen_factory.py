"""Tiny models of LlamaGen's family for tests, and where its reference fixtures are."""

from typing import Any

import torch

from models.autoencoder import Autoencoder
from models.llamagen.config import LlamaConfig, LlamaGenConfig
from models.llamagen.model import LlamaGen
from tests.factory import randomize

REFERENCES = ("tiny-llamagen", "tiny-npp")
TINY_GPT = LlamaConfig(hidden_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=2)


def tiny_gpt(seed: int = 0, autoencoder: Autoencoder | None = None, **overrides: Any) -> LlamaGen:
    """A model in eval mode whose every weight is random, of 4 x 4 codes out of 64, by default without an autoencoder.

    ``overrides`` are fields of LlamaGenConfig.
    """
    side = 16 if autoencoder is None else autoencoder.config.stride
    tiny = {"img_size": 4 * side, "num_classes": 10, "vocab_size": 64, "llama_config": TINY_GPT}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaGen(LlamaGenConfig(**(tiny | overrides)), autoencoder)
        randomize(model)
    return model.eval()
