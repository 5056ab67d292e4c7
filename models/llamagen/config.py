"""Settings of LlamaGen's GPT: of the model, and of a drawing. Without torch: --help answers before it is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from models.config import (
    CFG_HELP,
    Drawing,
    GeneratorConfig,
    LlamaGenVQConfig,
    Schedule,
    TransformerConfig,
    at_scale,
)
from runtime.config import option
from runtime.errors import UserError, check_at_least, check_probabilities

STRIDE = 16  # pixels per code of LlamaGen's autoencoder, where none is at hand


@dataclass(frozen=True)
class LlamaConfig(TransformerConfig):
    """Size of the transformer; the defaults are GPT-B."""

    hidden_size: int = 768
    intermediate_size: int = option(2048, "width inside the feed-forward layers")
    num_attention_heads: int = 12
    num_hidden_layers: int = 12

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head_dim % 4:
            raise UserError(
                f"hidden_size {self.hidden_size} over num_attention_heads {self.num_attention_heads} must be a "
                "multiple of 4, for rotary embedding in two dimensions"
            )

    @property
    def ffn_size(self) -> int:
        return self.intermediate_size


@dataclass(frozen=True)
class LlamaGenConfig(GeneratorConfig):
    """The ``model:`` section of a configuration."""

    architecture: Literal["llamagen"] = "llamagen"
    vocab_size: int = option(16384, "V, number of codes; the autoencoder's")
    llama_config: LlamaConfig = option(LlamaConfig, "size of the transformer")
    dropout: float = option(0.1, "in training, of the tokens, and after attention and feed-forward layers")
    drop_path_rate: float = option(
        0.0,
        "in training, probability that an image skips a branch of the last layer, 0 at the first; above 0, only "
        "tokens are dropped out",
    )
    label_drop: float = option(0.1, "probability, in training, that a label is dropped to unconditional")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, self, "vocab_size")
        check_probabilities(self, "dropout", "drop_path_rate", "label_drop")

    def scale_sizes(self, stride: int | None) -> tuple[int, ...]:
        return super().scale_sizes(STRIDE if stride is None else stride)

    def usual_autoencoder(self) -> LlamaGenVQConfig:
        return LlamaGenVQConfig(n_embed=self.vocab_size)

    def drop_path(self, layer: int) -> float:
        """Probability that an image skips a branch of a layer: linear from 0 at the first."""
        return self.drop_path_rate * layer / max(1, self.llama_config.num_hidden_layers - 1)


@dataclass(frozen=True)
class LlamaGenDrawing(Drawing):
    """What decides a drawing."""

    cfg: Schedule = option(1.0, CFG_HELP)
    cfg_interval: int = option(-1, "guide only the first cfg_interval + 2 codes; -1 guides all")

    def check(self, scale_sizes: Sequence[int]) -> None:
        super().check(scale_sizes)
        if at_scale(self.cfg, 0) < 0:
            raise UserError(f"cfg is {self.cfg}; it must not be negative, 0 for no guidance")
        if self.cfg_interval < -1:
            raise UserError(f"cfg_interval is {self.cfg_interval}; it must be -1 (guide every code) or more")

    def guides(self, step: int) -> bool:
        """Whether the code of this step, counted from 0, is guided."""
        return self.uses_cfg and (self.cfg_interval < 0 or step <= self.cfg_interval + 1)
