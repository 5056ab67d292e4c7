"""A generator as a training task: codes of a batch -> loss; a grid of samples now and then."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from models.config import Drawing, GeneratorConfig
from models.family import Generator, Loss, StepContext
from runtime import distributed
from runtime.config import plain
from runtime.errors import UserError
from sampling.bulk import Request, draw_on_all_ranks
from sampling.labels import balanced_labels, class_captions, shown_labels
from sampling.memory import pick_batch_size
from sampling.pictures import save_grid
from training.held_out import HeldOutLoss, check_held_out
from training.options import TrainArgs
from training.order import AdaptiveOrder, check_permutes
from training.preview import FIRST_SEED, Evaluation
from training.task import Task

MAX_ROWS, COLUMNS = 16, 8


class GeneratorTask(Task):
    """Trains a generator on images or on cached codes; ``drawing`` says how previews are drawn.

    ``class_keys``, the data's names of the classes in order, are kept with checkpoints and compared when a run goes on.
    """

    def __init__(
        self, module: Generator, args: TrainArgs, drawing: Drawing, class_keys: list[str] | None = None
    ) -> None:
        self.module, self.args, self.class_keys = module, args, class_keys
        self.drawing = drawing if module.config.class_cond else replace(drawing, cfg=0.0)
        self.settings = (args, self.drawing)
        module.check_drawing(self.drawing)
        module.prepare_training(args.attention, args.compile, args.activation_checkpointing)
        self.patch_side = 0  # of the stage under way
        self.images_seen = 0  # by this rank
        self.tokens_share = 1.0  # tokens of them, as a share of those of single codes
        self.order = AdaptiveOrder(module, args) if args.adaptive_order else None
        self.evaluation = None
        if args.eval_samples:
            self.evaluation = Evaluation(args.network, args.eval_reference, module.device)
        self.held_out = HeldOutLoss(module, args) if args.val_images else None

    def loss(self, batch: list[Any], context: StepContext) -> Loss:
        """Mean cross-entropy of (images or codes, labels)."""
        codes, labels = batch
        side = self.args.patch_side(int(context.epoch))
        if side != self.patch_side:
            self._say_stage(side, context.epoch)
        context = replace(context, patch_side=side, shuffled=self.order.share_of(context) if self.order else 1.0)
        if isinstance(codes, Tensor):  # images
            codes = self.module.tokenize(codes)
        loss = self.module.training_loss(codes, labels, context)
        more = {} if self.order is None else {"shuffled": torch.tensor(context.shuffled)}
        if self.args.patch_level > 1:
            more |= {"patch_side": torch.tensor(side), "tokens_share": torch.tensor(self.tokens_share)}
        self._count_tokens(len(labels), side)
        return Loss(loss.value, lambda: loss.metrics() | more) if more else loss

    def _count_tokens(self, num_images: int, side: int) -> None:
        """Keep the share of tokens up to date: whatever stages a run had before, it is what was computed."""
        self.images_seen += num_images
        self.tokens_share += (1 / side**2 - self.tokens_share) * num_images / self.images_seen

    def _say_stage(self, side: int, epoch: float) -> None:
        """Note that a stage of Next Patch Prediction begins, or is gone on with."""
        self.patch_side = side
        if self.args.patch_level > 1 and distributed.is_main():
            what = f"patches of {side} x {side} codes" if side > 1 else "single codes"
            what += "" if epoch or side > 1 else f" alone: {self.args.epochs} epochs leave none for patches"
            saved = f"; so far {1 - self.tokens_share:.1%} of the tokens are saved" if epoch else ""
            tqdm.write(f"epoch {epoch:.4g}: learning from {what}{saved}")

    def show(self, module: Generator, folder: Path, name: str) -> Iterator[dict[str, float]]:
        """Write a grid, a row a class, up to 16, always by the same noise; yield what is measured."""
        if self.args.shard:  # no rank has all weights
            distributed.say("no samples, because the model is shared out; draw them by main_sample.py")
            return
        labels = shown_labels(module, MAX_ROWS)
        rows = [label for label in labels for _ in range(COLUMNS)]
        images = draw_on_all_ranks(module, Request(rows, self.drawing))
        if images is not None:
            captions = class_captions(module, labels)
            save_grid(module.to_uint8(images), folder / f"{name}.png", COLUMNS, captions if any(captions) else ())
        if self.held_out is not None:
            loss = self.held_out.measure(module, 1.0 if self.order is None else self.order.share)
            distributed.say(f"val_loss {loss:.4f}, of {self.args.val_images} held-out images")
            yield {"val_loss": loss}
        if self.evaluation is not None:
            labels = balanced_labels(module, self.args.eval_samples)
            at_once = distributed.from_main(pick_batch_size(module, self.drawing))
            request = Request(labels, self.drawing, FIRST_SEED, at_once)
            yield self.evaluation.measure(module, request, folder / f".{name}")

    def state(self) -> dict[str, Any]:
        state = {"images_seen": self.images_seen, "tokens_share": self.tokens_share}
        return state if self.order is None else state | {"shuffled": self.order.share}

    def restore(self, state: dict[str, Any]) -> None:
        self.images_seen, self.tokens_share = state.get("images_seen", 0), state.get("tokens_share", 1.0)
        if self.order is not None:
            self.order.share = state.get("shuffled", 1.0)

    def describe(self) -> dict[str, Any]:
        return {
            "config": plain(self.module.config),
            "args": plain(self.settings),
            "class_names": self.module.class_names,
            "class_keys": self.class_keys,
        }


def check_task(module: Generator, args: TrainArgs, drawing: Drawing) -> None:
    """Refuse previews, held-out images or an adaptive order that a model cannot have; its weights need no memory."""
    module.check_drawing(drawing if module.config.class_cond else replace(drawing, cfg=0.0))
    if args.val_images:
        check_held_out(module, args)
    if args.adaptive_order:
        check_permutes(module)


def check_patches(config: GeneratorConfig, kind: type[Generator], stride: int, args: TrainArgs) -> None:
    """Refuse stages of patches that a model of this kind cannot learn from; ``stride`` is the autoencoder's."""
    if args.patch_level > 1 and not kind.learns_patches:
        raise UserError(f"{config.architecture} does not learn from patches of codes; set patch_level 1")
    grid, side = config.scale_sizes(stride)[-1], args.patch_side(0)  # of the first epoch, the largest
    if grid % side:
        raise UserError(
            f"patch_level {args.patch_level} begins with patches of side {side}, which do not divide the grid of "
            f"{grid} x {grid} codes; lower patch_level"
        )
