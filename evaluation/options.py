"""Options of every program that measures, without torch: --help answers before it is loaded."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from evaluation.features.shipped import statistics_file
from evaluation.metrics import NEIGHBOURS
from runtime.config import option
from runtime.errors import UserError, check_at_least
from runtime.files import PROJECT
from sampling.options import SamplingArgs

REFERENCE = PROJECT / "data/VIRTUAL_imagenet256_labeled.npz"
ADM_URL = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches"
REFERENCE_URL = f"{ADM_URL}/imagenet/256/{REFERENCE.name}"
GRAPH_URL = f"{ADM_URL}/classify_image_graph_def.pb"
FeaturesName = Literal["inception", "digits", "cifar10"]


@dataclass(frozen=True)
class NetworkArgs:
    """Whose features are compared."""

    features: FeaturesName = option(
        "inception", "inception, or digits or cifar10: those of a small classifier that ships with the project"
    )
    backend: Literal["tensorflow", "torch"] = option(
        "tensorflow",
        "of inception: tensorflow, which is ADM's own, or torch: the same weights in torch-fidelity's Inception, "
        "without TensorFlow; its roundings differ, precision and recall in the second digit",
    )
    inception_graph: str | None = option(
        None, "ADM's classify_image_graph_def.pb; default a copy downloaded once to the user's cache"
    )
    inception_weights: str | None = option(
        None,
        "of --backend torch: torch-fidelity's weights-inception-2015-12-05-6726825d.pth; default a copy downloaded "
        "once to the user's cache",
    )
    inception_sha256: str | None = option(
        None, "of inception: SHA-256 that the graph or the weights must have, whether a copy or downloaded"
    )
    no_prec_recall: bool = option(False, "of inception: leave out precision and recall, the slowest part of large sets")

    def __post_init__(self) -> None:
        self.refuse("backend", "inception_weights" if self.backend == "tensorflow" else "inception_graph")
        if self.features != "inception":
            self.refuse("features", "backend", "inception_graph", "inception_sha256", "no_prec_recall")
        pinned = self.inception_sha256
        if pinned is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", pinned):
            raise UserError(f"inception_sha256 is {pinned}; it must be 64 hexadecimal digits")

    def refuse(self, chosen: str, *names: str) -> None:
        """An option that would do nothing beside what is chosen is a mistake."""
        for name in names:
            if getattr(self, name) != getattr(type(self), name):
                raise UserError(f"--{name} means nothing with --{chosen} {getattr(self, chosen)}; leave it out")

    @property
    def shipped_reference(self) -> str | None:
        """Statistics of the training images, if the features are a classifier's."""
        return None if self.features == "inception" else str(statistics_file(self.features, "train"))

    @property
    def in_torch(self) -> bool:
        """Whether torch computes, on a device of its own choice."""
        return self.features != "inception" or self.backend == "torch"


@dataclass(frozen=True)
class EvaluatorArgs(NetworkArgs):
    """What to compare, and how."""

    reference: str | None = option(
        None, "npz, folder or statistics file of the reference (REF); with --make_reference the npz to write"
    )
    samples: str | None = option(None, "npz, folder or statistics file of the samples (SAMPLES)")
    output_file: str | None = option(
        None, "JSON file to write: every metric, N of each set, hashes, settings, versions"
    )
    device: str = option("auto", "of what torch computes: auto, cuda, mps or cpu; TensorFlow takes the GPU it finds")
    batch_size: int = option(64, "images whose features are computed at once")
    make_reference: str | None = option(
        None, "folder of images, at any depth, to make a reference set of; with --split a --data_path of main.py"
    )
    split: Literal["train", "val"] | None = option(
        None, "part of a data set to make a reference of, as main.py finds it: train or val"
    )
    dataset: Literal["folder", "cifar10", "food101", "celeba"] = option(
        "folder", "of --split: folder (whatever main.py takes), or what torchvision has fetched"
    )
    image_size: int | None = option(None, "side of the centre crops of --make_reference, in pixels")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reference is None or (self.samples is None) == (self.make_reference is None):
            raise UserError("usage: evaluator.py REF SAMPLES, or evaluator.py --make_reference FOLDER OUT.npz")
        if (self.image_size is None) != (self.make_reference is None):
            raise UserError("--make_reference needs the --image_size of its crops, which means nothing without it")
        if self.make_reference is not None and self.output_file is not None:
            raise UserError("--output_file is of a comparison; --make_reference FOLDER OUT.npz measures nothing")
        if self.split is not None and self.make_reference is None:
            raise UserError("--split is of --make_reference; leave it out")
        if self.split is None and self.dataset != "folder":
            raise UserError(f"--dataset {self.dataset} needs --split train or --split val")
        if not self.in_torch:
            self.refuse("backend", "device")
        check_at_least(1, self, "batch_size", "image_size")


