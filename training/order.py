"""How much of raster order a run permutes, by how well the model is calibrated on held-out images (randar.md Sec. 7).

Letters: N held-out images, S side of the code map, L = S * S.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from data.images import CroppedImages, check_num_classes, open_dataset
from evaluation.likelihood import CodeScores
from models.family import Generator, StepContext
from runtime.errors import UserError
from training.options import TrainArgs

FIRST_STEPS, EVERY = 5000, 500  # steps in full random order; steps between measurements
FULL_ERROR = 0.05  # calibration error from which all locations are permuted
MAX_IMAGES, BATCH = 1000, 100


class AdaptiveOrder:
    """The share of locations to permute, a function of the step and of the weights at the last measurement."""

    def __init__(self, model: Generator, args: TrainArgs) -> None:
        if not model.permutes_codes:
            raise UserError("adaptive_order needs architecture randar and scan_order random; set them, or leave it out")
        images = open_dataset(args.dataset, args.data_path, model.config.img_size, "val")
        if model.config.class_cond:
            check_num_classes(images.name, images.class_keys, model.config.num_classes)
        crops = CroppedImages(images, model.config.img_size, "center")
        count = min(MAX_IMAGES, len(crops))
        pixels, self.labels = crops.collate([crops[i * len(crops) // count, 0] for i in range(count)])
        with torch.inference_mode():
            self.codes = torch.cat(
                [model.tokenize(part.to(model.device))[-1] for part in pixels.split(BATCH)]
            )  # (N, S, S)
        self.model, self.share = model, 1.0

    def share_of(self, context: StepContext) -> float:
        """The share of a batch, measured anew at some steps."""
        if context.step >= FIRST_STEPS and context.step % EVERY == 0 and context.batch == 0:
            self.share = min(1.0, self._calibration_error() / FULL_ERROR)
        return self.share

    @torch.no_grad()
    def _calibration_error(self) -> float:
        """Of the held-out codes in raster order."""
        scores = CodeScores()
        self.model.eval()
        for codes, labels in self._batches():
            raster = torch.arange(codes[0].numel(), device=codes.device).expand(len(codes), -1)
            scores.add(*self.model.score([codes], labels, raster))
        self.model.train()
        return scores.results()["ece"]

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.codes.split(BATCH), self.labels.to(self.codes.device).split(BATCH), strict=True)
