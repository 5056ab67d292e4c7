"""What came of one's own photographs: drawn images beside them, how many are recognised, and a page.

Letters: N images, K classes, D features, H, W sides of images in pixels.
"""

import html
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from data.crops import all_crops
from data.files import UnreadableImageError
from data.labelled_images import LabelledImages
from data.options import CropRecipe
from evaluation.features.classifier import Classifier
from evaluation.features.shipped import SIDE
from experiments.tokens import course
from models.loading.autoencoder import AUTOENCODER_CONFIG_NAME, read_autoencoder_config
from runtime.errors import UserError
from runtime.files import write_json, write_text
from runtime.pictures import save_image
from sampling.pictures import MIN_GRID_SIDE, caption_font, captioned, grid_of, read_png
from training.job import NEAR_CHANCE

PHOTOGRAPHS, DRAWN = 4, 10  # of a class, in the picture
FOLDS = 5
MAX_LEARNED = 3000  # photographs that the classifier learns from
BATCH = 500
PICTURE, RESULTS, PAGE = "own.png", "results.json", "index.html"
HEADING = 24  # pixels
HARDLY = 0.25  # of the way from guessing to photographs
FEW = 10  # photographs of a class


def write_page(folder: Path, images: LabelledImages, record: dict[str, Any], commands: Sequence[str]) -> str:
    """Measure what was drawn, write ``results.json``, ``own.png`` and ``index.html``; return what to tell the user.

    ``record`` is of the folder, and the page ends with the ``commands``.
    """
    names = [name.split(",")[0] for name in images.class_names]
    files = sorted(file for file in folder.glob("samples/*.png") if file.stem.isdecimal())
    if not files:
        raise UserError(f"{folder / 'samples'} holds no images; remove it, and run this once more")
    drawn = torch.stack([read_png(path) for path in files])
    labels = np.array([int(path.stem) % len(names) for path in files])  # classes in turn; some images may be gone
    save_image(_picture(images, drawn, labels, names), folder / PICTURE)
    loss = course(folder / "model")["loss"]
    codes = read_autoencoder_config(folder / "tokenizer/autoencoder" / AUTOENCODER_CONFIG_NAME).n_embed
    results = {name: record[name] for name in ("images", "img_size", "minutes")} | {"classes": len(names)}
    results |= {"fewest_images": int(np.bincount(images.labels, minlength=len(names)).min())}
    results |= {"loss": float(loss[-20:].mean()), "loss_of_guessing": math.log(codes), "chance": 1 / len(names)}
    results |= recognition(images, drawn, labels)
    write_json(folder / RESULTS, results)
    write_text(folder / PAGE, page(folder, results, commands, names))
    return "\n".join([*verdict(results), f"look at {folder / PAGE}; drawn images: {folder / 'samples'}"])


def verdict(results: dict[str, Any]) -> list[str]:
    """What was measured and what it means, a sentence each."""
    held_out, chance = results["held_out_accuracy"], results["chance"]
    seen = "" if held_out is None else f"; of photographs that it has not seen it recognises {held_out:.1%}"
    told = [
        f"A classifier of your photographs takes {results['drawn_accuracy']:.1%} of the drawn images for their class; "
        f"guessing has {chance:.1%}{seen}."
    ]
    learned = (results["drawn_accuracy"] - chance) / max((held_out or 1) - chance, 1e-6)
    mend = "train the model longer (--model_steps), or take more photographs of each class."
    if results["loss"] > results["loss_of_guessing"] - NEAR_CHANCE:
        told.append(f"The loss is near that of guessing: {mend}")
    elif learned < HARDLY:
        told.append(f"The model has hardly learned your classes: {mend}")
    else:
        told.append("Colours and textures alone can bring such a share: whether shapes are right, the pictures show.")
    if results["fewest_images"] < FEW:
        told.append(f"A class has {results['fewest_images']} photographs, which is few; about 40 of each are better.")
    return told


def _picture(images: LabelledImages, drawn: Tensor, labels: np.ndarray, names: Sequence[str]) -> Image.Image:
    """Photographs and drawn images of each class in a row, with headings."""
    shown = _photographs(images, drawn.shape[-1], PHOTOGRAPHS)
    rows = [torch.cat([shown[label], _blank(drawn), drawn[labels == label][:DRAWN]]) for label in range(len(names))]
    columns = min(map(len, rows))
    grid = grid_of(torch.cat([row[:columns] for row in rows]), columns, MIN_GRID_SIDE, border=255)
    picture = captioned(Image.fromarray(grid.permute(1, 2, 0).numpy()), [name[:24] for name in names])
    whole = Image.new("RGB", (picture.width, picture.height + HEADING), "white")
    whole.paste(picture, (0, HEADING))
    draw, cell = ImageDraw.Draw(whole), grid.shape[2] / columns
    for column, heading in ((0, "photographs"), (PHOTOGRAPHS + 1, "drawn")):
        place = (picture.width - grid.shape[2] + column * cell + 2, HEADING / 2)
        draw.text(place, heading, "black", caption_font(HEADING - 10), anchor="lm")
    return whole


