"""Sample, then evaluate, one command: every setting, seed, hash and figure in one result file.

    bash run_evaluator.sh --preset 2x-cfg1.5

The same command again goes on where it was killed. Every flag is also a variable, in capitals:

    CFG=1.4 NPROC=8 bash run_evaluator.sh
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from engine.command import run
from engine.config import parse_flags, plain
from engine.metrics.batches import hash_of, open_images, stored_statistics
from engine.metrics.files import hash_file
from engine.metrics.inception_tf import default_graph
from engine.metrics.results import RESULT_NAME, SAMPLES_NAME, find_result, write_result
from engine.sample_folder import remove_samples
from engine.sample_settings import SamplingArgs
from models.errors import UserError
from models.published import find_checkpoint

ROOT = Path(__file__).resolve().parents[2]
RELEASED = ROOT / "pretrained_models"
REFERENCE = ROOT / "data/VIRTUAL_imagenet256_labeled.npz"
REFERENCE_URL = (
    "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256/"
    "VIRTUAL_imagenet256_labeled.npz"
)
# Settings that change no figure.
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
class FullRunArgs(SamplingArgs):
    """What to sample and evaluate. Each is also a variable of the same name in capitals; a flag comes first.

    Attributes:
        preset: a row of the paper's Table 1, whose figures are printed beside the measured ones.
        checkpoint: checkpoint file or folder; default the preset's, without one that of 2x-cfg1.5.
        reference: npz or folder of the reference; default OpenAI's of ImageNet at 256 px, in data/.
        num_samples: number of images, the classes in turn.
        cfg: guidance, cond + cfg * (cond - uncond); default the preset's, without one 1.5.
        steps_per_scale: steps that each scale is drawn in; default the preset's, without one 4.
        compile: compile the steps of sampling.
        nproc: processes that sample, one a GPU.
        inception_graph: ADM's classify_image_graph_def.pb; default a copy downloaded once to the user's cache.
        no_prec_recall: leave out precision and recall.
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
    inception_graph: str | None = None
    no_prec_recall: bool = False
    output_dir: str | None = None
    delete_samples: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nproc < 1:
            raise UserError(f"nproc is {self.nproc}; it must be at least 1")

    def completed(self) -> "FullRunArgs":
        """With what the preset gives in place of what was left open."""
        preset, _ = PRESETS[self.preset or DEFAULT_PRESET]
        open_ones = {name: value for name, value in preset.items() if getattr(self, name) is None}
        args = replace(self, **open_ones, reference=self.reference or str(REFERENCE))
        if args.output_dir is not None:
            return args
        name = f"{args.preset or Path(args.checkpoint).resolve().name}-cfg{args.cfg:g}-{args.steps_per_scale}steps"
        return replace(args, output_dir=f"output/evaluation/{name}-{args.num_samples}-seed{args.seed}")


def main(argv: Sequence[str]) -> None:
    args = parse_flags([*_from_environment(), *argv], "run_evaluator.sh", __doc__, FullRunArgs).completed()
    wanted = _check_inputs(args)
    folder = Path(args.output_dir)
    result_file = folder / RESULT_NAME
    result = find_result(result_file, wanted)
    if result is None:
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
    print(table(result))
    print(f"everything measured and set: {result_file}")


def table(result: Mapping[str, Any]) -> str:
    """The figures of a result, the paper's beside them if it is of a preset."""
    lines = [] if result["paper"] is None else [f"{'':<16} {'measured':>10} {'paper':>10}"]
    num_samples = result["num_samples"]
    for name in ("Inception Score", "FID", "sFID", "Precision", "Recall"):
        label = next(key for key in result if key in (name, f"{name}-{num_samples}"))
        value = "-" if result[label] is None else f"{result[label]:.4g}"
        published = "" if result["paper"] is None else f" {result['paper'].get(name, '-'):>10}"
        lines.append(f"{label:<16} {value:>10}{published}")
    changed = _differences(result["run"]) if result["paper"] is not None else []
    if changed:
        lines.append(f"not the paper's settings: {', '.join(changed)}")
    return "\n".join(lines)


def _differences(settings: Mapping[str, Any]) -> list[str]:
    """What of a preset's run was set otherwise."""
    expected = plain(FullRunArgs(preset=settings["preset"]).completed())
    ours = ("dtype", "device", "seed", "inception_graph", "no_prec_recall", *UNIMPORTANT)
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
    images = open_images(reference)
    if images is None and stored_statistics(reference, "mu", "sigma") is None:
        raise UserError(
            f"{reference} holds no statistics of Inception's features; if they are a classifier's, sample with "
            "main_sample.py and evaluate with evaluator.py --features"
        )
    if find_spec("tensorflow") is None:
        raise UserError("TensorFlow is missing; pip install -r requirements.txt")
    graph = default_graph() if args.inception_graph is None else Path(args.inception_graph)
    important = {name: value for name, value in plain(args).items() if name not in UNIMPORTANT}
    files = {"checkpoint": find_checkpoint(args.checkpoint), "inception_graph": graph}
    hashes = {f"{name}_sha256": hash_file(path) for name, path in files.items()}
    return important | hashes | {"reference_sha256": hash_of(reference, images)}


def _sampling_command(args: FullRunArgs, folder: Path) -> list[str]:
    ours = ("preset", "reference", "nproc", "inception_graph", "no_prec_recall", "output_dir", "delete_samples")
    flags = [
        f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in plain(args).items()
        if name not in ours
    ]
    several = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={args.nproc}"] if args.nproc > 1 else []
    )
    program = [sys.executable, *several, str(ROOT / "main_sample.py")]
    return [*program, *flags, "--format=npz", f"--output_dir={folder}"]


def _evaluation_command(args: FullRunArgs, samples: Path, result_file: Path) -> list[str]:
    command = [sys.executable, str(ROOT / "evaluator.py"), args.reference, str(samples), f"--output_file={result_file}"]
    command += [] if args.inception_graph is None else [f"--inception_graph={args.inception_graph}"]
    return [*command, "--no_prec_recall"] if args.no_prec_recall else command


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
