"""What the page shows of images and of how they come about, as HTML that needs no other file.

Letters: N images, S side of a scale, H, W sides of images in pixels.
"""

import html
from base64 import b64encode
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import numpy as np
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from models.family import Generator, Samples
from runtime.device import describe_size
from sampling.maps import MapKind, kinds_of_maps, pyramid_images

CRISP_BELOW = 128  # pixels: smaller images are enlarged pixel by pixel, larger ones smoothly
NUMBERED = 8  # S up to which a map of steps has their numbers in it
PALE = 0.22  # opacity of what is not drawn yet
MAX_COLUMNS = 8  # of images
FEW = 4  # images that may be larger on a narrow window
GRADIENT = 9  # colours of a legend


def grid_html(
    images: Tensor,
    captions: Sequence[str],
    chosen: int | None = None,
    passing: bool = False,
    before: Mapping[str, Tensor] | None = None,
) -> str:
    """Images (N, 3, H, W) uint8 as tiles, buttons if one of them is ``chosen``.

    Those that are ``passing``, for a moment only, may be stored with loss. Others by their captions stand ``before``.
    """
    tiles = [
        f'<div class="tile">{_image(image, caption)}<span>{caption}</span></div>'
        for caption, image in (before or {}).items()
    ]
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        shown = f"{_image(image, caption or f'image {index + 1}', passing)}<span>{html.escape(caption)}</span>"
        pressed = f'type="button" data-image="{index}" aria-pressed="{str(index == chosen).lower()}"'
        tiles.append(
            f'<div class="tile">{shown}</div>' if chosen is None else f'<button class="tile" {pressed}>{shown}</button>'
        )
    kind = "tiles few" if len(tiles) <= FEW else "tiles"
    return f'<div class="{kind}" style="--tiles:{_columns(len(tiles))}">{"".join(tiles)}</div>'


def scales_html(samples: Samples, model: Generator, step: int) -> str:
    """Of one image, a column for each scale: its picture once ``step`` is done, and which step draws what.

    Of finished samples, which have them, the probability and entropy of each location too.
    """
    pictures = [_image(scale[0], "") for scale in pyramid_images(samples, model, step)]
    sides = [scale.shape[-1] for scale in samples.step]
    rows = [_row("picture", "", [*pictures, *['<i class="blank"></i>'] * (len(sides) - len(pictures))])]
    rows += [_map_row(kind, step) for kind in kinds_of_maps(samples)]
    heads = "".join(f"<span>{side} x {side}</span>" for side in sides)
    kind = "scales single" if len(sides) == 1 else "scales"
    return (
        f'<div class="{kind}" style="--scales:{len(sides)}"><div class="row heads"><span></span>{heads}</div>'
        f"{''.join(rows)}</div>"
    )


def _row(name: str, legend: str, cells: Sequence[str]) -> str:
    shown = "".join(f'<div class="cell">{cell}</div>' for cell in cells)
    return f'<div class="row"><div class="name">{name}{legend}</div>{shown}</div>'


def _map_row(kind: MapKind, step: int) -> str:
    limit = f"{kind.limit:.3g} {kind.unit}".strip()
    colours = colormaps[kind.colours](np.linspace(0, 1, GRADIENT))
    stops = ", ".join("rgb({} {} {})".format(*(255 * colour[:3]).astype(int)) for colour in colours)
    legend = f'<span class="legend" style="--colours:{stops}"><b>0</b><i></i><b>{limit}</b></span>'
    is_order = kind.name == "step"
    return _row(
        "order" if is_order else kind.name,
        legend,
        [_map(scale[0].float().cpu().numpy(), kind, step if is_order else None) for scale in kind.maps],
    )


def _map(values: np.ndarray, kind: MapKind, step: int | None) -> str:
    """A map (S, S) in colours; of the steps of locations, those after ``step`` are pale. NaN is left out."""
    colours = colormaps[kind.colours](np.nan_to_num(values) / kind.limit)
    colours[..., 3] = np.where(np.isnan(values), 0, 1 if step is None else np.where(values <= step, 1, PALE))
    picture = _uri(Image.fromarray((255 * colours).round().astype(np.uint8)))
    side = len(values)
    if step is None or side > NUMBERED:
        return f'<img class="crisp" src="{picture}" alt="{kind.name}">'
    numbers = []
    for (row, column), value in np.ndenumerate(values):
        ink = "#000" if colours[row, column, :3] @ (0.3, 0.59, 0.11) > 0.5 else "#fff"
        place = f'x="{column + 0.5}" y="{row + 0.5}" opacity="{max(colours[row, column, 3], 0.5)}"'
        numbers.append(f'<text {place} fill="{ink}">{value:.0f}</text>')
    size = min(0.5, 0.16 * side)
    return (
        f'<svg viewBox="0 0 {side} {side}" role="img" aria-label="step of each location" font-size="{size:.3g}">'
        f'<image class="crisp" href="{picture}" width="{side}" height="{side}"/>{"".join(numbers)}</svg>'
    )


def _image(image: Tensor, alt: str, passing: bool = False) -> str:
    """An image (3, H, W) uint8."""
    picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()))
    small = max(picture.size) < CRISP_BELOW
    source = _uri(picture, "JPEG" if passing and not small else "PNG")
    return f'<img class="{"crisp" if small else "smooth"}" src="{source}" alt="{html.escape(alt, quote=True)}">'


def _uri(picture: Image.Image, file_format: str = "PNG") -> str:
    file = BytesIO()
    picture.save(file, file_format)
    return f"data:image/{file_format.lower()};base64,{b64encode(file.getvalue()).decode()}"


def _columns(count: int) -> int:
    """Of rows of images that are equally long, or nearly."""
    return -(-count // -(-count // MAX_COLUMNS))


def say(text: str, done: float | None = None, is_error: bool = False) -> str:
    """A line that says how it stands; ``done`` is the share that is done."""
    bar = "" if done is None else f'<span class="bar"><i style="width:{100 * done:.0f}%"></i></span>'
    kind = 'class="say error" role="alert"' if is_error else 'class="say" role="status"'
    return f"<div {kind}>{html.escape(text)}{bar}</div>" if text else ""


def summary_html(model: Generator) -> str:
    """What a model is, in a line."""
    config = model.config
    scales = " ".join(map(str, model.scale_sizes))
    classes = f"{config.num_classes} classes" if config.class_cond else "no classes"
    parts = [
        config.architecture,
        f"{config.img_size} px",
        f"{'scales' if len(model.scale_sizes) > 1 else 'scale'} {scales}",
        classes,
        describe_size(model),
    ]
    return f'<div class="about">{" · ".join(map(html.escape, parts))}</div>'


def downloads_html(folder: Path, names: Mapping[str, str]) -> str:
    """Links to files of a folder, by what they are called."""
    links = "".join(
        f'<a href="gradio_api/file={quote(str((folder / name).resolve()))}" download="{folder.name}-{name}">{said}</a>'
        for said, name in names.items()
    )
    return f'<div class="downloads">{links}</div>'
