"""Names of files in a sample folder, and what its samples.json says of the images before they are drawn."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from models.family import Generator
from runtime.files import hash_file
from sampling.labels import class_names

SETTINGS_NAME, PROGRESS_NAME, NPZ_NAME, CODES_NAME = "samples.json", ".progress", "samples.npz", "codes.npz"
GRID_NAME, MAPS_NAME = "grid.png", "maps.npz"
ENTROPY_NAME, ANIMATION_NAME = "entropy_by_step.png", "animation.gif"
NUMBER = 6 * "[0-9]"
UNUSED_NAME = ".progress.unused"  # progress that is being prepared, or removed
MADE_OF_ALL = (MAPS_NAME, GRID_NAME, ENTROPY_NAME, ANIMATION_NAME, CODES_NAME, NPZ_NAME)
# Moved aside in this order: progress never stays with the settings of others.
OUR_FILES = (PROGRESS_NAME, f"{NUMBER}.png", f"maps_{NUMBER}.png", *MADE_OF_ALL, UNUSED_NAME, SETTINGS_NAME)
# Settings that change no image but by rounding; of files that were read, the hashes count.
UNIMPORTANT = ("batch_size", "compile", "output_dir", "duplicates", "checkpoint", "edit", "mask", "label_file")


def image_name(index: int) -> str:
    return f"{index:06d}.png"


def sample_settings(
    args: Mapping[str, Any], model: Generator, labels: Sequence[int], files: Mapping[str, Path | str | None]
) -> dict[str, Any]:
    """All settings, as JSON takes them.

    Args:
        args: options by name; ``seed`` and ``format`` among them.
        model: draws.
        labels: class of each image.
        files: that are read, by name; their hashes are recorded.
    """
    names = class_names(model)
    return {
        **args,
        **{f"{name}_sha256": None if path is None else hash_file(Path(path)) for name, path in files.items()},
        "resolved_dtype": str(model.dtype).removeprefix("torch."),
        "resolved_device": str(model.device),
        "torch": version("torch"),
        "images": [
            {
                "file": image_name(i) if args["format"] == "png" else None,
                "label": label,
                "class": names[label] if names is not None and label < len(names) else None,
                "seed": args["seed"] + i,
            }
            for i, label in enumerate(labels)
        ],
    }
