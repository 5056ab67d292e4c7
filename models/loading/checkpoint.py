"""Checkpoint files <-> models of any family: ours, and the published release's (formats.md M3, M4).

Reading runs no code of the file: tensors, plain containers, paths and an ``argparse.Namespace`` of those are let
through, nothing else. Nothing is loaded in part: missing, unexpected or misshapen keys are an error that lists them.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from models.config import FAMILIES, NORM_GROUPS, AutoencoderPaths, Drawing, Family, GeneratorConfig, family_of
from models.family import Generator
from models.loading.autoencoder import (
    CONFIG_NAME,
    HUB_CONFIG_NAME,
    PUBLISHED_PATHS,
    beside,
    build_autoencoder,
    export_autoencoder,
    has_section,
    load_autoencoder,
    places_of,
)
from models.loading.autoencoder_kinds import new_autoencoder
from models.loading.class_table import fit_classes
from models.loading.hub import here
from models.loading.state import (
    AUTOENCODER_PREFIX,
    CLASS_NAMES,
    Names,
    PublishedLayout,
    check_finite,
    holds_autoencoder,
    load_exactly,
    our_names,
    read_weights,
    without_memory,
    write_weights,
)
from models.sampling import checked_drawing
from runtime import distributed
from runtime.config import dataclass_from_dict, read_yaml, write_yaml
from runtime.errors import UserError
from runtime.files import PROJECT, did_you_mean, located, new_folder

CHECKPOINT_NAME = "checkpoint-last.pth"
NAMES_IN_FOLDER = (CHECKPOINT_NAME, "train_state.pt")  # ours, and that of RandAR's CIFAR-10 baseline
FOLDERS_ABOVE = 2  # how far from the weights a configuration may lie: training by accelerate has it so
SOME_CLASSES = 10  # of a model of random weights whose configuration leaves them to the data
SHARED_SUFFIX = ".sharded"  # of the folder beside a checkpoint that holds the shares of several ranks


def load_checkpoint(path: str | Path, use_ema: bool = False) -> Generator:
    """A model in eval mode on the CPU, float32, from a checkpoint of ours or of the published release.

    ``path`` is the file, with ``config.yaml`` beside it, or its folder; or a name of the Hugging Face hub, as
    ``owner/name``, ``owner/name@revision`` or ``owner/name/folder``. ``use_ema`` takes the averaged weights. A
    UserError: it is missing, damaged, unsafe, not such a model, or without those weights.
    """
    path = find_checkpoint(path)
    checkpoint = read_weights(path)
    config = config_of(path, checkpoint)
    states = model_states(checkpoint, config, path)
    if use_ema and states["model_ema"] is None:
        raise UserError(f"{path} holds no EMA weights; leave out use_ema")
    if not use_ema and states["model_ema"] is not None:
        distributed.say(f"{path} holds averaged weights too, which --use_ema (use_ema=True) takes")
    model = build_model(states["model_ema" if use_ema else "model"], config, path)
    model.class_names = _class_names(checkpoint, config, path)
    place = config_place(path)
    model.recommended = recommended_settings(place, model.Drawing)
    try:
        if model.recommended:
            checked_drawing(model, {})
    except UserError as error:
        raise UserError(f"{place}: sampling: {error}") from error
    return model


def _class_names(checkpoint: Mapping[str, Any], config: GeneratorConfig, path: Path) -> list[str] | None:
    """Names of the classes, one each."""
    names = checkpoint.get(CLASS_NAMES)
    if names is not None and config.class_cond and len(names) != config.num_classes:
        distributed.say(
            f"warning: {path} names {len(names)} classes, but its model has {config.num_classes}; they are left out"
        )
        return None
    return names


def initialize_from(model: Generator, path: str | Path) -> list[str]:
    """Copy what fits of a checkpoint's weights into a model, classes by their names (``fit_classes``).

    Returns remarks: one on the classes, if they are others, and one on each tensor that does not fit.
    """
    path = find_checkpoint(path)
    checkpoint = read_weights(path)
    saved, _ = split_off_autoencoder(model_states(checkpoint, model.config, path)["model"])
    check_finite(saved, path, names_of(model.config))
    saved, remarks = fit_classes(model, saved, checkpoint.get(CLASS_NAMES), _num_learned(checkpoint, path))
    return model.initialize_from(saved, str(path)) + remarks


def _num_learned(checkpoint: Mapping[str, Any], path: Path) -> int | None:
    """How many classes a checkpoint's model learned, 0 of one without; None if nothing tells."""
    try:
        config = config_of(path, checkpoint)
    except UserError:  # of weights without a configuration
        return None
    return config.num_classes if config.class_cond else 0


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint file at a path or in a folder: the last of a run, or the only file of weights that is there."""
    file = path = here(path)
    if path.is_dir():
        named = [path / name for name in NAMES_IN_FOLDER if (path / name).is_file()]
        file = named[0] if named else _only_weights(path)
    if file.suffix in (".yaml", ".yml"):
        raise UserError(f"{file} is a configuration; name the folder that it is in, or the file of weights beside it")
    if not file.is_file():
        raise UserError(f"no checkpoint at {file}; {_mend_of_missing(file)}")
    return file


def _only_weights(folder: Path) -> Path:
    """The only .safetensors file of a folder, but for autoencoders, or its only .pt or .pth.

    The place of our own if there is none.
    """
    for suffixes in ((".safetensors",), (".pt", ".pth")):
        files = sorted(file for file in folder.iterdir() if file.suffix in suffixes and file.is_file())
        files = [file for file in files if not holds_autoencoder(file)]
        if len(files) > 1:
            raise UserError(f"{folder} holds {', '.join(file.name for file in files)}; name one of these files")
        if files:
            return files[0]
    if any(holds_autoencoder(file) for file in folder.iterdir()):
        raise UserError(f"{folder} holds an autoencoder and no model; load it by open_autoencoder, or as --autoenc")
    return folder / CHECKPOINT_NAME


def _mend_of_missing(file: Path) -> str:
    """What to do about a checkpoint that is not there."""
    if file.with_suffix(SHARED_SUFFIX).exists():
        return f"join the weights of this sharded run by python -m training.export --checkpoint {file.parent}"
    near = did_you_mean(file)
    places = [place for place in (file, file.parent) if place.absolute().parent == PROJECT / "pretrained_models"]
    name = f" {places[0].name}" if places and not near else ""
    usual = f"train one with main.py, or fetch the released ones with bash pretrained_models/download.sh{name}"
    return f"{near.removeprefix('; ')} If not, {usual}" if near else usual


def config_of(path: Path, content: Mapping[str, Any]) -> GeneratorConfig:
    """The configuration of the model whose file at ``path`` has this content: what is beside it, and what it tells."""
    place = config_place(path)
    section = _model_section(place) if place.exists() else None
    for layout in published_layouts(FAMILIES.values() if section is None else [family_of(section)]):
        section = layout.complete(section, content, path)
    section = _model_section(place) if section is None else section  # what is missing is said there
    config = dataclass_from_dict(family_of(section).load("config"), section, str(place))
    if config.class_cond and not config.num_classes:
        raise UserError(f"{place}: num_classes is 0; give the number of classes that the model was trained with")
    return config


def config_place(path: Path) -> Path:
    """Where the configuration of the checkpoint at ``path`` is, the nearest; or should be: beside it."""
    beside = path.with_name(CONFIG_NAME)
    if beside.exists():
        return beside
    folders = (path.parent, *path.absolute().parents[1 : 1 + FOLDERS_ABOVE])
    places = (folder / name for folder in folders for name in (CONFIG_NAME, HUB_CONFIG_NAME))
    return next((place for place in places if place.exists() and _describes_model(place)), beside)


def _describes_model(place: Path) -> bool:
    """Whether a configuration is of a model: those of other programs have the same name."""
    if place.name == HUB_CONFIG_NAME:
        return has_section(place, "model")
    try:
        return isinstance(_found_section(place), dict)
    except UserError:
        return False


def read_model_config(checkpoint_path: Path) -> GeneratorConfig:
    """The ``model:`` section of the configuration beside a checkpoint of ours."""
    path = checkpoint_path.parent / CONFIG_NAME
    section = _model_section(path)
    return dataclass_from_dict(family_of(section).load("config"), section, str(path))


def published_layouts(families: Iterable[Family]) -> Iterator[PublishedLayout]:
    """Of those families whose weights were published."""
    found = (family.load("published") for family in families)
    return (layout for layout in found if layout is not None)


def _found_section(path: Path) -> Any:
    """What a configuration has as its ``model:`` section, or its translation from a published one; None of neither."""
    content = read_yaml(path)
    section = content.get("model")
    if section is None:
        translated = (layout.translate(content, path) for layout in published_layouts(FAMILIES.values()))
        section = next((found for found in translated if found), None)
    return section


def _model_section(path: Path) -> dict[str, Any]:
    section = _found_section(path)
    if not isinstance(section, dict):
        raise UserError(f"{path} has no model: section; put back the {CONFIG_NAME} that came with the checkpoint")
    return section


def recommended_settings(place: Path, drawing: type[Drawing]) -> dict[str, Any]:
    """The ``sampling:`` section of a configuration, settings of a drawing of this kind; none if there is none."""
    found = read_yaml(place).get("sampling") if place.is_file() else None
    chosen = dataclass_from_dict(drawing, {} if found is None else found, f"{place}: sampling")
    return {name: getattr(chosen, name) for name in found or ()}


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a drawing as plain containers."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}


def build_model(state: Mapping[str, Tensor], config: GeneratorConfig, path: Path) -> Generator:
    """A model from one state dict of the file at ``path``, whose own autoencoder weights win over the autoencoder's."""
    own, frozen = split_off_autoencoder(state)
    folder = config_place(path).parent
    if frozen:
        autoencoder = build_autoencoder(frozen, config.autoenc, folder, path)
    elif config.autoenc.checkpoint_path is None and not model_class(config).needs_autoencoder:
        autoencoder = None
    else:
        autoencoder = load_autoencoder(config.autoenc, folder)
    with without_memory():
        model = model_class(config).from_state(config, autoencoder, own)
    load_exactly(model, own, path, names_of(config))
    return model.eval()


