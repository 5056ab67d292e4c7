"""Train a VQ autoencoder, from scratch or from given weights, or a new codebook for one that is kept.

    python train_ae_codebook/main.py --config train_ae_codebook/config_digits.yaml
    python train_ae_codebook/main.py --config train_ae_codebook/config_requantize.yaml

The same command again goes on where the run stopped. A configuration with a section requantize: trains a codebook,
one with vqvae: the small VQ-VAE of the CIFAR-10 random-order baseline; --help after it lists the options of that.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, the project is not on the path

from models.config import LlamaGenVQConfig, VQVAEConfig
from runtime.command import run
from runtime.config import given_text, parse_config, read_yaml
from runtime.files import located
from train_ae_codebook.options import AutoencoderArgs, RequantizeArgs, VQVAEArgs

WHOLE = {"model": LlamaGenVQConfig, "args": AutoencoderArgs}
OTHERS = {  # by the section that tells
    "requantize": {"requantize": RequantizeArgs},
    "vqvae": {"vqvae": VQVAEConfig, "args": VQVAEArgs},
}


def main(argv: Sequence[str]) -> None:
    path = given_text(argv, "config")
    content = {} if path is None else read_yaml(located(path))
    sections = next((others for section, others in OTHERS.items() if section in content), WHOLE)
    settings, name = parse_config(argv, "train_ae_codebook/main.py", __doc__, sections)
    from train_ae_codebook.job import train_autoencoder  # takes seconds to import

    train_autoencoder(settings, name)


def command() -> None:
    """``checkerboard-autoencoder``."""
    run(main)


if __name__ == "__main__":
    command()
