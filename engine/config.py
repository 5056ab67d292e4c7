"""Command line over YAML over default: flat flags over the published schema's ``model:`` and ``args:`` sections."""

import re
import sys
from argparse import ArgumentError, ArgumentTypeError
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from jsonargparse import ArgumentParser, Namespace

from data.crops import CropRecipe
from data.datasets import DatasetName
from engine.metrics.neighbours import NEIGHBOURS
from models.errors import UserError
from models.published import check_keys, dataclass_from_dict, read_yaml

Settings = TypeVar("Settings")
# What to type for a value of each type.
_VALUES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "tuple": "a list in brackets, as in '[first, second]'",
    "dict": "a mapping, as in '{50: 0.3}'",
}


@dataclass(frozen=True)
class LoopArgs:
    """How to train, whatever the model.

    Attributes:
        output_dir: folder of the run; default output/ and the configuration's name. Running again goes on there.
        resume: checkpoint, or folder of one, that a new run goes on from; a run's own checkpoint comes first.
        dataset: folder (class folders of images), cifar10, food101 or celeba (torchvision's files), digits (built in).
        data_path: root of the dataset; a folder's is CLASS/IMAGE, or train/CLASS/IMAGE and val/ or test/CLASS/IMAGE.
        crop: training crops: ten, five (not mirrored) or center.
        epochs: passes over the data.
        batch_size: images a batch on each rank; while a cache is made, crops encoded at once.
        accum_steps: batches whose gradients are averaged for one step; multiplies the images of a step.
        lr: learning rate, not scaled by the batch.
        betas: of AdamW.
        weight_decay: of AdamW; none on biases and other one-dimensional parameters.
        warmup_epochs: epochs over which the learning rate rises linearly from 0.
        lr_drops: epoch -> factor on the learning rate from that epoch on.
        clip_grad: largest norm of the gradient; 0 does not clip.
        ema: also average the weights.
        ema_decay: of the average, reached after a warm-up: after t steps it is 1 - (1 + t)^(-2/3) at most.
        dtype: auto (bfloat16 where the GPU has it, else float32), float32, bfloat16, or float16 with loss scaling.
        device: auto, cuda, mps or cpu.
        seed: of every random choice; the same seed on the same machine gives the same run.
        num_workers: processes that load images.
        log_freq: steps between log entries; the last step of a run has one too.
        eval_freq: epochs between grids of samples; 0 draws them at the end alone.
        save_minutes: minutes between checkpoints within an epoch; there is one after every epoch too.
        keep_freq: epochs between checkpoints that are kept as checkpoint-EPOCH.pth; 0 keeps the last alone.
    """

    output_dir: str | None = None
    resume: str | None = None
    dataset: DatasetName = "folder"
    data_path: str = "data/imagenet"
    crop: CropRecipe = "ten"
    epochs: int = 110
    batch_size: int = 128
    accum_steps: int = 1
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    warmup_epochs: float = 1.0
    lr_drops: dict[float, float] = field(default_factory=dict)
    clip_grad: float = 0.0
    ema: bool = False
    ema_decay: float = 0.9999
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    seed: int = 0
    num_workers: int = 4
    log_freq: int = 50
    eval_freq: int = 10
    save_minutes: float = 10.0
    keep_freq: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accum_steps", "log_freq"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("lr", "weight_decay", "warmup_epochs", "clip_grad", "num_workers", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must not be negative")
        if not all(0 <= beta < 1 for beta in self.betas) or not 0 <= self.ema_decay < 1:
            raise UserError(f"betas {list(self.betas)} and ema_decay {self.ema_decay} must lie in 0..1, 1 excluded")
        if any(factor <= 0 for factor in self.lr_drops.values()):
            raise UserError(f"lr_drops {self.lr_drops} must hold factors above 0")
        if self.dataset == "digits" and self.data_path != LoopArgs.data_path:
            raise UserError(
                f"the built-in digits have no data_path {self.data_path}; add --dataset folder for your images"
            )
        if self.seed >= 2**63:
            raise UserError(f"seed is {self.seed}; it must be below 2**63")


