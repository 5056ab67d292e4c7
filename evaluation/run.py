"""Sample, then evaluate, one command: every setting, seed, hash and metric in one result file.

    bash run_evaluator.sh --preset 2x-cfg1.5

The same command again goes on where it was killed. Every flag is also a variable, in capitals:

    CFG=1.4 NPROC=8 bash run_evaluator.sh

Models of digits and of CIFAR-10 need no download: a small classifier's features are compared instead of Inception's:

    bash run_evaluator.sh --checkpoint output/quickstart --features digits --num_samples 500
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields

from evaluation.options import RunArgs
from runtime.command import run
from runtime.config import parse_open_flags
from sampling.options import drawing_options

RANK = "RANK"  # variable that torchrun sets


def main(argv: Sequence[str]) -> None:
    options = drawing_options()
    names = [f.name for f in fields(RunArgs)] + [option.name for group in options.values() for option in group]
    variables = [f"--{name}={value}" for name in names if (value := os.environ.get(name.upper()))]
    args, drawing = parse_open_flags([*variables, *argv], "run_evaluator.sh", __doc__, RunArgs, options)
    if RANK in os.environ:
        _end_with_parent()
    from evaluation.job import check_inputs, sample_and_evaluate  # takes seconds to import

    args = args.completed()
    check_inputs(args)
    if args.nproc > 1 and RANK not in os.environ:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={args.nproc}"]
        os.execv(sys.executable, [*torchrun, "-m", "--", "evaluation.run", *argv])
    sample_and_evaluate(args, drawing)


def _end_with_parent() -> None:
    """Let Linux end this process when torchrun is killed: else it would draw on beside the next run."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    run(main)
