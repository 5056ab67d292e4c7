"""Draw and measure a model at every pair of guidance and steps per scale, as the paper's Figures 4(a) and 5 do.

    python -m experiments.sweep --checkpoint RUN --cfg 1.0:2.0:0.1 --steps_per_scale 2,4,8 --reference REF

writes a row a pair to sweep.csv, and sweep.png. The same command again goes on where it was killed; pairs that are
finished are not done again. Several GPUs: torchrun --nproc_per_node=N -m experiments.sweep ...
"""

import csv
import io
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from evaluation.compare import compare, report
from evaluation.features.choose import load_network
from evaluation.features.network import Network
from evaluation.image_files import hash_of, open_images
from evaluation.image_sets import Side, load_side
from evaluation.neighbours import NEIGHBOURS
from evaluation.options import NetworkArgs
from evaluation.results import RESULT_NAME, SAMPLES_NAME, find_result, move_aside, write_result
from models.checkerboard.config import CheckerboardDrawing as Drawing
from models.checkerboard.model import Checkerboard
from models.checkerboard.order import sampling_blocks
from models.loading.checkpoint import find_checkpoint, load_checkpoint
from runtime import distributed
from runtime.command import run
from runtime.config import parse_flags, plain
from runtime.device import pick_device, pick_dtype
from runtime.errors import UserError
from runtime.files import hash_file, write_text
from runtime.lock import lock_folder
from sampling.bulk import Request, draw_into
from sampling.folder import SampleFolder, remove_samples
from sampling.labels import balanced_labels
from sampling.options import SamplingArgs
from sampling.settings import sample_settings

FEATURES_AT_ONCE = 64  # images
TABLE_NAME, FIGURE_NAME = "sweep.csv", "sweep.png"
Row = dict[str, Any]


@dataclass(frozen=True)
class SweepArgs(NetworkArgs, SamplingArgs):
    """What to draw and to compare.

    Attributes:
        reference: npz, folder or statistics file of the reference, as evaluator.py takes it; default with --features
            the training images of the classifier.
        cfg: values of guidance, cond + cfg * (cond - uncond): a list 1,1.5 or a range FIRST:LAST:STEP, ends included.
        steps_per_scale: steps that each scale is drawn in; a list or a range as well.
        num_samples: images of each pair, the classes in turn.
        output_dir: folder to write to; default output/sweep/ and the checkpoint's name.
        delete_samples: remove the samples of a pair when it is measured.
    """

    reference: str | None = None
    cfg: str = "1.0:2.0:0.1"
    steps_per_scale: str = "2,4,8"
    num_samples: int = 50_000
    output_dir: str | None = None
    delete_samples: bool = False

    def __post_init__(self) -> None:
        NetworkArgs.__post_init__(self)
        SamplingArgs.__post_init__(self)
        if self.checkpoint is None:
            raise UserError("name the --checkpoint to draw from")
        if self.reference is None and self.shipped_reference is None:
            raise UserError("name the --reference to compare with")
        if self.num_samples <= NEIGHBOURS:
            raise UserError(f"num_samples is {self.num_samples}; it must be at least {NEIGHBOURS + 1}")

    @property
    def drawings(self) -> list[Drawing]:
        """One for each pair, by steps, then guidance."""
        steps, cfgs = parse_values("steps_per_scale", self.steps_per_scale), parse_values("cfg", self.cfg)
        if any(value != int(value) for value in steps):
            raise UserError(f"steps_per_scale is {self.steps_per_scale}; steps are whole numbers")
        same = {f.name: getattr(self, f.name) for f in fields(Drawing)}
        return [Drawing(**same | {"steps_per_scale": int(step), "cfg": cfg}) for step in steps for cfg in cfgs]


def parse_values(name: str, text: str) -> list[float]:
    """The numbers of ``1,2.5`` or of ``FIRST:LAST:STEP``, which includes its ends."""
    values: list[float] = []
    try:
        for part in text.split(","):
            first, *rest = map(float, part.split(":"))
            last, step = rest or (first, 1.0)
            count = round((last - first) / step)
            if not math.isclose(first + count * step, last, abs_tol=1e-6) or count < 0:
                raise UserError(f"{name} {part} does not reach its end; write FIRST:LAST:STEP, as in 1.0:2.0:0.1")
            values += [round(first + i * step, 6) for i in range(count + 1)]
    except UserError:
        raise
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise UserError(f"{name} is {text}; give numbers as in 1,1.5,2 or a range as in 1.0:2.0:0.1") from error
    return list(dict.fromkeys(values))


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "experiments.sweep", __doc__, SweepArgs)
    args = replace(args, reference=args.reference or args.shipped_reference)
    drawings = args.drawings
    device = distributed.set_up(pick_device(args.device))
    model = load_checkpoint(args.checkpoint, use_ema=args.use_ema)
    labels = balanced_labels(model, args.num_samples)
    for drawing in drawings:
        drawing.check(model, torch.tensor(labels))
    model.to(device=device, dtype=pick_dtype(args.dtype, device))
    folder = Path(args.output_dir or f"output/sweep/{find_checkpoint(args.checkpoint).resolve().parent.name}")
    sweep = Sweep(args, model, labels, folder, device)
    if distributed.is_main():
        folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):
        rows = sweep.run(drawings)
    if distributed.is_main():
        draw_figure(rows).savefig(folder / FIGURE_NAME, dpi=110)
        print(f"{folder / TABLE_NAME}, {folder / FIGURE_NAME}")
    distributed.tear_down()