@dataclass(frozen=True)
class TrainArgs(LoopArgs):
    """The ``args:`` section of a configuration of main.py.

    Attributes:
        check_data: report the classes and unreadable files of the dataset, and stop.
        create_cache: write the cache of codes first; without --use_cache, stop there.
        use_cache: train from the cache of codes.
        verify_cache: encode this many images of the cache again, report how many codes differ, and stop; 0 does not.
        cached_path: folder of caches.
        cache_scales: scales to cache: paper (the twelve of the published cache, for all 256 px configurations; of a
            larger image, these and the model's) or model (this model's).
        weights_init: checkpoint whose weights a new run starts from; what does not fit is listed and starts fresh.
        attention: sdpa, or flex for FlexAttention (compiled; skips blocks that are masked whole).
        compile: compile the transformer; the first steps take longer.
        activation_checkpointing: keep less for the gradients and compute it again: less memory, more time.
        cfg: guidance of the grids drawn during training.
        cfg_start_step: first step, counted over all scales from 0, that is guided in those grids.
        steps_per_scale: steps that each scale is drawn in for those grids.
        eval_samples: images drawn every eval_freq epochs, on all ranks, for FID, IS, precision and recall; 0 measures
            nothing.
        eval_reference: what they are compared with, as evaluator.py takes it; it makes one of any folder.
        inception_weights: torch-fidelity's weights-inception-2015-12-05-6726825d.pth; default a copy downloaded once.
    """

    check_data: bool = False
    create_cache: bool = False
    use_cache: bool = False
    verify_cache: int = 0
    cached_path: str = "data/cached"
    cache_scales: Literal["paper", "model"] = "paper"
    weights_init: str | None = None
    attention: Literal["sdpa", "flex"] = "sdpa"
    compile: bool = False
    activation_checkpointing: bool = False
    cfg: float = 1.5
    cfg_start_step: int = 5
    steps_per_scale: int = 4
    eval_samples: int = 0
    eval_reference: str | None = None
    inception_weights: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eval_samples < 0 or (self.eval_samples > 0) != (self.eval_reference is not None):
            raise UserError("eval_samples and eval_reference go together: how many images, and what to compare with")
        if self.eval_reference is not None and not Path(self.eval_reference).exists():
            raise UserError(f"no eval_reference at {self.eval_reference}; evaluator.py --make_reference makes one")
        if 0 < self.eval_samples <= NEIGHBOURS:
            raise UserError(f"eval_samples is {self.eval_samples}; it must be at least {NEIGHBOURS + 1}, better 2048")
        if self.inception_weights is not None and not self.eval_samples:
            raise UserError("inception_weights means nothing without eval_samples; leave it out")
        if self.verify_cache < 0:
            raise UserError(f"verify_cache is {self.verify_cache}; give a number of images")


def parse_config(
    argv: Sequence[str], prog: str, description: str, sections: Mapping[str, type]
) -> tuple[dict[str, Any], str]:
    """Settings of one command line over its ``--config`` YAML over the defaults.

    Args:
        argv: the arguments, without the program's name.
        prog: the program's name.
        description: shown by ``--help``.
        sections: dataclass of each section of the YAML.

    Returns:
        One dataclass instance a section, and the configuration's name.

    Raises:
        UserError: an unknown key or flag, or a value of the wrong type.
    """
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False)
    parser.add_argument("--config", metavar="YAML", help="configuration file; flags override it")
    parser.add_argument("--print_config", action="store_true", help="print the resulting configuration and stop")
    for kind in sections.values():
        parser.add_class_arguments(kind)
    print_config = "--print_config" in argv  # jsonargparse keeps a meaning of its own for this word
    argv = [word for word in _complete_switches(argv, sections.values()) if word != "--print_config"]
    path = config_path(argv)
    if path is not None:
        values = _read_sections(Path(path), sections)
        parser.set_defaults(_checked(parser.parse_object, values, where=f"{path}: "))
    values = _checked(parser.parse_args, argv)
    settings = {
        section: dataclass_from_dict(kind, {f.name: values[f.name] for f in fields(kind)}, "the configuration")
        for section, kind in sections.items()
    }
    if print_config:
        print(to_yaml(settings), end="")
        sys.exit(0)
    return settings, Path(path).stem if path is not None else "default"


def parse_flags(
    argv: Sequence[str], prog: str, description: str, kind: type[Settings], positional: Sequence[str] = ()
) -> Settings:
    """Settings of a command line without a YAML; words that belong to no flag are the ``positional`` ones, in order."""
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False)
    parser.add_class_arguments(kind)
    argv = _name_positional(_complete_switches(argv, [kind], bool(positional)), positional)
    values = _checked(parser.parse_args, argv)
    return dataclass_from_dict(kind, values, "the command line")


