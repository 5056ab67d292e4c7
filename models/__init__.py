"""Progressive-checkerboard image generation: load a checkpoint, tokenize, score, sample."""

from models.published import load_checkpoint
from models.sampling import sample

__all__ = ["load_checkpoint", "sample"]
