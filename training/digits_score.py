"""Are drawn digits digits? The classifier that ships compares them with real scans, and reads them."""

import numpy as np
import torch
from tqdm import tqdm

from data.crops import to_uint8
from evaluation.compare import ClassFigures
from evaluation.features.classifier import Classifier
from evaluation.metrics import frechet_distance, statistics_of
from models.config import Drawing
from models.family import Generator
from sampling.bulk import Request, draw_many
from sampling.labels import balanced_labels

BATCH_SIZE = 50
FIRST_SEED = 10_000  # other digits than those of the grids


def score_digits(model: Generator, num_images: int, drawing: Drawing) -> ClassFigures:
    """Draw ``num_images`` digits, classes in turn, and measure them."""
    classifier = Classifier("digits", torch.device("cpu"))
    train, test = (classifier.real_data(split) for split in ("train", "test"))
    labels = balanced_labels(model, num_images)
    request = Request(labels, drawing, FIRST_SEED, BATCH_SIZE)
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
