"""The models of the study, and the commands that train and measure each (docs/study.md).

Tasks of a model come in the order to run them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from experiments.tasks import Task
from runtime.config import option, read_yaml
from runtime.errors import UserError, check_at_least
from runtime.files import PROJECT

TRAINED = "trained.json"  # in a run folder: what its training took
LIKELIHOOD_STEPS = (1, 2, 4, 8, 16, 32)
CFG_GRID = (0.5, 1, 1.5, 2, 3, 4.5)
BATCH = 64  # images that are drawn at once
PICTURED = 20  # images to show, the classes in turn


@dataclass(frozen=True)
class StudyArgs:
    """What to train and to measure."""

    models: str | None = option(None, "names of models to train and to measure, separated by commas; default all")
    dataset: Literal["folder", "cifar10"] = option(
        "folder", "folder (class folders or parquet files), or cifar10 (torchvision's files)"
    )
    data_path: str = option("data/cifar10", "where CIFAR-10 is, its 50,000 training and 10,000 test images")
    output_dir: str = option("output/study", "folder of the runs and of what was measured")
    epochs: int | None = option(None, "passes over the data of every model; default those of its configuration")
    batch_size: int | None = option(None, "images a step of every model; default those of its configuration")
    grid_samples: int = option(500, "images drawn to choose the guidance, at each of them and each number of steps")
    num_samples: int = option(10_000, "images drawn at the guidance chosen")
    results: str | None = option(None, "JSON lines to write; default results.jsonl in output_dir")

    def __post_init__(self) -> None:
        check_at_least(1, self, "epochs", "batch_size")
        check_at_least(4, self, "grid_samples", "num_samples")


@dataclass(frozen=True)
class StudyModel:
    """A model of the study: a configuration and a seed."""

    config: str  # name of a file of configs/study
    steps: tuple[int, ...] = ()  # values of the setting of the drawing; none of a model that draws one code a step
    setting: str = "steps_per_scale"
    seed: int = 0
    epochs: int | None = None  # instead of the configuration's

    @property
    def name(self) -> str:
        seed = f"_seed{self.seed}" if self.seed else ""
        return f"{self.config}{seed}" + (f"_{self.epochs}epochs" if self.epochs else "")

    @property
    def shorter(self) -> "StudyModel | None":
        """The one that a longer training goes on from."""
        return None if self.epochs is None else replace(self, epochs=None)

    @property
    def config_path(self) -> Path:
        return PROJECT / f"configs/study/{self.config}.yaml"

    @property
    def all_steps(self) -> tuple[int | None, ...]:
        """Values of the setting to draw with; None of a model that has none."""
        return self.steps or (None,)

    @property
    def in_blocks(self) -> bool:
        """Whether its codes are scored in blocks, as they are drawn."""
        return bool(self.steps) and self.setting == "steps_per_scale"


MODELS = (
    StudyModel("checkerboard_2x", (1, 2, 4, 8, 16)),
    StudyModel("random_2x", (1, 2, 4, 8, 16)),
    StudyModel("llamagen"),
    StudyModel("randar_random", (8, 16, 32, 64), "steps"),
    StudyModel("checkerboard_4x", (1, 2, 4, 8, 16, 32)),
    StudyModel("checkerboard_single", (4, 8, 16, 32)),
    StudyModel("raster_2x", (1, 2, 4, 8, 16)),
    StudyModel("npp"),
    StudyModel("randar_raster", (8, 16, 32, 64), "steps"),
    StudyModel("checkerboard_2x", (1, 2, 4, 8, 16), seed=1),
    StudyModel("random_2x", (1, 2, 4, 8, 16), seed=1),
    StudyModel("checkerboard_4x", (1, 2, 4, 8, 16, 32), epochs=30),  # the best checkerboard of 10 passes
)


def chosen_models(args: StudyArgs) -> list[StudyModel]:
    """Those to train and to measure, in the study's order; a given number of epochs leaves out the longer training."""
    return named([model for model in MODELS if args.epochs is None or model.epochs is None], args.models)


def named(models: Sequence[StudyModel], names: str | None) -> list[StudyModel]:
    """Those of ``names``, which commas separate, or all; UserError if one has no model."""
    known = {model.name: model for model in models}
    wanted = list(known) if names is None else names.split(",")
    for name in wanted:
        if name not in known:
            raise UserError(f"no model of the study is called {name}; there are {', '.join(known)}")
    return [model for name, model in known.items() if name in wanted]


def training_task(model: StudyModel, args: StudyArgs) -> Task:
    folder, root = _folder(model, args), Path(args.output_dir)
    train = [str(PROJECT / "main.py"), "--config", str(model.config_path), "--output_dir", str(folder)]
    train += [*_data(args), "--cached_path", str(root / "codes"), "--seed", str(model.seed)]
    train += [] if args.batch_size is None else ["--batch_size", str(args.batch_size)]
    return Task("training", (*train, "--epochs", str(epochs_of(model, args))), folder / TRAINED)


def epochs_of(model: StudyModel, args: StudyArgs) -> int:
    return args.epochs or model.epochs or usual_epochs(model.config)


@cache
def usual_epochs(config: str) -> int:
    """Passes over the data that a configuration of the study asks for."""
    return read_yaml(StudyModel(config).config_path)["args"]["epochs"]


