"""README.md is true: every command in it is run small, in a copy of the project; options, links and files exist.

A command that no rule of RULES covers fails, so that the README cannot promise what nobody ran.
"""

import ast
import csv
import io
import json
import os
import re
import runpy
import shutil
import socket
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from models import load_checkpoint
from models.loading.autoencoder import open_autoencoder
from models.loading.export import export_published, published_state
from sampling.labels import SHOWN_IMAGENET_CLASSES
from tests.command_factory import ROOT, Outcome, save_run, start
from tests.factory import TINY_TRANSFORMER, tiny_autoencoder, tiny_model

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
PROSE = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
SPANS = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", PROSE)]
PROGRAMS = (
    "main.py",
    "main_sample.py",
    "evaluator.py",
    "evaluation/run.py",
    "train_ae_codebook/main.py",
    "train_ae_codebook/evaluate.py",
    "training/export.py",
    "experiments/sweep.py",
    "experiments/compare.py",
    "experiments/mixing.py",
    "experiments/train_classifier.py",
)
STARTS = ("python", "bash", "torchrun", "tensorboard", "source", "pip")  # of a span that is a command
PLACEHOLDER = re.compile(r"\b[A-Z]+\b|\.\.\.")  # CONFIG, N

EVALUATOR = ROOT / "tests/fixtures/evaluator"
STAND_IN = f"--inception_graph {EVALUATOR / 'classify_image_graph_def.pb'}"
LLAMAGEN = "pretrained_models/llamagen/vq_ds16_c2i.pt"
TINY_TRAINING = "--epochs 1 --llama_config.num_hidden_layers 1 --llama_config.hidden_size 64"


# Commands


def bash_commands() -> list[str]:
    """The commands of all bash blocks, in order; those joined by && one by one."""
    lines = [line for language, block in BLOCKS if language == "bash" for line in block.splitlines() if line]
    return list(dict.fromkeys(command for line in lines for command in line.split(" && ")))


def prose_commands() -> list[str]:
    """Commands in running text, without those that stand for many."""
    return [span for span in SPANS if span.startswith(STARTS) and " " in span and not PLACEHOLDER.search(span)]


COMMANDS = list(dict.fromkeys(bash_commands() + prose_commands()))


@dataclass
class Project:
    """A copy of the project to run commands in, as if its environment were activated."""

    folder: Path
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def outcome(self, command: str) -> Outcome:
        """What became of a command of the README, after all those before it."""
        for earlier in COMMANDS[: 1 + COMMANDS.index(command)]:
            for rule in rules_of(earlier):
                if rule.runs and earlier not in self.outcomes:
                    rule.prepare(self)
                    self.outcomes[earlier] = self.run(rule.shrink(earlier))
        return self.outcomes[command]

    def run(self, line: str) -> Outcome:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        path = f"{self.folder / '.venv/bin'}{os.pathsep}{os.environ['PATH']}"
        return start("bash", "-c", line, folder=self.folder, PATH=path, HF_HUB_OFFLINE="1", PET_MASTER_PORT=str(port))

    def files(self, pattern: str) -> list[str]:
        """Names of what there is in the copy."""
        return sorted(path.name for path in self.folder.glob(pattern))


@dataclass(frozen=True)
class Rule:
    """How commands of one form are tested.

    Attributes:
        form: what the whole command looks like.
        check: asserts what the command, and the text around it, promises.
        smaller: what is replaced, by what, to take seconds.
        added: flags that make it small.
        prepare: puts in place what the command needs and a test has no way to get.
        runs: False for commands that are compared with files alone.
    """

    form: str
    check: Callable[[Project, str], None]
    smaller: tuple[str, str] = ("", "")
    added: str = ""
    prepare: Callable[[Project], None] = lambda project: None
    runs: bool = True

    def shrink(self, command: str) -> str:
        old, new = self.smaller
        assert old in command, f"{command} lacks {old}, which the test would make smaller"
        return f"{command.replace(old, new) if old else command} {self.added}"


def rules_of(command: str) -> list[Rule]:
    return [rule for rule in RULES if re.fullmatch(rule.form, command)]


def succeeded(project: Project, command: str) -> Outcome:
    outcome = project.outcome(command)
    assert outcome.code == 0, outcome.err
    assert "Traceback" not in outcome.err
    return outcome


def read_settings(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "samples.json").read_text())


# What each command promises


