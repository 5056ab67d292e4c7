"""README.md, CONTRIBUTING.md and docs/ are true: commands run, made small; files, links, options and numbers exist.

A command that no rule of RULES covers fails, so that no page can promise what nobody ran. Commands run in a copy of the
project's code, whatever a user has put into its folders: Python programs in this process, the others as they stand.
"""

import ast
import io
import json
import os
import re
import runpy
import shlex
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, chdir, contextmanager, nullcontext, redirect_stdout
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from benchmarks.packing import pack
from data.images import open_dataset
from evaluation.options import PRESETS
from experiments import study_times
from models.loading.checkpoint import export_published
from tests.command_factory import ROOT, Outcome, call, carry_out_here, save_run, start
from tests.demo.factory import answering_once
from tests.factory import CIFAR_CLASSES, TINY_TRANSFORMER, tiny_autoencoder, tiny_model
from tests.llamagen_factory import tiny_gpt
from tests.randar_factory import tiny_randar

PATHS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in PATHS}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
PROSE = {page: FENCE.sub("", text) for page, text in PAGES.items()}
STARTS = ("python", "bash", "torchrun", "tensorboard", "pip")  # of a code span that is a command
PLACEHOLDER = re.compile(r"\b[A-Z]+\b|\.\.\.")  # CONFIG, N
EVALUATOR = ROOT / "tests/fixtures/evaluator"
STAND_IN = f"--inception_graph {EVALUATOR / 'classify_image_graph_def.pb'}"
REFERENCE = "--reference data/VIRTUAL_imagenet256_labeled.npz"
OF_FEW_CLASSES = ("config_256_S", "npp_B", "llamagen_XL", "randar_L")  # trained on the stand-in of ImageNet
MAX_WORDS = 1800  # of the README, outside tables and code

pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # of runpy


def blocks(language: str, page: str) -> list[str]:
    return [body for found, body in FENCE.findall(PAGES[page]) if found == language]


def spans(page: str) -> list[str]:
    """What stands in backquotes in the text."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", PROSE[page])]


def commands_of(page: str) -> list[str]:
    """Those of all bash blocks, joined ones one by one, and those in the text that stand for no others."""
    lines = [line for block in blocks("bash", page) for line in block.splitlines() if line]
    in_text = [span for span in spans(page) if span.startswith(STARTS) and " " in span and not PLACEHOLDER.search(span)]
    return [command.removeprefix(".venv/bin/") for line in [*lines, *in_text] for command in line.split(" && ")]


SCRIPTS = {"run_evaluator.sh": "evaluation.run", "experiments/study.sh": "experiments.study"}


def module_of(command: str) -> str | None:
    """Which of our programs a command runs."""
    found = re.search(r"(?:python|torchrun)(?: --\S+)* (?:-m )?([\w/.]+)", command)
    if command.startswith("bash ") and command.split()[1] in SCRIPTS:
        return SCRIPTS[command.split()[1]]
    name = found[1].removesuffix(".py").replace("/", ".") if found else ""
    names = (name, f"{name}.__main__")
    return next((one for one in names if (ROOT / f"{one.replace('.', '/')}.py").is_file()), None)


ALL = list(dict.fromkeys(command for page in PAGES for command in commands_of(page)))
SET_UP = re.compile(
    r"python3 -m venv .*|source .*|pip install .*|python -m pytest.*|(ruff|lint-imports|tensorboard)( .*)?|"
    r"python -c .*CIFAR10.*download=True.*|hf download .*"
)
COMMANDS = [command for command in ALL if not SET_UP.fullmatch(command)]
PROGRAMS = sorted({module for command in COMMANDS if (module := module_of(command))})


@dataclass(frozen=True)
class Rule:
    """How commands of one form are tested.

    Attributes:
        form: what the whole command looks like.
        files: patterns of files that it leaves.
        says: what it prints.
        added: flags that make it small; the last of two equal ones counts.
        makes: commands that name this need this one before.
        check: asserts what else it promises.
        alone: run as it stands, in a process of its own.
        within: what it runs in, to end what would go on for ever.
        folder: where to run it in the copy.
        code: its exit code.
    """

    form: str
    files: tuple[str, ...] = ()
    says: str = ""
    added: str = ""
    makes: str = ""
    check: Callable[["Project", Outcome], None] = lambda project, outcome: None
    alone: bool = False
    within: Callable[[], AbstractContextManager[Any]] = nullcontext
    folder: str = "."
    code: int = 0


@dataclass
class Project:
    """A copy of the project to run commands in, as if its environment were activated."""

    folder: Path
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def outcome(self, command: str) -> Outcome:
        """What became of a command, or of one that differs from it in numbers alone."""
        rule, key = rule_of(command), re.sub(r"\d+(\.\d+)?", "0", command)
        if key not in self.outcomes:
            self.prepare(command, rule)
            self.outcomes[key] = self._run(f"{command} {rule.added}", rule)
        return self.outcomes[key]

    def prepare(self, text: str, own: Rule | None = None) -> None:
        """Run the commands that make what a text names."""
        for command in COMMANDS:
            rule = rule_of(command)
            if rule.makes and rule.makes in text and rule is not own:
                self.outcome(command)

    def _run(self, line: str, rule: Rule) -> Outcome:
        words, module = shlex.split(line), module_of(line)
        if module is not None and not rule.alone and words[0] != "torchrun":
            with chdir(self.folder), rule.within():
                return call(import_module(module).main, *words[words.index("-m") + 2 if "-m" in words[:2] else 2 :])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        path = f"{self.folder / '.venv/bin'}{os.pathsep}{os.environ['PATH']}"
        folder = self.folder / rule.folder
        return start("bash", "-c", line, folder=folder, PATH=path, HF_HUB_OFFLINE="1", MASTER_PORT=port)


@contextmanager
def study_in_short() -> Iterator[None]:
    """The study's commands in this process; few images are drawn for a time, and a training step has 10."""
    with patch("experiments.study.carry_out", carry_out_here), patch("experiments.study_plan.BATCH", 10), timed_once():
        yield


