"""How much of raster order a run permutes, by its calibration on held-out images (formats.md R7)."""

import torch

from evaluation.likelihood import CodeScores, held_out_codes, held_out_images
from models.family import Generator, StepContext
from models.scales import raster_order
from runtime.errors import UserError
from training.options import TrainArgs

FIRST_STEPS, EVERY = 5000, 500  # steps in full random order; steps between measurements
FULL_ERROR = 0.05  # calibration error from which all locations are permuted
MAX_IMAGES, BATCH = 1000, 100


def check_permutes(model: Generator) -> None:
    """Refuse a model that learns codes in one order."""
    if not model.permutes_codes:
        raise UserError("adaptive_order needs architecture randar and scan_order random; set them, or leave it out")


class AdaptiveOrder:
    """The share of locations to permute, a function of the step and of the weights at the last measurement."""

    def __init__(self, model: Generator, args: TrainArgs) -> None:
        check_permutes(model)
        crops = held_out_images(model, args.dataset, args.data_path)
        self.batches = held_out_codes(model, crops, min(MAX_IMAGES, len(crops)), BATCH)
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
        for codes, labels in self.batches:
            raster = raster_order(len(labels), self.model.num_locations, labels.device)
            scores.add(*self.model.score(codes, labels, raster))
        self.model.train()
        return scores.results()["ece"]
