"""How many images are drawn at once if the user does not say."""

import torch

from models.config import Drawing
from models.family import DECODING_MEMORY, Generator

CPU_BATCH, MAX_BATCH = 16, 256
SHARE = 0.6  # of the free memory of a GPU; the rest is for activations, the allocator and other programs
COPIES = 4  # of the logits, in float32, while codes are drawn: raw, guided, sorted or divided, probabilities


def pick_batch_size(model: Generator, drawing: Drawing) -> int:
    """16; on CUDA what a share of the free memory holds, 1 to 256. The model is on its device already."""
    if model.device.type != "cuda":
        return CPU_BATCH
    torch.cuda.empty_cache()  # what earlier work has left counts as free
    free, _ = torch.cuda.mem_get_info(model.device)
    return batch_that_fits(free, bytes_an_image(model, drawing))


def batch_that_fits(free: int, image_bytes: int) -> int:
    """Images of so many bytes for free bytes, beside the chunk that is decoded at once."""
    return min(MAX_BATCH, max(1, int(SHARE * free - DECODING_MEMORY) // image_bytes))


def bytes_an_image(model: Generator, drawing: Drawing) -> int:
    """What an image adds while it is drawn: keys and values, its order, logits as if all came in one step, pixels."""
    sampler = model.sampler(1, drawing)
    rows = sampler.batch * sampler.row_sets
    held = sum(tensor.nbytes for tensor in (*sampler.cache(), sampler.sequence, sampler.maps))
    order = model.config.order_share * sum(tensor.nbytes for tensor in sampler.cache())
    logits = 4 * (rows + COPIES) * sampler.num_locations * model.num_codes
    stride = 0 if model.autoencoder is None else model.autoencoder.config.stride
    pixels = 3 * (sampler.scale_sizes[-1] * stride) ** 2
    return held + order + logits + pixels * (2 * 4 + 1)  # decoded, resized, and as bytes
