"""Entry points of torch.hub: models and autoencoders by a folder, a file, or a name of the Hugging Face hub.

import torch

pipe = torch.hub.load("FOLDER", "pipeline", "pretrained_models/cifar10-checkerboard", source="local")
pipe(class_labels="ship", generator=0).images[0]
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.autoencoder import Autoencoder
    from models.family import Generator
    from sampling import Pipeline

dependencies = ["torch", "torchvision", "numpy", "yaml", "timm", "safetensors", "huggingface_hub", "PIL", "tqdm"]
# torch.hub takes the folder out of the path again, but some modules are imported when they are needed.
sys.path.insert(0, str(Path(__file__).resolve().parent))


def pipeline(path: str, **how: Any) -> "Pipeline":
    """What draws and edits images by the model at ``path``; ``use_ema`` takes averaged weights."""
    from sampling import Pipeline

    return Pipeline.from_pretrained(path, **how)


def model(path: str, **how: Any) -> "Generator":
    """The model at ``path``, in eval mode on the CPU; ``use_ema`` takes averaged weights."""
    from models import load_checkpoint

    return load_checkpoint(path, **how)


def autoencoder(path: str) -> "Autoencoder":
    """The autoencoder at ``path``, or that of the model there."""
    from models import open_autoencoder

    return open_autoencoder(path)