@dataclass(frozen=True)
class CheckpointArgs(NetworkArgs, SamplingArgs):
    """What to draw from a checkpoint and to compare."""

    reference: str | None = option(
        None,
        "npz, folder or statistics file of the reference, as evaluator.py takes it; default with --features the "
        "training images of the classifier",
    )
    num_samples: int = option(50_000, "number of images, the classes in turn")
    compile: bool = option(False, "compile the steps of sampling")
    output_dir: str | None = option(None, "folder of samples/ and result.json; default output/evaluation/ and settings")
    delete_samples: bool = option(False, "remove the samples when they are measured")

    def __post_init__(self) -> None:
        NetworkArgs.__post_init__(self)
        SamplingArgs.__post_init__(self)
        check_at_least(NEIGHBOURS + 1, self, "num_samples")


class Preset(NamedTuple):
    """A released model, settings of the drawing, and metrics that were published of 50,000 samples, as many as were."""

    checkpoint: str
    drawing: dict[str, Any]
    published: dict[str, float]
    resize_to: int | None = None


def _released(name: str, drawing: dict[str, Any], *metrics: float, resize_to: int | None = None) -> Preset:
    names = ("FID", "Inception Score", "Precision", "Recall")
    return Preset(
        str(PROJECT / "pretrained_models" / name), drawing, dict(zip(names, metrics, strict=False)), resize_to
    )


RANDAR = {"cfg_schedule": "linear"}  # in 88 steps, as without a setting
PRESETS = {
    # The paper's Table 1.
    "2x-cfg1.4": _released("checkerboard-L-2x", {"cfg": 1.4, "steps_per_scale": 4}, 2.72, 302.5, 0.81, 0.56),
    "2x-cfg1.5": _released("checkerboard-L-2x", {"cfg": 1.5, "steps_per_scale": 4}, 2.83, 318.2, 0.82, 0.57),
    "4x-cfg1.7": _released("checkerboard-L-4x", {"cfg": 1.7, "steps_per_scale": 8}, 2.79, 311.5, 0.80, 0.57),
    # formats.md G7; cfg is the published cfg_scale less 1. At 256 px that of LlamaGen was not published.
    "llamagen-b-256": _released("llamagen-b", {"cfg": 1.0}, 5.46, 193.6, 0.83, 0.45),
    "llamagen-l-256": _released("llamagen-l", {"cfg": 0.75}, 3.80, 248.3, 0.83, 0.52),
    "llamagen-b-384": _released("llamagen-b-384", {"cfg": 1.0}, 6.09, 182.5, resize_to=256),
    "llamagen-l-384": _released("llamagen-l-384", {"cfg": 1.0}, 3.07, 256.1, 0.83, 0.52, resize_to=256),
    "llamagen-xl-384": _released("llamagen-xl-384", {"cfg": 0.75}, 2.62, 244.1, 0.80, 0.57, resize_to=256),
    "llamagen-xxl-384": _released("llamagen-xxl-384", {"cfg": 0.75}, 2.34, 253.9, 0.80, 0.59, resize_to=256),
    "llamagen-3b-384": _released("llamagen-3b-384", {"cfg": 0.65}, 2.18, 263.3, 0.81, 0.58, resize_to=256),
    "npp-b": _released("npp-b", {"cfg": 1.0}, 4.47),
    "npp-l": _released("npp-l", {"cfg": 0.75}, 2.76),
    "npp-xl": _released("npp-xl", {"cfg": 0.7}, 2.65),
    "npp-xxl": _released("npp-xxl", {"cfg": 0.65}, 2.55),
    # formats.md R1, R5: the released weights, not the paper's.
    "randar-l": _released("randar-l", RANDAR | {"cfg": 2.4}, 2.65, 249, 0.82, 0.56),
    "randar-l-maskgit": _released("randar-l-maskgit", RANDAR | {"cfg": 3.0}, 2.47, 271, 0.84, 0.54),
    "randar-xl": _released("randar-xl", RANDAR | {"cfg": 3.0}, 2.27, 275, 0.81, 0.59),
}
PresetName = Literal[*PRESETS]


@dataclass(frozen=True)
class RunArgs(CheckpointArgs):
    """What to sample and evaluate. Each is also a variable, as CHECKERBOARD_SEED is --seed; a flag comes first."""

    preset: PresetName | None = option(
        None, "a released model with its published settings; the published metrics are printed beside"
    )
    nproc: int = option(1, "processes that sample, one a GPU")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, self, "nproc")
        if self.features != "inception":
            self.refuse("features", "preset")
            if self.checkpoint is None:
                raise UserError(f"name the --checkpoint of the {self.features} model that --features measures")

    def completed(self) -> "RunArgs":
        """With the defaults of what was left open."""
        preset = PRESETS[self.preset or "2x-cfg1.5"]
        checkpoint, resize_to = self.checkpoint or preset.checkpoint, self.resize_to or preset.resize_to
        reference = self.reference or self.shipped_reference or str(REFERENCE)
        return replace(self, checkpoint=checkpoint, resize_to=resize_to, reference=reference)


def checkpoint_label(place: Path) -> str:
    """What results call a checkpoint: its folder, and, of a file that is not the folder's usual one, its name too."""
    if not place.is_file():
        return place.name
    usual = place.stem in ("checkpoint-last", "model") or len(list(place.parent.glob(f"*{place.suffix}"))) == 1
    return place.parent.name if usual else f"{place.parent.name}-{place.stem}"
