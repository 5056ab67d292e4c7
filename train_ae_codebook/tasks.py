"""What is trained: a whole VQ autoencoder, or a new codebook for one that stays as it is otherwise (formats.md M7).

Letters: B batch, C code dimension, S side of a code map, V codes, N latents of a batch. Every step sees images at one
size of the pyramid, so that small ones are represented too. The small VQ-VAE is trained in vqvae.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from models.autoencoder import Autoencoder, quantizer_loss, resize_image
from models.family import Loss, StepContext
from models.llamagen_vq import LlamaGenVQ
from models.loading.autoencoder import autoencoder_hash, export_autoencoder, save_autoencoder
from models.loading.state import without_memory
from runtime import distributed
from runtime.config import plain
from runtime.device import DTYPES, pick_dtype
from runtime.errors import UserError
from train_ae_codebook.codebook import USAGE_RATE, Codebook, code_frequencies, dead_codes, perplexity
from train_ae_codebook.measure import ScaleMetrics, held_out_batches, measure_scales, save_pyramid
from train_ae_codebook.options import AutoencoderArgs, ImageArgs, RequantizeArgs
from train_ae_codebook.realism import Adversary, PerceptualDistance
from training.task import Task


class AutoencoderTask(Task):
    """Trains an autoencoder, or a part of it, for code maps of ``sides``; ``validation`` are images to measure on."""

    precision, starts_by = torch.float32, "start"

    measured = "held out"  # the images that are measured on

    def __init__(self, args: ImageArgs, stride: int, sides: Sequence[int], validation: Dataset) -> None:
        self.args, self.stride, self.validation, self.sides = args, stride, validation, sorted(sides)
        largest = self.sides[-1] * stride
        if largest != args.img_size:
            raise UserError(f"the largest of scale_sizes is one of {largest} pixels, but img_size is {args.img_size}")

    def assemble(self, module: nn.Module) -> Autoencoder:
        """The whole autoencoder, of the module that is trained."""
        return module

    def show(self, module: nn.Module, folder: Path, name: str) -> Iterator[dict[str, float]]:
        """Write originals over reconstructions at every scale; yield metrics of the validation images."""
        if not distributed.is_main():
            return
        autoencoder = self.assemble(module)
        save_pyramid(autoencoder, self.validation, self.sides, folder / f"{name}.png")
        found, _ = measure_scales(autoencoder, held_out_batches(self.validation), self.sides)
        yield self.logged(found, name)

    def logged(self, by_side: Mapping[int, ScaleMetrics], name: str) -> dict[str, float]:
        """What the log gets of metrics of each scale: PSNR (dB) and usage at the full size. Pictures have the name."""
        full = by_side[self.sides[-1]]
        tqdm.write(f"{name}: PSNR {full.psnr:.2f} dB, {full.usage:.1%} of the codes used, full size, {self.measured}")
        return {"psnr": full.psnr, "used_codes": full.usage}


class LlamaGenVQTask(AutoencoderTask):
    """Trains LlamaGen's kind whole: reconstruction, codebook and commitment losses, and revival of dead codes."""

    def __init__(self, module: LlamaGenVQ, args: AutoencoderArgs, validation: Dataset, device: torch.device) -> None:
        super().__init__(args, module.config.stride, args.scale_sizes, validation)
        self.module = module
        self.precision = DTYPES.get(args.dtype, torch.float32)
        usual = pick_dtype("auto", device, trains=True)
        if self.precision == torch.bfloat16 and device.type == "cpu" and usual != torch.bfloat16:
            distributed.say("this CPU has no instructions for bfloat16; training in float32, which is faster here")
            self.precision = usual
        self.perceptual = PerceptualDistance().to(device) if args.perceptual else None
        self.adversary = Adversary(args.discriminator_lr, args.accum_steps, device) if args.discriminator else None

    def loss(self, batch: list[Tensor], context: StepContext) -> Loss:
        """Of images (B, 3, H, W) at one size: reconstruction, codebook, commitment, and the terms asked for."""
        images = self._at_random_size(batch[0], context)
        z = self.module.encode(images).float()  # (B, C, S, S)
        codes = self.module.quantize_latents(z)
        usage = self.module.cluster_usage_train
        usage.lerp_(code_frequencies(codes, len(usage)), USAGE_RATE)
        every = self.args.revive_freq
        if every and context.step % every == every - 1 and context.batch == 0:
            self._revive(z.detach(), context.rank_rng)
            codes = self.module.quantize_latents(z)
        quantized = self.module.lookup(codes)
        passed = z + (quantized - z).detach()  # straight through: gradients of the decoder reach the encoder
        rebuilt = self.module.decode_latents(passed).float()
        error = rebuilt - images
        reconstruction = error.abs().mean() + error.square().mean()
        terms = self._realism(images, rebuilt, context)
        weights = {"perceptual": self.args.perceptual, "fooled": self.args.discriminator}
        realism = sum(weights[name] * value for name, value in terms.items() if name in weights)
        loss = reconstruction + quantizer_loss(z, quantized, self.args.commitment) + realism

        def metrics() -> dict[str, Tensor]:
            dead = dead_codes(usage, self.args.dead_below).float().mean()
            return {"l1": error.abs().mean(), "dead_codes": dead, "perplexity": perplexity(usage), **terms}

        return Loss(loss, metrics)

    def _at_random_size(self, images: Tensor, context: StepContext) -> Tensor:
        return resize_image(images, self.args.draw_side(self.sides[:-1], context.step_rng) * self.stride)

    def _realism(self, images: Tensor, rebuilt: Tensor, context: StepContext) -> dict[str, Tensor]:
        """The terms that were asked for, and the loss of the discriminator, which learns."""
        terms = {}
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(rebuilt, images)
        whole = images.shape[-1] == self.args.img_size
        if self.adversary is not None and whole and self.args.discriminates(context.step, context.epoch):
            terms["fooled"] = self.adversary.fooled(rebuilt)
            terms["discriminator"] = self.adversary.learn(images, rebuilt, context.batch)
        return terms

    @torch.no_grad()
    def _revive(self, latents: Tensor, rng: torch.Generator) -> None:
        """Move dead codes onto latents of this batch, drawn at random, and call them used as the average one is."""
        usage = self.module.cluster_usage_train
        dead = dead_codes(usage, self.args.dead_below).nonzero().squeeze(1)
        candidates = latents.permute(0, 2, 3, 1).flatten(0, 2)  # (N, C)
        chosen = torch.randint(len(candidates), (len(dead),), device=dead.device, generator=rng)
        self.module.quantize.embedding[dead] = distributed.from_main(candidates[chosen].cpu()).to(dead.device)
        usage[dead] = 1 / len(usage)

    def describe(self) -> dict[str, Any]:
        return {"config": plain(self.module.config), "args": plain(self.args)}

    def state(self) -> dict[str, Any]:
        return {} if self.adversary is None else self.adversary.state()

    def restore(self, state: dict[str, Any]) -> None:
        if bool(state) != (self.adversary is not None):
            run = f"a run {'with' if state else 'without'} a discriminator"
            raise UserError(f"the checkpoint is of {run}; keep it so, or name another output_dir")
        if self.adversary is not None:
            self.adversary.restore(state)

    def export(self, module: LlamaGenVQ, folder: Path) -> None:
        save_autoencoder(module.cpu(), folder, DTYPES[self.args.export_dtype])


