"""Pictures on the disk: a kill or a full disk leaves the one that was there."""

from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import UserError
from runtime.files import prepare_output, whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

DPI = 110  # pixels an inch


def save_figure(figure: "Figure", path: str | Path, dpi: int = DPI) -> None:
    """Write a figure of matplotlib, and its folder where there is none; UserError: no kind of picture ends so."""
    path = Path(path)
    if path.suffix[1:].lower() not in figure.canvas.get_supported_filetypes():
        raise UserError(f"{path} names no kind of picture; let it end in .png, .svg or .pdf")
    prepare_output(path)
    with whole(path) as temporary:
        figure.savefig(temporary, dpi=dpi)


def save_image(image: "Image", path: Path) -> None:
    """Write an image of Pillow."""
    with whole(path) as temporary:
        image.save(temporary)
