"""A VQ autoencoder trained from scratch: reconstruction, codebook and commitment losses, revival of dead codes.

Letters: B batch, C code dimension, V codes, n latents of a batch. Every batch is seen at one size of the pyramid, so
that small images are represented too.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from engine import distributed
from engine.config import LoopArgs, plain
from engine.images import save_grid, to_uint8
from engine.trainer import Statistics, StepRandomness
from models.autoencoder import Autoencoder, quantizer_loss, resize_image
from models.errors import UserError

USAGE_RATE = 0.01  # of the moving average of code frequencies
SHOWN_IMAGES = 16
MAX_VALIDATION = 1000  # evenly spaced over the validation images


@dataclass(frozen=True)
class AutoencoderArgs(LoopArgs):
    """The ``args:`` section of a configuration of train_ae_codebook/main.py.

    Attributes:
        img_size: side of the full images, in pixels.
        scale_sizes: sides of the code maps of the pyramid to represent.
        full_size_share: probability that a batch has the full size; the other sizes share the rest.
        commitment: weight of the pull of latents towards their codes.
        revive_freq: steps between revivals of dead codes; 0 never revives.
        dead_below: a code is dead if used less than this share of an equal one.
        export_dir: folder that gets the finished autoencoder; default the run folder's autoencoder/.
        export_dtype: precision of its file; it is computed with in float32 all the same.
    """

    img_size: int = 32
    scale_sizes: tuple[int, ...] = (1, 2, 4, 8)
    full_size_share: float = 0.5
    commitment: float = 0.25
    revive_freq: int = 50
    dead_below: float = 0.03
    export_dir: str | None = None
    export_dtype: Literal["float32", "float16"] = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scale_sizes or min(self.scale_sizes) < 1:
            raise UserError(f"scale_sizes is {list(self.scale_sizes)}; name at least one side, each at least 1")


class VQVAETask:
    """Trains every weight of an ``Autoencoder`` on images."""

    def __init__(self, module: Autoencoder, args: AutoencoderArgs, validation: Dataset) -> None:
        largest = max(args.scale_sizes) * module.config.stride
        if largest != args.img_size:
            raise UserError(f"the largest of scale_sizes is one of {largest} pixels, but img_size is {args.img_size}")
        self.module, self.args = module, args
        count = min(MAX_VALIDATION, len(validation))
        spread = [i * len(validation) // count for i in range(count)]
        self.validation = torch.stack([validation[(i, 0)][0] for i in spread])

    def loss(self, batch: list[Tensor], randomness: StepRandomness) -> tuple[Tensor, Statistics]:
        images = self._at_random_size(batch[0], randomness)
        z = self.module.encode(images)  # (B, C, S, S)
        codes = self.module.quantize_latents(z)
        self._count(codes)
        if self.args.revive_freq and randomness.step % self.args.revive_freq == self.args.revive_freq - 1:
            self._revive(z.detach(), randomness.own)
            codes = self.module.quantize_latents(z)
        quantized = self.module.lookup(codes)
        passed = z + (quantized - z).detach()  # straight through: gradients of the decoder reach the encoder
        error = self.module.decode_latents(passed).float() - images
        reconstruction = error.abs().mean() + error.square().mean()
        loss = reconstruction + quantizer_loss(z, quantized, self.args.commitment)

        def statistics() -> dict[str, Tensor]:
            return {"l1": error.abs().mean(), "dead_codes": self._dead().float().mean(), **self._perplexity()}

        return loss, statistics

    def precision(self) -> torch.dtype:
        return torch.float32

    def show(self, module: Autoencoder, folder: Path, name: str) -> dict[str, float]:
        """Write originals over reconstructions at every scale; return PSNR (dB) and usage on held-out images."""
        if not distributed.is_main():
            return {}
        device = module.quantize.embedding.device
        shown = self.validation[:: max(1, len(self.validation) // SHOWN_IMAGES)][:SHOWN_IMAGES].to(device)
        rows = []
        for side in self.args.scale_sizes:
            small = resize_image(shown, side * module.config.stride)
            rebuilt = module.decode(module.quantize_latents(module.encode(small)))
            rows += [resize_nearest(pixels, self.args.img_size) for pixels in (small, rebuilt)]
        save_grid(to_uint8(torch.cat(rows)), folder / f"{name}.png", len(shown))
        codes = torch.cat([module.quantize_latents(module.encode(b.to(device))) for b in self.validation.split(64)])
        rebuilt = torch.cat([module.decode(c).cpu() for c in codes.split(64)])
        mse = ((rebuilt.clamp(-1, 1) - self.validation) / 2).square().mean()
        used = torch.bincount(codes.flatten(), minlength=module.config.n_embed) > 0
        return {"psnr": -10 * mse.log10().item(), "used_codes": used.float().mean().item()}

    def describe(self) -> dict[str, Any]:
        return {"config": plain(self.module.config), "args": plain(self.args)}

    def _at_random_size(self, images: Tensor, randomness: StepRandomness) -> Tensor:
        sizes = sorted(self.args.scale_sizes)
        whole = len(sizes) == 1 or randomness.shared.random() < self.args.full_size_share
        side = sizes[-1] if whole else randomness.shared.choice(sizes[:-1])
        return resize_image(images, side * self.module.config.stride)

    @torch.no_grad()
    def _count(self, codes: Tensor) -> None:
        counts = distributed.add_up(torch.bincount(codes.flatten(), minlength=self.module.config.n_embed).float())
        self.module.cluster_usage_train.lerp_(counts / counts.sum(), USAGE_RATE)

    def _dead(self) -> Tensor:
        return self.module.cluster_usage_train < self.args.dead_below / self.module.config.n_embed

    def _perplexity(self) -> dict[str, Tensor]:
        usage = self.module.cluster_usage_train
        return {"perplexity": torch.special.entr(usage / usage.sum()).sum().exp()}

    @torch.no_grad()
    def _revive(self, latents: Tensor, generator: torch.Generator) -> None:
        """Move dead codes onto latents of this batch, drawn at random, and call them used as the average one is."""
        dead = self._dead().nonzero().squeeze(1)
        candidates = latents.permute(0, 2, 3, 1).flatten(0, 2)  # (n, C)
        chosen = torch.randint(len(candidates), (len(dead),), device=dead.device, generator=generator)
        revived = distributed.from_main(candidates[chosen].cpu()).to(dead.device)
        self.module.quantize.embedding[dead] = revived
        self.module.cluster_usage_train[dead] = 1 / self.module.config.n_embed


def resize_nearest(images: Tensor, size: int) -> Tensor:
    """Images (B, 3, size, size) whose pixels stay visible."""
    return F.interpolate(images, (size, size), mode="nearest")
