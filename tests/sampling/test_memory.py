"""How many images are drawn at once if the user does not say."""

from collections.abc import Callable

import pytest
import torch

from models.config import Drawing
from models.family import DECODING_MEMORY, Generator
from models.sampler import Sampler
from sampling.memory import CPU_BATCH, MAX_BATCH, SHARE, batch_that_fits, bytes_an_image, pick_batch_size
from tests.factory import tiny_model
from tests.llamagen_factory import tiny_gpt
from tests.randar_factory import tiny_randar

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("cfg", [0.0, 1.5])
@pytest.mark.parametrize("make", [tiny_model, tiny_gpt, tiny_randar])
def test_an_image_is_counted_with_all_that_a_sampler_holds_for_it(make: Callable[[], Generator], cfg: float) -> None:
    """The tensors of a sampler of 5 images, those of one of 1 taken off, are four images' share."""
    model = make()
    drawing = model.Drawing(cfg=cfg)
    held = [sum(t.nbytes for t in (*run.cache(), run.sequence, run.maps)) for run in _samplers(model, drawing)]
    counted, logits = bytes_an_image(model, drawing), 4 * model.num_locations * model.num_codes
    assert (held[1] - held[0]) // 4 + logits < counted
    assert counted < (held[1] - held[0]) // 4 + 8 * logits + 30 * (2 * model.config.img_size) ** 2


@torch.inference_mode()
def test_an_order_of_its_own_is_counted() -> None:
    """The rotations that a sampler holds of 5 images, those of 1 taken off, are four images' share."""
    model, held = tiny_model(scan_order="random"), []
    drawing = model.Drawing(cfg=1.5)
    for sampler in _samplers(model, drawing):
        next(sampler.draw(torch.zeros(sampler.batch, dtype=torch.long), torch.arange(sampler.batch)))
        rotations = (pair for blocks in sampler.blocks for block in blocks for pair in block.rotary.cos_sin)
        held.append(sum(part.nbytes for pair in rotations for part in pair))
    counted = bytes_an_image(model, drawing) - bytes_an_image(tiny_model(), drawing)
    assert (held[1] - held[0]) / 4 <= counted <= (held[1] - held[0]) / 2


def test_twice_the_side_is_counted_with_its_first_stage() -> None:
    model = tiny_randar()
    drawing = model.Drawing(upscale=2)
    small, large = (model.sampler(1, of) for of in (drawing.first_stage(), drawing))
    held = sum(t.nbytes for run in (small, large) for t in (*run.kv_cache.keys, *run.kv_cache.values))
    logits = 4 * 3 * large.num_locations * model.num_codes  # of three rows an image
    assert held + logits < bytes_an_image(model, drawing)
    assert sum(tensor.nbytes for tensor in large.cache()) == held


def _samplers(model: Generator, drawing: Drawing) -> list[Sampler]:
    return [model.sampler(batch, drawing) for batch in (1, 5)]


def test_a_batch_fits_into_a_share_of_what_is_free() -> None:
    for free in (int(1e9), int(10e9), int(24e9)):
        batch = batch_that_fits(free, 10**8)
        assert batch == 1 or DECODING_MEMORY + batch * 10**8 <= SHARE * free < DECODING_MEMORY + (batch + 1) * 10**8
    assert batch_that_fits(0, 10**8) == 1
    assert batch_that_fits(10**12, 10**8) == MAX_BATCH


def test_a_cpu_draws_16_at_once() -> None:
    model = tiny_model()
    assert pick_batch_size(model, model.Drawing()) == CPU_BATCH == 16
