"""Data for tests of the data side: drawn pictures, folders of them, and numbered images in memory."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from data.files import UnreadableImageError
from data.labelled_images import LabelledImages

# (width, height): landscape, portrait, square, smaller than the crop, large enough to be halved, odd sides.
SIZES = ((60, 45), (41, 70), (48, 48), (20, 31), (181, 140), (97, 99))


def picture(width: int, height: int, seed: int) -> Image.Image:
    """Waves, a disc with a sharp edge, and grain: every crop and every pixel shift of it differs."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width][..., None]
    waves = x * rng.uniform(-0.3, 0.3, 3) + y * rng.uniform(-0.3, 0.3, 3) + rng.uniform(0, 6, 3)
    image = Image.fromarray((128 + 100 * np.sin(waves)).astype(np.uint8))
    box = (0.2 * width, 0.3 * height, 0.6 * width, 0.8 * height)
    ImageDraw.Draw(image).ellipse(box, fill=tuple(rng.integers(256, size=3).tolist()))
    grain = rng.normal(0, 12, (height, width, 3))
    return Image.fromarray((np.array(image) + grain).clip(0, 255).astype(np.uint8))


def write_pictures(root: Path, counts: dict[str, int], sizes: Sequence[tuple[int, int]] = SIZES) -> list[Path]:
    """Files CLASS/NUMBER of so many pictures of each class, JPEG and PNG in turn; return them in sorted order."""
    paths = []
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            path = root / name / f"{number:03d}.{('jpg', 'png')[number % 2]}"
            picture(*sizes[len(paths) % len(sizes)], seed=len(paths)).save(path)
            paths.append(path)
    return sorted(paths)


def damage(path: Path, how: str) -> None:
    """Make an image unreadable: ``truncated``, ``text``, ``empty`` or ``gone`` (a link to nowhere)."""
    content = path.read_bytes()
    path.unlink()
    if how == "gone":
        path.symlink_to(path.parent / "nowhere")
    else:
        path.write_bytes({"truncated": content[: len(content) // 2], "text": b"not an image", "empty": b""}[how])


class NumberedImages(LabelledImages):
    """Grey images of their own index, some of them unreadable; each is a class of its own."""

    def __init__(self, number: int, unreadable: set[int]) -> None:
        self.broken = unreadable
        super().__init__("numbered", [str(i) for i in range(number)], range(number), [str(i) for i in range(number)])

    def read(self, index: int) -> Image.Image:
        if index in self.broken:
            raise UnreadableImageError(f"image {index} is broken")
        return Image.new("RGB", (8, 8), (index % 256,) * 3)

    def checksum(self, index: int) -> int:
        return index
