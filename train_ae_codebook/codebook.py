"""Codes that are trained: their usage, and a new codebook with all that its training remembers.

Letters: C code dimension, P scales of the pyramid, S side of a code map, V codes, N latents of a batch, K latents kept.
Latents are gathered from all ranks, and random numbers are the same on each: ranks never disagree.
"""

import torch
import torch.nn.functional as F
from sklearn.cluster import kmeans_plusplus
from torch import Tensor, nn

from models.llamagen_vq import Quantizer
from runtime import distributed
from runtime.errors import UserError
from train_ae_codebook.options import RequantizeArgs

USAGE_RATE = 0.01  # of the moving average of code frequencies
EMA_RATE = 0.01  # of the moving averages of codes' latents
KMEANS_LATENTS = 16  # a code, kept in all
KMEANS_ROUNDS = 10
SAME = 1e-5  # difference of latents that may be rounding alone


@torch.no_grad()
def code_frequencies(codes: Tensor, num_codes: int) -> Tensor:
    """(V,) shares of each code in the codes (B, S, S) of all ranks; bincount would wait for a GPU."""
    codes = codes.flatten()
    ones = torch.ones(codes.shape, device=codes.device)
    counts = distributed.add_up(torch.zeros(num_codes, device=codes.device).index_add_(0, codes, ones))
    return counts / counts.sum()


def perplexity(usage: Tensor) -> Tensor:
    """exp of the entropy of frequencies (..., V) of any sum: as many codes, used equally, would be as diverse."""
    shares = usage / usage.sum(-1, keepdim=True).clamp_min(torch.finfo(usage.dtype).tiny)
    return torch.special.entr(shares).sum(-1).exp()


def dead_codes(usage: Tensor, dead_below: float) -> Tensor:
    """Which of the frequencies (..., V) are below ``dead_below`` of an equal share."""
    return usage < dead_below / usage.shape[-1]


class Codebook(nn.Module):
    """New codes, and what a checkpoint must hold for their training to go on exactly; ``dim`` is C."""

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
        """Take latents of every rank into a scale's moments (Chan's formula); keep as many each step for k-means."""
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
        """Give the codes their first places, on all ranks those of rank 0: CUDA adds up in an order of its own."""
        places = self._centres(rng) if self.kept_a_step else self._gaussian(rng)
        self.quantize.embedding.copy_(distributed.from_main(places.cpu()))
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
    def count_usage(self, scale: int, codes_N: Tensor, error: Tensor) -> None:
        """Take the codes of a batch and their mean square distance from the latents into the moving averages."""
        frequencies = code_frequencies(codes_N, len(self.usage))
        error = distributed.add_up(error.detach().clone()) / distributed.num_ranks()
        first = self.scale_usage[scale].sum() == 0
        self.usage.lerp_(frequencies, USAGE_RATE)
        self.scale_usage[scale].lerp_(frequencies, USAGE_RATE)
        self.scale_error[scale] = torch.where(first, error, self.scale_error[scale].lerp(error, USAGE_RATE))

    @torch.no_grad()
    def move_to_averages(self, latents_NC: Tensor, codes_N: Tensor) -> None:
        """Move each code that latents of this batch chose to the moving average of their sums; its norm is lost."""
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