def to_yaml(settings: Mapping[str, Any]) -> str:
    """YAML of one dataclass instance a section, in the published schema."""
    return yaml.safe_dump({section: plain(value) for section, value in settings.items()}, sort_keys=False)


def plain(value: Any) -> dict[str, Any]:
    """A configuration dataclass as plain containers."""
    return {key: list(item) if isinstance(item, tuple) else item for key, item in asdict(value).items()}


def _checked(parse: Callable[[Any], Namespace], values: Any, where: str = "") -> dict[str, Any]:
    """What jsonargparse makes of values; its complaints become one line."""
    try:
        return parse(values).as_dict()
    except (ArgumentError, ArgumentTypeError, TypeError) as error:
        raise UserError(where + _one_line(str(error), parse.__self__)) from error


def _one_line(message: str, parser: ArgumentParser) -> str:
    message = " ".join(message.split())
    message = re.sub(r"<class '(\w+)'>|typing\.(\w+)", lambda match: match[1] or match[2], message)
    unknown = re.match(r"unrecognized arguments: (.*)", message, flags=re.IGNORECASE)
    if unknown is None:
        return _say_wrong_value(message)
    flag = unknown[1].split()[0].split("=")[0]
    known = [option for action in parser._actions for option in action.option_strings]
    near = get_close_matches(flag, known, n=1)
    return f"unknown option {flag}" + (f"; did you mean {near[0]}?" if near else "; see --help")


def _say_wrong_value(message: str) -> str:
    """jsonargparse's words on a value of the wrong type, in ours."""
    plain_type = re.match(r'Parser key "(.*?)": Expected a (.+)\. Got value: (.*)$', message)
    union = re.match(
        r'Parser key "(.*?)": Does not validate .* Subtypes: \[(.+?)\] Errors: .* Given value: (.*)$', message
    )
    found = plain_type or union
    if found is None:
        return re.sub(r'^Parser key "(.*?)":', r"\1:", message)
    name, kind, value = found.groups()
    choices = re.match(r"Literal\[(.+)\]$", kind)
    if union and "tuple" in kind:
        return f"{name} is {value}; it must be a number, or a list as in '[1, 2, 3]'"
    wanted = "one of " + choices[1].replace("'", "") if choices else _VALUES.get(re.split("[, ]", kind)[0], kind)
    return f"{name} is {value}; it must be {wanted}"


def _complete_switches(argv: Sequence[str], kinds: Any, before_words: bool = False) -> list[str]:
    """``--use_cache`` alone means ``--use_cache true``; ``before_words``, also before a word that is no truth value."""
    switches = {f"--{f.name}" for kind in kinds for f in fields(kind) if f.type in (bool, "bool")}
    completed = []
    for i, word in enumerate(argv):
        completed.append(word)
        following = argv[i + 1] if i + 1 < len(argv) else "-"
        alone = following.startswith("-") or (before_words and following.lower() not in ("true", "false"))
        if word in switches and alone:
            completed.append("true")
    return completed


def _name_positional(argv: Sequence[str], names: Sequence[str]) -> list[str]:
    """``A --flag value B`` becomes ``--first A --flag value --second B``; words beyond the names stay as they are."""
    named, left = [], list(names)
    for i, word in enumerate(argv):
        is_value = i > 0 and argv[i - 1].startswith("--") and "=" not in argv[i - 1]
        if left and not word.startswith("-") and not is_value:
            named.append(f"--{left.pop(0)}={word}")
        else:
            named.append(word)
    return named


def config_path(argv: Sequence[str]) -> str | None:
    """The YAML that a command line names, if any."""
    for i, word in enumerate(argv):
        if word == "--config" and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith("--config="):
            return word.split("=", 1)[1]
    return None


def _read_sections(path: Path, sections: Mapping[str, type]) -> dict[str, Any]:
    """A YAML's settings, its sections merged."""
    content = read_yaml(path)
    check_keys(content, sections, str(path))
    merged: dict[str, Any] = {}
    for section, kind in sections.items():
        values = content.get(section) or {}
        _check_section(values, kind, f"{path}: {section}")
        merged |= values
    return merged


def _check_section(values: Any, kind: type, where: str) -> None:
    if not isinstance(values, dict):
        raise UserError(f"{where} holds {values!r}, not settings; put name: value pairs there")
    check_keys(values, (f.name for f in fields(kind)), where)
    for f in fields(kind):
        if is_dataclass(f.default_factory) and f.name in values:
            _check_section(values[f.name], f.default_factory, f"{where}: {f.name}")