def check_requirements(project: Project, command: str) -> None:
    """The tests' environment has these and more."""
    assert (ROOT / "requirements-dev.txt").read_text().startswith(f"-r {command.split()[-1]}\n")
    assert (ROOT / command.split()[-1]).is_file()


def check_ci_runs_it(project: Project, command: str) -> None:
    assert command in (ROOT / ".ci/run").read_text().replace(" -q ", " ").splitlines()


def check_activation(project: Project, command: str) -> None:
    folder = command.removeprefix("source ").removesuffix("/bin/activate")
    assert f"python3 -m venv {folder}" in bash_commands()


def check_tensorboard(project: Project, command: str) -> None:
    assert any(line.startswith("tensorboard") for line in (ROOT / "requirements.txt").read_text().splitlines())


def check_run_folder(project: Project, folder: str) -> None:
    """What the README says a run folder gets; it loads wherever it is moved."""
    names = project.files(f"{folder}/*")
    assert {"checkpoint-last.pth", "config.yaml", "log.jsonl", "samples"} <= set(names)
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert project.files(f"{folder}/samples/*.png")
    load_checkpoint(project.folder / folder)


def check_quickstart(project: Project, command: str) -> None:
    outcome = succeeded(project, command)
    assert re.search(r"FD-digits-500: \S+ \(real test images: FD-digits-297 1\.1155\d\)", outcome.out)
    assert re.search(r"Class accuracy: \S+ \(real test images: Class accuracy 0\.98316\d\)", outcome.out)
    assert "98.3 % of 297 real ones" in " ".join(README.split())
    assert "and 1.12 of the 297" in " ".join(README.split())
    check_run_folder(project, "output/quickstart")


def check_digits(project: Project, command: str) -> None:
    succeeded(project, command)
    assert {"grid.png", "samples.json", "maps.npz", "entropy_by_step.png", "animation.gif"} <= set(
        project.files("samples/digits/*")
    )
    assert project.files("samples/digits/[0-9]*.png") == ["000000.png", "000001.png"]
    assert project.files("samples/digits/maps_*.png") == ["maps_000000.png", "maps_000001.png"]
    assert read_settings(project.folder / "samples/digits")["images"][1]["class"] == "1"


def check_download(project: Project, command: str) -> None:
    """Without network, one line says what to fetch by hand, and nothing is left behind."""
    message = project.outcome(command).error()
    for name in ("autoenc", "checkerboard-L-2x", "checkerboard-L-4x"):
        assert f" into {project.folder / 'pretrained_models' / name}/" in message
    assert message.count("https://") == 6
    assert all(name in message for name in ("autoencoder_config.yaml", "checkpoint.pth", "checkpoint-last.pth"))


def check_llamagen_download(project: Project, command: str) -> None:
    """Likewise."""
    message = project.outcome(command).error()
    assert f" into {project.folder / 'pretrained_models/llamagen'}/" in message
    assert message.count("https://") == 1
    assert "vq_ds16_c2i.pt" in message


def check_download_help(project: Project, command: str) -> None:
    outcome = succeeded(project, command)
    assert all(name in outcome.out for name in ("autoenc", "checkerboard-L-2x", "checkerboard-L-4x", "HF_ENDPOINT"))


def check_released(project: Project, command: str) -> None:
    """Samples of what stands for a released model: the shown classes, in a folder named by the time."""
    outcome = succeeded(project, command)
    folder = project.folder / Path(outcome.out.split()[-1]).parent
    settings = read_settings(folder)
    assert folder.parent == project.folder / "samples"
    assert settings["checkpoint"] in command
    assert f"--cfg {settings['cfg']} --steps_per_scale {settings['steps_per_scale']}" in command
    assert [image["label"] for image in settings["images"]] == list(SHOWN_IMAGENET_CLASSES)
    assert len(list(folder.glob("[0-9]*.png"))) == 16


def check_three(project: Project, command: str) -> None:
    succeeded(project, command)
    images = read_settings(project.folder / "samples/three")["images"]
    assert [image["label"] for image in images] == [207, 281, 980]
    assert [image["class"].split(",")[0] for image in images] == ["golden retriever", "tabby", "volcano"]


def check_random_weights(project: Project, command: str) -> None:
    outcome = succeeded(project, command)
    assert outcome.out.startswith("random weights of configs/config_256_L.yaml: expect noise")


