"""Trim the reference fixtures to what the tests need: ``python tests/make_fixtures.py REFERENCE_FOLDER``.

Kept small on purpose: the averaged weights lose their copy of the frozen autoencoder, the 4x folder loses its averaged
weights, and neither keeps the autoencoder's own weights file, whose content the checkpoint holds too. LlamaGen's and
RandAR's stay whole.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

FIXTURES = Path(__file__).parent / "fixtures"
DROPPED_4X = ("ema_", "logits_P1")


def drop_frozen(ema: dict[str, torch.Tensor], model: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Averaged weights without the autoencoder, which must equal the model's bit by bit."""
    assert all(torch.equal(ema[key], model[key]) for key in model if key.startswith("autoenc."))
    return {key: value for key, value in ema.items() if not key.startswith("autoenc.")}


def trim_checkpoint(source: Path, target: Path, keep_ema: bool) -> None:
    checkpoint: dict[str, Any] = torch.load(source, weights_only=False)  # a file of our own
    ema = drop_frozen(checkpoint["model_ema"], checkpoint["model"]) if keep_ema else None
    torch.save({**checkpoint, "model_ema": ema}, target)


def trim_expected(source: Path, target: Path, dropped: tuple[str, ...]) -> None:
    with np.load(source) as arrays:
        np.savez_compressed(target, **{key: arrays[key] for key in arrays if not key.startswith(dropped)})


def main(reference: Path) -> None:
    for name, keep_ema, dropped in (("tiny-2x", True, ()), ("tiny-4x", False, DROPPED_4X)):
        source, target = reference / name, FIXTURES / name
        (target / "autoenc").mkdir(parents=True, exist_ok=True)
        for file in ("config.yaml", "settings.json", "autoenc/autoencoder_config.yaml"):
            shutil.copyfile(source / file, target / file)
        trim_checkpoint(source / "checkpoint-last.pth", target / "checkpoint-last.pth", keep_ema)
        trim_expected(source / "expected.npz", target / "expected.npz", dropped)
    for name in ("tiny-llamagen", "tiny-npp"):
        (FIXTURES / name).mkdir(exist_ok=True)
        for file in ("checkpoint.pt", "config.yaml", "expected.npz", "settings.json"):
            shutil.copyfile(reference / name / file, FIXTURES / name / file)
    shutil.copytree(reference / "tiny-randar", FIXTURES / "tiny-randar", dirs_exist_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
