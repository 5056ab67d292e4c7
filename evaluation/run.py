"""Sample, then evaluate, one command: every setting, seed, hash and metric in one result file.

    bash run_evaluator.sh --preset 2x-cfg1.5

The same command again goes on where it was killed. Every flag is also a variable, in capitals after CHECKERBOARD_:

    CHECKERBOARD_CFG=1.4 CHECKERBOARD_NPROC=8 bash run_evaluator.sh

Models of digits and of CIFAR-10 need no download: a small classifier's features are compared instead of Inception's:

    bash run_evaluator.sh --checkpoint output/quickstart --features digits --num_samples 500
"""

import ctypes
import os
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from evaluation.options import PRESETS, REFERENCE, REFERENCE_URL, PresetName, RunArgs, checkpoint_label
from models.config import Drawing
from runtime.command import run
from runtime.config import check_keys, parse_open_flags, plain
from runtime.errors import UserError
from runtime.files import located
from sampling.options import drawing_options

PREFIX = "CHECKERBOARD_"  # of variables that are settings
RANK = "RANK"  # variable that torchrun sets
PR_SET_PDEATHSIG = 1  # of Linux


def main(argv: Sequence[str]) -> None:
    options = drawing_options()
    names = [f.name for f in fields(RunArgs)] + [option.name for group in options.values() for option in group]
    argv = [*flags_of(os.environ, names), *argv]
    args, drawing = parse_open_flags(argv, "run_evaluator.sh", __doc__, RunArgs, options)
    args = args.completed()
    if os.environ.get(RANK) and sys.platform == "linux":  # end with torchrun: else it would draw on beside the next run
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    check_inputs(args)
    if args.nproc > 1 and not os.environ.get(RANK):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={args.nproc}"]
        flags_alone = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        os.execve(sys.executable, [*torchrun, "-m", "--", "evaluation.run", *argv], flags_alone)
    sample_and_evaluate(args, drawing)


def flags_of(environment: Mapping[str, str], names: Sequence[str]) -> list[str]:
    """The flags that variables stand for, which are printed; one that stands for none of ``names`` is a UserError."""
    flag_of = {f"{PREFIX}{name.upper()}": name for name in names}
    found = {name: value for name, value in environment.items() if name.startswith(PREFIX) and value}
    check_keys(found, flag_of, "the environment")
    flags = [f"--{flag_of[name]}={value}" for name, value in found.items()]
    if flags:
        print(f"from the environment: {shlex.join(flags)}", flush=True)
    return flags


def check_inputs(args: RunArgs) -> None:
    """Find what is missing before anything is started."""
    from evaluation.image_files import open_images
    from models.loading.checkpoint import find_checkpoint

    find_checkpoint(args.checkpoint)
    if args.reference == str(REFERENCE) and not REFERENCE.exists():
        raise UserError(f"there is no reference; fetch {REFERENCE_URL} to {REFERENCE}, or name yours with --reference")
    open_images(Path(args.reference))


def sample_and_evaluate(args: RunArgs, given: dict[str, Any]) -> None:
    """On all ranks: sample, with ``given`` settings of the drawing, and evaluate, unless it is done; print metrics."""
    from evaluation.compare import metric_lines, print_report  # takes seconds to import
    from evaluation.measure import RESULT_NAME, CheckpointResults
    from models.sampling import checked_drawing
    from runtime import distributed
    from runtime.lock import lock_folder

    results = CheckpointResults(args)
    preset = PRESETS[args.preset] if args.preset else None
    drawing = checked_drawing(results.model, (preset.drawing if preset else {}) | given)
    folder = Path(args.output_dir or default_folder(args, drawing))
    with lock_folder(folder):
        known = results.find(folder, drawing)
        result = known or results.make(folder, drawing, published=preset.published if preset else None)
    if distributed.is_main():
        if known is None:
            print_report(result)
        if preset is not None:
            print("\n".join(published_lines(result, args.preset, checked_drawing(results.model, preset.drawing))))
        elif known is not None:
            print("\n".join(metric_lines(result)))
        print(f"everything measured and set: {folder / RESULT_NAME}")
    distributed.tear_down()


def default_folder(args: RunArgs, drawing: Drawing) -> str:
    name = args.preset or checkpoint_label(located(args.checkpoint).resolve())
    features = "" if args.features == RunArgs.features else f"-{args.features}"
    size = "" if args.resize_to is None else f"-{args.resize_to}px"
    return f"output/evaluation/{name}-{drawing.label}-{args.num_samples}-seed{args.seed}{size}{features}"


def published_lines(result: Mapping[str, Any], preset: PresetName, drawing: Drawing) -> list[str]:
    """The metrics of a run's result with the published ones of a preset beside them, and what was set otherwise."""
    width = max(16, *map(len, result["metrics"]))
    lines = [f"{'':<{width}} {'measured':>10} {'published':>10}"]
    for name in result["metrics"]:
        measured = "-" if result[name] is None else f"{result[name]:.4g}"
        published = PRESETS[preset].published.get(name.removesuffix(f"-{result['num_samples']}"), "-")
        lines.append(f"{name:<{width}} {measured:>10} {published:>10}")
    expected = plain(RunArgs(preset=preset).completed()) | plain(drawing)
    names = ("checkpoint", "use_ema", "reference", "resize_to", "num_samples", "backend")
    names += ("decoder_dtype", *plain(drawing))
    changed = [f"{name} {result['run'][name]}" for name in names if result["run"][name] != expected[name]]
    return [*lines, f"not the published settings: {', '.join(changed)}"] if changed else lines


def command() -> None:
    """``checkerboard-sample-and-evaluate``."""
    run(main)


if __name__ == "__main__":
    command()