def split_off_autoencoder(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A model's own weights, and those of the autoencoder among them."""
    parts: dict[bool, dict[str, Tensor]] = {False: {}, True: {}}
    for key, value in state.items():
        parts[key.startswith(AUTOENCODER_PREFIX)][key.removeprefix(AUTOENCODER_PREFIX)] = value
    return parts[False], parts[True]


def random_model(path: Path) -> tuple[Generator, bool]:
    """The model of a configuration in eval mode, of random weights; and whether its autoencoder was there.

    Where it is missing, one of the released models' size and of random weights takes its place.
    """
    section = read_yaml(located(path)).get("model") or {}
    config = dataclass_from_dict(family_of(section).load("config"), section, str(path))
    autoenc = beside(config.autoenc, located(path))
    config = replace(config, autoenc=autoenc, num_classes=config.num_classes or SOME_CLASSES)
    weights = config.autoenc.checkpoint_path
    there = weights is not None and any(place.exists() for place in places_of(weights, None))
    autoencoder = load_autoencoder(config.autoenc) if there else new_autoencoder(config.usual_autoencoder())
    return model_class(config)(config, autoencoder).eval(), there


def model_class(config: GeneratorConfig) -> type[Generator]:
    """The family that a configuration is of."""
    return FAMILIES[config.architecture].load("generator")


def names_of(config: GeneratorConfig) -> Names:
    """Our names of weights and the published ones."""
    layout = FAMILIES[config.architecture].load("published")
    return () if layout is None else layout.names


def model_states(
    checkpoint: Mapping[str, Any], config: GeneratorConfig, path: Path
) -> dict[str, dict[str, Tensor] | None]:
    """Weights under our names, ``model`` and, if there are any, ``model_ema``, of the contents of a file."""
    layout, names = FAMILIES[config.architecture].load("published"), names_of(config)
    found = checkpoint if layout is None else layout.states(checkpoint)
    if not isinstance(found.get("model"), dict):
        raise UserError(f"{path} has no model entry; it is no checkpoint of this model")
    ema, model = found.get("model_ema"), our_names(found["model"], names)
    frozen = {key: value for key, value in model.items() if key.startswith(AUTOENCODER_PREFIX)}
    return {"model": model, "model_ema": None if ema is None else frozen | our_names(ema, names)}


def export_published(path: str | Path, folder: str | Path) -> None:
    """Write a checkpoint of ours as a new folder that the published code reads; optimizer state is left behind."""
    path = find_checkpoint(path)
    with new_folder(Path(folder)) as partial:
        checkpoint = read_weights(path)
        config = config_of(path, checkpoint)
        layout = FAMILIES[config.architecture].load("published")
        if layout is None:
            raise UserError(f"{path} is a model of {config.architecture}, which has no published layout")
        states = model_states(checkpoint, config, path)
        models = {key: None if state is None else build_model(state, config, path) for key, state in states.items()}
        autoencoder = models["model"].autoencoder
        if getattr(getattr(autoencoder, "config", None), "norm_groups", NORM_GROUPS) != NORM_GROUPS:
            raise UserError(
                f"the published code normalizes {NORM_GROUPS} groups of channels, and this autoencoder another number; "
                "export by --format safetensors"
            )
        paths = AutoencoderPaths() if autoencoder is None else PUBLISHED_PATHS
        content = layout.config(models["model"], paths, path)
        recommended = recommended_settings(config_place(path), models["model"].Drawing)
        content |= {"sampling": plain_settings(recommended)} if recommended else {}
        name, weights = layout.file(models, checkpoint)
        write_weights(weights, partial / name, checkpoint.get(CLASS_NAMES))
        if autoencoder is not None:
            export_autoencoder(autoencoder, partial / "autoenc", layout.llamagens_tokenizer)
        write_yaml(partial / CONFIG_NAME, content)
