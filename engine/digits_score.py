"""Are drawn digits digits? An SVC trained on the real scans reads them, and real held-out ones beside them."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.svm import SVC
from torch import Tensor
from tqdm import tqdm

from data.crops import to_bytes, to_floats
from data.datasets import LabelledImages, open_dataset
from engine.bulk import Request, draw_many
from engine.config import TrainArgs
from models.checkerboard import Checkerboard
from models.sampling import Drawing

SCAN_SIDE = 8
BATCH_SIZE = 50
FIRST_SEED = 10_000  # other digits than those of the grids


@dataclass(frozen=True)
class DigitsScore:
    """Shares of digits read as what they should be, 0..1."""

    drawn: float
    held_out: float
    num_drawn: int
    num_held_out: int

    def __str__(self) -> str:
        return (
            f"digits recognised by an SVC trained on the real ones: {self.drawn:.1%} of {self.num_drawn} drawn, "
            f"{self.held_out:.1%} of {self.num_held_out} real held-out ones"
        )


def score_digits(model: Checkerboard, num_images: int, args: TrainArgs) -> DigitsScore:
    """Draw ``num_images`` digits, classes in turn, with the sampling settings of ``args``, and read them."""
    size = model.config.img_size
    train, held_out = (open_dataset("digits", "", size, split) for split in ("train", "val"))
    reader = SVC().fit(_scans(_images(train)), train.labels)
    labels = [i % 10 for i in range(num_images)]
    request = Request(labels, Drawing(args.steps_per_scale, args.cfg, args.cfg_start_step), FIRST_SEED, BATCH_SIZE)
    batches = tqdm(
        draw_many(model, request), total=num_images // BATCH_SIZE, unit="batch", desc="drawing digits to score"
    )
    drawn = [_scans(out.images.clamp(-1, 1)) for _, out in batches]
    return DigitsScore(
        drawn=float(reader.score(np.concatenate(drawn), labels)),
        held_out=float(reader.score(_scans(_images(held_out)), held_out.labels)),
        num_drawn=num_images,
        num_held_out=len(held_out),
    )


def _images(digits: LabelledImages) -> Tensor:
    return torch.stack([to_floats(to_bytes(digits.read(i))) for i in range(len(digits))])


def _scans(images: Tensor) -> np.ndarray:
    """(N, 64) features: grey levels 0..16 of images (N, 3, H, W) reduced to the size of a scan."""
    grey = images.mean(1, keepdim=True)
    return (F.adaptive_avg_pool2d(grey, SCAN_SIDE).flatten(1).numpy() + 1) * 8