def measuring_tasks(model: StudyModel, args: StudyArgs) -> Iterator[Task]:
    """Likelihood, the time of a training step, and the distance at a grid of guidances."""
    run = _folder(model, args)
    for steps, file in likelihood_files(model, args).items():
        score = ("-m", "experiments.likelihood", *_of_run(run), *_data(args), "--output_file", str(file))
        in_steps = () if steps is None else ("--steps_per_scale", str(steps))
        yield Task(" ".join(["likelihood", *in_steps]), score + in_steps, file)
    for side in patch_sides(model):
        step = ("-m", "benchmarks.training", "--config", str(model.config_path), "--patch_side", str(side))
        label = "time of a training step" + (f" on patches of {side} x {side}" if side > 1 else "")
        file = run / f"step-{side}.json"
        yield Task(label, (*step, "--batch_size", str(BATCH), "--output_file", str(file)), file)
    for steps in model.all_steps:
        label, folder = f"grid of guidances{_in(steps)}", grid(model, args, steps)
        yield _sweep_task(label, model, args.grid_samples, CFG_GRID, steps, folder)


def final_tasks(model: StudyModel, args: StudyArgs, cfgs: Mapping[int | None, float]) -> Iterator[Task]:
    """Drawing at the best guidance by number of steps: images to show of the best steps, which come last, and many."""
    folder, shown = pictures(model, args, cfgs), list(cfgs)[-1]
    draw = (str(PROJECT / "main_sample.py"), *_of_run(folder.parent), "--output_dir", str(folder))
    draw += ("--num_samples", str(PICTURED), "--batch_size", str(BATCH), *_drawing(model, [cfgs[shown]], shown))
    yield Task("pictures", draw, folder / "grid.png")
    for steps, cfg in cfgs.items():
        folder = samples(model, args, steps, cfg)
        yield _sweep_task(folder.name, model, args.num_samples, [cfg], steps, folder)


def patch_sides(model: StudyModel) -> tuple[int, ...]:
    """Codes along a side of the patches that the stages of its training predict."""
    return tuple(2**level for level in range(read_yaml(model.config_path)["args"].get("patch_level", 1)))


def likelihood_files(model: StudyModel, args: StudyArgs) -> dict[int | None, Path]:
    """By steps per scale; None of a model that is scored code by code."""
    steps_per_scale = LIKELIHOOD_STEPS if model.in_blocks else (None,)
    return {n: _folder(model, args) / f"likelihood{'' if n is None else f'-{n}'}.json" for n in steps_per_scale}


def drawing_settings(model: StudyModel, cfg: float, steps: int | None) -> dict[str, float | int]:
    """Those of a drawing in so many steps.

    Scales of at most 2 x 2 codes are not guided: they are the paper's first 5 of 17 steps.
    """
    settings = {"cfg": cfg} if steps is None else {"cfg": cfg, model.setting: steps}
    if not model.in_blocks:
        return settings
    return settings | {"cfg_start_step": 0 if model.config == "checkerboard_single" else 1 + min(steps, 4)}


def grid(model: StudyModel, args: StudyArgs, steps: int | None) -> Path:
    """Folder of a grid, within a run; another number of images is another."""
    return _folder(model, args) / f"grid-{args.grid_samples}{_suffix(steps)}"


def samples(model: StudyModel, args: StudyArgs, steps: int | None, cfg: float) -> Path:
    """Folder of the many images that are drawn in so many steps."""
    return _folder(model, args) / f"samples-{args.num_samples}{_suffix(steps)}-cfg{cfg:g}"


def pictures(model: StudyModel, args: StudyArgs, cfgs: Mapping[int | None, float]) -> Path:
    """Folder of the images to show, by the best guidance of each number of steps, the best of which come last."""
    shown = list(cfgs)[-1]
    return _folder(model, args) / f"pictures{_suffix(shown)}-cfg{cfgs[shown]:g}"


def _sweep_task(
    label: str, model: StudyModel, num_samples: int, cfgs: Sequence[float], steps: int | None, folder: Path
) -> Task:
    """Drawing so many images and measuring them, at each guidance."""
    sweep = ("-m", "experiments.sweep", *_of_run(folder.parent), "--features", "cifar10", "--delete_samples")
    sweep += ("--output_dir", str(folder), "--batch_size", str(BATCH), "--num_samples", str(num_samples))
    return Task(label, sweep + _drawing(model, cfgs, steps), folder / "sweep.png")


def _folder(model: StudyModel, args: StudyArgs) -> Path:
    return Path(args.output_dir) / model.name


def _in(steps: int | None) -> str:
    return "" if steps is None else f", {steps} steps"


def _suffix(steps: int | None) -> str:
    return "" if steps is None else f"-{steps}steps"


def _of_run(run: Path) -> tuple[str, ...]:
    return "--checkpoint", str(run)


def _data(args: StudyArgs) -> tuple[str, ...]:
    return "--dataset", args.dataset, "--data_path", args.data_path


def _drawing(model: StudyModel, cfgs: Sequence[float], steps: int | None) -> tuple[str, ...]:
    """Flags of a drawing at each guidance."""
    settings = drawing_settings(model, 0, steps) | {"cfg": ",".join(f"{cfg:g}" for cfg in cfgs)}
    return tuple(word for name, value in settings.items() for word in (f"--{name}", str(value)))
