"""Small images through a codebook retrained for them: every size of the pyramid, 16 to 256 px, before and after."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data.images import CroppedImages
from data.labelled_images import ImageArrays
from models.autoencoder import Autoencoder, resize_image
from models.loading.autoencoder import open_autoencoder
from tests.codebook_factory import CPU, requantize_args
from tests.factory import tiny_autoencoder
from train_ae_codebook.measure import held_out_batches
from train_ae_codebook.tasks import RequantizeTask
from training.trainer import Trainer

SIDES = (1, 2, 4, 8, 16)


def scenes(count: int, seed: int) -> CroppedImages:
    """Smooth random colours of 256 px, so that each size shows something."""
    coarse = np.random.default_rng(seed).integers(256, size=(count, 5, 5, 3), dtype=np.uint8)
    pixels = F.interpolate(
        torch.from_numpy(coarse).permute(0, 3, 1, 2).float(), (256, 256), mode="bilinear", align_corners=True
    )
    arrays = pixels.permute(0, 2, 3, 1).round().to(torch.uint8).numpy()
    return CroppedImages(ImageArrays("scenes", arrays, [0] * count, ["scene"]), 256, "center")


@pytest.fixture(scope="module")
def start() -> Autoencoder:
    """LlamaGen's depth, stride 16, with 64 random codes."""
    return tiny_autoencoder(ch_mult=(1, 1, 1, 1, 1), n_embed=64)


@pytest.fixture(scope="module")
def retrained(start: Autoencoder, tmp_path_factory: pytest.TempPathFactory) -> Autoencoder:
    """As many codes, retrained on 8 scenes for some steps, exported and read again."""
    folder = tmp_path_factory.mktemp("pyramid")
    args = requantize_args(img_size=256, scale_sizes=SIDES, n_embed=64, batch_size=1, epochs=4, moment_steps=24)
    args = replace(args, dataset="folder", revive_after=24, full_size_share=0.1)
    task = RequantizeTask(start, args, scenes(1, seed=1), CPU)
    Trainer(task, scenes(8, seed=0), args, folder, CPU, {}).fit()
    task.export(task.module, folder / "autoencoder")
    return open_autoencoder(folder / "autoencoder")


@pytest.fixture(scope="module")
def held_out() -> Tensor:
    return torch.cat(list(held_out_batches(scenes(1, seed=2))))


def test_every_size_is_represented_better_than_before(start: Autoencoder, retrained: Autoencoder) -> None:
    images = torch.cat(list(held_out_batches(scenes(6, seed=2))))
    for side in SIDES:
        with torch.no_grad():
            z = start.encode(resize_image(images, 16 * side))
            before, after = ((ae.lookup(ae.quantize_latents(z)) - z).square().mean() for ae in (start, retrained))
        assert after < before, side


def test_every_size_reconstructs(start: Autoencoder, retrained: Autoencoder, held_out: Tensor) -> None:
    """By the decoder that was kept, from codes that are the nearest to the latents of the image at that size."""
    for side, codes in zip(SIDES, retrained.tokenize(held_out, SIDES), strict=True):
        small = F.interpolate(held_out, (16 * side, 16 * side), mode="bilinear")
        with torch.no_grad():
            latents = start.encode(small).permute(0, 2, 3, 1).reshape(-1, 8)
            nearest = torch.cdist(latents, retrained.quantize.codebook()).argmin(1)
            assert (codes.flatten() == nearest).float().mean() > 0.99  # but for rounding
            rebuilt = retrained.decode(codes)
            torch.testing.assert_close(rebuilt, start.decode_latents(retrained.lookup(codes)))
        assert rebuilt.shape == (1, 3, 16 * side, 16 * side)