def check_training(project: Project, command: str) -> None:
    succeeded(project, command)
    check_run_folder(project, "output/config_256_S")


def check_own_images(project: Project, command: str) -> None:
    succeeded(project, command)
    check_run_folder(project, "output/mine")
    model = load_checkpoint(project.folder / "output/mine")
    assert (model.config.num_classes, len(model.class_names)) == (12, 12)


def check_own_autoencoder(project: Project, command: str) -> None:
    """The model stands on the autoencoder of the command before."""
    succeeded(project, command)
    check_run_folder(project, "output/own")
    folders = ("output/own/autoenc", "output/autoencoders/own/autoencoder")
    copy, made = (load_file(project.folder / folder / "autoencoder.safetensors") for folder in folders)
    assert all(torch.equal(copy[key], made[key].to(copy[key].dtype)) for key in made)


def check_cifar(project: Project, command: str) -> None:
    succeeded(project, command)
    check_run_folder(project, "output/config_cifar10")


def check_curves(project: Project, command: str) -> None:
    succeeded(project, command)
    with Image.open(project.folder / "curves.png") as picture:
        assert min(picture.size) > 300


def check_many(project: Project, command: str) -> None:
    succeeded(project, command)
    assert len(project.files("samples/many/[0-9]*.png")) == 12
    assert not project.files("samples/many/.progress")


def check_edit(project: Project, command: str) -> None:
    succeeded(project, command)
    originals = [
        np.array(Image.open(project.folder / name)) for name in ("path/to/image.png", "samples/edit/000006.png")
    ]
    assert np.array_equal(*(pixels[:, 16:] for pixels in originals))  # right of the mask
    assert not np.array_equal(*originals)


def check_benchmark(project: Project, command: str) -> None:
    outcome = succeeded(project, command)
    assert "torch" in outcome.out
    assert len(outcome.out.splitlines()) >= 3


def check_cache(project: Project, command: str) -> None:
    succeeded(project, command)
    assert "codes.npy" in project.files("data/cached/imagenet-*/*")
    assert not project.files("data/cached/*.partial")


def check_training_from_cache(project: Project, command: str) -> None:
    """It goes on with the run that the same configuration began without a cache."""
    outcome = succeeded(project, command)
    assert "going on from output/config_256_S/checkpoint-last.pth: epoch 1, step 3" in outcome.out
    checkpoint = torch.load(project.folder / "output/config_256_S/checkpoint-last.pth", weights_only=True)
    assert (checkpoint["epoch"], checkpoint["step"]) == (2, 6)


def check_data_report(project: Project, command: str) -> None:
    outcome = succeeded(project, command)
    assert "digits: 1500 images of 10 classes" in outcome.out


def check_ranks(project: Project, command: str) -> None:
    outcome = succeeded(project, command)
    assert "30 steps an epoch on 2 ranks" in outcome.out
    check_run_folder(project, "output/two-ranks")


def check_autoencoder(project: Project, command: str) -> None:
    succeeded(project, command)
    folder = Path("pretrained_models/digits")
    trained, ours = (load_file(root / folder / "autoencoder.safetensors") for root in (project.folder, ROOT))
    assert {key: value.shape for key, value in trained.items()} == {key: value.shape for key, value in ours.items()}
    assert not torch.equal(trained["encoder.conv_in.weight"], ours["encoder.conv_in.weight"])
    configs = [(root / folder / "autoencoder_config.yaml").read_text() for root in (project.folder, ROOT)]
    assert configs[0] == configs[1]
    assert project.files("output/autoencoders/config_digits/samples/*.png")


def check_judged_folder(outcome: Outcome) -> None:
    assert re.search(r"PSNR \d+\.\d\d dB", outcome.err + outcome.out)
    assert "autoencoder: output/autoencoders/own/autoencoder;" in outcome.out


def check_other_start(project: Project, command: str) -> None:
    succeeded(project, command)
    made = open_autoencoder(project.folder / "output/autoencoders/mine/autoencoder")
    start = open_autoencoder(project.folder / LLAMAGEN)
    assert made.config == replace(start.config, n_embed=4096)
    moved = (made.encoder.conv_in.weight - start.encoder.conv_in.weight).abs().max()
    assert 0 < moved < 1e-2