class Sweep:
    """Draws on all ranks, measures on rank 0.

    Args:
        args: settings.
        model: draws.
        labels: class of each image of a pair.
        folder: to write to.
        device: of the network that computes features, if it is in torch.
    """

    def __init__(
        self, args: SweepArgs, model: Checkerboard, labels: list[int], folder: Path, device: torch.device
    ) -> None:
        self.args, self.model, self.labels, self.folder = args, model, labels, folder
        self.by_neighbours = args.features == "inception" and not args.no_prec_recall
        self.said: set[str] = set()  # warnings
        self.network: Network | None = None
        self.reference: Side | None = None
        if distributed.is_main():
            self.inputs = {
                "checkpoint_sha256": hash_file(find_checkpoint(args.checkpoint)),
                "reference_sha256": hash_of(Path(args.reference), open_images(Path(args.reference))),
            }
            self.network = load_network(args, device)

    def run(self, drawings: Sequence[Drawing]) -> list[Row]:
        """All pairs that have no result yet; the rows of all, on rank 0."""
        results = {drawing: self._finished(drawing) for drawing in drawings} if distributed.is_main() else {}
        missing = distributed.from_main([drawing for drawing, result in results.items() if result is None])
        if distributed.is_main():
            self._keep_earlier_table(results)
            print(
                f"{len(drawings)} pairs of {len(self.labels)} images, {len(missing)} to do; {self.folder}", flush=True
            )
            if missing:
                self._load_reference()
                self._warn_of_no_guidance(missing)
        with tqdm(
            total=sum(map(self.num_steps, missing)), desc="sweep", unit="step", disable=not distributed.is_main()
        ) as bar:
            for drawing in missing:
                bar.set_description(f"cfg {drawing.cfg:g}, {drawing.steps_per_scale} steps per scale")
                results[drawing] = self._draw_and_measure(drawing)
                bar.update(self.num_steps(drawing))
                self._write_csv(results)
        self._write_csv(results)
        return self._rows(results)

    def num_steps(self, drawing: Drawing) -> int:
        """Over all scales; an image's time is proportional to it, nearly."""
        return sum(map(len, sampling_blocks(self.model.scale_sizes, drawing.steps_per_scale, drawing.remainder)))

    def _load_reference(self) -> None:
        """Its features, computed once."""
        self.reference = load_side(
            Path(self.args.reference), self.network, FEATURES_AT_ONCE, use_cache=True, need_features=self.by_neighbours
        )

    def _warn_of_no_guidance(self, drawings: Sequence[Drawing]) -> None:
        for drawing in drawings:
            if drawing.unguided_scales(self.model.scale_sizes):
                steps = f"of {self.num_steps(drawing)} steps, {drawing.steps_per_scale} per scale,"
                print(f"warning: {steps} none is guided: cfg_start_step {drawing.cfg_start_step}", file=sys.stderr)

    def _place(self, drawing: Drawing) -> Path:
        return self.folder / f"cfg{drawing.cfg:.10g}-{drawing.steps_per_scale}steps"

    def _wanted(self, drawing: Drawing) -> dict[str, Any]:
        """All that decides the figures of a pair."""
        args = ["num_samples", "seed", "use_ema", "features"]
        args += ["backend", "no_prec_recall"] if self.args.features == "inception" else []
        network = {f"{self.network.kind.lower()}_sha256": self.network.sha256}
        dtype = {"dtype": str(self.model.lm_head.weight.dtype).removeprefix("torch.")}
        return plain(drawing) | {name: getattr(self.args, name) for name in args} | dtype | self.inputs | network

    def _finished(self, drawing: Drawing) -> dict[str, Any] | None:
        return find_result(self._place(drawing) / RESULT_NAME, self._wanted(drawing))

    def _draw_and_measure(self, drawing: Drawing) -> dict[str, Any] | None:
        folder = self._place(drawing) / SAMPLES_NAME
        size = self.model.config.img_size
        images = SampleFolder(folder, (len(self.labels), size, size, 3), "npz")
        missing = self._prepare(images, drawing) if distributed.is_main() else None
        if distributed.from_main(missing):
            request = Request(self.labels, drawing, self.args.seed, self.args.batch_size)
            draw_into(images, self.model, request)
            if distributed.is_main():
                images.finish(self.labels)
        return self._measure(folder, drawing) if distributed.is_main() else None

    def _prepare(self, images: SampleFolder, drawing: Drawing) -> bool:
        options = asdict(drawing) | {"seed": self.args.seed, "use_ema": self.args.use_ema, "format": "npz"}
        options["checkpoint"] = self.args.checkpoint
        files = {"checkpoint": find_checkpoint(self.args.checkpoint)}
        return images.prepare(sample_settings(options, self.model, self.labels, files))

    def _measure(self, folder: Path, drawing: Drawing) -> dict[str, Any]:
        samples = load_side(folder, self.network, FEATURES_AT_ONCE)
        figures = compare(self.reference, samples, self.network, self.by_neighbours)
        result = report(self.reference, samples, self.network, figures)
        result |= {"run": self._wanted(drawing), "steps": self.num_steps(drawing)}
        write_result(folder.parent / RESULT_NAME, result)
        for doubt in result["warnings"]:
            if doubt not in self.said:
                tqdm.write(f"warning: {doubt}", file=sys.stderr)
        self.said |= set(result["warnings"])
        if self.args.delete_samples:
            remove_samples(folder)
        return result

    def _rows(self, results: Mapping[Drawing, dict[str, Any] | None]) -> list[Row]:
        """A row of the table for each result."""
        first = ("cfg", "steps_per_scale")
        rows = []
        for result in filter(None, results.values()):
            settings = result["run"]
            rows.append(
                {name: settings[name] for name in first}
                | {"steps": result["steps"]}
                | {name: result[name] for name in result["figures"]}
                | {f"{name} of real test images": value for name, value in result["real_images"].items()}
                | {name: value for name, value in settings.items() if name not in first}
            )
        return rows

    def _write_csv(self, results: Mapping[Drawing, dict[str, Any] | None]) -> None:
        rows = self._rows(results)
        if distributed.is_main() and rows:
            write_text(self.folder / TABLE_NAME, table_of(rows))

    def _keep_earlier_table(self, results: Mapping[Drawing, dict[str, Any] | None]) -> None:
        """Move a table and its figure aside if they hold other pairs than those that are asked for."""
        table = self.folder / TABLE_NAME
        rows = self._rows(results)
        if table.exists() and not set(table.read_text().splitlines()) <= set(table_of(rows).splitlines()):
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


