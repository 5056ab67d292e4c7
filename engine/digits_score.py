"""Are drawn digits digits? The classifier that ships compares them with real scans, and reads them."""

import numpy as np
import torch
from tqdm import tqdm

from engine.bulk import Request, draw_many
from engine.config import TrainArgs
from engine.images import to_uint8
from engine.labels import balanced_labels
from engine.metrics.classifier import Classifier
from engine.metrics.evaluate import ClassFigures
from engine.metrics.statistics import frechet_distance, statistics_of
from models.checkerboard import Checkerboard
from models.sampling import Drawing

BATCH_SIZE = 50
FIRST_SEED = 10_000  # other digits than those of the grids


def score_digits(model: Checkerboard, num_images: int, args: TrainArgs) -> ClassFigures:
    """Draw ``num_images`` digits, classes in turn, with the sampling settings of ``args``, and measure them."""
    classifier = Classifier("digits", torch.device("cpu"))
    train, test = (classifier.real_data(split) for split in ("train", "test"))
    labels = balanced_labels(model, num_images)
    request = Request(labels, Drawing(args.steps_per_scale, args.cfg, args.cfg_start_step), FIRST_SEED, BATCH_SIZE)
    features = []
    batches = -(-num_images // BATCH_SIZE)
    with torch.compiler.set_stance("force_eager"):  # a few shapes once: not worth compiling
        for _, out in tqdm(draw_many(model, request), total=batches, unit="batch", desc="drawing digits to score"):
            features += classifier(to_uint8(out.images).permute(0, 2, 3, 1).numpy())
    drawn = np.concatenate(features)
    return ClassFigures(
        name="digits",
        distance=frechet_distance(train.statistics, statistics_of(drawn)),
        accuracy=classifier.accuracy(drawn, np.array(labels)),
        real_distance=frechet_distance(train.statistics, test.statistics),
        real=test,
    )