def check_judgement(project: Project, command: str) -> None:
    """Of the autoencoder that check_autoencoder's command made, on 297 scans."""
    outcome = succeeded(project, command)
    assert outcome.out.startswith("pretrained_models/digits on 297 images (val) of digits\n")
    written = json.loads((project.folder / "output/digits-autoencoder.json").read_text())
    assert list(written["scales"]) == ["1", "2", "4", "8"]
    named = {"psnr", "ssim", "l1", "quantization_error", "usage", "perplexity"}
    assert all(figures.keys() == named for figures in written["scales"].values())
    assert project.files("output/digits-autoencoder.png")


def check_requantization(project: Project, command: str) -> None:
    succeeded(project, command)
    folder = "output/autoencoders/config_requantize"
    made = open_autoencoder(project.folder / folder / "autoencoder")
    start = open_autoencoder(project.folder / LLAMAGEN)
    assert made.config == replace(start.config, n_embed=16)
    assert torch.equal(made.encoder.conv_in.weight, start.encoder.conv_in.weight)
    assert project.files(f"{folder}/samples/*.png")


def check_export(project: Project, command: str) -> None:
    succeeded(project, command)
    names = ("quickstart", "quickstart-published")
    ours, published = (published_state(load_checkpoint(project.folder / "output" / name)) for name in names)
    assert ours.keys() == published.keys()
    assert all(torch.equal(ours[key], published[key]) for key in ours)


def check_preset(project: Project, command: str) -> None:
    """The paper's figures stand beside, and are those of the README's table."""
    outcome = succeeded(project, command)
    row = re.search(rf"^\| `{command.split()[-1]}` \|(.*)\|$", README, flags=re.MULTILINE)[1].split("|")
    for name, figure in zip(("FID-20", "Inception Score", "Precision", "Recall"), row[1:], strict=True):
        line = next(line for line in outcome.out.splitlines() if line.startswith(f"{name} ") and "paper" not in line)
        assert float(line.split()[-1]) == float(figure)
    assert "not the paper's settings: num_samples 20" in outcome.out
    (result,) = (project.folder / "output/evaluation").glob("2x-*/result.json")
    assert json.loads(result.read_text())["run"]["preset"] == command.split()[-1]


def check_evaluation_help(project: Project, command: str) -> None:
    assert "NPROC=8 bash run_evaluator.sh" in succeeded(project, command).out


def check_reference(project: Project, command: str) -> None:
    succeeded(project, command)
    with np.load(project.folder / "output/reference.npz") as file:
        assert set(file) == {"arr_0", "mu", "sigma", "mu_s", "sigma_s"}
        assert file["arr_0"].shape == (24, 32, 32, 3)


def check_evaluation(project: Project, command: str) -> None:
    outcome = succeeded(project, command)
    assert "FID-8" in outcome.out
    assert {"result.json", "samples"} <= set(project.files("output/evaluation/*"))


def check_evaluator(project: Project, command: str) -> None:
    """The same figures, from the samples that are still there."""
    succeeded(project, command)
    first, second = (
        json.loads((project.folder / f"output/{name}.json").read_text()) for name in ("evaluation/result", "result")
    )
    assert second["FID-8"] == first["FID-8"]
    assert second["samples"]["sha256"] == first["samples"]["sha256"]


def check_classes(project: Project, command: str) -> None:
    outcome = succeeded(project, command)
    assert re.match(r"FD-digits-12: \S+ \(real test images: .*\nClass accuracy: \S+ \(real", outcome.out)
    assert "FID" not in outcome.out


def check_digits_run(project: Project, command: str) -> None:
    outcome = succeeded(project, command)
    assert re.search(r"^FD-digits-12: \S+ \(real test images: ", outcome.out, flags=re.MULTILINE)
    (result,) = (project.folder / "output/evaluation").glob("quickstart-*/result.json")
    assert json.loads(result.read_text())["run"]["features"] == "digits"


def check_sweep(project: Project, command: str) -> None:
    succeeded(project, command)
    with (project.folder / "output/sweep/quickstart/sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["cfg"], row["steps_per_scale"], row["num_samples"]) for row in rows] == [
        ("0.0", "1", "5"),
        ("0.5", "1", "5"),
    ]
    assert project.files("output/sweep/quickstart/sweep.png")


def check_comparison(project: Project, command: str) -> None:
    outcome = succeeded(project, command)
    assert outcome.out.startswith("output/sweep/quickstart, 4 steps: FD-digits-5 ")
    assert project.files("output/compare.png")


