"""A VQ autoencoder trained from scratch: reconstruction, codebook and commitment losses, revival of dead codes.

Letters: B batch, C code dimension, V codes, n latents of a batch. Every batch is seen at one size of the pyramid, so
that small images are represented too.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from engine import distributed
from engine.config import plain
from engine.device import DTYPES
from engine.run_folder import save_autoencoder
from engine.trainer import Statistics, StepRandomness
from models.autoencoder import Autoencoder, quantizer_loss, resize_image
from train_ae_codebook.codebook import USAGE_RATE, PyramidArgs, code_frequencies, dead_codes, perplexity
from train_ae_codebook.measure import show_held_out


@dataclass(frozen=True)
class AutoencoderArgs(PyramidArgs):
    """The ``args:`` section of a configuration of train_ae_codebook/main.py.

    Attributes:
        export_dtype: precision of the finished autoencoder's file; it is computed with in float32 all the same.
    """

    export_dtype: Literal["float32", "float16"] = "float32"


class VQVAETask:
    """Trains every weight of an ``Autoencoder`` on images."""

    def __init__(self, module: Autoencoder, args: AutoencoderArgs, validation: Dataset) -> None:
        args.check_stride(module.config.stride)
        self.module, self.args, self.validation = module, args, validation

    def loss(self, batch: list[Tensor], randomness: StepRandomness) -> tuple[Tensor, Statistics]:
        images = self._at_random_size(batch[0], randomness)
        z = self.module.encode(images)  # (B, C, S, S)
        codes = self.module.quantize_latents(z)
        usage = self.module.cluster_usage_train
        usage.lerp_(code_frequencies(codes, len(usage)), USAGE_RATE)
        if self.args.revive_freq and randomness.step % self.args.revive_freq == self.args.revive_freq - 1:
            self._revive(z.detach(), randomness.own)
            codes = self.module.quantize_latents(z)
        quantized = self.module.lookup(codes)
        passed = z + (quantized - z).detach()  # straight through: gradients of the decoder reach the encoder
        error = self.module.decode_latents(passed).float() - images
        reconstruction = error.abs().mean() + error.square().mean()
        loss = reconstruction + quantizer_loss(z, quantized, self.args.commitment)

        def statistics() -> dict[str, Tensor]:
            return {
                "l1": error.abs().mean(),
                "dead_codes": self._dead().float().mean(),
                "perplexity": perplexity(usage),
            }

        return loss, statistics

    def precision(self) -> torch.dtype:
        return torch.float32

    def show(self, module: Autoencoder, folder: Path, name: str) -> dict[str, float]:
        """Write originals over reconstructions at every scale; return PSNR (dB) and usage on held-out images."""
        if not distributed.is_main():
            return {}
        figures = show_held_out(module, self.validation, self.args.scale_sizes, folder / f"{name}.png")
        full_size = figures[max(self.args.scale_sizes)]
        return {"psnr": full_size.psnr, "used_codes": full_size.usage}

    def describe(self) -> dict[str, Any]:
        return {"config": plain(self.module.config), "args": plain(self.args)}

    def export(self, module: Autoencoder, folder: Path) -> None:
        """Write the trained autoencoder."""
        save_autoencoder(module.cpu(), folder, DTYPES[self.args.export_dtype])

    def _at_random_size(self, images: Tensor, randomness: StepRandomness) -> Tensor:
        side = self.args.draw_side(sorted(self.args.scale_sizes)[:-1], randomness.shared)
        return resize_image(images, side * self.module.config.stride)

    def _dead(self) -> Tensor:
        return dead_codes(self.module.cluster_usage_train, self.args.dead_below)

    @torch.no_grad()
    def _revive(self, latents: Tensor, generator: torch.Generator) -> None:
        """Move dead codes onto latents of this batch, drawn at random, and call them used as the average one is."""
        dead = self._dead().nonzero().squeeze(1)
        candidates = latents.permute(0, 2, 3, 1).flatten(0, 2)  # (n, C)
        chosen = torch.randint(len(candidates), (len(dead),), device=dead.device, generator=generator)
        revived = distributed.from_main(candidates[chosen].cpu()).to(dead.device)
        self.module.quantize.embedding[dead] = revived
        self.module.cluster_usage_train[dead] = 1 / self.module.config.n_embed
