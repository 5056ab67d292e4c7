"""Training of the small VQ-VAE: its codes are moving averages of the latents (formats.md R7).

Letters: B batch, C code dimension, S side of the code map, V codes, N latents of a batch.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from models.family import Loss, StepContext
from models.loading.autoencoder import save_autoencoder
from models.vqvae import VQVAE
from runtime import distributed
from runtime.config import plain
from runtime.errors import UserError
from train_ae_codebook.codebook import perplexity
from train_ae_codebook.options import VQVAEArgs
from train_ae_codebook.tasks import AutoencoderTask


class VQVAETask(AutoencoderTask):
    """Trains all weights by the error and the commitment, and moves the codes; ``validation`` are held-out images."""

    def __init__(self, module: VQVAE, args: VQVAEArgs, validation: Dataset) -> None:
        side, rest = divmod(args.img_size, module.config.stride)
        if rest or not side:
            raise UserError(f"img_size is {args.img_size}; it must be a multiple of {module.config.stride}")
        super().__init__(args, module.config.stride, [side], validation)
        self.module = module

    def loss(self, batch: list[Tensor], context: StepContext) -> Loss:
        """Of images (B, 3, H, W): mean square error over the data's variance, and commitment. Then the codes move."""
        images = batch[0]
        z = self.module.encode(images)  # (B, C, S, S)
        if self.args.codebook_start == "latents" and context.step == context.batch == 0:
            self._begin_codes(z.detach(), context.rank_rng)
        codes = self.module.quantize_latents(z)
        quantized = self.module.lookup(codes)
        rebuilt = self.module.decode_latents(z + (quantized - z).detach())  # straight through, as LlamaGen's
        error = F.mse_loss(rebuilt / 2, images / 2) / self.args.variance  # halves: of pixels in [0, 1]
        commitment = self.args.commitment * F.mse_loss(z, quantized)
        counts = self._move_codes(z.detach(), codes)
        return Loss(error + commitment, lambda: {"mse_over_variance": error, "perplexity": perplexity(counts)})

    def _begin_codes(self, z: Tensor, rng: torch.Generator) -> None:
        """Put the codes onto latents of z (B, C, S, S), drawn at random, of the first rank."""
        latents_NC, V = z.permute(0, 2, 3, 1).flatten(0, 2), self.module.config.n_embed
        chosen = latents_NC[torch.randint(len(latents_NC), (V,), device=z.device, generator=rng)]
        size = len(latents_NC) * distributed.num_ranks() / V
        self.module.begin_codes(distributed.from_main(chosen.cpu()).to(z.device), size)

    @torch.no_grad()
    def _move_codes(self, z: Tensor, codes: Tensor) -> Tensor:
        """Move the codes by the latents z (B, C, S, S) of all ranks; return (V,) how many chose each."""
        latents_NC, codes_N = z.permute(0, 2, 3, 1).flatten(0, 2), codes.flatten()
        V, C = self.module.config.n_embed, self.module.config.embed_dim
        counts = torch.zeros(V, device=z.device).index_add_(0, codes_N, torch.ones_like(codes_N, dtype=torch.float32))
        sums = torch.zeros(V, C, device=z.device).index_add_(0, codes_N, latents_NC)
        counts, sums = distributed.add_up(counts), distributed.add_up(sums)
        self.module.average_codes(counts, sums, self.args.codebook_decay)
        return counts

    def describe(self) -> dict[str, Any]:
        return {"config": plain(self.module.config), "args": plain(self.args)}

    def export(self, module: VQVAE, folder: Path) -> None:
        save_autoencoder(module.cpu(), folder)