def check_mixing(project: Project, command: str) -> None:
    assert succeeded(project, command).out.startswith("layer 0: ")
    assert project.files("output/mixing.png")


def check_classifier(project: Project, command: str) -> None:
    succeeded(project, command)
    folders = (
        project.folder / "output/classifiers/classifier_digits/classifier",
        ROOT / "pretrained_models/classifiers",
    )
    made, ours = (load_file(folder / "digits.safetensors") for folder in folders)
    assert {key: value.shape for key, value in made.items()} == {key: value.shape for key, value in ours.items()}
    assert not torch.equal(made["head.weight"], ours["head.weight"])


# What commands need


def tiny_config(path: Path) -> None:
    """Make a configuration small: 32 px, 3 classes, a narrow transformer, one epoch."""
    content = yaml.safe_load(path.read_text())
    content["model"] |= {"img_size": 32, "num_classes": 3}
    content["model"]["llama_config"] |= asdict(TINY_TRANSFORMER)
    content["args"] |= {"epochs": 1, "batch_size": 4, "num_workers": 0, "warmup_epochs": 0}
    path.write_text(yaml.safe_dump(content))


def save_photos(folder: Path, num_classes: int, count: int) -> None:
    """Class folders of noise."""
    random = np.random.default_rng(0)
    for label in range(num_classes):
        (folder / f"class{label:02d}").mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(256, size=(40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"class{label:02d}" / f"{i}.JPEG")


def install_llamagen(project: Project) -> None:
    """A tiny autoencoder of LlamaGen's stride, where its file would be."""
    path = project.folder / LLAMAGEN
    path.parent.mkdir(parents=True, exist_ok=True)
    state = tiny_autoencoder(ch_mult=(1, 1, 1, 1, 1)).state_dict()
    torch.save({"model": {key: value for key, value in state.items() if key != "cluster_usage_train"}}, path)


def remove_llamagen(project: Project) -> None:
    (project.folder / LLAMAGEN).unlink(missing_ok=True)


def install_release(project: Project) -> None:
    """Tiny models of 1000 classes in the published layout, where download.sh would put the released ones."""
    folder = project.folder / "pretrained_models"
    for ratio in (2, 4):
        if not (folder / f"checkerboard-L-{ratio}x").exists():
            run = save_run(project.folder / f"made-{ratio}x", tiny_model(num_classes=1000, scale_ratio=ratio))
            export_published(run, folder / f"checkerboard-L-{ratio}x")
    shutil.copytree(folder / "checkerboard-L-2x/autoenc", folder / "autoenc", dirs_exist_ok=True)


def install_evaluation(project: Project) -> None:
    """The stand-in for what is downloaded: models and a reference."""
    install_release(project)
    shutil.copyfile(EVALUATOR / "reference.npz", project.folder / "data/VIRTUAL_imagenet256_labeled.npz")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("readme") / "project"
    no_results = shutil.ignore_patterns("__pycache__", "cached", "imagenet")
    for name in ("benchmarks", "configs", "data", "runtime", "models", "train_ae_codebook", "experiments"):
        shutil.copytree(ROOT / name, folder / name, ignore=no_results)
    for name in ("pretrained_models/digits", "pretrained_models/cifar10", "pretrained_models/classifiers"):
        shutil.copytree(ROOT / name, folder / name)
    files = ("main.py", "main_sample.py", "evaluator.py", "run_evaluator.sh")
    for name in (*files, "pretrained_models/download.py", "pretrained_models/download.sh"):
        shutil.copyfile(ROOT / name, folder / name)
    for path in (folder / "configs").glob("config_256_[SL].yaml"):
        tiny_config(path)
    save_photos(folder / "data/imagenet/train", num_classes=3, count=4)
    save_photos(folder / "path/to/images", num_classes=12, count=2)
    save_photos(folder / "data/cifar10/train", num_classes=10, count=2)
    Image.fromarray(np.random.default_rng(1).integers(256, size=(32, 32, 3), dtype=np.uint8)).save(
        folder / "path/to/image.png"
    )
    mask = np.zeros((32, 32), np.uint8)
    mask[:, :16] = 255
    Image.fromarray(mask).save(folder / "path/to/mask.png")
    (folder / ".venv/bin").mkdir(parents=True)
    for name, call in (("python", ""), ("torchrun", "-m torch.distributed.run")):
        path = folder / ".venv/bin" / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" {call} "$@"\n')
        path.chmod(0o755)
    return Project(folder)


SAMPLE_L = r"python main_sample\.py --checkpoint pretrained_models/checkerboard-L-\dx"
TRAIN_S = r"python main\.py --config configs/config_256_S\.yaml"
TRAIN_CIFAR = r"python main\.py --config configs/config_cifar10\.yaml"
TRAIN_DIGITS = r"main\.py --config configs/quickstart\.yaml"
RULES = (
    Rule(r"python3 -m venv \.venv", check_ci_runs_it, runs=False),
    Rule(r"\.venv/bin/pip install -r requirements\.txt", check_requirements, runs=False),
    Rule(r"\.venv/bin/pip install -r requirements-dev\.txt", check_ci_runs_it, runs=False),
    Rule(r"\.venv/bin/python -m pytest", check_ci_runs_it, runs=False),
    Rule(r"source \.venv/bin/activate", check_activation, runs=False),
    Rule(r"tensorboard --logdir output", check_tensorboard, runs=False),
    Rule(r"\.venv/bin/python " + TRAIN_DIGITS, check_quickstart, added=TINY_TRAINING),
    Rule(
        r"python main_sample\.py --checkpoint output/quickstart .*--output_dir samples/digits",
        check_digits,
        smaller=("--num_samples 40", "--num_samples 2"),
    ),
    Rule(
        r"torchrun --nproc_per_node=2 main_sample\.py --checkpoint output/quickstart .*--output_dir samples/many",
        check_many,
        smaller=("--num_samples 300", "--num_samples 12"),
    ),
    Rule(r"python main_sample\.py --checkpoint output/quickstart --edit .*", check_edit),
    Rule(
        r"python benchmarks/sampling\.py",
        check_benchmark,
        added="--configs [configs/quickstart.yaml] --batch_sizes [1] --modes [eager] --dtypes [float32] --repeats 1",
    ),
    Rule(
        r"python -m benchmarks\.training",
        check_benchmark,
        added="--config configs/quickstart.yaml --steps 1 --batch_size 2",
    ),
    Rule(r"python -m benchmarks\.cache", check_benchmark, added="--images 2000 --stored_images 200 --batches 4"),
    Rule(r"bash pretrained_models/download\.sh", check_download),
    Rule(r"bash pretrained_models/download\.sh llamagen", check_llamagen_download, prepare=remove_llamagen),
    Rule(r"bash pretrained_models/download\.sh --help", check_download_help),
    Rule(SAMPLE_L + r"/checkpoint-last\.pth --cfg .* --steps_per_scale .*", check_released, prepare=install_release),
    Rule(SAMPLE_L + r" --labels .* --output_dir samples/three", check_three, prepare=install_release),
    Rule(
        r"python main_sample\.py --config configs/config_256_L\.yaml --labels 207",
        check_random_weights,
        smaller=("207", "2"),
        prepare=install_release,
    ),
    Rule(TRAIN_S, check_training, prepare=install_release),
    Rule(
        TRAIN_CIFAR + r" --data_path path/to/images .* --output_dir output/mine",
        check_own_images,
        smaller=("--epochs 3", "--epochs 1"),
    ),
    Rule(
        TRAIN_CIFAR + r" --data_path path/to/images .* --output_dir output/own",
        check_own_autoencoder,
        added="--epochs 1 --batch_size 4 --llama_config.num_hidden_layers 2",
    ),
    Rule(TRAIN_CIFAR, check_cifar, added="--epochs 1 --batch_size 5 --log_freq 1 --llama_config.num_hidden_layers 2"),
    Rule(r"python -m experiments\.curves --run output/config_cifar10 --output curves\.png", check_curves),
    Rule(TRAIN_S + r" --create_cache --batch_size 32", check_cache, prepare=install_release),
    Rule(TRAIN_S + r" --use_cache", check_training_from_cache, prepare=install_release, added="--epochs 2"),
    Rule("python " + TRAIN_DIGITS + " --check_data", check_data_report),
    Rule("torchrun --nproc_per_node=2 " + TRAIN_DIGITS + " .*", check_ranks, added=TINY_TRAINING),
    Rule(
        r"bash run_evaluator\.sh --preset .*",
        check_preset,
        prepare=install_evaluation,
        added=f"--num_samples 20 {STAND_IN}",
    ),
    Rule(r"bash run_evaluator\.sh --help", check_evaluation_help),
    Rule(r"python evaluator\.py --make_reference .*", check_reference, added=STAND_IN),
    Rule(
        r"bash run_evaluator\.sh --checkpoint output/mine .*",
        check_evaluation,
        smaller=("5000", "8"),
        added=STAND_IN,
    ),
    Rule(r"python evaluator\.py output/reference\.npz .*", check_evaluator, added=STAND_IN),
    Rule(r"bash run_evaluator\.sh --checkpoint output/quickstart .*", check_digits_run, smaller=("500", "12")),
    Rule(r"python evaluator\.py \S+digits-train\.npz .*", check_classes),
    Rule(
        r"python -m experiments\.sweep .*",
        check_sweep,
        smaller=(
            "--cfg 0:3:0.5 --steps_per_scale 1,2,4 --cfg_start_step 0 --num_samples 500",
            "--cfg 0:0.5:0.5 --steps_per_scale 1 --num_samples 5",
        ),
    ),
    Rule(r"python -m experiments\.compare .*", check_comparison),
    Rule(r"python -m experiments\.mixing .*", check_mixing),
    Rule(
        r"python -m experiments\.train_classifier .*",
        check_classifier,
        added="--epochs 1",
    ),
    Rule(
        r"python train_ae_codebook/main\.py --config train_ae_codebook/config_digits\.yaml .*",
        check_autoencoder,
        added="--epochs 1 --batch_size 300 --full_size_share 0",
    ),
    Rule(
        r"python train_ae_codebook/main\.py --config train_ae_codebook/config_cifar10\.yaml .*",
        lambda project, command: check_judged_folder(succeeded(project, command)),
        added="--epochs 1 --batch_size 12",
    ),
    Rule(
        r"python train_ae_codebook/main\.py --config train_ae_codebook/config_256\.yaml .*",
        check_other_start,
        added="--ch 32 --ch_mult [1,1,1,1,1] --num_res_blocks 1 --z_channels 32 --img_size 32 --scale_sizes [1,2] "
        "--batch_size 12 --epochs 1 --num_workers 0",
        prepare=install_llamagen,
    ),
    Rule(r"python train_ae_codebook/evaluate\.py --autoencoder pretrained_models/digits .*", check_judgement),
    Rule(
        r"python train_ae_codebook/main\.py --config train_ae_codebook/config_requantize\.yaml",
        check_requantization,
        added="--batch_size 2 --moment_steps 3 --n_embed 16 --num_workers 0 --img_size 32 --scale_sizes [1,2]",
        prepare=install_llamagen,
    ),
    Rule(r"python -m training\.export .*", check_export),
)


def test_blocks_are_of_known_languages_and_a_command_a_line() -> None:
    assert {language for language, _ in BLOCKS} == {"bash", "python", "bibtex"}
    assert README.count("```") == 2 * len(BLOCKS)
    assert not [command for command in COMMANDS if command.endswith("\\") or "|" in command or ";" in command]


@pytest.mark.parametrize("command", COMMANDS, ids=[command[:75] for command in COMMANDS])
def test_a_command(command: str, project: Project) -> None:
    rules = rules_of(command)
    assert len(rules) == 1, f"{len(rules)} rules of this test cover the README's command: {command}"
    rules[0].check(project, command)


@pytest.mark.parametrize("rule", RULES, ids=[rule.form for rule in RULES])
def test_no_rule_is_left_over(rule: Rule) -> None:
    assert any(rule in rules_of(command) for command in COMMANDS)


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


def test_python(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = [block for language, block in BLOCKS if language == "python"]
    project.outcome(next(command for command in COMMANDS if command.endswith("configs/quickstart.yaml")))
    monkeypatch.chdir(project.folder)
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)
    promised = shapes_promised(block)
    assert len(promised) == block.count("# (")
    for expression, shape in promised:
        value = eval(expression, names)
        for tensor in value if isinstance(value, tuple) else (value,):
            assert isinstance(tensor, Tensor)
            assert tensor.shape == shape, expression


# Options, links and files


@cache
def help_text(program: str) -> str:
    """What ``--help`` of a program prints, on lines as long as they need be."""
    out = io.StringIO()
    argv, wide = patch.object(sys, "argv", [program, "--help"]), patch.dict(os.environ, COLUMNS="1000")
    with argv, wide, redirect_stdout(out), pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / program), run_name="__main__")
    assert end.value.code == 0
    return out.getvalue()