class RequantizeTask(AutoencoderTask):
    """Trains a new codebook for an autoencoder, which is kept outside the module, so that no checkpoint holds it."""

    def __init__(self, start: Autoencoder, args: RequantizeArgs, validation: Dataset, device: torch.device) -> None:
        if not isinstance(start, LlamaGenVQ):
            raise UserError(f"{args.start} is an autoencoder of the kind {start.kind}; name one of LlamaGen's as start")
        super().__init__(args, start.config.stride, args.scale_sizes, validation)
        self.start_hash = autoencoder_hash(start)
        self.frozen = start.eval().requires_grad_(False).to(device)
        self.module = Codebook(args, start.config.embed_dim)

    def loss(self, batch: list[Tensor], context: StepContext) -> Loss:
        """Of the codes of one size of the images; 0 in the first steps, which gather what the codebook starts from."""
        side = self.args.draw_side(self.sides, context.step_rng)
        rng = torch.Generator().manual_seed(context.step_rng.getrandbits(63))
        with torch.no_grad():
            z = self.frozen.encode(resize_image(batch[0], side * self.stride))  # (B, C, S, S)
        latents_NC, scale = z.permute(0, 2, 3, 1).flatten(0, 2), self.sides.index(side)
        if context.step < self.args.moment_steps:
            self.module.gather(context.step, scale, latents_NC, rng)
            counts = {f"latents_scale_{side}": self.module.count[i] for i, side in enumerate(self.sides)}
            return Loss(self._no_gradient(), lambda: counts)
        if context.step == self.args.moment_steps and context.batch == 0:
            self.module.begin(rng)
        elif self._revives(context.step) and context.batch == 0:
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

    def logged(self, by_side: Mapping[int, ScaleMetrics], name: str) -> dict[str, float]:
        found = {f"{key}_scale_{side}": value for side, of in by_side.items() for key, value in asdict(of).items()}
        prefix = self.measured.replace(" ", "_")
        return {f"{prefix}_{key}": value for key, value in found.items() if value is not None}

    def describe(self) -> dict[str, Any]:
        return {"args": plain(self.args), "start_hash": self.start_hash}

    def assemble(self, module: Codebook) -> Autoencoder:
        """The frozen autoencoder with the codes of a module, on their device; it shares the memory of both."""
        with without_memory():
            whole = LlamaGenVQ(replace(self.frozen.config, n_embed=self.args.n_embed))
        state = self.frozen.state_dict() | {f"quantize.{k}": v for k, v in module.quantize.state_dict().items()}
        whole.load_state_dict(state | {"cluster_usage_train": module.usage}, assign=True)
        return whole.eval()

    def export(self, module: Codebook, folder: Path) -> None:
        export_autoencoder(self.assemble(module).cpu(), folder)
