"""What came of one's own photographs: drawn images beside them, how many are recognised, and a page.

Letters: N images, K classes, D features, H, W sides of images in pixels.
"""

import html
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from data.crops import all_crops
from data.images import LabelledImages
from evaluation.features.classifier import Classifier
from evaluation.features.shipped import SIDE
from experiments.tokens import course
from runtime.files import write_json, write_text
from sampling.pictures import MIN_GRID_SIDE, captioned, grid_of, read_png

PHOTOGRAPHS, DRAWN = 4, 10  # of a class, in the picture
FOLDS = 5
MAX_LEARNED = 3000  # photographs that the classifier learns from
BATCH = 500
PICTURE, RESULTS, PAGE = "own.png", "results.json", "index.html"
FAIR, GOOD = 3, 6  # times chance


def write_page(folder: Path, images: LabelledImages, record: dict[str, Any]) -> str:
    """Measure what was drawn, write ``results.json``, ``own.png`` and ``index.html``; return what to tell the user."""
    names, drawn = (
        images.class_names,
        torch.stack([read_png(path) for path in sorted(folder.glob("samples/[0-9]*.png"))]),
    )
    labels = np.arange(len(drawn)) % len(names)  # classes in turn
    size = drawn.shape[-1]
    shown = _photographs(images, size, PHOTOGRAPHS)
    rows = [torch.cat([shown[label], _blank(size), drawn[labels == label][:DRAWN]]) for label in range(len(names))]
    columns = min(map(len, rows))
    grid = grid_of(torch.cat([row[:columns] for row in rows]), columns, MIN_GRID_SIDE, border=255)
    captioned(Image.fromarray(grid.permute(1, 2, 0).numpy()), [name.split(",")[0][:24] for name in names]).save(
        folder / PICTURE
    )

    loss = course(folder / "model")["loss"]
    results = {name: record[name] for name in ("images", "img_size", "minutes")}
    results |= {"classes": len(names), "loss": float(loss[-20:].mean()), "chance": 1 / len(names)}
    results |= recognition(images, drawn, labels)
    write_json(folder / RESULTS, results)
    made = sorted(folder.glob("tokenizer/samples/epoch_*.png"))[-1].relative_to(folder)
    write_text(folder / PAGE, _page(results, record["commands"], names, str(made)))
    return "\n".join(
        [
            f"drawn images recognised as their class: {results['drawn_accuracy']:.1%} (chance {results['chance']:.1%}, "
            f"photographs that the classifier has not seen {results['held_out_accuracy']:.1%})",
            verdict(results),
            f"look at {folder / PAGE}; drawn images: {folder / 'samples'}",
        ]
    )


def verdict(results: dict[str, Any]) -> str:
    """What the numbers mean, and what to do."""
    times = results["drawn_accuracy"] / results["chance"]
    if times < FAIR:
        return "The model has hardly learned your classes: train it longer (--model_steps), or with more photographs."
    if times < GOOD:
        return (
            "The model knows your classes roughly: longer training (--model_steps) or more photographs make it surer."
        )
    return "The model knows your classes."


def recognition(images: LabelledImages, drawn: Tensor, labels: np.ndarray) -> dict[str, float]:
    """Shares recognised by a classifier of the photographs: of drawn images (N, 3, H, W), and of photographs left out.

    It is a logistic regression on the features of the shipped classifier of CIFAR-10, which took no part in training.
    """
    network = Classifier("cifar10", torch.device("cpu"))
    chosen = np.linspace(0, len(images) - 1, min(len(images), MAX_LEARNED)).round().astype(int)
    crops = [torch.stack(list(all_crops(images.read(i), SIDE, "ten"))) for i in chosen]
    features, owners = _features(torch.cat(crops), network), np.repeat(chosen, len(crops[0]))
    classes = np.array(images.labels)[owners]
    folds = min(FOLDS, np.bincount(np.array(images.labels)[chosen], minlength=len(images.class_keys)).min())
    found = {"drawn_accuracy": float((_learned(features, classes).predict(_features(drawn, network)) == labels).mean())}
    right = []
    for seen, unseen in StratifiedGroupKFold(folds).split(features, classes, owners) if folds > 1 else ():
        right.append(_learned(features[seen], classes[seen]).predict(features[unseen]) == classes[unseen])
    return found | {"held_out_accuracy": float(np.concatenate(right).mean()) if right else float("nan")}


def _learned(features: np.ndarray, classes: np.ndarray) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=300)).fit(features, classes)


def _features(images: Tensor, network: Classifier) -> np.ndarray:
    """(N, D) of uint8 images (N, 3, H, W)."""
    parts = images.permute(0, 2, 3, 1).split(BATCH)
    return np.concatenate([network(np.ascontiguousarray(part.numpy()))[0] for part in parts])


def _photographs(images: LabelledImages, size: int, count: int) -> list[Tensor]:
    """(count, 3, H, W) of each class, centre crops; those of a class of fewer repeat."""
    by_class = [np.flatnonzero(np.array(images.labels) == label) for label in range(len(images.class_keys))]
    chosen = [np.resize(found, count) for found in by_class]
    return [torch.stack([all_crops(images.read(int(i)), size, "center")[0] for i in found]) for found in chosen]


def _blank(size: int) -> Tensor:
    """A white image, between photographs and drawn ones."""
    return torch.full((1, 3, size, size), 255, dtype=torch.uint8)


def _page(results: dict[str, Any], commands: list[str], names: list[str], reconstructions: str) -> str:
    """The page, in HTML that needs nothing but the pictures beside it."""
    minutes = ", ".join(f"{name} {value:.1f} min" for name, value in results["minutes"].items())
    facts = {
        "photographs": f"{results['images']} of {results['classes']} classes, at {results['img_size']} px",
        "time": minutes,
        "loss at the end": f"{results['loss']:.2f} nats a code",
        "drawn images recognised": f"{results['drawn_accuracy']:.1%} (chance {results['chance']:.1%})",
        "photographs recognised that the classifier has not seen": f"{results['held_out_accuracy']:.1%}",
    }
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in facts.items()
    )
    lines = html.escape("\n".join(commands))
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Own photographs</title>
<style>
body {{ font-family: sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em }}
img {{ max-width: 100% }} th {{ text-align: left; padding-right: 2em; font-weight: normal }}
pre {{ background: #f4f4f4; padding: 1em; overflow-x: auto }}
</style>
<h1>Own photographs</h1>
<p>{html.escape(verdict(results))}</p>
<h2>Photographs at the left, drawn images at the right</h2>
<img src="{PICTURE}" alt="Of each class ({html.escape(", ".join(names))}) photographs, and images that were drawn">
<table>{rows}</table>
<h2>All that was drawn</h2>
<img src="samples/grid.png" alt="All drawn images">
<h2>Originals and what the tokenizer makes of them</h2>
<img src="{reconstructions}" alt="Photographs over their reconstructions, at each scale">
<h2>The commands</h2>
<pre>{lines}</pre>
</html>
"""