def options(program: str) -> dict[str, str]:
    """Each option of a program and what ``--help`` says of it, without type and default."""
    entry = r"^  (?:-\w, )?(--[\w.]+)(?: \S+)?(?:\n {20,}| {2,}|$)(.*)$"
    entries = re.findall(entry, help_text(program), flags=re.MULTILINE)
    return {name: re.sub(r"\((?:type|required|default): .*\)$", "", text).strip() for name, text in entries}


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_says_what_every_option_means(program: str) -> None:
    usage = help_text(program).split("\n\n")[0]
    explained = options(program)
    assert set(re.findall(r"--[\w.]+", usage)) == set(explained) - {"--help"}
    assert not [name for name, text in explained.items() if len(text.split()) < 2]


def program_of(command: str) -> str | None:
    """The file whose options a command takes; None if it is not ours."""
    module = re.search(r"-m (training\.export|experiments\.\w+)", command)
    if module is not None:
        return module[1].replace(".", "/") + ".py"
    if "run_evaluator.sh" in command:
        return "evaluation/run.py"
    return next((word for word in command.split() if word in PROGRAMS), None)


def test_options_in_commands_exist() -> None:
    checked = 0
    for command in bash_commands() + [span for span in SPANS if span.startswith(STARTS)]:
        program = program_of(command)
        if program is not None:
            for option in re.findall(r"(?<!\S)--[\w.]+", command.partition(program)[2] or command):
                assert option in options(program), command
                checked += 1
    assert checked > 20


