"""A new codebook for an autoencoder that stays as it is otherwise (method.md Sec. 7).

Letters: B batch, C code dimension, P scales of the pyramid, V codes, N latents of a batch, K latents kept for k-means.
Every step sees one size of the pyramid. Whatever is gathered is gathered over all ranks, and random numbers are the
same on each, so that ranks never disagree and a run on two is one of twice the batch.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from models.autoencoder import Autoencoder, Quantizer, quantizer_loss, resize_image
from models.family import Loss, StepContext
from models.loading.autoencoder import autoencoder_hash, export_autoencoder
from runtime import distributed
from runtime.config import plain
from runtime.errors import UserError
from train_ae_codebook.codebook import USAGE_RATE, PyramidArgs, code_frequencies, dead_codes, perplexity
from train_ae_codebook.measure import show_held_out
from training.task import Task

EMA_RATE = 0.01  # of the moving averages of codes' latents
KMEANS_LATENTS = 16  # a code, kept in all
KMEANS_ROUNDS = 10
SAME = 1e-10  # square distance of latents that rounding alone tells apart


@dataclass(frozen=True)
class RequantizeArgs(PyramidArgs):
    """The ``requantize:`` section of a configuration; the defaults are the paper's.

    Attributes:
        start: autoencoder to keep but for its codebook: LlamaGen's vq_ds16_c2i.pt, or a folder.
        n_embed: number of new codes.
        moment_steps: first steps, which only gather what the codebook starts from.
        revive_after: step after which dead codes are revived.
        codebook_start: gaussian (draws with the moments of each scale) or kmeans (centres of latents of those steps).
        codebook_update: gradient (of the loss) or ema (moving averages of each code's latents).
    """

    img_size: int = 256
    scale_sizes: tuple[int, ...] = (1, 2, 4, 8, 16)
    full_size_share: float = 0.1
    commitment: float = 0.001
    revive_freq: int = 1000
    dead_below: float = 1e-4
    epochs: int = 1
    batch_size: int = 32
    lr: float = 1e-4
    betas: tuple[float, float] = (0.5, 0.9)
    weight_decay: float = 0.0
    warmup_epochs: float = 0.0
    start: str = "pretrained_models/llamagen/vq_ds16_c2i.pt"
    n_embed: int = 4096
    moment_steps: int = 1000
    revive_after: int = 2000
    codebook_start: Literal["gaussian", "kmeans"] = "gaussian"
    codebook_update: Literal["gradient", "ema"] = "gradient"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("n_embed", "moment_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def check_steps(self, total: int) -> None:
        """Refuse a run of ``total`` steps that ends before it has a codebook."""
        if total <= self.moment_steps:
            raise UserError(
                f"the run has {total} steps, and the first {self.moment_steps} only gather moments; lower moment_steps "
                "or batch_size, or raise epochs"
            )


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
    def add_moments(self, scale: int, latents_NC: Tensor) -> None:
        """Take latents of every rank into a scale's mean and variance, by Chan's formula for merging two samples."""
        more = len(latents_NC) * distributed.num_ranks()
        mean = distributed.add_up(latents_NC.sum(0)) / more
        squares = distributed.add_up((latents_NC - mean).square().sum(0))
        total = self.count[scale] + more
        shift = mean - self.mean[scale]
        self.squares[scale] += squares + shift.square() * self.count[scale] * more / total
        self.mean[scale] += shift * more / total
        self.count[scale] = total

    @torch.no_grad()
    def keep(self, step: int, latents_NC: Tensor, generator: torch.Generator) -> None:
        """Keep some latents of every rank; each step as many, as each weighs the same in the loss."""
        latents = torch.cat(distributed.everyones(latents_NC.cpu()))
        chosen = latents[torch.randint(len(latents), (self.kept_a_step,), generator=generator)]
        self.kept[step * self.kept_a_step :][: self.kept_a_step] = chosen.to(self.kept.device)

    @torch.no_grad()
    def begin(self, generator: torch.Generator) -> None:
        """Give the codes their first places."""
        self.quantize.embedding.copy_(self._centres(generator) if self.kept_a_step else self._draws(generator))
        self._forget_averages(torch.ones_like(self.usage, dtype=torch.bool))

    def _draws(self, generator: torch.Generator) -> Tensor:
        """(V, C) Gaussian draws, as many with a scale's moments as its part of all latents makes."""
        V, C = self.quantize.embedding.shape
        ends = self.count.cumsum(0) / self.count.sum()
        places = (torch.arange(V, device=ends.device) + 0.5) / V
        scale = torch.searchsorted(ends, places).clamp_max(len(ends) - 1)  # (V,)
        std = (self.squares / self.count.clamp_min(1)[:, None]).sqrt()
        return self.mean[scale] + std[scale] * torch.randn(V, C, generator=generator).to(std.device)

    def _centres(self, generator: torch.Generator) -> Tensor:
        """(V, C) k-means of the latents kept, on the unit sphere; a centre that is nearest to none stays."""
        V = len(self.usage)
        centres = _spread_out(self.kept, V, generator).to(self.kept.device)
        for _ in range(KMEANS_ROUNDS):
            self.quantize.embedding.copy_(centres)
            codes = self.quantize.nearest(self.kept)
            sums = torch.zeros_like(centres).index_add_(0, codes, self.kept)
            filled = torch.bincount(codes, minlength=V) > 0
            centres = torch.where(filled[:, None], F.normalize(sums, dim=-1), centres)
        return centres

    @torch.no_grad()
    def revive(self, dead_below: float, generator: torch.Generator) -> None:
        """Redraw dead codes from the mean and standard deviation of the others."""
        dead = dead_codes(self.usage, dead_below)
        used = self.quantize.codebook()[~dead]
        draws = torch.randn(self.quantize.embedding.shape, generator=generator).to(used.device)
        redrawn = used.mean(0) + used.std(0, correction=0) * draws
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


def _spread_out(latents_NC: Tensor, num_chosen: int, generator: torch.Generator) -> Tensor:
    """(V, C) of the latents, each drawn with a chance of its square distance from those before it (k-means++)."""
    distances = torch.ones(len(latents_NC), dtype=torch.float64)  # (N,)
    latents_NC, chosen = latents_NC.cpu().double(), []
    for draw in torch.rand(num_chosen, dtype=torch.float64, generator=generator):
        sums = distances.cumsum(0)
        if sums[-1] < len(distances) * SAME:
            raise UserError(
                f"k-means needs {num_chosen} different latents, but the first steps saw about {len(chosen)}; raise "
                "moment_steps or batch_size, or set codebook_start gaussian"
            )
        chosen.append(torch.searchsorted(sums, draw * sums[-1]).item())
        distances = distances.minimum((latents_NC - latents_NC[chosen[-1]]).square().sum(-1))
    return latents_NC[chosen].float()


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
        side = self.args.draw_side(self.sides, context.step_rng)
        generator = torch.Generator().manual_seed(context.step_rng.getrandbits(63))
        with torch.no_grad():
            z = self.frozen.encode(resize_image(batch[0], side * self.frozen.config.stride))  # (B, C, S, S)
        latents_NC, scale = z.permute(0, 2, 3, 1).flatten(0, 2), self.sides.index(side)
        if context.step < self.args.moment_steps:
            return self._gather(scale, latents_NC, context.step, generator)
        if context.step == self.args.moment_steps:
            self.module.begin(generator)
        elif self._revives(context.step):
            self.module.revive(self.args.dead_below, generator)
        return self._quantize(scale, latents_NC)

    def _gather(self, scale: int, latents_NC: Tensor, step: int, generator: torch.Generator) -> Loss:
        self.module.add_moments(scale, latents_NC)
        if self.module.kept_a_step:
            self.module.keep(step, latents_NC, generator)
        counts = {f"latents_scale_{side}": self.module.count[i] for i, side in enumerate(self.sides)}
        return Loss(self._no_gradient(), lambda: counts)

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
        alive = ~dead_codes(self.module.usage, self.args.dead_below)
        figures = {"usage": alive.float().mean(), "perplexity": perplexity(self.module.usage)}
        for i, side in enumerate(self.sides):
            usage = self.module.scale_usage[i]
            figures[f"quantization_error_scale_{side}"] = self.module.scale_error[i]
            figures[f"usage_scale_{side}"] = (~dead_codes(usage, self.args.dead_below)).float().mean()
            figures[f"perplexity_scale_{side}"] = perplexity(usage)
        return figures

    def precision(self) -> torch.dtype:
        return torch.float32

    def show(self, module: Codebook, folder: Path, name: str) -> dict[str, float]:
        """Write originals over reconstructions at every scale; return figures of held-out images at each."""
        if not distributed.is_main():
            return {}
        by_side = show_held_out(self.assemble(module), self.validation, self.sides, folder / f"{name}.png")
        return {
            f"held_out_{name}_scale_{side}": value
            for side, figures in by_side.items()
            for name, value in asdict(figures).items()
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
