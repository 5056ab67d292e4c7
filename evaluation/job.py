"""What evaluator.py and run_evaluator.sh do once their arguments are understood."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.compare import metric_lines, print_report, warn
from evaluation.features.choose import load_network
from evaluation.image_files import open_images
from evaluation.measure import RESULT_NAME, SAMPLES_NAME, CheckpointResults, Measurement
from evaluation.options import PRESETS, REFERENCE, REFERENCE_URL, EvaluatorArgs, PresetName, RunArgs
from evaluation.reference import make_reference
from models.config import Drawing
from models.loading.checkpoint import find_checkpoint, load_checkpoint
from models.sample import checked_drawing
from runtime import distributed
from runtime.config import plain
from runtime.device import pick_device, pick_dtype
from runtime.errors import UserError
from runtime.files import write_json
from runtime.lock import lock_folder
from sampling.folder import remove_samples


def evaluate(args: EvaluatorArgs) -> None:
    """What evaluator.py does."""
    if args.output_file is not None and not Path(args.output_file).absolute().parent.is_dir():
        raise UserError(f"{args.output_file} cannot be written: its folder does not exist")
    network, reference = load_network(args, pick_device(args.device)), Path(args.reference)
    if args.make_reference is not None:
        warn(make_reference(Path(args.make_reference), reference, args.image_size, network, args.batch_size))
        print(f"wrote {reference}")
        return
    result = Measurement(network, reference, not args.no_prec_recall, args.batch_size).measure(Path(args.samples))
    warn(result["warnings"])
    print_report(result)
    if args.output_file is not None:
        write_json(Path(args.output_file), result)


def check_inputs(args: RunArgs) -> None:
    """Find what is missing before any process is started."""
    find_checkpoint(args.checkpoint)
    if args.reference == str(REFERENCE) and not REFERENCE.exists():
        raise UserError(f"there is no reference; fetch {REFERENCE_URL} to {REFERENCE}, or name yours with --reference")
    open_images(Path(args.reference))


def sample_and_evaluate(args: RunArgs, given: dict[str, Any]) -> None:
    """What run_evaluator.sh does, on all ranks: sample and evaluate, unless the result is there, and print the metrics.

    Args:
        args: completed.
        given: settings of the drawing that were given.
    """
    device = distributed.set_up(pick_device(args.device))
    model = load_checkpoint(args.checkpoint, use_ema=args.use_ema)
    preset = PRESETS[args.preset] if args.preset else None
    open_ones = {} if model.config.class_cond else {"cfg": 0.0}
    drawing = checked_drawing(model, open_ones | (preset.drawing if preset else {}) | given)
    model.to(device=device, dtype=pick_dtype(args.dtype, device))
    results = CheckpointResults(args, model, device)
    folder = Path(args.output_dir or default_folder(args, drawing))
    with lock_folder(folder):
        result = results.find(folder, drawing) if distributed.is_main() else None
        is_new = distributed.from_main(result is None)
        if is_new:
            result = results.make(folder, drawing, paper=preset.paper if preset else None)
        elif args.delete_samples and distributed.is_main() and (folder / SAMPLES_NAME).is_dir():
            remove_samples(folder / SAMPLES_NAME)
    if distributed.is_main():
        if is_new:
            print_report(result)
        if preset is not None:
            print("\n".join(paper_lines(result, args.preset, checked_drawing(model, preset.drawing))))
        elif not is_new:
            print("\n".join(metric_lines(result)))
        print(f"everything measured and set: {folder / RESULT_NAME}")
    distributed.tear_down()


def default_folder(args: RunArgs, drawing: Drawing) -> str:
    name = args.preset or Path(args.checkpoint).resolve().name
    features = "" if args.features == RunArgs.features else f"-{args.features}"
    return f"output/evaluation/{name}-{drawing.label}-{args.num_samples}-seed{args.seed}{features}"


def paper_lines(result: Mapping[str, Any], preset: PresetName, drawing: Drawing) -> list[str]:
    """The metrics of a result with those of a preset beside them, and what was not set as in the paper.

    Args:
        result: of a run.
        preset: whose metrics the paper gives.
        drawing: the preset's.
    """
    lines = [f"{'':<16} {'measured':>10} {'paper':>10}"]
    for name in result["metrics"]:
        measured = "-" if result[name] is None else f"{result[name]:.4g}"
        published = PRESETS[preset].paper.get(name.removesuffix(f"-{result['num_samples']}"), "-")
        lines.append(f"{name:<16} {measured:>10} {published:>10}")
    expected = plain(RunArgs(preset=preset).completed()) | plain(drawing)
    names = ("checkpoint", "use_ema", "reference", "num_samples", "backend", *plain(drawing))
    changed = [f"{name} {result['run'][name]}" for name in names if result["run"][name] != expected[name]]
    return [*lines, f"not the paper's settings: {', '.join(changed)}"] if changed else lines
