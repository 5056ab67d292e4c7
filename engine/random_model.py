"""The model of a training configuration with random weights: to try its size and speed, and to draw noise."""

from pathlib import Path

from models.autoencoder import Autoencoder, AutoencoderConfig
from models.checkerboard import Checkerboard, ModelConfig
from models.published import dataclass_from_dict, load_autoencoder, read_yaml


def random_model(path: Path) -> tuple[Checkerboard, bool]:
    """A model in eval mode, its weights drawn from torch's global generator, and whether its autoencoder was there.

    Args:
        path: YAML of the configuration; where the autoencoder's file that it names is missing, one of LlamaGen's size
            and of random weights takes its place.

    Raises:
        UserError: the YAML is missing or holds no model.
    """
    config = dataclass_from_dict(ModelConfig, read_yaml(path).get("model") or {}, str(path))
    weights = config.autoenc.checkpoint_path
    there = weights is not None and Path(weights).is_file()
    autoencoder = load_autoencoder(config.autoenc) if there else Autoencoder(AutoencoderConfig())
    return Checkerboard(config, autoencoder).eval(), there
