"""A VQ autoencoder, all of it trained: reconstruction, codebook and commitment losses, revival of dead codes.

Letters: B batch, C code dimension, V codes, n latents of a batch. Every batch is seen at one size of the pyramid, so
that small images are represented too.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from models.autoencoder import Autoencoder, quantizer_loss, resize_image
from models.family import Loss, StepContext
from models.loading.autoencoder import open_autoencoder, save_autoencoder
from runtime import distributed
from runtime.config import plain
from runtime.device import DTYPES
from runtime.errors import UserError
from train_ae_codebook.codebook import USAGE_RATE, code_frequencies, dead_codes, perplexity
from train_ae_codebook.discriminator import Adversary
from train_ae_codebook.measure import show_held_out
from train_ae_codebook.options import AutoencoderArgs
from train_ae_codebook.perceptual import PerceptualDistance
from training.task import Task


def start_from(module: Autoencoder, path: str) -> None:
    """Take over another autoencoder's weights; its codes too if there are as many.

    Raises:
        UserError: it cannot be read, or is of another architecture.
    """
    start = open_autoencoder(path)
    theirs = asdict(start.config)
    for key, ours in asdict(module.config).items():
        if key != "n_embed" and ours != theirs[key]:
            raise UserError(f"{path} has {key} {theirs[key]}, not {ours}; put that into the configuration's model:")
    state = start.state_dict()
    if start.config.n_embed != module.config.n_embed:
        state = {key: value for key, value in state.items() if not key.startswith(("quantize", "cluster_usage"))}
    module.load_state_dict(module.state_dict() | state)


class VQVAETask(Task):
    """Trains every weight of an ``Autoencoder`` on images.

    Args:
        module: the autoencoder.
        args: training settings.
        validation: images that are measured.
        device: of this rank.
    """

    def __init__(self, module: Autoencoder, args: AutoencoderArgs, validation: Dataset, device: torch.device) -> None:
        args.check_stride(module.config.stride)
        self.module, self.args, self.validation = module, args, validation
        self.perceptual = PerceptualDistance().to(device) if args.perceptual else None
        self.adversary = Adversary(args.discriminator_lr, args.accum_steps, device) if args.discriminator else None

    def loss(self, batch: list[Tensor], context: StepContext) -> Loss:
        """Of images (B, 3, H, W) at one size: reconstruction, codebook, commitment, and the terms asked for."""
        images = self._at_random_size(batch[0], context)
        z = self.module.encode(images)  # (B, C, S, S)
        codes = self.module.quantize_latents(z)
        usage = self.module.cluster_usage_train
        usage.lerp_(code_frequencies(codes, len(usage)), USAGE_RATE)
        if self.args.revive_freq and context.step % self.args.revive_freq == self.args.revive_freq - 1:
            self._revive(z.detach(), context.rank_rng)
            codes = self.module.quantize_latents(z)
        quantized = self.module.lookup(codes)
        passed = z + (quantized - z).detach()  # straight through: gradients of the decoder reach the encoder
        rebuilt = self.module.decode_latents(passed).float()
        error = rebuilt - images
        reconstruction = error.abs().mean() + error.square().mean()
        realism, terms = self._realism(images, rebuilt, context)
        loss = reconstruction + quantizer_loss(z, quantized, self.args.commitment) + realism

        def metrics() -> dict[str, Tensor]:
            dead = self._dead().float().mean()
            return {"l1": error.abs().mean(), "dead_codes": dead, "perplexity": perplexity(usage), **terms}

        return Loss(loss, metrics)

    def _realism(
        self, images: Tensor, rebuilt: Tensor, context: StepContext
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """The terms that were asked for, weighted and added, and each of them."""
        total, terms = 0.0, {}
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(rebuilt, images)
            total = total + self.args.perceptual * terms["perceptual"]
        whole = images.shape[-1] == self.args.img_size
        if self.adversary is not None and whole and context.step >= self.args.discriminator_start:
            terms["fooled"] = self.adversary.fooled(rebuilt)
            terms["discriminator"] = self.adversary.learn(images, rebuilt, context.batch)
            total = total + self.args.discriminator * terms["fooled"]
        return total, terms

    def precision(self) -> torch.dtype:
        return torch.float32

    def show(self, module: Autoencoder, folder: Path, name: str) -> dict[str, float]:
        """Write originals over reconstructions at every scale; return PSNR (dB) and usage on held-out images."""
        if not distributed.is_main():
            return {}
        by_side = show_held_out(module, self.validation, self.args.scale_sizes, folder / f"{name}.png")
        full = by_side[max(self.args.scale_sizes)]
        tqdm.write(f"{name}: PSNR {full.psnr:.2f} dB, {full.usage:.1%} of the codes used, full size, held out")
        return {"psnr": full.psnr, "used_codes": full.usage}

    def describe(self) -> dict[str, Any]:
        return {"config": plain(self.module.config), "args": plain(self.args)}

    def state(self) -> dict[str, Any]:
        return {} if self.adversary is None else self.adversary.state()

    def restore(self, state: dict[str, Any]) -> None:
        if bool(state) != (self.adversary is not None):
            kind = "with" if state else "without"
            raise UserError(
                f"the checkpoint is of a run {kind} a discriminator; keep it so, or name another output_dir"
            )
        if self.adversary is not None:
            self.adversary.restore(state)

    def export(self, module: Autoencoder, folder: Path) -> None:
        """Write the trained autoencoder."""
        save_autoencoder(module.cpu(), folder, DTYPES[self.args.export_dtype])

    def _at_random_size(self, images: Tensor, context: StepContext) -> Tensor:
        side = self.args.draw_side(sorted(self.args.scale_sizes)[:-1], context.step_rng)
        return resize_image(images, side * self.module.config.stride)

    def _dead(self) -> Tensor:
        return dead_codes(self.module.cluster_usage_train, self.args.dead_below)

    @torch.no_grad()
    def _revive(self, latents: Tensor, rng: torch.Generator) -> None:
        """Move dead codes onto latents of this batch, drawn at random, and call them used as the average one is."""
        dead = self._dead().nonzero().squeeze(1)
        candidates = latents.permute(0, 2, 3, 1).flatten(0, 2)  # (n, C)
        chosen = torch.randint(len(candidates), (len(dead),), device=dead.device, generator=rng)
        revived = distributed.from_main(candidates[chosen].cpu()).to(dead.device)
        self.module.quantize.embedding[dead] = revived
        self.module.cluster_usage_train[dead] = 1 / self.module.config.n_embed