def recognition(images: LabelledImages, drawn: Tensor, labels: np.ndarray) -> dict[str, float | None]:
    """Shares recognised by a classifier of the photographs: of drawn images (N, 3, H, W), and of photographs left out,
    None if a class has one alone.

    It is a logistic regression on the features of the shipped classifier of CIFAR-10, which took no part in training.
    """
    network = Classifier("cifar10", torch.device("cpu"))
    by_class = [np.flatnonzero(np.array(images.labels) == label) for label in range(len(images.class_keys))]
    most = max(FEW, MAX_LEARNED // len(by_class))
    chosen = [
        int(i) for found in by_class for i in found[np.linspace(0, len(found) - 1, min(most, len(found))).astype(int)]
    ]
    crops = {i: read for i in chosen if (read := _crops(images, i, SIDE, "ten")) is not None}
    chosen = list(crops)
    features = _features(torch.cat([torch.stack(list(read)) for read in crops.values()]), network)
    owners = np.repeat(chosen, len(features) // len(chosen))
    classes = np.array(images.labels)[owners]
    folds = min(FOLDS, np.bincount(np.array(images.labels)[chosen], minlength=len(images.class_keys)).min())
    found = {"drawn_accuracy": float((_learned(features, classes).predict(_features(drawn, network)) == labels).mean())}
    right = []
    for seen, unseen in StratifiedGroupKFold(folds).split(features, classes, owners) if folds > 1 else ():
        right.append(_learned(features[seen], classes[seen]).predict(features[unseen]) == classes[unseen])
    return found | {"held_out_accuracy": float(np.concatenate(right).mean()) if right else None}


def _learned(features: np.ndarray, classes: np.ndarray) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=300)).fit(features, classes)


def _features(images: Tensor, network: Classifier) -> np.ndarray:
    """(N, D) of uint8 images (N, 3, H, W)."""
    parts = images.permute(0, 2, 3, 1).split(BATCH)
    return np.concatenate([network(np.ascontiguousarray(part.numpy()))[0] for part in parts])


def _photographs(images: LabelledImages, size: int, count: int) -> list[Tensor]:
    """(count, 3, H, W) of each class, centre crops; those of a class of fewer repeat, and one of none is grey."""
    shown = []
    for label in range(len(images.class_keys)):
        found = np.flatnonzero(np.array(images.labels) == label).tolist()
        read = [crops[0] for i in found[: 2 * count] if (crops := _crops(images, i, size, "center")) is not None]
        read = read or [torch.full((3, size, size), 128, dtype=torch.uint8)]
        shown.append(torch.stack([read[i % len(read)] for i in range(count)]))
    return shown


def _crops(images: LabelledImages, index: int, size: int, recipe: CropRecipe) -> Sequence[Tensor] | None:
    """The crops of a photograph; None of one that cannot be read, which training skipped too."""
    try:
        return all_crops(images.read(index), size, recipe)
    except UnreadableImageError:
        return None


def _blank(images: Tensor) -> Tensor:
    """A white image of the size of others, between photographs and drawn ones."""
    return torch.full_like(images[:1], 255)


def page(folder: Path, results: dict[str, Any], commands: Sequence[str], names: Sequence[str]) -> str:
    """In HTML that needs nothing but the pictures beside it."""
    held_out = results["held_out_accuracy"]
    facts = {
        "photographs": f"{results['images']} of {results['classes']} classes, at {results['img_size']} px",
        "minutes": ", ".join(f"{name} {value:.1f}" for name, value in results["minutes"].items()),
        "loss at the end": f"{results['loss']:.2f} nats a code (guessing: {results['loss_of_guessing']:.2f})",
        "drawn images recognised": f"{results['drawn_accuracy']:.1%} (guessing: {results['chance']:.1%})",
        "photographs recognised that the classifier has not seen": "a class has but one"
        if held_out is None
        else f"{held_out:.1%}",
    }
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in facts.items()
    )
    more = shlex.join(
        [
            "python",
            "main_sample.py",
            "--checkpoint",
            str(folder / "model"),
            "--labels",
            f'"{names[0]}"',
            "--num_samples",
            "16",
        ]
    )
    rebuilt = sorted(folder.glob("tokenizer/samples/epoch_*.png"))[-1].relative_to(folder)
    title = html.escape(folder.absolute().name)
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Own photographs: {title}</title>
<style>
body {{ font-family: sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em; line-height: 1.5 }}
img {{ max-width: 100%; image-rendering: pixelated }}
th {{ text-align: left; padding-right: 2em; font-weight: normal; color: #555 }}
pre {{ background: #f4f4f4; padding: 1em; overflow-x: auto }}
</style>
<h1>Own photographs: {title}</h1>
<p>{"<br>".join(map(html.escape, verdict(results)))}</p>
<img src="{PICTURE}" alt="Photographs, and images that were drawn, of {html.escape(", ".join(names))}">
<table>{rows}</table>
<h2>All that was drawn</h2>
<img src="samples/grid.png" alt="All drawn images, a row a class">
<p>To draw more, of one class or several:</p>
<pre>{html.escape(more)}</pre>
<h2>What the tokenizer keeps</h2>
<p>Photographs at each size of the pyramid, over what their codes still hold. The model cannot draw finer.</p>
<img src="{rebuilt}" alt="Photographs over their reconstructions, at each scale">
<h2>The commands</h2>
<pre>{html.escape(chr(10).join(commands))}</pre>
</html>
"""
