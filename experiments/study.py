"""Train and measure all models of the study, or go on with it: docs/study.md.

    bash experiments/study.sh

What is finished is skipped, and what was stopped goes on. Everything that was measured is gathered as JSON lines, and
images of each model in a folder beside them: experiments.study_figures draws both.
"""

import math
import shutil
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.compare import read_table
from experiments.study_facts import TIME, Line, picture_file, read_lines, write_lines
from experiments.study_pictures import save_real_rows, save_row
from experiments.study_plan import (
    TRAINED,
    StudyArgs,
    StudyModel,
    chosen_models,
    epochs_of,
    final_tasks,
    grid,
    likelihood_files,
    measuring_tasks,
    patch_sides,
    pictures,
    samples,
    training_task,
)
from experiments.sweep import TABLE_NAME, metric_names
from experiments.tasks import Task, carry_out
from experiments.tokens import PANELS, course
from runtime.command import run
from runtime.config import parse_flags, read_yaml
from runtime.errors import UserError
from runtime.files import new_folder, read_json, write_json


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "experiments.study", __doc__, StudyArgs)
    from runtime.lock import lock_folder  # takes seconds

    models, root = chosen_models(args), Path(args.output_dir)
    root.mkdir(parents=True, exist_ok=True)
    results = Path(args.results or root / "results.jsonl")
    if results.exists():
        read_lines(results)  # says now, not after hours, that it is another file
    results.parent.mkdir(parents=True, exist_ok=True)
    with lock_folder(root):
        for number, model in enumerate(models, start=1):
            place = f"{model.name}, {number} of {len(models)}"
            _train(model, args, f"{place}: training{_time_left(models, args)}")
            for task in chain(measuring_tasks(model, args), _final_tasks(model, args)):  # the latter need the former
                _carry_out(task, place)
            _join_pictures(model, args, picture_file(results, model.config, model.seed, epochs_of(model, args)))
            write_lines(results, list(_gather(model, args)))
            save_real_rows(root / model.name, args, results)
        _time_drawing(models, results)
    print(f"\n{results}; python -m experiments.study_figures --results {results} draws it")


def _train(model: StudyModel, args: StudyArgs, title: str) -> None:
    task, epochs = training_task(model, args), epochs_of(model, args)
    _check_begun(model, args, task.product.parent)
    if not task.product.exists():
        if model.shorter is not None:
            _begin_where_ended(model.shorter, task.product.parent)
        carry_out(task, title)
        found = course(task.product.parent)
        costs = {name.replace(" ", "_"): float(found[name][-1]) for name in PANELS}
        write_json(task.product, {"epochs": epochs} | costs | {"loss": float(found["loss"][-20:].mean())})


def _check_begun(model: StudyModel, args: StudyArgs, folder: Path) -> None:
    """Refuse to go on with a run of another length or batch, whose learning rate has gone another way."""
    from models.loading.checkpoint import CONFIG_NAME  # takes seconds
    from training.run_folder import holds_run

    if not holds_run(folder):
        return
    begun, usual = (read_yaml(path)["args"] for path in (folder / CONFIG_NAME, model.config_path))
    lengths = {epochs_of(one, args) for one in (model, model.shorter) if one is not None}
    batch_size = args.batch_size or usual["batch_size"]
    if begun["epochs"] not in lengths or begun["batch_size"] != batch_size:
        raise UserError(
            f"{folder} was begun for {begun['epochs']} epochs of batches of {begun['batch_size']}, not for "
            f"{max(lengths)} of {batch_size}; name another --output_dir"
        )


def _begin_where_ended(shorter: StudyModel, folder: Path) -> None:
    """Give a longer training the state that the shorter one ended in, unless it has begun."""
    from models.loading.checkpoint import CHECKPOINT_NAME, CONFIG_NAME  # takes seconds
    from training.run_folder import holds_run

    ended = folder.parent / shorter.name
    if holds_run(folder):
        return
    if not (ended / TRAINED).exists():
        raise UserError(f"{folder.name} goes on from {shorter.name}, which is not trained yet; train that first")
    with new_folder(folder) as partial:
        for name in (CHECKPOINT_NAME, CONFIG_NAME, "log.jsonl"):
            shutil.copy2(ended / name, partial)
        shutil.copytree(ended / "autoenc", partial / "autoenc")


def _carry_out(task: Task, place: str) -> None:
    """Unless its product is there, and no older than the training that it is of."""
    run = next(folder for folder in task.product.parents if (folder / TRAINED).exists())
    done = task.product.exists() and task.product.stat().st_mtime >= (run / TRAINED).stat().st_mtime
    if not done:
        carry_out(task, f"{place}: {task.label}")


def _time_left(models: Sequence[StudyModel], args: StudyArgs) -> str:
    """Hours of training, by the minutes that an epoch took of the models trained so far."""
    trained, left = [], 0
    for model in models:
        found = read_json(training_task(model, args).product)
        if found is None or found.get("epochs") != epochs_of(model, args):
            left += epochs_of(model, args) - (epochs_of(model.shorter, args) if model.shorter else 0)
        else:
            trained.append(found["minutes"] / found["epochs"])
    return f"; about {left * sum(trained) / len(trained) / 60:.1f} hours of training left" if trained else ""


