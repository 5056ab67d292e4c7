"""Rows of images: those that the study's models draw, real ones, and their reconstructions (docs/study.md).

Letters: N images, S their side.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.study_facts import REAL, picture_folder
from experiments.study_plan import PICTURED, StudyArgs
from runtime.files import prepare_output
from runtime.pictures import save_image


def save_row(images: Sequence[np.ndarray], path: Path) -> None:
    """Write images (S, S, 3), bytes, beside each other, and the folder if there is none."""
    prepare_output(path)
    save_image(Image.fromarray(np.concatenate(images, axis=1)), path)


def save_real_rows(run: Path, args: StudyArgs, results: Path) -> None:
    """Held-out images, the classes in turn, and what the tokenizer of a run makes of them, unless they are there."""
    files = [picture_folder(results) / f"{name}.png" for name in REAL]
    if all(file.exists() for file in files):
        return
    import torch  # takes seconds

    from data.crops import from_floats
    from evaluation.likelihood import held_out_images
    from models.loading.checkpoint import load_checkpoint

    model = load_checkpoint(run)
    crops = held_out_images(model, args.dataset, args.data_path)
    pixels, _ = crops.collate([crops[i, 0] for i in _classes_in_turn(crops.images.labels, model.config.num_classes)])
    with torch.inference_mode():
        rebuilt = model.decode(model.tokenize(pixels)[-1])  # (N, 3, S, S)
    for file, images in zip(files, (pixels, rebuilt), strict=True):
        save_row(list(from_floats(images).permute(0, 2, 3, 1).numpy()), file)


def _classes_in_turn(labels: Sequence[int], num_classes: int) -> list[int]:
    """Numbers of images of the classes 0, 1, .., then again."""
    by_class = [np.flatnonzero(np.asarray(labels) == label) for label in range(num_classes)]
    turns = (divmod(number, num_classes) for number in range(PICTURED))
    return [int(by_class[label][turn % len(by_class[label])]) for turn, label in turns]
