"""Draw and measure a model at every combination of settings of the drawing, as the paper's Figures 4(a) and 5 do.

    python -m experiments.sweep --checkpoint RUN --cfg 1.0:2.0:0.1 --steps_per_scale 2,4,8 --reference REF

Every setting of how an image is drawn may be a list 1,1.5 or a range FIRST:LAST:STEP, ends included. Writes a row for
each combination to sweep.csv, and sweep.png. The same command again goes on where it was killed; combinations that are
finished are not done again. Several GPUs: torchrun --nproc_per_node=N -m experiments.sweep ...
"""

import csv
import io
import math
import re
import shlex
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import yaml

from evaluation.options import CheckpointArgs, checkpoint_label
from models.config import Drawing, at_scale
from runtime.command import run
from runtime.config import as_flags, option, parse_open_flags, typed
from runtime.errors import UserError
from runtime.files import move_aside, write_text
from runtime.pictures import save_figure
from runtime.progress import Progress
from sampling.options import drawing_options

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLE_NAME, FIGURE_NAME = "sweep.csv", "sweep.png"
DEFAULTS = {"steps_per_scale": "2,4,8", "cfg": "1.0:2.0:0.1"}  # of a family that has them
Row = dict[str, Any]
Args = TypeVar("Args")


@dataclass(frozen=True)
class SweepArgs(CheckpointArgs):
    """What to draw and to compare."""

    output_dir: str | None = option(None, "folder to write to; default output/sweep/ and the checkpoint's name")
    recommend: bool = option(
        False, "write the settings of the lowest distance to the checkpoint's config.yaml: others draw by them then"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.checkpoint is None:
            raise UserError("name the --checkpoint to draw from")
        if self.reference is None and self.shipped_reference is None:
            raise UserError(
                "name the --reference to compare with, or --features digits or cifar10, whose references ship"
            )


def main(argv: Sequence[str]) -> None:
    args, texts, values = parse_listed(argv, "experiments.sweep", __doc__, SweepArgs, DEFAULTS)
    sweep(replace(args, reference=args.reference or args.shipped_reference), values, given=list(texts))


def parse_listed(
    argv: Sequence[str], prog: str, description: str, kind: type[Args], defaults: Mapping[str, str]
) -> tuple[Args, dict[str, str], dict[str, list[Any]]]:
    """Flags of a dataclass; of those of a drawing, which are lists, the texts given, and the values or ``defaults``."""
    groups = drawing_options()
    hints = {setting.name: setting.hint for settings in groups.values() for setting in settings}
    lists = {
        heading: [replace(one, hint=str, default=defaults.get(one.name, one.default)) for one in settings]
        for heading, settings in groups.items()
    }
    args, texts = parse_open_flags(argv, prog, description, kind, lists)
    return args, texts, {name: parse_values(name, text, hints[name]) for name, text in ({**defaults, **texts}).items()}


def parse_values(name: str, text: str, hint: Any) -> list[Any]:
    """The values, of the setting's type, of ``1,2.5``, ``FIRST:LAST:STEP`` or ``[1,2],[1,3]``, or a UserError."""
    values: list[Any] = []
    for part in re.split(r",(?![^\[]*\])", text):
        try:
            values += _range_of(name, part) if ":" in part else [yaml.safe_load(part)]
        except UserError:
            raise
        except (ValueError, ZeroDivisionError, OverflowError, yaml.YAMLError) as error:
            raise UserError(f"{name} is {text}; give values as in 1,1.5,2 or a range as in 1.0:2.0:0.1") from error
    return list(dict.fromkeys(typed(value, hint, name) for value in values))


def _range_of(name: str, text: str) -> list[float]:
    first, last, step = map(float, text.split(":"))
    count = round((last - first) / step)
    if not math.isclose(first + count * step, last, abs_tol=1e-6) or count < 0:
        raise UserError(f"{name} {text} does not reach its end; write FIRST:LAST:STEP, as in 1.0:2.0:0.1")
    numbers = (round(first + i * step, 6) for i in range(count + 1))
    return [int(number) if number.is_integer() else number for number in numbers]


def sweep(args: SweepArgs, values: Mapping[str, Sequence[Any]], given: Collection[str]) -> None:
    """Draw and measure each combination, cfg changing first; settings not ``given`` are for families that have them."""
    from evaluation.measure import CheckpointResults  # takes seconds to import
    from models.loading.checkpoint import config_place
    from models.loading.save import check_recommends
    from models.sampling import checked_drawing
    from runtime import distributed
    from runtime.lock import lock_folder

    results = CheckpointResults(args)
    if args.recommend:
        check_recommends(config_place(results.checkpoint))
    known = {f.name for f in fields(results.model.Drawing)}
    swept = {name: found for name, found in values.items() if name in given or name in known}
    cfgs = swept.pop("cfg")
    swept["cfg"] = cfgs if "cfg" in given or results.model.config.class_cond else [0.0]
    choices = [dict(zip(swept, chosen, strict=True)) for chosen in product(*swept.values())]
    drawings = [checked_drawing(results.model, choice) for choice in choices]
    columns = ["cfg", *(name for name in swept if name != "cfg" and (name in DEFAULTS or len(swept[name]) > 1))]
    folder = Path(args.output_dir or f"output/sweep/{checkpoint_label(results.checkpoint.absolute())}")
    num_steps, is_main = results.model.num_steps, distributed.is_main()
    with lock_folder(folder):
        found = {drawing: results.find(folder / drawing.label, drawing) for drawing in drawings}
        missing = [drawing for drawing, result in found.items() if result is None]

        def rows() -> list[Row]:
            return [_row(result, columns, results.settings(drawing)) for drawing, result in found.items() if result]

        table, figure = folder / TABLE_NAME, folder / FIGURE_NAME
        if is_main and table.exists() and not set(table.read_text().split("\n")) <= set(table_of(rows()).split("\n")):
            move_aside(table)  # it holds other rows than these
            move_aside(figure)
        distributed.say(f"{len(drawings)} combinations of {args.num_samples} images, {len(missing)} to do; {folder}")
        total = sum(map(num_steps, missing))  # an image's time is proportional to it, nearly
        with Progress(total=total, desc="sweep", unit="step", disable=not is_main) as bar:
            for drawing in missing:
                bar.set_description(drawing.label)
                found[drawing] = results.make(folder / drawing.label, drawing)
                bar.update(num_steps(drawing))
                if is_main:
                    write_text(table, table_of(rows()))
            bar.set_description("sweep")
        if is_main:
            write_text(table, table_of(rows()))
            save_figure(draw_figure(rows()), figure)
            print(f"{table}, {figure}")
            if args.recommend:
                recommend(found, metric_names(rows())[0], config_place(results.checkpoint))
                if args.use_ema:
                    warnings.warn("these suit the averaged weights; add --use_ema where you draw", stacklevel=2)
    distributed.tear_down()


def recommend(found: Mapping[Drawing, Mapping[str, Any]], distance: str, place: Path) -> None:
    """Write the settings of the lowest distance, of the results of drawings, into a configuration."""
    from models.loading.save import write_recommended  # takes seconds to import

    measured = [drawing for drawing, result in found.items() if _is_finite(result[distance])]
    if not measured:
        raise UserError(f"no {distance} came out as a number; nothing is recommended")
    best = min(measured, key=lambda drawing: found[drawing][distance])
    chosen = {"cfg": best.cfg, **best.changed}
    write_recommended(place, chosen)
    told = shlex.join(as_flags(chosen))
    print(f"recommended from now on, in {place}: {told} ({distance} {found[best][distance]:.4g})")


def _row(result: Mapping[str, Any], columns: Sequence[str], settings: dict[str, Any]) -> Row:
    """The columns, steps, metrics, and all else that decides them."""
    first = {name: settings[name] for name in columns if name != "steps"} | {"steps": result["steps"]}
    metrics = {name: result[name] for name in result["metrics"]}
    real = {f"{name} of real test images": value for name, value in result["real_images"].items()}
    return first | metrics | real | settings | {"steps": result["steps"]}


def table_of(rows: Sequence[Row]) -> str:
    """Rows as CSV; no text for none."""
    text = io.StringIO()
    if rows:
        columns = dict.fromkeys(name for row in rows for name in row)  # a metric may be of some rows alone
        writer = csv.DictWriter(text, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def metric_names(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """What the rows of a table call the distance of the samples and their score."""
    distance = next(name for name in rows[0] if name.startswith(("FID", "FD-")))
    return distance, next(name for name in ("Inception Score", "Class accuracy") if name in rows[0])


def draw_figure(rows: Sequence[Row]) -> "Figure":
    """Distance and score over cfg, a curve for each choice of all else; the best by steps (Fig. 5).

    A dashed line is what real images have.
    """
    from matplotlib.figure import Figure  # takes a second to import

    metrics, names = metric_names(rows), list(rows[0])
    others = [name for name in names[: names.index("steps")] if name != "cfg"]
    if len({str([row[name] for name in others]) for row in rows}) < len({row["steps"] for row in rows}):
        others.append("steps")  # which is a setting then, not what others make
    others = [name for name in others if len({str(row[name]) for row in rows}) > 1]
    curves: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: at_scale(row["cfg"], -1)):
        curves.setdefault(", ".join(f"{name.replace('_', ' ')} {row[name]}" for name in others), []).append(row)
    measured = [[row for row in curve if _is_finite(row[metrics[0]])] for curve in curves.values()]
    best = [min(curve, key=lambda row: row[metrics[0]]) for curve in measured if curve]
    best.sort(key=lambda row: row["steps"])
    several = len({row["steps"] for row in best}) > 1
    figure = Figure(figsize=(10 if several else 5, 6.5), layout="constrained")
    panels = figure.subplots(2, 1 + several, sharex="col", sharey="row", squeeze=False)
    for metric, (by_cfg, *by_steps) in zip(metrics, panels, strict=True):
        by_cfg.set_ylabel(metric)
        for label, curve in curves.items():
            cfgs = [at_scale(row["cfg"], -1) for row in curve]
            by_cfg.plot(cfgs, np.array([row[metric] for row in curve], float), "o-", label=label)  # None leaves a gap
        for panel in by_steps:
            panel.plot([row["steps"] for row in best], [row[metric] for row in best], "o-", color="black")
            panel.locator_params(axis="x", integer=True)
        real = real_value(rows[0], metric)
        for panel in (by_cfg, *by_steps):
            panel.grid(alpha=0.3)
            if real is not None:
                panel.axhline(real, color="black", linestyle="--", label="real images" if panel is by_cfg else None)
    panels[1, 0].set_xlabel("cfg")
    if panels[0, 0].get_legend_handles_labels()[0]:
        panels[0, 0].legend(fontsize=8)
    for panel in panels[1, 1:]:
        panel.set_xlabel("steps in all")
        panels[0, 1].set_title(f"at the cfg of the lowest {metrics[0]}", fontsize=10)
    return figure


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def real_value(row: Mapping[str, Any], metric: str) -> float | None:
    """What real test images have of a metric, however many there are of them; None if the row does not say."""
    kind = re.escape(re.sub(r"-(\d+|unknown)$", "", metric))
    found = (value for name, value in row.items() if re.fullmatch(rf"{kind}(-\d+)? of real test images", name))
    value = next(found, None)
    return float(value) if value else None


def command() -> None:
    """``checkerboard-sweep``."""
    run(main)


if __name__ == "__main__":
    command()