@contextmanager
def timed_once() -> Iterator[None]:
    with patch.dict(study_times.TIMED, {8: 1, 1: 1}, clear=True), patch("experiments.study_times.ROUNDS", 1):
        yield


@contextmanager
def own_images_in_short() -> Iterator[None]:
    """The commands of own photographs in this process, with the copy's small configurations."""
    with (
        patch("experiments.own_images.PROJECT", Path.cwd()),
        patch("experiments.own_images.carry_out", carry_out_here),
    ):
        yield


def rule_of(command: str) -> Rule:
    rules = [rule for rule in RULES if re.fullmatch(rule.form, command)]
    assert len(rules) == 1, f"{len(rules)} rules of this test cover the command {command}; it needs one in RULES"
    return rules[0]


# What is put in place of what commands need


def copy_code(folder: Path) -> None:
    """The project as it is checked out; data and results of a user stay behind."""

    def others(where: str, names: list[str]) -> list[str]:
        paths = [Path(where) / name for name in names]
        kept = {path.name for path in paths if (path / "__init__.py").is_file() or path.suffix in (".py", ".yaml")}
        return [name for name in names if name not in kept]

    for part in ("configs", *(path.parent.name for path in ROOT.glob("*/__init__.py"))):
        shutil.copytree(ROOT / part, folder / part, ignore=others)
    for name in ("digits", "digits-checkerboard", "cifar10", "cifar10-4096", "cifar10-checkerboard", "classifiers"):
        shutil.copytree(ROOT / "pretrained_models" / name, folder / "pretrained_models" / name)
    for path in (*ROOT.glob("*.py"), *ROOT.glob("*.sh")):
        shutil.copyfile(path, folder / path.name)
    (folder / "fresh/pretrained_models").mkdir(parents=True)  # nothing was downloaded there
    for path in (ROOT / "pretrained_models").glob("download.*"):
        shutil.copyfile(path, folder / "fresh/pretrained_models" / path.name)


def make_tiny(path: Path) -> None:
    """A configuration of a narrow transformer, 32 px, one epoch."""
    content = yaml.safe_load(path.read_text())
    content["model"] |= {"img_size": 32} | ({"num_classes": 3} if path.stem in OF_FEW_CLASSES else {})
    if path.stem != "own_32":  # which starts from weights that ship
        content["model"]["llama_config"] |= asdict(TINY_TRANSFORMER)
    if content["model"].get("vocab_size") == 16384:
        content["model"]["vocab_size"] = 64
    batch_size = 50 if content["args"]["dataset"] == "digits" else 4
    content["args"] |= {"epochs": 1, "batch_size": batch_size, "num_workers": 0, "warmup_epochs": 0, "lr_drops": {}}
    path.write_text(yaml.safe_dump(content))


def make_tiny_tokenizer(path: Path, start: Path) -> None:
    """A configuration for images of 32 px and the autoencoder that it starts from."""
    content = yaml.safe_load(path.read_text())
    content["model"] = yaml.safe_load((start / "autoencoder_config.yaml").read_text())["model"]["params"]
    content["model"] |= content["model"].pop("ddconfig")
    del content["model"]["normalize"]
    small = {"img_size": 32, "scale_sizes": [1, 2, 4, 8], "batch_size": 12, "num_workers": 0, "perceptual": 0}
    content["args"] |= small
    path.write_text(yaml.safe_dump(content))