def figure_names(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """What rows call the distance of the samples and their score."""
    distance = next(name for name in rows[0] if name.startswith(("FID", "FD-")))
    return distance, next(name for name in ("Inception Score", "Class accuracy") if name in rows[0])


def draw_figure(rows: Sequence[Row]) -> Figure:
    """Distance against score, a curve for each number of steps per scale (Fig. 4a); the best by steps (Fig. 5)."""
    distance, score = figure_names(rows)
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    panels = figure.subplot_mosaic([["curves", "distance"], ["curves", "score"]])
    best = []
    for steps in dict.fromkeys(row["steps_per_scale"] for row in rows):
        curve = sorted((row for row in rows if row["steps_per_scale"] == steps), key=lambda row: row["cfg"])
        best.append(min(curve, key=lambda row: row[distance]))
        xs, ys = ([_number(row[name]) for row in curve] for name in (score, distance))
        panels["curves"].plot(xs, ys, marker="o", markersize=4, label=f"{steps}")
        for row, x, y in zip(curve, xs, ys, strict=True):
            panels["curves"].annotate(f"{row['cfg']:g}", (x, y), fontsize=7, xytext=(3, 3), textcoords="offset points")
    panels["curves"].set(xlabel=score, ylabel=distance, title="each point a cfg")
    panels["curves"].legend(title="steps per scale", fontsize=8)
    best.sort(key=lambda row: row["steps"])
    for name, key in (("distance", distance), ("score", score)):
        panels[name].plot([row["steps"] for row in best], [_number(row[key]) for row in best], marker="o")
        panels[name].set(xlabel="steps in all", ylabel=key)
    panels["distance"].set_title(f"at the cfg of the lowest {distance}")
    for panel in panels.values():
        panel.grid(alpha=0.3)
        panel.locator_params(nbins=6)
    return figure


def _number(value: float | None) -> float:
    """A figure that was not measured leaves a gap."""
    return math.nan if value is None else value


if __name__ == "__main__":
    run(main)
