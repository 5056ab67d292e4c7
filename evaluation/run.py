"""Sample, then evaluate, one command: every setting, seed, hash and figure in one result file.

    bash run_evaluator.sh --preset 2x-cfg1.5

The same command again goes on where it was killed. Every flag is also a variable, in capitals:

    CFG=1.4 NPROC=8 bash run_evaluator.sh

Models of digits and of CIFAR-10 need no download: a small classifier's features are compared instead of Inception's:

    bash run_evaluator.sh --checkpoint output/quickstart --features digits --num_samples 500
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from evaluation.compare import figure_lines
from evaluation.features.choose import network_file
from evaluation.features.classifier import Classifier
from evaluation.features.network import InceptionTraits
from evaluation.image_files import hash_of
from evaluation.image_sets import check_reference
from evaluation.options import NetworkArgs
from evaluation.results import RESULT_NAME, SAMPLES_NAME, find_result, write_result
from models.loading.checkpoint import find_checkpoint
from runtime.command import run
from runtime.config import parse_flags, plain
from runtime.errors import UserError
from runtime.files import hash_file
from runtime.lock import lock_folder
from sampling.folder import remove_samples
from sampling.options import SamplingArgs

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]
RELEASED = ROOT / "pretrained_models"
REFERENCE = ROOT / "data/VIRTUAL_imagenet256_labeled.npz"
REFERENCE_URL = (
    "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256/"
    "VIRTUAL_imagenet256_labeled.npz"
)


# Settings that change no figure but by rounding.
UNIMPORTANT = ("batch_size", "compile", "nproc", "output_dir", "delete_samples")
Preset = Literal["2x-cfg1.4", "2x-cfg1.5", "4x-cfg1.7"]


# Settings, and what Table 1 of the paper gives for 50,000 samples.
PRESETS: dict[Preset, tuple[dict[str, Any], dict[str, float]]] = {
    "2x-cfg1.4": (
        {"checkpoint": str(RELEASED / "checkerboard-L-2x"), "cfg": 1.4, "steps_per_scale": 4},
        {"FID": 2.72, "Inception Score": 302.5, "Precision": 0.81, "Recall": 0.56},
    ),
    "2x-cfg1.5": (
        {"checkpoint": str(RELEASED / "checkerboard-L-2x"), "cfg": 1.5, "steps_per_scale": 4},
        {"FID": 2.83, "Inception Score": 318.2, "Precision": 0.82, "Recall": 0.57},
    ),
    "4x-cfg1.7": (
        {"checkpoint": str(RELEASED / "checkerboard-L-4x"), "cfg": 1.7, "steps_per_scale": 8},
        {"FID": 2.79, "Inception Score": 311.5, "Precision": 0.80, "Recall": 0.57},
    ),
}


DEFAULT_PRESET: Preset = "2x-cfg1.5"


@dataclass(frozen=True)
class FullRunArgs(NetworkArgs, SamplingArgs):
    """What to sample and evaluate. Each is also a variable of the same name in capitals; a flag comes first.

    Attributes:
        preset: a row of the paper's Table 1, whose figures are printed beside the measured ones.
        checkpoint: checkpoint file or folder; default the preset's, without one that of 2x-cfg1.5.
        reference: npz or folder of the reference; default OpenAI's of ImageNet at 256 px, in data/, or with --features
            the training images of the classifier.
        num_samples: number of images, the classes in turn.
        cfg: guidance, cond + cfg * (cond - uncond); default the preset's, without one 1.5.
        steps_per_scale: steps that each scale is drawn in; default the preset's, without one 4.
        compile: compile the steps of sampling.
        nproc: processes that sample, one a GPU.
        output_dir: folder of samples/ and result.json; default output/evaluation/ and the settings.
        delete_samples: remove the samples when the result is written.
    """

    preset: Preset | None = None
    checkpoint: str | None = None
    reference: str | None = None
    num_samples: int = 50_000
    cfg: float | None = None
    steps_per_scale: int | None = None
    compile: bool = False
    nproc: int = 1
    output_dir: str | None = None
    delete_samples: bool = False

    def __post_init__(self) -> None:
        NetworkArgs.__post_init__(self)
        SamplingArgs.__post_init__(self)
        if self.nproc < 1:
            raise UserError(f"nproc is {self.nproc}; it must be at least 1")
        if self.features != "inception":
            self.refuse(("preset",), f"--features {self.features}")
            if self.checkpoint is None:
                raise UserError(f"name the --checkpoint of the {self.features} model that --features measures")

    def completed(self) -> "FullRunArgs":
        """With what the preset gives in place of what was left open."""
        preset, _ = PRESETS[self.preset or DEFAULT_PRESET]
        open_ones = {name: value for name, value in preset.items() if getattr(self, name) is None}
        args = replace(self, **open_ones, reference=self.reference or self.shipped_reference or str(REFERENCE))
        if args.output_dir is not None:
            return args
        name = f"{args.preset or Path(args.checkpoint).resolve().name}-cfg{args.cfg:g}-{args.steps_per_scale}steps"
        start = "" if args.cfg_start_step == FullRunArgs.cfg_start_step else f"-start{args.cfg_start_step}"
        features = "" if args.features == FullRunArgs.features else f"-{args.features}"
        return replace(args, output_dir=f"output/evaluation/{name}{start}-{args.num_samples}-seed{args.seed}{features}")


def main(argv: Sequence[str]) -> None:
    args = parse_flags([*_from_environment(), *argv], "run_evaluator.sh", __doc__, FullRunArgs).completed()
    wanted = _check_inputs(args)
    folder = Path(args.output_dir)
    with lock_folder(folder):
        run_in(folder, args, wanted)


def run_in(folder: Path, args: FullRunArgs, wanted: Mapping[str, Any]) -> None:
    """Sample and evaluate in a folder, unless it holds the result already; print the figures."""
    result_file = folder / RESULT_NAME
    result = find_result(result_file, wanted)
    known = result is not None
    if not known:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # and the child is ended with us
        _run(_sampling_command(args, folder / SAMPLES_NAME))
        measured = folder / f".{RESULT_NAME}.measured"
        _run(_evaluation_command(args, folder / SAMPLES_NAME, measured))
        result = json.loads(measured.read_text())
        result |= {"run": plain(args) | wanted, "paper": PRESETS[args.preset][1] if args.preset else None}
        write_result(result_file, result)
        measured.unlink()
    if args.delete_samples and (folder / SAMPLES_NAME).is_dir():
        remove_samples(folder / SAMPLES_NAME)
    if known or result["paper"] is not None:  # else evaluator.py has just said it
        print("\n".join(lines_of(result)))
    print(f"everything measured and set: {result_file}")


def lines_of(result: Mapping[str, Any]) -> list[str]:
    """The figures of a result, the paper's beside them if it is of a preset."""
    measured = {name: result[name] for name in result["figures"]}
    if result["paper"] is None:
        return figure_lines(measured, result["real_images"])
    lines = [f"{'':<16} {'measured':>10} {'paper':>10}"]
    for name, value in measured.items():
        figure = "-" if value is None else f"{value:.4g}"
        published = result["paper"].get(name.removesuffix(f"-{result['num_samples']}"), "-")
        lines.append(f"{name:<16} {figure:>10} {published:>10}")
    changed = _differences(result["run"])
    return [*lines, f"not the paper's settings: {', '.join(changed)}"] if changed else lines


