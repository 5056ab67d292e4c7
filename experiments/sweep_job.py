"""What experiments.sweep does once its arguments are understood: draws, measures, writes a table and a figure."""

import csv
import io
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from evaluation.measure import CheckpointResults
from experiments.sweep import DEFAULTS, TABLE_NAME, SweepArgs, metric_names
from models.config import Drawing
from models.loading.checkpoint import find_checkpoint, load_checkpoint
from models.sample import checked_drawing
from runtime import distributed
from runtime.device import pick_device, pick_dtype
from runtime.files import move_aside, write_text
from runtime.lock import lock_folder

FIGURE_NAME = "sweep.png"
Row = dict[str, Any]


def run_sweep(args: SweepArgs, values: Mapping[str, Sequence[Any]], given: Collection[str]) -> None:
    """Draw and measure every combination of the values of each setting, those of cfg changing first.

    Args:
        args: settings.
        values: of settings of the drawing, by name.
        given: names of those that the user gave; others are for families that have them.
    """
    device = distributed.set_up(pick_device(args.device))
    model = load_checkpoint(args.checkpoint, use_ema=args.use_ema)
    known = {f.name for f in fields(model.Drawing)}
    swept = {name: list(found) for name, found in values.items() if name in given or name in known}
    swept["cfg"] = swept.pop("cfg")
    drawings = [checked_drawing(model, dict(zip(swept, chosen, strict=True))) for chosen in product(*swept.values())]
    model.to(device=device, dtype=pick_dtype(args.dtype, device))
    folder = Path(args.output_dir or f"output/sweep/{find_checkpoint(args.checkpoint).resolve().parent.name}")
    columns = ["cfg", *(name for name in swept if name != "cfg" and (name in DEFAULTS or len(swept[name]) > 1))]
    sweep = Sweep(CheckpointResults(args, model, device), drawings, columns, folder)
    with lock_folder(folder):
        rows = sweep.run()
    if distributed.is_main():
        draw_figure(rows).savefig(folder / FIGURE_NAME, dpi=110)
        print(f"{folder / TABLE_NAME}, {folder / FIGURE_NAME}")
    distributed.tear_down()


class Sweep:
    """Draws and measures on all ranks; rank 0 writes.

    Args:
        results: finds or makes the result of a drawing.
        drawings: all of them.
        columns: what the table begins with: the settings that are swept, cfg first.
        folder: to write to.
    """

    def __init__(
        self, results: CheckpointResults, drawings: Sequence[Drawing], columns: Sequence[str], folder: Path
    ) -> None:
        self.results, self.drawings, self.columns, self.folder = results, drawings, columns, folder
        self.found: dict[Drawing, dict[str, Any] | None] = {}  # the result of each, on rank 0

    def run(self) -> list[Row]:
        """All drawings that have no result yet; the rows of all, on rank 0."""
        missing = []
        if distributed.is_main():
            self.found = {drawing: self.results.find(self._place(drawing), drawing) for drawing in self.drawings}
            missing = [drawing for drawing, result in self.found.items() if result is None]
            self._keep_earlier_table()
            count = len(self.results.labels)
            print(
                f"{len(self.drawings)} combinations of {count} images, {len(missing)} to do; {self.folder}", flush=True
            )
        missing = distributed.from_main(missing)
        num_steps = self.results.model.num_steps
        with tqdm(
            total=sum(map(num_steps, missing)), desc="sweep", unit="step", disable=not distributed.is_main()
        ) as bar:
            for drawing in missing:
                bar.set_description(drawing.label)
                self.found[drawing] = self.results.make(self._place(drawing), drawing)
                bar.update(num_steps(drawing))  # an image's time is proportional to it, nearly
                self._write_table()
        self._write_table()
        return self._rows()

    def _place(self, drawing: Drawing) -> Path:
        return self.folder / drawing.label

    def _rows(self) -> list[Row]:
        """A row of the table for each result."""
        rows = []
        for drawing, result in self.found.items():
            if result:
                settings = {name: result["run"][name] for name in self.results.settings(drawing)}
                rows.append(
                    {name: settings[name] for name in self.columns}
                    | {"steps": result["steps"]}
                    | {name: result[name] for name in result["metrics"]}
                    | {f"{name} of real test images": value for name, value in result["real_images"].items()}
                    | {name: value for name, value in settings.items() if name not in self.columns}
                )
        return rows

    def _write_table(self) -> None:
        if rows := self._rows():
            write_text(self.folder / TABLE_NAME, table_of(rows))

    def _keep_earlier_table(self) -> None:
        """Move a table and its figure aside if they hold other drawings than those that are asked for."""
        table = self.folder / TABLE_NAME
        if table.exists() and not set(table.read_text().splitlines()) <= set(table_of(self._rows()).splitlines()):
            move_aside(table)
            move_aside(self.folder / FIGURE_NAME)


def table_of(rows: Sequence[Row]) -> str:
    """Rows as CSV; no text for none."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    if rows:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def draw_figure(rows: Sequence[Row]) -> Figure:
    """Distance against score, a curve over cfg for each choice of what else is swept (Fig. 4a); the best by steps
    (Fig. 5).
    """
    distance, score = metric_names(rows)
    others = [name for name in list(rows[0])[: list(rows[0]).index("steps")] if name != "cfg"]
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    panels = figure.subplot_mosaic([["curves", "distance"], ["curves", "score"]])
    curves: dict[str, list[Row]] = {}
    for row in rows:
        curves.setdefault(", ".join(str(row[name]) for name in others), []).append(row)
    for label, curve in curves.items():
        curve.sort(key=lambda row: np.mean(row["cfg"]))
        xs, ys = ([_number(row[name]) for row in curve] for name in (score, distance))
        panels["curves"].plot(xs, ys, marker="o", markersize=4, label=label)
        for row, x, y in zip(curve, xs, ys, strict=True):
            cfg = f"{row['cfg']:g}" if isinstance(row["cfg"], float) else str(row["cfg"])
            panels["curves"].annotate(cfg, (x, y), fontsize=7, xytext=(3, 3), textcoords="offset points")
    panels["curves"].set(xlabel=score, ylabel=distance, title="each point a cfg")
    if others:
        panels["curves"].legend(title=", ".join(others).replace("_", " "), fontsize=8)
    best = sorted((min(c, key=lambda row: row[distance]) for c in curves.values()), key=lambda row: row["steps"])
    for name, key in (("distance", distance), ("score", score)):
        panels[name].plot([row["steps"] for row in best], [_number(row[key]) for row in best], marker="o")
        panels[name].set(xlabel="steps in all", ylabel=key)
    panels["distance"].set_title(f"at the cfg of the lowest {distance}")
    for panel in panels.values():
        panel.grid(alpha=0.3)
        panel.locator_params(nbins=6)
    return figure


def _number(value: float | None) -> float:
    """A metric that was not measured leaves a gap."""
    return math.nan if value is None else value
