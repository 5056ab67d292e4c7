"""The autoregressive model as a training task: codes of a batch -> loss; a grid of samples now and then."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.bulk import Request, draw_on_all_ranks
from engine.config import TrainArgs, plain
from engine.evaluation import FIRST_SEED, Evaluation
from engine.images import save_grid, to_uint8
from engine.labels import balanced_labels, shown_labels
from engine.trainer import Statistics, StepRandomness, Task
from models.checkerboard import Checkerboard, scale_statistics
from models.errors import UserError
from models.sampling import Drawing
from models.scan_order import sampling_blocks, training_blocks

CPU = torch.device("cpu")
MAX_ROWS, COLUMNS = 16, 8
FIXED_STEPS_PER_SCALE = 8  # of training with random_block_size: false


class AutoregressorTask(Task):
    """Trains a ``Checkerboard`` on images or on cached codes.

    Args:
        module: the model.
        args: training settings.
        class_keys: the data's names of the classes, in order; kept with checkpoints and compared when a run goes on.
        device: of this rank.
    """

    def __init__(
        self, module: Checkerboard, args: TrainArgs, class_keys: list[str] | None = None, device: torch.device = CPU
    ) -> None:
        self.module, self.args, self.class_keys = module, args, class_keys
        if args.attention == "flex" and device.type != "cuda":
            raise UserError("attention flex trains on CUDA alone; set attention sdpa")
        module.use_flex_attention = args.attention == "flex"
        module.transformer.activation_checkpointing = args.activation_checkpointing
        self.drawing = Drawing(args.steps_per_scale, args.cfg if module.config.class_cond else 0.0, args.cfg_start_step)
        self.drawing.check(module, torch.tensor(shown_labels(module, MAX_ROWS)))
        self.evaluation = Evaluation(args.eval_reference, args.inception_weights, device) if args.eval_samples else None
        if args.compile:
            module.transformer.compile()

    def loss(self, batch: list[Any], randomness: StepRandomness) -> tuple[Tensor, Statistics]:
        """Mean cross-entropy of (images or codes, labels), with block sizes drawn for the step."""
        inputs, labels = batch
        codes = inputs if isinstance(inputs, list) else self._tokenize(inputs)
        scale_sizes = self.module.scale_sizes
        if self.module.config.random_block_size:
            blocks = training_blocks(scale_sizes, randomness.shared)
        else:
            blocks = sampling_blocks(scale_sizes, FIXED_STEPS_PER_SCALE)
        layout = self.module.layout_of_blocks(blocks, self.module.draw_order(len(labels), randomness.own))
        logits, loss = self.module(codes, labels, layout=layout, generator=randomness.own)
        return loss, lambda: scale_statistics(logits, codes, layout)

    def _tokenize(self, images: Tensor) -> list[Tensor]:
        with torch.autocast(images.device.type, enabled=False):  # the same codes as a cache holds
            return self.module.tokenize(images)

    def precision(self) -> torch.dtype | None:
        return None

    def show(self, module: Checkerboard, folder: Path, name: str) -> dict[str, float]:
        """Write a grid with one row a class (16 of them if there are more), the same random numbers every time.

        Returns:
            What ``Evaluation`` measures, if asked for.
        """
        labels = shown_labels(module, MAX_ROWS)
        rows = [label for label in labels for _ in range(COLUMNS)]
        images = draw_on_all_ranks(module, Request(rows, self.drawing))
        if images is not None:
            save_grid(to_uint8(images), folder / f"{name}.png", COLUMNS)
        if self.evaluation is None:
            return {}
        labels = balanced_labels(module, self.args.eval_samples)
        return self.evaluation.measure(module, Request(labels, self.drawing, FIRST_SEED), folder / f".{name}")

    def describe(self) -> dict[str, Any]:
        return {
            "config": plain(self.module.config),
            "args": plain(self.args),
            "class_names": self.module.class_names,
            "class_keys": self.class_keys,
        }