SECTION_PROGRAMS = {
    "Speed": "main_sample.py",
    "Sample": "main_sample.py",
    "Train": "main.py",
    "Evaluate": "evaluator.py",
    "The paper's experiments": "main_sample.py",
    "Train an autoencoder": "train_ae_codebook/main.py",
}


def test_options_in_text_exist() -> None:
    """An option by itself is one of the program that its section is about."""
    named: dict[str, set[str]] = {section: set() for section in SECTION_PROGRAMS}
    for part in re.split(r"^## ", PROSE, flags=re.MULTILINE)[1:]:
        section = part.splitlines()[0]
        for span in re.findall(r"`(--[^`]+)`", part):
            named[section] |= set(re.findall(r"(?<!\S)--[\w.]+", span))
    for section, program in SECTION_PROGRAMS.items():
        assert named[section]
        assert named[section] <= options(program).keys(), section


def test_links_and_pictures_exist() -> None:
    targets = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", PROSE)
    local = [target for target in targets if not target.startswith("https://")]
    assert local
    for target in local:
        assert (ROOT / target).is_file(), target


def test_files_and_folders_in_text_exist() -> None:
    """Configurations, program files (by name alone too), and folders that are not results of a run."""
    results = ("output/", "samples/", ".venv/")
    files = [span for span in SPANS if re.fullmatch(r"[\w./-]+\.(?:py|sh)|[\w./-]+/[\w-]+\.yaml", span)]
    folders = [span for span in SPANS if re.fullmatch(r"[\w./-]+/", span) and not span.startswith(results)]
    assert files
    assert folders
    for name in files:
        assert (ROOT / name).is_file() or list(ROOT.glob(f"[!.]*/{name}")), name
    for name in folders:
        assert (ROOT / name).is_dir(), name


def test_the_table_names_every_configuration() -> None:
    """``a_b.yaml``, then suffixes: ``_c`` stands for ``a_b_c.yaml``, or if there is none for ``a_c.yaml``."""
    named = set()
    for row in re.findall(r"^\| (`\w+\.yaml`.*?) \|", README, flags=re.MULTILINE):
        first, *suffixes = re.findall(r"`([\w.]+)`", row)
        stem = first.removesuffix(".yaml")
        named.add(stem)
        for suffix in suffixes:
            longer = (ROOT / f"configs/{stem}{suffix}.yaml").is_file()
            named.add((stem if longer else stem.rpartition("_")[0]) + suffix)
    assert named == {path.stem for path in (ROOT / "configs").glob("*.yaml")}


def test_where_to_start_reading() -> None:
    rows = re.findall(r"^\| `(\w+/)` \|.*\| (?:`(.*)`)? *\|$", README, flags=re.MULTILINE)
    assert len(rows) > 4
    for folder, first in rows:
        assert (ROOT / folder / first).exists(), folder
