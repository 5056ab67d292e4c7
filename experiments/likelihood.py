"""Measure how likely held-out images are to a model, by teacher forcing, without sampling noise.

    python -m experiments.likelihood --checkpoint output/llamagen_cifar10 --data_path data/cifar10

prints nats a token, perplexity, accuracy of the likeliest code and expected calibration error (15 bins). The images are
those in val/ or test/, as centre crops; the tokens are those of all scales.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.options import DatasetName
from runtime.command import run
from runtime.config import option, parse_flags
from runtime.errors import UserError, check_at_least
from runtime.files import write_json


@dataclass(frozen=True)
class LikelihoodArgs:
    """What to measure."""

    checkpoint: str | None = option(None, "checkpoint file, or the folder holding checkpoint-last.pth")
    use_ema: bool = option(False, "take the averaged weights of the checkpoint")
    dataset: DatasetName = option("folder", "folder (class folders of images), cifar10, food101, celeba or digits")
    data_path: str = option("data/cifar10", "root of the dataset, with val/ or test/")
    order: Literal["own", "raster", "random"] = option(
        "own", "order of the codes: the model's own, or for randar raster or a permutation an image"
    )
    seed: int = option(0, "of random orders")
    num_images: int = option(0, "images evenly spaced over all; 0 takes all")
    batch_size: int = option(64, "images at once")
    device: str = option("auto", "auto, cuda, mps or cpu")
    output_file: str | None = option(None, "JSON file to write")

    def __post_init__(self) -> None:
        check_at_least(0, self, "num_images")
        check_at_least(1, self, "batch_size")


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "experiments.likelihood", __doc__, LikelihoodArgs)
    if args.checkpoint is None:
        raise UserError("name the --checkpoint to measure")
    found, num_images = measure(args)
    place = args.data_path if args.dataset == "folder" else args.dataset
    print(
        f"{found['nats_per_token']:.4f} nats a token, perplexity {found['perplexity']:.1f}, accuracy "
        f"{found['accuracy']:.2%}, calibration error {found['ece']:.2%}, on {num_images} held-out images of {place}"
    )
    if args.output_file is not None:
        settings = {"checkpoint": args.checkpoint, "order": args.order, "seed": args.seed, "num_images": num_images}
        write_json(Path(args.output_file), found | settings)


def measure(args: LikelihoodArgs) -> tuple[dict[str, float], int]:
    """What ``CodeScores`` finds, and of how many images."""
    import torch  # takes seconds
    from tqdm import tqdm

    from evaluation.likelihood import CodeScores, evenly_spaced, held_out_images
    from models.loading.checkpoint import load_checkpoint
    from runtime.device import pick_device

    model = load_checkpoint(args.checkpoint, args.use_ema).to(pick_device(args.device))
    if args.order != "own":
        model.check_takes_order()
    if model.autoencoder is None:
        raise UserError(f"{args.checkpoint} has no autoencoder, so no images can be scored; name it in its config.yaml")
    crops = held_out_images(model, args.dataset, args.data_path)
    count = min(args.num_images or len(crops), len(crops))
    scores, rng = CodeScores(), torch.Generator(model.device).manual_seed(args.seed)
    with torch.inference_mode(), tqdm(total=count, unit="image", desc="scoring", leave=None) as bar:
        for pixels, labels in evenly_spaced(crops, count, args.batch_size):
            codes = model.tokenize(pixels.to(model.device))
            order = _order(args.order, len(labels), model.num_locations, rng)
            scores.add(*model.score(codes, labels.to(model.device), order, rng))
            bar.update(len(labels))
    return scores.results(), count


def _order(name: str, batch: int, num_locations: int, rng: Any) -> Any:
    """(B, L) raster indices in the order to score them; None for the model's own."""
    import torch

    if name == "own":
        return None
    if name == "raster":
        return torch.arange(num_locations, device=rng.device).expand(batch, -1)
    return torch.rand(batch, num_locations, device=rng.device, generator=rng).argsort(dim=1)


if __name__ == "__main__":
    run(main)
