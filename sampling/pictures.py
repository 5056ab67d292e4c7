"""Images as files hold them."""

from pathlib import Path

from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

MIN_GRID_SIDE = 64  # pixels; each image of a grid has at least as many, or nearly


def save_png(image: Tensor, path: Path) -> None:
    """Write one uint8 image (3, H, W)."""
    Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(path)


def save_grid(images: Tensor, path: Path, columns: int) -> None:
    """Write uint8 images (B, 3, H, W) as one picture, row by row; small ones enlarged by a whole factor."""
    factor = max(1, MIN_GRID_SIDE // images.shape[-1])
    images = images.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)
    save_png(make_grid(images, nrow=columns, padding=2), path)
