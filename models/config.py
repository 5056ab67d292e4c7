"""Settings that all families share, without torch: --help answers before it is loaded.

A family is named by ``architecture`` in a configuration's ``model:`` section; ``FAMILIES`` says where its parts are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import inf
from pkgutil import resolve_name
from typing import Any, ClassVar, Literal, Self

from runtime.config import option
from runtime.errors import UserError, check_at_least, check_at_most

DEFAULT_FAMILY = "checkerboard"
FFN_MULTIPLE = 256
MIN_TEMPERATURE = 1e-4  # below it, logits divided by it overflow
MIN_TOP_P = 1e-6  # far below any use; far smaller ones are 0 in float32
MAX_SIDE, MAX_LAYERS = 2**14, 1000  # pixels of an image, layers
MAX_CFG = 1000  # far beyond any use; logits multiplied by much more overflow
NORM_GROUPS = 32  # of the published autoencoders' group normalization
NUM_SEEDS = 2**32  # torch's generator on the CPU tells no more apart
Schedule = float | tuple[float, ...]  # one value, or one for each scale


@dataclass(frozen=True)
class AutoencoderConfig:
    """What every kind of autoencoder has; the kinds are told apart by their weights."""

    embed_dim: int = option(8, "C, dimension of a code's latent")
    n_embed: int = option(4096, "V, number of codes")

    @property
    def stride(self) -> int:
        """Pixels per code along a side."""
        raise NotImplementedError


@dataclass(frozen=True)
class ConvolutionalConfig(AutoencoderConfig):
    """What LlamaGen's autoencoder and MaskGIT's share: levels, each of half the resolution of the one before."""

    ch: int = option(128, "channels at full resolution, a multiple of 32")
    ch_mult: tuple[int, ...] = option((1, 1, 2, 2, 4), "channel multiplier of each level, full resolution first")
    num_res_blocks: int = option(2, "residual blocks a level")

    norm_groups: ClassVar[int] = NORM_GROUPS

    def __post_init__(self) -> None:
        check_at_least(1, self, "embed_dim", "n_embed", "ch", "num_res_blocks")
        if not self.ch_mult or min(self.ch_mult) < 1:
            raise UserError(f"ch_mult is {list(self.ch_mult)}; name a multiplier of 1 or more for each level")
        if any(self.ch * mult % self.norm_groups for mult in self.ch_mult):
            raise UserError(
                f"autoencoder ch {self.ch} must be a multiple of {self.norm_groups}, for its group normalization"
            )

    @property
    def stride(self) -> int:
        return 2 ** (len(self.ch_mult) - 1)


@dataclass(frozen=True)
class LlamaGenVQConfig(ConvolutionalConfig):
    """Architecture of LlamaGen's autoencoder; the defaults are its VQ-16 with the paper's codebook."""

    num_res_blocks: int = option(2, "residual blocks a level in the encoder; the decoder has one more")
    z_channels: int = option(256, "channels between encoder or decoder and the 1x1 convolutions at the codebook")
    norm_groups: int = option(
        NORM_GROUPS, "groups of channels that are normalized together; with one channel a group, colours fade"
    )

    def __post_init__(self) -> None:
        check_at_least(1, self, "z_channels", "norm_groups")
        super().__post_init__()


@dataclass(frozen=True)
class MaskGITVQConfig(ConvolutionalConfig):
    """Architecture of MaskGIT's tokenizer; the defaults are the released one's."""

    embed_dim: int = 256
    n_embed: int = 1024


@dataclass(frozen=True)
class VQVAEConfig(AutoencoderConfig):
    """Architecture of the small VQ-VAE; the defaults are those of the CIFAR-10 random-order baseline."""

    embed_dim: int = 64
    n_embed: int = 512
    channels: int = option(128, "channels inside, even")
    residual_channels: int = option(32, "channels inside the residual layers")
    num_residual_layers: int = option(2, "residual layers of the encoder, and as many of the decoder")

    def __post_init__(self) -> None:
        check_at_least(1, self, "embed_dim", "n_embed", "residual_channels")
        check_at_least(0, self, "num_residual_layers")
        if self.channels < 2 or self.channels % 2:
            raise UserError(f"channels is {self.channels}; it must be even and at least 2")

    @property
    def stride(self) -> int:
        return 4


@dataclass(frozen=True)
class AutoencoderPaths:
    """Files of the frozen autoencoder, or their folder as ``checkpoint_path``.

    Relative paths are tried from the configuration's folder, from here, then from the project's folder; beside a
    checkpoint from its folder, then from the project's and from here, and they lie in one of these.
    """

    config_path: str | None = option(None, "YAML of the architecture; without one it is read off the weights")
    checkpoint_path: str | None = option(None, "weights, LlamaGen's, MaskGIT's, a VQ-VAE's or ours; or their folder")
    params: dict[str, Any] = option(dict, "settings that override the YAML's")

    @staticmethod
    def of_text(path: str) -> dict[str, Any]:
        """What a path alone means: the folder of an autoencoder or of a run, or weights."""
        return {"config_path": None, "checkpoint_path": path}


@dataclass(frozen=True)
class TransformerConfig:
    """Size of the transformer; the defaults are the paper's S model."""

    hidden_size: int = option(512, "D, width of a token")
    intermediate_size: int = option(1536, "width inside the feed-forward layers, rounded up to a multiple of 256")
    num_attention_heads: int = option(16, "heads of attention; must divide hidden_size into an even head dimension")
    num_hidden_layers: int = option(12, "transformer layers")

    def __post_init__(self) -> None:
        if min(self.hidden_size, self.intermediate_size, self.num_attention_heads, self.num_hidden_layers) < 1:
            raise UserError(f"every size of llama_config must be at least 1: {self}")
        check_at_most(MAX_LAYERS, self, "num_hidden_layers")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise UserError(
                f"hidden_size {self.hidden_size} must be a multiple of 2 * num_attention_heads "
                f"({2 * self.num_attention_heads}), so that rotary halves match; change one of them"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def ffn_size(self) -> int:
        return -(-self.intermediate_size // FFN_MULTIPLE) * FFN_MULTIPLE


@dataclass(frozen=True)
class GeneratorConfig:
    """What every family's ``model:`` section holds."""

    architecture: str = option(DEFAULT_FAMILY, "family of the model")
    img_size: int = option(256, "side of the images, in pixels")
    class_cond: bool = option(True, "condition on class labels; false trains one unconditional model")
    num_classes: int = option(1000, "number of classes; 0, in training, for as many as the data has")
    autoenc: AutoencoderPaths = option(AutoencoderPaths, "the autoencoder's folder, or a run's; or its files, as below")

    def __post_init__(self) -> None:
        check_at_least(1, self, "img_size")
        check_at_least(0, self, "num_classes")
        check_at_most(MAX_SIDE, self, "img_size")  # of what others' files may say, and no memory holds

    def scale_sizes(self, stride: int | None) -> tuple[int, ...]:
        """Sides of the code maps, ascending, or a UserError if there are none.

        ``stride`` is pixels per code; None of a family without an autoencoder, which has a stride of its own.
        """
        side, rest = divmod(self.img_size, stride)
        if rest or side < 1:
            raise UserError(
                f"img_size {self.img_size} is not a multiple of the autoencoder's stride {stride}; change img_size"
            )
        return (side,)

    def sequence_length(self, stride: int | None) -> int:
        """Tokens that training computes of an image: the codes of all scales."""
        return sum(side * side for side in self.scale_sizes(stride))

    @property
    def order_share(self) -> int:
        """What an image takes for an order of its own while it is drawn, as a multiple of its keys and values."""
        return 0

    def usual_autoencoder(self) -> AutoencoderConfig:
        """Architecture of the one that the family's released models have."""
        return LlamaGenVQConfig()

    def canonical(self) -> Self:
        """The same model, settings that can be spelled in several ways in one: what two runs are compared by."""
        return self


def check_seed(seed: int, name: str) -> None:
    """Refuse a number that decides all images and that torch would take for another one."""
    if not 0 <= seed < NUM_SEEDS:
        raise UserError(f"{name} is {seed}; it must lie between 0 and 2**32 - 1")


CFG_HELP = "guidance, cond + cfg * (cond - uncond); 0 is off. A list has one value a scale."
CHECKPOINT_HELP = "checkpoint file, its folder, or its name on the Hugging Face hub (owner/name)"


@dataclass(frozen=True)
class Drawing:
    """What decides a drawing of any family, beside labels and seeds."""

    cfg: Schedule = option(1.5, CFG_HELP)
    temperature: Schedule = option(1.0, "divides the logits; 0 takes the likeliest code. A list has one value a scale.")
    top_k: int = option(0, "codes kept at each draw; 0 keeps all")
    top_p: float = option(1.0, "probability mass kept at each draw; 1 keeps all")

    def sampled_sizes(self, scale_sizes: Sequence[int]) -> tuple[int, ...]:
        """Sides of the code maps that are drawn by a model of these."""
        return tuple(scale_sizes)

    def check(self, scale_sizes: Sequence[int]) -> None:
        """Refuse settings that make no sense for a model by a UserError, before anything is spent on them."""
        for name in ("cfg", "temperature"):
            values = getattr(self, name)
            if isinstance(values, Sequence) and len(values) != len(scale_sizes):
                raise UserError(
                    f"{name} has {len(values)} values; give one number, or one for each of the scales "
                    f"{', '.join(map(str, scale_sizes))}"
                )
        for temperature in _values(self.temperature):
            if not (temperature == 0 or MIN_TEMPERATURE <= temperature < inf):
                raise UserError(
                    f"temperature is {temperature}; it must be 0 (likeliest code), or {MIN_TEMPERATURE} or more"
                )
        for cfg in _values(self.cfg):
            if not abs(cfg) <= MAX_CFG:
                raise UserError(f"cfg is {cfg}; it must lie between -{MAX_CFG} and {MAX_CFG}, 0 for no guidance")
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}; it must be 0 (keep all) or more")
        if not MIN_TOP_P <= self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; it must be at least {MIN_TOP_P} and at most 1 (keep all)")

    def warnings(self, scale_sizes: Sequence[int]) -> list[str]:
        """Settings that are allowed and have no effect, a sentence each."""
        return []

    @property
    def uses_cfg(self) -> bool:
        return any(_values(self.cfg))

    @property
    def changed(self) -> dict[str, Any]:
        """The settings that are not as by default."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value != getattr(type(self), name)}

    @property
    def label(self) -> str:
        """Names a folder of results: guidance, and what else is not as by default."""
        return self.label_without()

    def label_without(self, *names: str) -> str:
        """The label but for these settings, which a family names in a way of its own."""
        values = {"cfg": self.cfg, **self.changed}
        return "-".join(f"{name}{_short(value)}" for name, value in values.items() if name not in names)


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_short, value))
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _values(schedule: Schedule) -> list[float]:
    """All values of a setting."""
    return [float(value) for value in (schedule if isinstance(schedule, Sequence) else [schedule])]


def at_scale(schedule: Schedule, scale: int) -> float:
    """A setting's value at the scale of this index."""
    return float(schedule[scale] if isinstance(schedule, Sequence) else schedule)


@dataclass(frozen=True)
class Family:
    """Where the parts of a family are, each as ``module:name``: the first two import no torch."""

    config: str  # a ``GeneratorConfig``
    drawing: str  # a ``Drawing``
    generator: str  # a ``Generator``
    published: str | None = None  # a ``PublishedLayout``, if there is one

    def load(self, part: Literal["config", "drawing", "generator", "published"]) -> Any:
        where = getattr(self, part)
        return None if where is None else resolve_name(where)


FAMILIES = {
    "checkerboard": Family(
        config="models.checkerboard.config:CheckerboardConfig",
        drawing="models.checkerboard.config:CheckerboardDrawing",
        generator="models.checkerboard.model:Checkerboard",
        published="models.loading.checkerboard:LAYOUT",
    ),
    "llamagen": Family(
        config="models.llamagen.config:LlamaGenConfig",
        drawing="models.llamagen.config:LlamaGenDrawing",
        generator="models.llamagen.model:LlamaGen",
        published="models.loading.llamagen:LAYOUT",
    ),
    "randar": Family(
        config="models.randar.config:RandARConfig",
        drawing="models.randar.config:RandARDrawing",
        generator="models.randar.model:RandAR",
        published="models.loading.randar:LAYOUT",
    ),
}


def family_of(model_section: Any) -> Family:
    """The family that a ``model:`` section names; without a name, or if it is no section at all, the checkerboard."""
    section = model_section if isinstance(model_section, Mapping) else {}
    name = section.get("architecture", DEFAULT_FAMILY)
    if name not in list(FAMILIES):
        raise UserError(f"architecture {name} is unknown; known are {', '.join(FAMILIES)}")
    return FAMILIES[name]
