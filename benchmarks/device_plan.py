"""What ``benchmarks.device`` measures, the most important rows first. Without YAML and torch: either may be missing."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import product
from typing import Any, Literal

from models.config import AutoencoderConfig, LlamaGenVQConfig, family_of

# The ``model:`` sections of configs/config_256_S.yaml, config_256_L.yaml, llamagen_L.yaml and randar_L.yaml, as far as
# they are not as by default, and without the files of the autoencoder.
_GPT_L = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16, "num_hidden_layers": 24}
SECTIONS: dict[str, dict[str, Any]] = {
    "S": {
        "architecture": "checkerboard",
        "llama_config": {
            "hidden_size": 512,
            "intermediate_size": 1536,
            "num_attention_heads": 16,
            "num_hidden_layers": 12,
        },
    },
    "L": {
        "architecture": "checkerboard",
        "llama_config": {
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_attention_heads": 16,
            "num_hidden_layers": 20,
        },
    },
    "LlamaGen-L": {"architecture": "llamagen", "llama_config": _GPT_L},
    "RandAR-L": {"architecture": "randar", "llama_config": _GPT_L},
}
# Work, models, batch sizes, precisions, modes; a training batch is that of the model's configuration.
_PLAN = (
    ("sampling", ("L",), (1, 64), ("bfloat16",), ("eager", "compiled")),
    ("sampling", ("S",), (1, 64), ("bfloat16",), ("eager",)),
    ("training", ("S",), (128,), ("bfloat16",), ("eager",)),
    ("training", ("L",), (64,), ("bfloat16",), ("eager",)),
    ("sampling", ("LlamaGen-L", "RandAR-L"), (1, 64), ("bfloat16",), ("eager",)),
    ("sampling", ("L", "S"), (1, 64), ("float32",), ("eager",)),
    ("sampling", ("L", "S"), (16, 256), ("bfloat16",), ("eager",)),
    ("sampling", ("S",), (1, 64), ("bfloat16",), ("compiled",)),
    ("training", ("S",), (128,), ("float32",), ("eager",)),
    ("training", ("L",), (64,), ("float32",), ("eager",)),
    ("training", ("S",), (128,), ("bfloat16",), ("compiled",)),
    ("training", ("L",), (64,), ("bfloat16",), ("compiled",)),
    ("sampling", ("L", "S"), (16, 256), ("float32",), ("eager",)),
    ("sampling", ("LlamaGen-L", "RandAR-L"), (1, 64), ("bfloat16",), ("compiled",)),
    ("sampling", ("L", "S"), (16, 256), ("bfloat16",), ("compiled",)),
    ("sampling", ("L", "S"), (1, 64, 16, 256), ("float32",), ("compiled",)),
)
SMALL_BATCH = 2
TINY = "tiny "  # before the names of tiny models
SMALL_COMPILED = 1  # rows
TINY_AUTOENCODER = LlamaGenVQConfig(n_embed=64, ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, z_channels=32)


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    work: Literal["sampling", "training"]
    model: str  # of SECTIONS, perhaps after TINY
    batch: int
    dtype: str
    mode: Literal["eager", "compiled"]


@dataclass(frozen=True)
class Goal:
    """What a row of model L and this batch size should reach on one H100."""

    text: str
    value: str  # name of the measured value
    batch: int
    dtypes: tuple[str, ...]
    bound: float
    is_least: bool = False  # the value should be at least, not at most ``bound``


GOALS = (
    Goal("L, batch 1: at most 0.10 s an image", "seconds_an_image", 1, ("bfloat16", "float32"), 0.10),
    Goal(
        "L, batch 64, bfloat16: at least 150 decoded images a second",
        "images_a_second",
        64,
        ("bfloat16",),
        150,
        is_least=True,
    ),
    Goal("L, batch 64: GPU idle at most 10 %", "idle", 64, ("bfloat16", "float32"), 0.10),
)


def rows_to_measure(small: bool, compiled: bool) -> list[Row]:
    """Every row, in order; ``small`` has small batches and, of compiled rows, the first: they take long on a CPU."""
    rows = list(dict.fromkeys(_rows(small)))
    most = 0 if not compiled else SMALL_COMPILED if small else len(rows)
    kept = [row for row in rows if row.mode == "compiled"][:most]
    return [row for row in rows if row.mode == "eager" or row in kept]


def _rows(small: bool) -> Iterator[Row]:
    for work, *parts in _PLAN:
        for model, batch, dtype, mode in product(*parts):
            tiny = Row(work, TINY + model, min(batch, SMALL_BATCH), dtype, mode)
            yield tiny if small else Row(work, model, batch, dtype, mode)


def section_of(row: Row, small: bool) -> tuple[dict[str, Any], AutoencoderConfig | None]:
    """The ``model:`` section of a row's model, and the architecture of its autoencoder, None for the usual one."""
    section = SECTIONS[row.model.removeprefix(TINY)]
    return (tiny_section(section["architecture"]), TINY_AUTOENCODER) if small else (section, None)


def tiny_section(architecture: str) -> dict[str, Any]:
    """A model of a family for images of 16 px, with the tiny autoencoder's codes."""
    section = {
        "architecture": architecture,
        "img_size": 4 * TINY_AUTOENCODER.stride,
        "num_classes": 10,
        "llama_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
        },
    }
    known = [f.name for f in fields(family_of(section).load("config"))]
    return section | ({"vocab_size": TINY_AUTOENCODER.n_embed} if "vocab_size" in known else {})