def _differences(settings: Mapping[str, Any]) -> list[str]:
    """What of a preset's run was set otherwise."""
    expected = plain(FullRunArgs(preset=settings["preset"]).completed())
    ours = ("dtype", "device", "seed", "inception_graph", "inception_weights", "no_prec_recall", *UNIMPORTANT)
    return [
        f"{name} {settings[name]}" for name, value in expected.items() if settings[name] != value and name not in ours
    ]


def _from_environment() -> list[str]:
    found = ((f.name, os.environ.get(f.name.upper())) for f in fields(FullRunArgs))
    return [f"--{name}={value}" for name, value in found if value]


def _check_inputs(args: FullRunArgs) -> dict[str, Any]:
    """What decides the figures, hashes included; what is missing is found now, not after hours of sampling."""
    reference = Path(args.reference)
    if args.reference == str(REFERENCE) and not reference.exists():
        raise UserError(f"there is no reference; fetch {REFERENCE_URL} to {REFERENCE}, or name yours with --reference")
    end = InceptionTraits.ends[0] if args.features == "inception" else Classifier(args.features, CPU).ends[0]
    images = check_reference(reference, end)
    if not args.in_torch and find_spec("tensorflow") is None:
        raise UserError("TensorFlow is missing; pip install -r requirements.txt, or take --backend torch")
    important = {name: value for name, value in plain(args).items() if name not in UNIMPORTANT}
    files = {"checkpoint": find_checkpoint(args.checkpoint), "network": network_file(args)}
    hashes = {f"{name}_sha256": hash_file(path) for name, path in files.items()}
    return important | hashes | {"reference_sha256": hash_of(reference, images)}


def _sampling_command(args: FullRunArgs, folder: Path) -> list[str]:
    ours = {"preset", "reference", "nproc", "output_dir", "delete_samples", *(f.name for f in fields(NetworkArgs))}
    several = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={args.nproc}"] if args.nproc > 1 else []
    )
    program = [sys.executable, *several, str(ROOT / "main_sample.py")]
    return [
        *program,
        *_flags(args, (f.name for f in fields(args) if f.name not in ours)),
        "--format=npz",
        f"--output_dir={folder}",
    ]


def _evaluation_command(args: FullRunArgs, samples: Path, result_file: Path) -> list[str]:
    command = [sys.executable, str(ROOT / "evaluator.py"), args.reference, str(samples), f"--output_file={result_file}"]
    changed = [f.name for f in fields(NetworkArgs) if getattr(args, f.name) != f.default]
    return [*command, *_flags(args, [*changed, "device"] if args.in_torch else changed)]


def _flags(args: FullRunArgs, names: Iterable[str]) -> list[str]:
    values = plain(args)
    return [f"--{name}={v if isinstance(v := values[name], str) else json.dumps(v)}" for name in names]


def _run(command: Sequence[str]) -> None:
    """Run a program of ours to its end; its failure, of which it has said why, ends us with its code."""
    with subprocess.Popen(command, preexec_fn=_end_with_parent) as program:
        try:
            code = program.wait()
        except BaseException:
            program.terminate()
            raise
    if code:
        sys.exit(code if code > 0 else 128 - code)


def _end_with_parent() -> None:
    """Let Linux end this program when the one that started it is killed: else it would draw on beside the next run."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    run(main)
