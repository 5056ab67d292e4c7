"""A new codebook for an autoencoder that stays as it is otherwise (method.md Sec. 7).

Letters: B batch, C code dimension, P scales of the pyramid, V codes, N latents of a batch, K latents kept for k-means.
Every step sees one size of the pyramid. Latents are gathered from all ranks, and random numbers are the same on each:
ranks never disagree, and a run on two is one of twice the batch.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.cluster import kmeans_plusplus
from torch import Tensor, nn
from torch.utils.data import Dataset

from models.autoencoder import Autoencoder, Quantizer, quantizer_loss, resize_image
from models.family import Loss, StepContext
from models.loading.autoencoder import autoencoder_hash, export_autoencoder
from runtime import distributed
from runtime.config import plain
from runtime.errors import UserError
from train_ae_codebook.codebook import USAGE_RATE, code_frequencies, dead_codes, perplexity
from train_ae_codebook.measure import show_held_out
from train_ae_codebook.options import RequantizeArgs
from training.task import Task

EMA_RATE = 0.01  # of the moving averages of codes' latents
KMEANS_LATENTS = 16  # a code, kept in all
KMEANS_ROUNDS = 10
SAME = 1e-5  # difference of latents that may be rounding alone


class Codebook(nn.Module):
    """The new codes, and all that their training remembers: what a checkpoint must hold to go on exactly.

    Args:
        args: of the training.
        dim: C.
    """

    def __init__(self, args: RequantizeArgs, dim: int) -> None:
        super().__init__()
        V, P = args.n_embed, len(args.scale_sizes)
        self.quantize = Quantizer(V, dim)
        self.register_buffer("usage", torch.zeros(V))  # moving averages of frequencies
        self.register_buffer("scale_usage", torch.zeros(P, V))
        self.register_buffer("scale_error", torch.zeros(P))
        self.register_buffer("count", torch.zeros(P, dtype=torch.long))  # moments of each scale
        self.register_buffer("mean", torch.zeros(P, dim))
        self.register_buffer("squares", torch.zeros(P, dim))  # sums of squared deviations from the mean
        self.kept_a_step = -(-KMEANS_LATENTS * V // args.moment_steps) if args.codebook_start == "kmeans" else 0
        self.register_buffer("kept", torch.zeros(self.kept_a_step * args.moment_steps, dim))  # (K, C)
        self.register_buffer("latent_sums", torch.zeros(V if args.codebook_update == "ema" else 0, dim))

    @torch.no_grad()
    def gather(self, step: int, scale: int, latents_NC: Tensor, rng: torch.Generator) -> None:
        """Take latents of every rank into a scale's mean and variance, by Chan's formula for merging two samples.

        For k-means some of them are kept; each step as many, as each weighs the same in the loss.
        """
        more = len(latents_NC) * distributed.num_ranks()
        mean = distributed.add_up(latents_NC.sum(0)) / more
        squares = distributed.add_up((latents_NC - mean).square().sum(0))
        total = self.count[scale] + more
        shift = mean - self.mean[scale]
        self.squares[scale] += squares + shift.square() * self.count[scale] * more / total
        self.mean[scale] += shift * more / total
        self.count[scale] = total
        if self.kept_a_step:
            latents = torch.cat(distributed.everyones(latents_NC.cpu()))
            chosen = latents[torch.randint(len(latents), (self.kept_a_step,), generator=rng)]
            self.kept[step * self.kept_a_step :][: self.kept_a_step] = chosen.to(self.kept.device)

    @torch.no_grad()
    def begin(self, rng: torch.Generator) -> None:
        """Give the codes their first places."""
        self.quantize.embedding.copy_(self._centres(rng) if self.kept_a_step else self._gaussian(rng))
        self._forget_averages(torch.ones_like(self.usage, dtype=torch.bool))

    def _gaussian(self, rng: torch.Generator) -> Tensor:
        """(V, C) random latents, as many with a scale's moments as its part of all latents makes."""
        V, C = self.quantize.embedding.shape
        ends = self.count.cumsum(0) / self.count.sum()
        places = (torch.arange(V, device=ends.device) + 0.5) / V
        scale = torch.searchsorted(ends, places).clamp_max(len(ends) - 1)  # (V,)
        std = (self.squares / self.count.clamp_min(1)[:, None]).sqrt()
        return self.mean[scale] + std[scale] * torch.randn(V, C, generator=rng).to(std.device)

    def _centres(self, rng: torch.Generator) -> Tensor:
        """(V, C) k-means of the latents kept, on the unit sphere; a centre that is nearest to none stays."""
        V, num_different = len(self.usage), len((self.kept / SAME).round().unique(dim=0))
        if num_different < V:
            raise UserError(
                f"k-means needs {V} different latents, but the first steps saw about {num_different}; raise "
                "moment_steps or batch_size, or set codebook_start gaussian"
            )
        seed = int(torch.randint(2**31, (), generator=rng))
        kept = self.kept.cpu().double().numpy()
        centres = torch.from_numpy(kmeans_plusplus(kept, V, random_state=seed, n_local_trials=1)[0]).to(self.kept)
        for _ in range(KMEANS_ROUNDS):
            self.quantize.embedding.copy_(centres)
            codes = self.quantize.nearest(self.kept)
            sums = torch.zeros_like(centres).index_add_(0, codes, self.kept)
            filled = torch.bincount(codes, minlength=V) > 0
            centres = torch.where(filled[:, None], F.normalize(sums, dim=-1), centres)
        return centres

    @torch.no_grad()
    def revive(self, dead_below: float, rng: torch.Generator) -> None:
        """Redraw dead codes from the mean and standard deviation of the others."""
        dead = dead_codes(self.usage, dead_below)
        used = self.quantize.codebook()[~dead]
        noise = torch.randn(self.quantize.embedding.shape, generator=rng).to(used.device)
        redrawn = used.mean(0) + used.std(0, correction=0) * noise
        self.quantize.embedding.copy_(torch.where(dead[:, None], redrawn, self.quantize.embedding))
        self._forget_averages(dead)

    @torch.no_grad()
    def count_usage(self, scale: int, codes: Tensor, error: Tensor) -> None:
        """Take the codes of a batch and their mean square distance from the latents into the moving averages."""
        frequencies = code_frequencies(codes, len(self.usage))
        error = distributed.add_up(error.detach().clone()) / distributed.num_ranks()
        first = self.scale_usage[scale].sum() == 0
        self.usage.lerp_(frequencies, USAGE_RATE)
        self.scale_usage[scale].lerp_(frequencies, USAGE_RATE)
        self.scale_error[scale] = torch.where(first, error, self.scale_error[scale].lerp(error, USAGE_RATE))

    @torch.no_grad()
    def move_to_averages(self, latents_NC: Tensor, codes_N: Tensor) -> None:
        """Move each code that latents of this batch chose to the moving average of its latents.

        Sums suffice, their length is lost with the norm; and of other codes they keep their direction.
        """
        sums = torch.zeros_like(self.latent_sums).index_add_(0, codes_N, latents_NC)
        chosen = code_frequencies(codes_N, len(self.usage)) > 0
        sums = distributed.add_up(sums) / (len(latents_NC) * distributed.num_ranks())
        self.latent_sums.lerp_(sums, EMA_RATE)
        self.quantize.embedding.copy_(torch.where(chosen[:, None], self.latent_sums, self.quantize.embedding))

    def _forget_averages(self, codes: Tensor) -> None:
        """Let averages of codes (V,) begin where these are, with the weight of the average code."""
        if len(self.latent_sums):
            start = self.quantize.codebook() / len(self.usage)
            self.latent_sums.copy_(torch.where(codes[:, None], start, self.latent_sums))