def save_photos(folder: Path, classes: Sequence[str], count: int) -> None:
    """Class folders of noise."""
    random = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(256, size=(40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.JPEG")


def pack_photos(folder: Path) -> None:
    """The photos in ``images`` as parquet, tar shards and a table, and a parquet file of one large row group."""
    packed = pack({"train": open_dataset("folder", str(folder / "images"), 32)}, folder / "packed")
    for kind, name in (("parquet", "parquet"), ("tar", "shards"), ("csv", "images.csv")):
        shutil.move(packed[kind], folder / name)
    pq.write_table(pa.table({"label": range(150)}), folder / "large.parquet", row_group_size=150)


def save_codes(folder: Path, count: int = 8) -> None:
    """Codes of two maps an image as LlamaGen's tools write them: 2 x 2 of 64 codes."""
    random = np.random.default_rng(0)
    for kind, high, shape in (("codes", 64, (1, 2, 4)), ("labels", 3, (1,))):
        (folder / f"imagenet32_{kind}").mkdir(parents=True)
        for n in range(count):
            np.save(folder / f"imagenet32_{kind}/{n}.npy", random.integers(high, size=shape))


def install_weights(folder: Path) -> None:
    """Tiny models and autoencoders in the published layouts, where downloads go, and ADM's reference."""
    pretrained = folder / "pretrained_models"
    for ratio in (2, 4):
        run = save_run(folder / f"made-{ratio}x", tiny_model(num_classes=1000, scale_ratio=ratio))
        export_published(run, pretrained / f"checkerboard-L-{ratio}x")
    shutil.copytree(pretrained / "checkerboard-L-2x/autoenc", pretrained / "autoenc")
    gpt = tiny_gpt(autoencoder=tiny_autoencoder(), img_size=32, num_classes=1000)
    for name in ("npp-b", "llamagen-b"):
        export_published(save_run(folder / f"made-{name}", gpt), pretrained / name)
        (file,) = (pretrained / name).glob("*.pt")
        file.rename(file.with_name("c2i_B_256.pt"))
    randar = tiny_randar(autoencoder=tiny_autoencoder(), img_size=32, num_classes=1000)
    export_published(save_run(folder / "made-randar", randar), pretrained / "randar-l")
    state = tiny_autoencoder(ch_mult=(1, 1, 1, 1, 1)).state_dict()
    (pretrained / "llamagen").mkdir()
    del state["cluster_usage_train"]
    torch.save({"model": state}, pretrained / "llamagen/vq_ds16_c2i.pt")
    shutil.copyfile(EVALUATOR / "reference.npz", folder / "data/VIRTUAL_imagenet256_labeled.npz")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("readme") / "project"
    copy_code(folder)
    for path in (folder / "configs").glob("*.yaml"):
        make_tiny(path)
    classes = [f"class{label:02d}" for label in range(12)]
    save_photos(folder / "data/imagenet/train", classes[:3], count=4)
    save_photos(folder / "data/cifar10/train", CIFAR_CLASSES, count=2)
    save_photos(folder / "data/cifar10/test", CIFAR_CLASSES, count=1)
    save_photos(folder / "path/to/images", classes, count=2)
    pack_photos(folder / "path/to")
    for name in ("ten_crop", "ten_crop_105"):
        save_codes(folder / "path/to" / name)
    pixels = np.random.default_rng(1).integers(256, size=(32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "path/to/image.png")
    left_half = np.tile(np.repeat(np.array([255, 0], np.uint8), 16), (32, 1))
    Image.fromarray(left_half).save(folder / "path/to/mask.png")
    (folder / "docs").mkdir()
    for name in ("edit_image.png", "edit_mask.png"):
        shutil.copyfile(ROOT / "docs" / name, folder / "docs" / name)
    install_weights(folder)
    make_tiny_tokenizer(folder / "train_ae_codebook/config_own_256.yaml", folder / "pretrained_models/autoenc")
    (folder / ".venv/bin").mkdir(parents=True)
    for name, module in (("python", ""), ("torchrun", "-m torch.distributed.run")):
        path = folder / ".venv/bin" / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        path.chmod(0o755)
    return Project(folder)


# Commands


def check_quickstart(project: Project, outcome: Outcome) -> None:
    """The page's metrics of real digits are those that are printed."""
    distance = re.search(r"FD-digits-297 (\d+\.\d+)", outcome.out)
    accuracy = re.search(r"Class accuracy (0\.\d+)", outcome.out)
    assert f"| FD-digits of the 297 real digits | {float(distance[1]):.2f} |" in PAGES["docs/training.md"]
    assert f"| {float(accuracy[1]):.1%}".replace("%", " %") in PAGES["docs/training.md"]


def check_edit(project: Project, outcome: Outcome) -> None:
    """The right half, which the mask keeps, is the original's."""
    names = ("docs/edit_image.png", "samples/edit/000006.png")
    original, edited = (np.array(Image.open(project.folder / name)) for name in names)
    assert np.array_equal(original[:, 16:], edited[:, 16:])
    assert not np.array_equal(original, edited)


def check_three(project: Project, outcome: Outcome) -> None:
    images = json.loads((project.folder / "samples/three/samples.json").read_text())["images"]
    assert [image["label"] for image in images] == [8, 6, 3]


def check_many(project: Project, outcome: Outcome) -> None:
    assert len(list((project.folder / "samples/many").glob("[0-9]*.png"))) == 12


def check_small_groups(project: Project, outcome: Outcome) -> None:
    groups = [
        pq.read_metadata(project.folder / f"path/to/{name}.parquet").num_row_groups for name in ("large", "small")
    ]
    assert groups == [1, 2]


def check_evaluator(project: Project, outcome: Outcome) -> None:
    """Measured again, the samples that run_evaluator.sh left give the same."""
    paths = (project.folder / "output" / name for name in ("evaluation/result.json", "result.json"))
    first, second = (json.loads(path.read_text()) for path in paths)
    assert first["FID-8"] == second["FID-8"]


def run_files(folder: str) -> tuple[str, ...]:
    names = ("checkpoint-last.pth", "config.yaml", "log.jsonl", "samples/*.png", "autoenc/*", "events.out.tfevents.*")
    return tuple(f"{folder}/{name}" for name in names)


def trains(form: str, folder: str, **rest: Any) -> Rule:
    return Rule(rf"python main\.py --config configs/{form}", files=run_files(folder), makes=folder, **rest)


def makes_autoencoder(
    config: str, folder: str, added: str, weights: str = "autoencoder.safetensors", flags: str = ".*", makes: str = ""
) -> Rule:
    form = rf"python train_ae_codebook/main\.py --config train_ae_codebook/{config}\.yaml{flags}"
    files = (f"{folder}/autoencoder_config.yaml", f"{folder}/{weights}")
    return Rule(form, files=files, makes=makes or folder, added=f"--epochs 1 --num_workers 0 {added}")


SAMPLE = r"python main_sample\.py "
ONE_CASE = (
    "--configs [configs/quickstart.yaml] --batch_sizes [1] --modes [eager] --dtypes [float32] --repeats 1 "
    "--drawing '{steps_per_scale: 2}'"
)
RULES = (
    trains(r"quickstart\.yaml", "output/quickstart", check=check_quickstart),
    trains(r"config_cifar10\.yaml", "output/config_cifar10"),
    trains(
        r"study/checkerboard_2x\.yaml --num_classes 0 .*",
        "output/own-model",
        added="--batch_size 4 --epochs 1 --eval_freq 1 --warmup_epochs 0 --llama_config.num_hidden_layers 1",
    ),
    Rule(r"python main\.py --config configs/npp_B\.yaml --help", says="--patch_level"),
    Rule(r"sed .*", files=("configs/digits_4x.yaml",), makes="configs/digits_4x.yaml"),
    trains(r"digits_4x\.yaml .*", "output/digits_4x"),
    Rule(r"python main\.py .* --print_config", says=r"\n  scale_ratio: 4.0\n"),
    trains(r"own_32\.yaml --data_path path/to/images --autoenc .*", "output/mine/model", added="--batch_size 4"),
    Rule(
        r"python -m experiments\.own_images --data_path path/to/images",
        files=tuple(f"output/own/{name}" for name in ("index.html", "own.png", "results.json", "samples/000023.png")),
        makes="output/own/model",
        added="--tokenizer_steps 1 --model_steps 2 --samples_per_class 2",
        within=own_images_in_short,
    ),
    Rule(
        r"python -m experiments\.own_images --data_path path/to/images --img_size 256 .*",
        files=("output/own-256/index.html", "output/own-256/samples/000011.png"),
        added="--tokenizer_steps 1 --model_steps 1 --samples_per_class 1",
        within=own_images_in_short,
    ),
    trains(r"config_256_S\.yaml", "output/from-images", added="--output_dir output/from-images"),
    trains(r"config_256_S\.yaml --use_cache", "output/config_256_S"),
    Rule(
        r"python main\.py --config configs/config_256_S\.yaml --create_cache --batch_size 32",
        files=("data/cached/imagenet-*/codes.npy",),
        makes="--use_cache",
    ),
    trains(r"randar_L\.yaml --use_cache", "output/randar_L"),
    Rule(
        r"python main\.py --config configs/randar_L\.yaml --create_cache --batch_size 32",
        files=("data/cached/llamagen/imagenet-32-flip/codes.npy",),
        makes="randar_L.yaml --use_cache",
    ),
    trains(r"cifar10_randar_random\.yaml", "output/cifar10_randar_random"),
    trains(r"cifar10_randar_raster\.yaml", "output/cifar10_randar_raster"),
    trains(
        r"cifar10_randar_random\.yaml .*randar_baseline",
        "output/cifar10_randar_baseline",
        added="--epochs 1 --batch_size 4 --warmup_epochs 0 --num_workers 0 --llama_config.num_hidden_layers 1 "
        "--llama_config.hidden_size 64 --llama_config.num_attention_heads 2",
    ),
    Rule(
        r"python main\.py --config configs/cifar10_randar_random\.yaml --create_cache --use_cache false .*",
        files=("data/cached/cifar10-32-flip/codes.npy",),
    ),
    trains(r"llamagen_cifar10\.yaml", "output/llamagen_cifar10"),
    trains(r"npp_cifar10\.yaml", "output/npp_cifar10"),
    trains(r"npp_cifar10\.yaml --patch_level 3 .*", "output/npp3_cifar10"),
    trains(r"npp_B\.yaml --use_cache", "output/npp_B"),
    Rule(
        r"python main\.py --config configs/npp_B\.yaml --create_cache --batch_size 32",
        files=("data/cached/llamagen/imagenet-32-ten/codes.npy",),
        makes="npp_B.yaml --use_cache",
    ),
    Rule(
        r"python main\.py --config configs/npp_B\.yaml --create_cache --crop twenty .*",
        files=("data/cached/llamagen/imagenet-32-twenty/codes.npy",),
    ),
    Rule(
        r"python main\.py --config configs/llamagen_XL\.yaml --create_cache .*",
        files=("data/cached/llamagen/imagenet-48-ten/codes.npy",),
        added="--img_size 48",
    ),
    trains(r"llamagen_L\.yaml --code_paths .*", "output/llamagen_L"),
    Rule(
        r"python main\.py --config .* --check_data",
        says=r": (1500 images of 10|24 images of 12) classes(.|\n)*0 of \d+ images are unreadable",
    ),
    Rule(r"python -m zipfile -c path/to/images\.zip .*", files=("path/to/images.zip",), makes="images.zip --check"),
    Rule(r"python -c .*pq\.write_table.*", check=check_small_groups),
    Rule(
        r"python -m benchmarks\.reading",
        says=r"parquet, one row group( +[\d.]+){5}",
        added="--images 20 --reads 4 --repeats 1",
    ),
    Rule(
        r"torchrun --nproc_per_node=2 main\.py --config configs/quickstart\.yaml .* --shard .*",
        files=("output/sharded/checkpoint-last.pth", "output/sharded/checkpoint-last.sharded/place.pth"),
        says="; 2 steps an epoch on 2 ranks",
        added="--dataset folder --data_path data/cifar10 --batch_size 5 --cached_path data/cached-ranks",
    ),
    Rule(
        r"torchrun --nproc_per_node=2 main\.py --config configs/quickstart\.yaml .*two-ranks",
        files=run_files("output/two-ranks"),
        says="; 2 steps an epoch on 2 ranks",
        added="--dataset folder --data_path data/cifar10 --batch_size 5 --cached_path data/cached-ranks",
    ),
    Rule(
        SAMPLE
        + "--checkpoint pretrained_models/digits-checkerboard --num_samples 40 --animation --output_dir samples/digits",
        files=tuple(f"samples/digits/{name}" for name in ("000001.png", "grid.png", "samples.json", "animation.gif")),
        added="--num_samples 2",
    ),
    Rule(
        SAMPLE + "--checkpoint pretrained_models/digits-checkerboard .*--maps --animation --output_dir samples/maps",
        files=tuple(
            f"samples/maps/{name}"
            for name in (
                *("000001.png", "grid.png", "samples.json", "maps.npz", "maps_000001.png"),
                *("entropy_by_step.png", "animation.gif"),
            )
        ),
        added="--num_samples 2",
    ),
    Rule(
        SAMPLE + "--checkpoint pretrained_models/cifar10-checkerboard --num_samples 80 .*",
        files=("samples/cifar10/000009.png", "samples/cifar10/grid.png"),
        added="--num_samples 10",
    ),
    Rule(
        SAMPLE + "--checkpoint output/own/model",
        files=("samples/2*/000011.png", "samples/2*/grid.png"),
    ),
    Rule(
        SAMPLE + "--checkpoint output/mine/model --num_samples 48 --output_dir samples/mine",
        files=("samples/mine/000047.png", "samples/mine/grid.png"),
    ),
    Rule(
        SAMPLE + r"--checkpoint pretrained_models/checkerboard-L-\dx --cfg .* --steps_per_scale \d",
        files=("samples/2*/000015.png", "samples/2*/grid.png"),
    ),
    Rule(SAMPLE + ".* --output_dir samples/three", check=check_three),
    Rule(SAMPLE + "--checkpoint pretrained_models/digits-checkerboard --edit .*", check=check_edit),
    Rule(
        SAMPLE + "--checkpoint output/cifar10_randar_random --edit .*",
        files=("samples/randar-edit/000006.png",),
        added="--steps 4 --output_dir samples/randar-edit",
    ),
    Rule(
        SAMPLE + r"--checkpoint pretrained_models/randar-l --cfg 2\.4 --num_samples 16",
        files=("samples/2*/000015.png", "samples/2*/grid.png"),
        says="16 images of 32 px in 64 steps",
    ),
    Rule(
        SAMPLE + r"--checkpoint pretrained_models/randar-l --upscale 2 .*",
        files=("samples/2*/000001.png", "samples/2*/grid.png"),
        says="2 images of 64 px in 256 steps",
    ),
    Rule(
        SAMPLE + r"--checkpoint pretrained_models/randar-l .*--edit .*",
        files=("samples/2*/000001.png", "samples/2*/grid.png"),
    ),
    Rule(
        SAMPLE + r"--checkpoint pretrained_models/(npp|llamagen)-b --cfg 1 --num_samples 16",
        files=("samples/2*/000015.png", "samples/2*/grid.png"),
        says="16 images of 32 px in 64 steps",
    ),
    Rule(
        SAMPLE + r"--config configs/(config_256_L|llamagen_B)\.yaml --labels 207",
        says="random weights .*: expect noise",
    ),
    Rule(
        "torchrun --nproc_per_node=2 main_sample.py .*",
        makes="samples/many",
        added="--num_samples 12",
        check=check_many,
    ),
    Rule(
        r"bash run_evaluator\.sh --preset 2x-cfg1\.5",
        files=("output/evaluation/2x-*/result.json",),
        says=r"(?m)^FID-20 +\S+ +2\.83$",
        added=f"--num_samples 20 {STAND_IN}",
        alone=True,
    ),
    Rule(
        r"bash run_evaluator\.sh --preset npp-b",
        files=("output/evaluation/npp-b-cfg1-20-seed0/result.json",),
        says=r"(?m)^FID-20 +\S+ +4\.47$",
        added=f"--num_samples 20 {STAND_IN} --checkpoint pretrained_models/npp-b {REFERENCE}",
    ),
    Rule(
        r"bash run_evaluator\.sh --preset randar-l",
        files=("output/evaluation/randar-l-*/result.json",),
        says=r"(?m)^FID-20 +\S+ +2\.65$",
        added=f"--num_samples 20 {STAND_IN} --checkpoint pretrained_models/randar-l {REFERENCE}",
    ),
    Rule(r"bash run_evaluator\.sh --help", says=r"NPROC=8 bash run_evaluator\.sh"),
    Rule(
        r"bash run_evaluator\.sh --checkpoint output/own/model .*",
        files=("output/evaluation/result.json", "output/evaluation/samples/*.npz"),
        makes="output/evaluation/samples",
        added=f"--num_samples 8 {STAND_IN}",
    ),
    Rule(
        r"bash run_evaluator\.sh --checkpoint pretrained_models/digits-checkerboard --features digits .*",
        files=("output/evaluation/digits-checkerboard-*/result.json",),
        added="--num_samples 12",
    ),
    Rule(
        r"python evaluator\.py --make_reference data/cifar10 output/cifar10-test\.npz .*",
        files=("output/cifar10-test.npz",),
        makes="output/cifar10-test.npz",
        added=STAND_IN,
    ),
    Rule(
        r"python evaluator\.py --make_reference path/to/images output/reference\.npz .*",
        files=("output/reference.npz",),
        makes="output/reference.npz",
        added=STAND_IN,
    ),
    Rule(r"python evaluator\.py output/reference\.npz .*", added=STAND_IN, check=check_evaluator),
    Rule(r"python evaluator\.py \S+/digits-train\.npz .*", says=r"FD-digits-12: \S+ (.|\n)*Class accuracy: "),
    Rule(
        r"python -m experiments\.sweep --checkpoint output/cifar10_randar_random --features cifar10 .*",
        files=("output/sweep/cifar10_randar_random/sweep.csv", "output/sweep/cifar10_randar_random/sweep.png"),
        added="--cfg 0:1:1 --steps 4 --num_samples 5",
    ),
    Rule(
        r"python -m experiments\.sweep --checkpoint output/cifar10_randar_random --reference .*",
        files=("output/sweep/randar-fid/sweep.csv",),
        added=f"--cfg 0:1:1 --steps 4 --num_samples 8 --output_dir output/sweep/randar-fid {STAND_IN}",
    ),
    Rule(
        r"python -m experiments\.sweep --checkpoint pretrained_models/cifar10-checkerboard .*",
        files=("output/sweep/cifar10-checkerboard/sweep.csv", "output/sweep/cifar10-checkerboard/sweep.png"),
        added="--cfg 0:1:1 --steps_per_scale 1 --num_samples 5",
    ),
    Rule(
        r"python -m experiments\.sweep --checkpoint pretrained_models/digits-checkerboard .*",
        files=("output/sweep/digits-checkerboard/sweep.csv", "output/sweep/digits-checkerboard/sweep.png"),
        makes="output/sweep/digits-checkerboard",
        added="--cfg 0:0.5:0.5 --steps_per_scale 1 --num_samples 5",
    ),
    Rule(
        r"python -m demo( --checkpoint pretrained_models/digits-checkerboard)?",
        says=r"the page is at http://127\.0\.0\.1:\d+; (.|\n)*Progressive checkerboards",
        within=answering_once,
    ),
    Rule(r"python -m experiments\.compare .*", files=("output/compare.png",), says="4 steps: FD-digits-5 "),
    Rule(r"python -m experiments\.mixing .*", files=("output/mixing.png",), says="^layer 0: "),
    Rule(r"python -m experiments\.orders .*", files=("output/orders.png",), says="13 steps"),
    Rule(r"python -m experiments\.curves .*", files=("output/curves.png",)),
    Rule(
        r"python -m experiments\.likelihood --checkpoint output/cifar10_randar_random --order (random|raster)",
        says="calibration error .* on 10 held-out images of data/cifar10",
    ),
    Rule(r"python -m experiments\.likelihood .*digits", says="nats a token, .* on 297 held-out images"),
    Rule(
        r"python -m experiments\.timing --checkpoint pretrained_models/digits-checkerboard .*",
        added="--batch_size 2 --repeats 1",
        says="13 steps, .* s an image",
    ),
    Rule(
        r"bash experiments/study\.sh",
        files=("output/study/results.jsonl", "output/study/llamagen/pictures-cfg*/grid.png"),
        makes="output/study",
        added="--models llamagen --epochs 1 --batch_size 5 --grid_samples 4 --num_samples 5",
        within=study_in_short,
    ),
    Rule(
        r"python -m experiments\.study_times .*",
        files=("output/study/results.jsonl",),
        added="--models llamagen",
        within=timed_once,
    ),
    Rule(r"python -m runtime\.environment", says="cpu: "),
    Rule(r"python -m experiments\.study_tables .*", says="| LlamaGen, 1 epoch | ", makes="output/study"),
    Rule(
        r"python -m experiments\.study_figures .*",
        files=("output/study/figures/study_steps.png", "output/study/figures/study_samples.png"),
        says="there is nothing yet that study_nll.png shows",
    ),
    Rule(r"python -m experiments\.tokens .*", files=("output/tokens.png",), says="tokens computed"),
    Rule(
        r"python -m experiments\.train_classifier .*",
        files=("output/classifiers/classifier_digits/classifier/digits.safetensors",),
        added="--epochs 1",
    ),
    makes_autoencoder("config_digits", "output/digits", "--batch_size 300 --full_size_share 0"),
    makes_autoencoder(
        "config_own_32", "output/mine/tokenizer/autoencoder", "--batch_size 12", makes="output/mine/tokenizer"
    ),
    makes_autoencoder(
        "config_cifar10_4096",
        "output/autoencoders/own/autoencoder",
        "--batch_size 12 --dtype float32",
        flags=" --data_path path/to/images .*",
        makes="output/autoencoders/own",
    ),
    makes_autoencoder(
        "config_cifar10_4096",
        "output/autoencoders/config_cifar10_4096/autoencoder",
        "--batch_size 5 --dtype float32",
        flags="",
    ),
    Rule(
        r"python train_ae_codebook/evaluate\.py .* --features cifar10",
        says=r"reconstructions: FD-cifar10-\d+ .*, Class accuracy ",
    ),
    makes_autoencoder(
        "config_cifar10_vqvae", "output/autoencoders/config_cifar10_vqvae/autoencoder", "--batch_size 12 --channels 16"
    ),
    makes_autoencoder(
        "config_256",
        "output/autoencoders/mine/autoencoder",
        "--ch 32 --ch_mult [1,1,1,1,1] --num_res_blocks 1 --z_channels 32 --img_size 32 --scale_sizes [1,2] "
        "--batch_size 12",
    ),
    makes_autoencoder(
        "config_requantize",
        "output/autoencoders/config_requantize/autoencoder",
        "--batch_size 2 --moment_steps 3 --n_embed 16 --img_size 32 --scale_sizes [1,2]",
        weights="checkpoint.pth",
    ),
    Rule(r"python train_ae_codebook/main\.py --help", says="--perceptual"),
    Rule(
        r"python train_ae_codebook/evaluate\.py --autoencoder pretrained_models/digits .*",
        files=("output/digits-autoencoder.json", "output/digits-autoencoder.png"),
        says="20 images .* of digits",
        added="--num_images 20",
    ),
    Rule(r"python -m benchmarks\.sampling", says="quickstart +1 +float32", added=ONE_CASE),
    Rule(
        r"python -m benchmarks\.sampling .+",
        says="quickstart +1 +float32",
        added=ONE_CASE,
        within=lambda: patch("benchmarks.sampling_job._in_process", lambda measure, case: measure(case)),
    ),
    Rule(
        r"python -m benchmarks\.training .*",
        says="torch",
        added="--config configs/quickstart.yaml --steps 1 --batch_size 2",
    ),
    Rule(r"python -m benchmarks\.cache", says="torch", added="--images 2000 --stored_images 200 --batches 4"),
    Rule(
        r"python -m benchmarks\.device",
        files=("output/device.json",),
        says="pass +noise",
        added="--device cpu --small --compiled false --minutes 0.02",
    ),
    Rule(
        r"python -m training\.export .* --format hub .*",
        files=tuple(
            f"output/digits-hub/{name}" for name in ("model.safetensors", "config.json", "README.md", "autoenc/*")
        ),
    ),
    Rule(
        r"python -m training\.export --checkpoint \S+ --output_dir \S+",
        files=("output/quickstart-published/checkpoint-last.pth", "output/quickstart-published/autoenc/*"),
    ),
    Rule(r"bash pretrained_models/download\.sh --help", says=r"checkerboard-L-2x(.|\n)*HF_ENDPOINT", folder="fresh"),
    Rule(r"bash pretrained_models/download\.sh( \w[\w-]*)?", folder="fresh", code=2),  # without network
)


def marks_of(command: str) -> list[pytest.MarkDecorator]:
    if command.startswith("torchrun"):
        return [pytest.mark.ranks, pytest.mark.processes]
    return [pytest.mark.processes] if command.startswith("bash") or "benchmarks.sampling" in command else []


@pytest.mark.parametrize("command", [pytest.param(c, marks=marks_of(c), id=c[:90]) for c in COMMANDS])
def test_a_command(command: str, project: Project) -> None:
    rule, outcome = rule_of(command), project.outcome(command)
    assert outcome.code == rule.code, outcome.err
    assert "Traceback" not in outcome.err
    assert re.search(rule.says, outcome.out)
    for pattern in rule.files:
        assert list(project.folder.glob(pattern)), pattern
    rule.check(project, outcome)


@pytest.mark.processes
def test_without_network_the_download_says_what_to_fetch_by_hand(project: Project) -> None:
    files = {
        "": ["checkerboard-L-2x/checkpoint-last.pth", "checkerboard-L-4x/checkpoint-last.pth"],
        " npp-b": ["npp-b/c2i_B_256.pt", "llamagen/vq_ds16_c2i.pt"],
    }
    for name, paths in files.items():
        said = project.outcome(f"bash pretrained_models/download.sh{name}").err
        for file in paths:
            assert re.search(rf"https://\S+{file.partition('/')[2]} into {project.folder}/fresh/\S+/{file}", said)


def test_no_rule_is_left_over() -> None:
    assert not [rule.form for rule in RULES if not any(re.fullmatch(rule.form, command) for command in COMMANDS)]


def test_setting_up_needs_what_is_there(pytestconfig: pytest.Config) -> None:
    """Requirement files, marks of tests; and CI runs the README's test command."""
    set_up = [command for command in ALL if SET_UP.fullmatch(command)]
    for command in set_up:
        assert all((ROOT / name).is_file() for name in re.findall(r"-r (\S+)", command))
    marks = [found[1] for command in set_up if (found := re.search(r"pytest -m (\w+)", command))]
    assert set(marks) <= {line.split(":")[0] for line in pytestconfig.getini("markers")}
    called = re.sub(r" (-q|--no-compile)\b", "", (ROOT / ".ci/run").read_text())
    steps = [line.removeprefix(".venv/bin/") for line in called.splitlines()]
    assert {"python3 -m venv .venv", "pip install -r requirements-dev.txt", "python -m pytest"} <= set(set_up)
    assert {"python3 -m venv .venv", "pip install -r requirements-dev.txt", "python -m pytest"} <= set(steps)


# Python


def shapes_promised(block: str) -> list[tuple[str, tuple[int, ...]]]:
    """(expression or first name assigned, shape in the comment) of each line with a shape in its comment."""
    promised = []
    for statement in ast.parse(block).body:
        comment = block.splitlines()[statement.end_lineno - 1][statement.end_col_offset :]
        shape = re.search(r"\((\d+(?:, \d+)+)\)", comment)
        if shape:
            value = statement.value if isinstance(statement, ast.Expr) else statement.targets[0]
            first = value.elts[0] if isinstance(statement, ast.Assign) and isinstance(value, ast.Tuple) else value
            promised.append((ast.unparse(first), tuple(int(size) for size in shape[1].split(","))))
    return promised


@pytest.mark.parametrize("page", [page for page in PAGES if blocks("python", page)])
def test_python(page: str, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in blocks("python", page):
        project.prepare(block)
        monkeypatch.chdir(project.folder)
        monkeypatch.setattr(sys, "path", [*sys.path])  # which torch.hub changes
        names: dict[str, Any] = {}
        exec(compile(block, page, "exec"), names)
        promised = shapes_promised(block)
        assert len(promised) == block.count("# (")
        for expression, shape in promised:
            value = eval(expression, names)
            for tensor in value if isinstance(value, tuple) else (value,):
                assert isinstance(tensor, Tensor)
                assert tensor.shape == shape, expression


# Options


@cache
def help_text(program: str, *flags: str) -> str:
    """What ``--help`` of a program prints, on lines as long as they need be."""
    out = io.StringIO()
    argv, wide = patch.object(sys, "argv", [program, *flags, "--help"]), patch.dict(os.environ, COLUMNS="1000")
    with argv, wide, redirect_stdout(out):
        runpy.run_module(program, run_name="__main__")
    return out.getvalue()


def options(program: str, *flags: str) -> dict[str, str]:
    """Each option of a program, with these flags, and what ``--help`` says of it, without its default."""
    entry = r"^  (?:-\w, )?(--[\w.]+)(?: \S+)?(?:\n {20,}| {2,}|$)(.*)$"
    entries = re.findall(entry, help_text(program, *flags), flags=re.MULTILINE)
    return {name: re.sub(r"\(default: .*\)$", "", text).strip() for name, text in entries}


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_says_what_every_option_means(program: str) -> None:
    explained = options(program)
    assert len(re.findall(r"^  (?:-h, )?--", help_text(program), flags=re.MULTILINE)) == len(explained) > 0
    assert not [name for name, text in explained.items() if len(text.split()) < 2]


@pytest.mark.parametrize("page", PAGES)
def test_options_exist(page: str) -> None:
    """Those of commands, of their program; those in the text, of a program that the page runs, or main*.py."""
    known = {"--help", *options("main_sample"), *options("main")}
    for command in commands_of(page):
        program = module_of(command)
        if program is not None:
            own = command.partition(".py ")[2] if command.startswith("torchrun") else command
            file = re.search(r"--config (?:configs|train_ae_codebook)/\S+", own) if program.endswith("main") else None
            there = file and (ROOT / file[0].split()[1]).is_file()  # one that the page makes is a checkerboard's
            explained = options(
                program, *(file[0].split() if there else ())
            ).keys()  # of the family that the file names
            assert set(re.findall(r"(?<!\S)--[\w.]+", own)) <= explained, command
            known |= explained
    for span in spans(page):
        if span.startswith("--"):
            assert set(re.findall(r"(?<!\S)--[\w.]+", span)) <= known, span


def test_the_page_on_sampling_names_every_option() -> None:
    named = {option for span in spans("docs/sampling.md") for option in re.findall(r"^--\w+", span)}
    assert options("main_sample").keys() - {"--help"} <= named


# Pages


@pytest.mark.quick
def test_the_readme_is_short() -> None:
    text = [line for line in PROSE["README.md"].splitlines() if not line.startswith("|")]
    assert len(" ".join(text).split()) <= MAX_WORDS


@pytest.mark.quick
@pytest.mark.parametrize("page", PAGES)
def test_blocks_are_of_known_languages_and_a_command_a_line(page: str) -> None:
    assert {language for language, _ in FENCE.findall(PAGES[page])} <= {"bash", "python", "bibtex"}
    assert PAGES[page].count("```") == 2 * len(FENCE.findall(PAGES[page]))
    assert not [
        command
        for command in commands_of(page)
        if command.endswith("\\") or "|" in command or ";" in command.partition(" -c ")[0]
    ]


def anchors(page: str) -> set[str]:
    """What links to headings of a page end in, by GitHub's rule."""
    headings = re.findall(r"^#+ (.*)$", PROSE[page], flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.quick
@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_exist(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", PROSE[page]):
        if not target.startswith("https://"):
            file, _, anchor = target.partition("#")
            path = (ROOT / page).parent / file if file else ROOT / page
            assert path.resolve().is_file(), target
            assert not anchor or anchor in anchors(path.resolve().relative_to(ROOT).as_posix()), target


def layout() -> dict[str, str]:
    """Folders of the table for contributors, and where to start reading each."""
    return dict(re.findall(r"^\| `([\w/]+)/` \|.*\| `(.*)` \|$", PAGES["CONTRIBUTING.md"], flags=re.MULTILINE))


@pytest.mark.quick
@pytest.mark.parametrize("page", PAGES)
def test_files_and_folders_in_text_exist(page: str) -> None:
    """Configurations, program files (by name alone too), and folders that are not results of a run."""
    results = ("output/", "samples/", ".venv/", "autoenc/", "autoencoder/", "train/", "val/", "test/")
    for span in spans(page):
        if re.fullmatch(r"[\w./-]+\.(?:py|sh)|[\w./-]+/[\w-]+\.yaml", span) and not PLACEHOLDER.search(span):
            assert any((ROOT / folder / span).is_file() for folder in (".", *layout())), span
        if re.fullmatch(r"[\w./-]+/", span) and not span.startswith(results):
            assert (ROOT / span).is_dir(), span


@pytest.mark.quick
def test_the_table_names_every_configuration() -> None:
    """``a_{b,c}.yaml`` stands for two."""
    named = set()
    table = PAGES["docs/training.md"].split("## Configurations")[1].split("\n## ")[0]
    for first, choices, last in re.findall(r"`(\w+)(?:\{([\w,]+)\})?(\w*)\.yaml`", table):
        named |= {first + choice + last for choice in choices.split(",")}
    assert named == {path.stem for path in (ROOT / "configs").glob("*.yaml")}


@pytest.mark.quick
def test_the_layout_names_every_folder_of_code() -> None:
    for folder, first in layout().items():
        assert (ROOT / folder / first).is_file(), folder
    packages = {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("*/__init__.py")}
    assert packages <= layout().keys()


@pytest.mark.quick
def test_the_presets_are_those_of_the_tables() -> None:
    rows = re.findall(r"^\| `(\d+x-cfg[\d.]+)` \|.*?\| (\d.*) \|$", PAGES["README.md"], flags=re.MULTILINE)
    row = re.compile(r"^\| `([a-z]+-[\w-]+)` \| [^|]+ (\d+) px \| ([\d.]+) \| (.*) \|$", flags=re.MULTILINE)
    for name, side, cfg, values in row.findall(PAGES["docs/evaluation.md"]):
        rows.append((name, values.replace(" | -", "")))
        assert PRESETS[name].drawing["cfg"] == float(cfg)
        assert PRESETS[name].resize_to == (256 if side == "384" else None)
    table = {name: [float(value) for value in values.split(" | ")] for name, values in rows}
    assert table == {name: list(preset.published.values()) for name, preset in PRESETS.items()}


@pytest.mark.quick
def test_the_metrics_of_adm_are_those_of_the_fixture() -> None:
    row = re.search(r"^\| ADM \| (.*) \|$", PAGES["docs/evaluation.md"], flags=re.MULTILINE)[1]
    expected = json.loads((EVALUATOR / "expected.json").read_text()).values()
    assert [float(value) for value in row.split(" | ")] == pytest.approx(list(expected), rel=1e-4)
