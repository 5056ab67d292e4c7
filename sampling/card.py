"""The model card: README.md of a shared folder, for people and, in its head, for the hub."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from models.autoencoder import Autoencoder
from models.class_names import FEW_CLASSES, class_names
from models.family import Generator
from models.loading.checkpoint import plain_settings
from runtime import strict_yaml
from runtime.config import plain
from runtime.errors import UserError
from runtime.files import as_text, read_json

TASK = "unconditional-image-generation"  # the nearest that the hub knows
LIBRARY = "progressive-checkerboard"
FROM_PROJECT = "From the folder of the project of [progressive checkerboards](https://arxiv.org/abs/2602.03811):"
CARD_NAME, SAMPLES_NAME = "README.md", "samples.png"
Results = Mapping[str, float] | str | Path


@dataclass(frozen=True)
class About:
    """What a module does not know of itself."""

    license: str | None = None  # an identifier of the hub, as mit or apache-2.0
    data: str | None = None  # what it was trained on, in words or as the hub calls it
    results: Results | None = None  # of metrics by name, or the result.json of an evaluation
    text: str | None = None  # what else to say


def card_of_model(model: Generator, name: str, about: About, has_samples: bool) -> str:
    """The card of a generator that is loaded by a name; its samples are at its top if there are any."""
    config, metrics = model.config, metrics_of(about.results)
    classes = f"{config.num_classes} classes" if config.class_cond else "no classes"
    facts = {
        "family": config.architecture,
        "images": f"{config.img_size} x {config.img_size} px, {classes}",
        "codes": f"{model.num_locations} of a codebook of {model.num_codes}, scales {_listed(model.scale_sizes)}"
        if model.autoencoder is not None
        else f"{model.num_locations}, scales {_listed(model.scale_sizes)}, without an autoencoder",
        "parameters": _millions(model),
    }
    if model.autoencoder is not None:
        facts["autoencoder"] = f"{_millions(model.autoencoder)}, kind {model.autoencoder.kind}"
    names = class_names(model) if config.class_cond else None
    settings = {"model": plain(config), "sampling": plain_settings(model.recommended)}
    del settings["model"]["autoenc"]
    label = 0 if config.class_cond else model.unconditional_label
    snippet = (_codes_snippet if model.autoencoder is None else _draw_snippet)(json.dumps(name), label)
    head = _head(name, about, metrics, [facts["family"], "image-generation", "autoregressive"], TASK)
    parts = [
        f"# {plain_text(_title(name))}",
        f"![Images that the model drew]({SAMPLES_NAME})" if has_samples else None,
        about.text or f"A model that draws images{' of a class' if config.class_cond else ''}, code by code.",
        _table(facts | ({"trained on": about.data} if about.data else {})),
        f"## Draw\n\n{FROM_PROJECT}\n\n```python\n{snippet}```",
        _results_text(metrics),
        f"## Classes\n\n{_classes_text(names)}" if names else None,
        f"## Settings\n\n```yaml\n{strict_yaml.dump({k: v for k, v in settings.items() if v})}```",
    ]
    return head + "\n\n".join(filter(None, parts)) + "\n"


def card_of_autoencoder(autoencoder: Autoencoder, name: str, about: About, has_samples: bool) -> str:
    """The card of an autoencoder; what it makes of images is at its top if there are any."""
    config, metrics = autoencoder.config, metrics_of(about.results)
    snippet = _autoencoder_snippet(json.dumps(name), config)
    facts = {
        "kind": autoencoder.kind,
        "codes": f"one for {config.stride} x {config.stride} pixels, out of {config.n_embed}",
        "width of a code": str(config.embed_dim),
        "parameters": _millions(autoencoder),
    }
    parts = [
        f"# {plain_text(_title(name))}",
        f"![Images above, and what the codes keep of them below]({SAMPLES_NAME})" if has_samples else None,
        about.text or "An autoencoder between images and codes.",
        _table(facts | ({"trained on": about.data} if about.data else {})),
        f"## Use\n\n{FROM_PROJECT}\n\n```python\n{snippet}```",
        _results_text(metrics),
        f"## Settings\n\n```yaml\n{strict_yaml.dump(plain(config))}```",
    ]
    return _head(name, about, metrics, ["image-tokenizer", "vq"], None) + "\n\n".join(filter(None, parts)) + "\n"


def plain_text(text: str) -> str:
    """A name in a line of Markdown, where nothing of it is taken for markup; what is no text becomes ``?``."""
    line = " ".join(as_text(text).split())
    return re.sub(r"([\\`*_{}\[\]<>#|!~])", r"\\\1", line)


def metrics_of(results: Results | None) -> dict[str, float]:
    """Metrics by name, given so or as the file of an evaluation; UserError if it is none, or a number is not one."""
    if isinstance(results, str | Path):
        found = read_json(Path(results))
        if found is None or not isinstance(found.get("metrics"), list):
            raise UserError(f"{results} is no result.json of an evaluation; run_evaluator.sh writes one")
        results = {name: found[name] for name in found["metrics"] if found.get(name) is not None}
    return {str(name): _number(name, value) for name, value in (results or {}).items()}


def _number(name: Any, value: Any) -> float:
    """A finite number of any kind, as numpy's and torch's are."""
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"the result {name} is {value!r}; give a finite number, or leave it out")
    return number


def _head(name: str, about: About, metrics: Mapping[str, float], tags: list[str], task: str | None) -> str:
    """What the hub reads: licence, data, tags and the metrics as ``model-index``."""
    data = "the training data" if about.data is None else " ".join(about.data.split())
    results = [
        EvalResult(
            task_type=task or "image-reconstruction",
            dataset_type=data,
            dataset_name=data,
            metric_type=metric.lower().replace(" ", "-"),
            metric_name=metric,
            metric_value=value,
        )
        for metric, value in metrics.items()
    ]
    fields: dict[str, Any] = {"eval_results": results, "model_name": _title(name)} if results else {}
    card = ModelCardData(
        license=about.license, library_name=LIBRARY, pipeline_tag=task, tags=[LIBRARY, *tags], **fields
    )
    return f"---\n{card}\n---\n\n"


def _title(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1]


def _listed(values: list[int]) -> str:
    return " ".join(map(str, values))


def _millions(module: Generator | Autoencoder) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.1f} M"


def _table(facts: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {plain_text(value)} |" for name, value in facts.items())])


def _results_text(metrics: Mapping[str, float]) -> str | None:
    rows = "\n".join(f"| {plain_text(name)} | {value:.4g} |" for name, value in metrics.items())
    return f"## Results\n\n| metric | value |\n|---|---|\n{rows}" if rows else None


def _classes_text(names: list[str]) -> str:
    shown = ", ".join(f"{label} {plain_text(name.split(',')[0])}" for label, name in enumerate(names[:FEW_CLASSES]))
    return shown + (f" and {len(names) - FEW_CLASSES} more." if len(names) > FEW_CLASSES else ".")


def _draw_snippet(name: str, label: int) -> str:
    return (
        "from sampling import Pipeline\n\n"
        f"pipe = Pipeline.from_pretrained({name})\n"
        f'pipe(class_labels={label}, generator=0).images[0].save("image.png")\n'
    )


def _codes_snippet(name: str, label: int) -> str:
    return (
        "from models import load_checkpoint, sample\n\n"
        f"model = load_checkpoint({name})\n"
        f"print(sample(model, [{label}], seeds=[0]).codes[-1])\n"
    )


def _autoencoder_snippet(name: str, config: Any) -> str:
    side = 2 * config.stride
    return (
        "import torch\n\nfrom models import open_autoencoder\n\n"
        f"autoencoder = open_autoencoder({name})\n"
        f"images = torch.zeros(1, 3, {side}, {side})  # in [-1, 1]\n"
        "codes = autoencoder.tokenize(images, (2,))[-1]\n"
        "print(codes.shape, autoencoder.decode(codes).shape)\n"
    )