class RequantizeTask(Task):
    """Trains a new codebook for an autoencoder.

    Args:
        start: the autoencoder; it is kept outside the module, so that no checkpoint holds it.
        args: training settings.
        validation: images that are measured.
        device: of this rank.
    """

    def __init__(self, start: Autoencoder, args: RequantizeArgs, validation: Dataset, device: torch.device) -> None:
        args.check_stride(start.config.stride)
        self.start_hash = autoencoder_hash(start)
        self.frozen = start.eval().requires_grad_(False).to(device)
        self.args, self.validation, self.sides = args, validation, sorted(args.scale_sizes)
        self.module = Codebook(args, start.config.embed_dim)

    def loss(self, batch: list[Tensor], context: StepContext) -> Loss:
        """Of the codes of one size of the images; 0 in the first steps, which gather what the codebook starts from."""
        side = self.args.draw_side(self.sides, context.step_rng)
        rng = torch.Generator().manual_seed(context.step_rng.getrandbits(63))
        with torch.no_grad():
            z = self.frozen.encode(resize_image(batch[0], side * self.frozen.config.stride))  # (B, C, S, S)
        latents_NC, scale = z.permute(0, 2, 3, 1).flatten(0, 2), self.sides.index(side)
        if context.step < self.args.moment_steps:
            self.module.gather(context.step, scale, latents_NC, rng)
            counts = {f"latents_scale_{side}": self.module.count[i] for i, side in enumerate(self.sides)}
            return Loss(self._no_gradient(), lambda: counts)
        if context.step == self.args.moment_steps:
            self.module.begin(rng)
        elif self._revives(context.step):
            self.module.revive(self.args.dead_below, rng)
        return self._quantize(scale, latents_NC)

    def _quantize(self, scale: int, latents_NC: Tensor) -> Loss:
        codes_N = self.module.quantize.nearest(latents_NC)
        quantized = F.embedding(codes_N, self.module.quantize.codebook())
        loss = quantizer_loss(latents_NC, quantized, self.args.commitment)
        self.module.count_usage(scale, codes_N, F.mse_loss(quantized, latents_NC))
        if self.args.codebook_update == "ema":
            self.module.move_to_averages(latents_NC, codes_N)
            loss = loss.detach() + self._no_gradient()
        return Loss(loss, self._metrics)

    def _no_gradient(self) -> Tensor:
        """A loss of 0 that leaves the codes where they are; every rank's gradient is waited for all the same."""
        return 0 * self.module.quantize.embedding.sum()

    def _revives(self, step: int) -> bool:
        return step > self.args.revive_after and self.args.revive_freq > 0 and step % self.args.revive_freq == 0

    def _metrics(self) -> dict[str, Tensor]:
        """Moving averages, of all steps and of each scale's; zeros of one that no step has seen yet."""
        names = ["", *(f"_scale_{side}" for side in self.sides)]
        metrics = {f"quantization_error{name}": e for name, e in zip(names[1:], self.module.scale_error, strict=True)}
        for name, usage in zip(names, [self.module.usage, *self.module.scale_usage], strict=True):
            metrics[f"usage{name}"] = (~dead_codes(usage, self.args.dead_below)).float().mean()
            metrics[f"perplexity{name}"] = perplexity(usage)
        return metrics

    def precision(self) -> torch.dtype:
        return torch.float32

    def show(self, module: Codebook, folder: Path, name: str) -> dict[str, float]:
        """Write originals over reconstructions at every scale; return metrics of held-out images at each."""
        if not distributed.is_main():
            return {}
        by_side = show_held_out(self.assemble(module), self.validation, self.sides, folder / f"{name}.png")
        return {
            f"held_out_{name}_scale_{side}": value
            for side, metrics in by_side.items()
            for name, value in asdict(metrics).items()
            if value is not None
        }

    def describe(self) -> dict[str, Any]:
        return {"args": plain(self.args), "start_hash": self.start_hash}

    def assemble(self, module: Codebook) -> Autoencoder:
        """The frozen autoencoder with the codes of a module, on their device; it shares the memory of both."""
        with torch.device("meta"):
            whole = Autoencoder(replace(self.frozen.config, n_embed=self.args.n_embed))
        state = self.frozen.state_dict() | {f"quantize.{k}": v for k, v in module.quantize.state_dict().items()}
        whole.load_state_dict(state | {"cluster_usage_train": module.usage}, assign=True)
        return whole.eval()

    def export(self, module: Codebook, folder: Path) -> None:
        """Write the retrained autoencoder in the published format."""
        export_autoencoder(self.assemble(module).cpu(), folder)
