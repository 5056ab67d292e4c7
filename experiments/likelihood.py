"""Measure how likely held-out images are to a model, by teacher forcing, without sampling noise.

    python -m experiments.likelihood --checkpoint output/llamagen_cifar10 --data_path data/cifar10

prints nats a token, perplexity, accuracy of the likeliest code and expected calibration error (15 bins), of all scales
and of the finest. The images are those in val/ or test/, as centre crops. Codes of one block do not see each other: the
likelihood of a checkerboard depends on its steps per scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.options import DatasetName
from models.config import CHECKPOINT_HELP
from runtime.command import run
from runtime.config import option, parse_flags
from runtime.errors import UserError, check_at_least
from runtime.files import prepare_output, write_json


@dataclass(frozen=True)
class LikelihoodArgs:
    """What to measure."""

    checkpoint: str | None = option(None, CHECKPOINT_HELP)
    use_ema: bool = option(False, "take the averaged weights of the checkpoint")
    dataset: DatasetName = option("folder", "folder (images of your own), cifar10, food101, celeba or digits")
    data_path: str = option("data/cifar10", "root of the dataset, whose held-out images are taken")
    order: Literal["own", "raster", "random"] = option(
        "own", "order of the codes: the model's own, or for randar raster or a permutation an image"
    )
    steps_per_scale: int | None = option(None, "of a checkerboard: steps that a scale is drawn in; default 4")
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
    prepare_output(args.output_file)
    found, finest, num_images = measure(args)
    place = args.data_path if args.dataset == "folder" else args.dataset
    print(f"{_line(found)}, on {num_images} held-out images of {place}")
    if finest != found:
        print(f"of them the finest scale: {_line(finest)}")
    if args.output_file is not None:
        names = ("checkpoint", "use_ema", "dataset", "data_path", "order", "steps_per_scale", "seed")
        settings = {name: getattr(args, name) for name in names} | {"num_images": num_images}
        write_json(Path(args.output_file), found | {"finest_scale": finest} | settings)


def _line(found: dict[str, float]) -> str:
    return (
        f"{found['nats_per_token']:.4f} nats a token, perplexity {found['perplexity']:.1f}, accuracy "
        f"{found['accuracy']:.2%}, calibration error {found['ece']:.2%}"
    )


def measure(args: LikelihoodArgs) -> tuple[dict[str, float], dict[str, float], int]:
    """What ``CodeScores`` finds of all scales and of the finest, and of how many images."""
    import torch  # takes seconds

    from evaluation.likelihood import CodeScores, evenly_spaced, held_out_images
    from models.loading.checkpoint import load_checkpoint
    from models.sampling import checked_drawing
    from models.scales import scale_slices
    from runtime.device import pick_device
    from runtime.progress import Progress

    model = load_checkpoint(args.checkpoint, args.use_ema).to(pick_device(args.device))
    if args.order != "own":
        model.check_takes_order()
    if model.autoencoder is None:
        raise UserError(f"{args.checkpoint} has no autoencoder, so no images can be scored; name it in its config.yaml")
    drawing = (
        None if args.steps_per_scale is None else checked_drawing(model, {"steps_per_scale": args.steps_per_scale})
    )
    crops = held_out_images(model, args.dataset, args.data_path)
    count = min(args.num_images or len(crops), len(crops))
    scores, of_finest, rng = CodeScores(), CodeScores(), torch.Generator(model.device).manual_seed(args.seed)
    finest = scale_slices(model.scale_sizes)[-1]  # in the order drawn, too, for scales are drawn in turn
    with torch.inference_mode(), Progress(total=count, unit="image", desc="scoring", leave=None) as bar:
        for pixels, labels in evenly_spaced(crops, count, args.batch_size):
            codes = model.tokenize(pixels.to(model.device))
            order = _order(args.order, len(labels), model.num_locations, rng)
            logits, targets = model.score(codes, labels.to(model.device), order, rng, drawing)
            scores.add(logits, targets)
            of_finest.add(logits[:, finest], targets[:, finest])
            bar.update(len(labels))
    return scores.results(), of_finest.results(), count


def _order(name: str, batch: int, num_locations: int, rng: Any) -> Any:
    """(B, L) raster indices in the order to score them; None for the model's own."""
    import torch

    from models.scales import raster_order

    if name == "own":
        return None
    if name == "raster":
        return raster_order(batch, num_locations, rng.device)
    return torch.rand(batch, num_locations, device=rng.device, generator=rng).argsort(dim=1)


if __name__ == "__main__":
    run(main)