def _time_drawing(models: Sequence[StudyModel], results: Path) -> None:
    """Of all configurations in one go, so that the times compare, unless they are known."""
    configs = {model.config for model in models}
    if not configs <= {line["model"] for line in read_lines(results) if line["kind"] == TIME}:
        words = ("-m", "experiments.study_times", "--models", ",".join(sorted(configs)), "--results", str(results))
        carry_out(Task("times of drawing", words, results), "times of drawing")


def _final_tasks(model: StudyModel, args: StudyArgs) -> Iterator[Task]:
    """Drawing at the best guidance of the grids; the number of steps of the lowest distance comes last."""
    yield from final_tasks(model, args, _best_cfgs(model, args))


def _best_cfgs(model: StudyModel, args: StudyArgs) -> dict[int | None, float]:
    """The guidance of the lowest distance of each number of steps; the best of these come last."""
    best = {steps: _best_row(grid(model, args, steps)) for steps in model.all_steps}
    order = sorted(best, key=lambda steps: best[steps][1], reverse=True)
    return {steps: best[steps][0] for steps in order}


def _best_row(folder: Path) -> tuple[float, float]:
    """The guidance of the lowest distance of a sweep, and that distance."""
    rows = read_table(folder)
    distance, _ = metric_names(rows)
    known = [row for row in rows if row[distance] and math.isfinite(float(row[distance]))]
    if not known:
        raise UserError(f"{folder / TABLE_NAME} holds no distance; move {folder} away to measure it anew")
    row = min(known, key=lambda row: float(row[distance]))
    return float(row["cfg"]), float(row[distance])


def _join_pictures(model: StudyModel, args: StudyArgs, picture: Path) -> None:
    """The images to show, beside each other."""
    files = sorted(pictures(model, args, _best_cfgs(model, args)).glob("[0-9]*.png"))
    save_row([np.asarray(Image.open(file).convert("RGB")) for file in files], picture)


def _gather(model: StudyModel, args: StudyArgs) -> Iterator[Line]:
    """All that was measured of a model, one fact a line."""
    folder = Path(args.output_dir) / model.name
    of = {"model": model.config, "seed": model.seed, "epochs": epochs_of(model, args)}
    yield {"kind": "training"} | of | _measured(folder / TRAINED)
    yield {"kind": "course"} | of | _thinned(course(folder))
    for side in patch_sides(model):
        yield {"kind": "step"} | of | _measured(folder / f"step-{side}.json")
    for file in likelihood_files(model, args).values():
        found = _measured(file)
        wanted = ("steps_per_scale", "nats_per_token", "finest_scale", "num_images")
        yield {"kind": "likelihood"} | of | {name: found[name] for name in wanted}
    for steps in model.all_steps:
        yield from (line | of for line in _drawn(model, args, steps))
    yield {"kind": "pictures"} | of | _shown(model, args)


def _drawn(model: StudyModel, args: StudyArgs, steps: int | None) -> Iterator[Line]:
    """What was measured of a model's drawing in so many steps."""
    chosen = grid(model, args, steps)
    yield from ({"kind": "grid"} | _numbers(row) for row in read_table(chosen))
    many = samples(model, args, steps, _best_row(chosen)[0])
    yield from ({"kind": "samples"} | _numbers(row) for row in read_table(many))


def _shown(model: StudyModel, args: StudyArgs) -> Line:
    """How the images to show were drawn."""
    steps, cfg = list(_best_cfgs(model, args).items())[-1]
    return {"steps": int(read_table(grid(model, args, steps))[0]["steps"]), "cfg": cfg}


def _measured(file: Path) -> Line:
    """What a task of the study has written."""
    found = read_json(file)
    if found is None:
        raise UserError(f"{file} is damaged or gone; move it away and run the study once more")
    return found


def _thinned(found: dict[str, np.ndarray], entries: int = 5) -> Line:
    """What a training had cost and its mean loss, a point for so many entries of its log that have one patch side."""
    points = []
    for side in dict.fromkeys(found["side"].tolist()):
        (at,) = np.nonzero(found["side"] == side)
        points += [(part[-1], found["loss"][part].mean()) for part in np.split(at, range(entries, len(at), entries))]
    last, losses = zip(*points, strict=True)
    costs = {name.replace(" ", "_"): found[name][list(last)] for name in (*PANELS[:2], "side")}
    return {name: [float(f"{x:.6g}") for x in values] for name, values in (costs | {"loss": losses}).items()}


def _numbers(row: dict[str, str]) -> Line:
    distance, score = metric_names([row])
    found = {"steps": int(row["steps"]), "cfg": float(row["cfg"]), "num_samples": int(row["num_samples"])}
    return found | {"distance": float(row[distance]), "accuracy": float(row[score]) if row[score] else None}


if __name__ == "__main__":
    run(main)
