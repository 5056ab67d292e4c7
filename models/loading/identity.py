"""What makes a model this one and no other: the identity of samples and results."""

import json
from dataclasses import asdict, replace
from hashlib import sha256

import torch

from models.config import AutoencoderPaths
from models.family import Generator
from models.loading.state import AUTOENCODER_PREFIX


def model_sha256(model: Generator) -> str:
    """SHA-256 of all that decides a model's images but the drawing: weights and configuration, the autoencoder's too.

    Take it before the weights are converted to a lower precision, so that it is that of the checkpoint in each of them.
    Where files lie does not count; two spellings of one configuration are the same.
    """
    frozen = {} if model.autoencoder is None else model.autoencoder.state_dict()
    weights = model.state_dict() | {f"{AUTOENCODER_PREFIX}{name}": value for name, value in frozen.items()}
    tensors = [(name, value.detach().cpu().contiguous()) for name, value in sorted(weights.items())]
    # Without its files, and settings that the autoencoder's own configuration has.
    config = asdict(replace(model.config.canonical(), autoenc=AutoencoderPaths()))
    names = [(name, str(value.dtype), list(value.shape)) for name, value in tensors]
    known = {"model": config, "autoencoder": model.autoencoder and asdict(model.autoencoder.config), "tensors": names}
    digest = sha256(json.dumps(known, sort_keys=True).encode())
    for _, value in tensors:
        digest.update(value.view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
