"""What evaluate.py does once its arguments are understood.

Letters: N images, B of a batch, H, W their sides in pixels.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data.crops import to_uint8
from data.images import CroppedImages, open_dataset
from evaluation.compare import warn, with_count
from evaluation.features.network import Network, load_network
from evaluation.image_files import Images
from evaluation.image_sets import compute_features, warnings_of
from evaluation.metrics import Statistics, frechet_distance
from evaluation.options import NetworkArgs
from models.autoencoder import Autoencoder
from models.loading.autoencoder import open_autoencoder
from runtime.device import pick_device
from runtime.errors import UserError
from runtime.files import write_json
from train_ae_codebook.measure import BATCH, SHOWN_IMAGES, ScaleMetrics, held_out_batches, measure_scales, save_pyramid
from train_ae_codebook.options import EvaluateArgs

FORMATS = {"psnr": "{:.2f}", "ssim": "{:.4f}", "l1": "{:.4f}", "usage": "{:.1%}", "perplexity": "{:.1f}"}


def evaluate(args: EvaluateArgs) -> None:
    """Judge an autoencoder; print and write what was found."""
    device = pick_device(args.device)
    autoencoder = open_autoencoder(args.autoencoder).to(device)
    data = CroppedImages(open_dataset(args.dataset, args.data_path, args.img_size, args.split), args.img_size, "center")
    full, rest = divmod(args.img_size, autoencoder.config.stride)
    if rest:
        raise UserError(f"img_size {args.img_size} is no multiple of the autoencoder's {autoencoder.config.stride}")
    inception = load_inception(args, device)
    sides = args.scale_sizes or sorted({round(full / 2**i) for i in range(full.bit_length() + 1)} - {0})
    count = min(args.num_images or len(data), len(data))
    batches = iter(tqdm(held_out_batches(data, count), total=-(-count // BATCH), unit="batch"))
    by_side, num_used = measure_scales(autoencoder, batches, sides, with_ssim=True)
    print(f"{args.autoencoder} on {count} images ({args.split}) of {data.images.name}")
    print(table(by_side))
    print(f"{num_used} of {autoencoder.config.n_embed} codes occur at some scale")
    rfid: dict[str, Any] = {}
    if inception is not None:
        name, value, warnings = measure_rfid(autoencoder, data, count, inception)
        warn(warnings)
        print(f"{name}: {value:.6g}")
        rfid = {name: value, "inception_sha256": inception.sha256, "versions": inception.versions}
    if args.grid is not None:
        Path(args.grid).parent.mkdir(parents=True, exist_ok=True)
        shown = torch.cat(list(held_out_batches(data, min(count, SHOWN_IMAGES))))
        save_pyramid(autoencoder, shown.to(device), sides, Path(args.grid))
    if args.output_file is not None:
        scales = {str(side): asdict(found) for side, found in by_side.items()}
        Path(args.output_file).parent.mkdir(parents=True, exist_ok=True)
        content = {"settings": asdict(args), "images": count, "n_embed": autoencoder.config.n_embed}
        write_json(Path(args.output_file), content | {"used_codes": num_used, "scales": scales} | rfid)


def load_inception(args: EvaluateArgs, device: torch.device) -> Network | None:
    """The network whose weights are named, if any."""
    if args.inception_weights is None and args.inception_graph is None:
        return None
    backend = "tensorflow" if args.inception_weights is None else "torch"
    weights = {"inception_graph": args.inception_graph, "inception_weights": args.inception_weights}
    return load_network(NetworkArgs(backend=backend, **weights), device)


def table(by_side: Mapping[int, ScaleMetrics]) -> str:
    """What was measured at each side of a code map, a line each, as Markdown."""
    names = [field.name for field in fields(ScaleMetrics)]
    rows = [["scale", *names], ["---"] * (1 + len(names))]
    for side, found in by_side.items():
        values = [(name, getattr(found, name)) for name in names]
        cells = ["-" if value is None else FORMATS.get(name, "{:.5f}").format(value) for name, value in values]
        rows.append([str(side), *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


# rFID: the Fréchet distance between Inception's features of full-size images and of their reconstructions


class EightBitImages(Images):
    """Images of a data set of crops as evaluation takes them, evenly spaced over it.

    Args:
        data: the crops.
        count: N.
        autoencoder: its reconstructions are taken instead; None takes the images as they are.
    """

    def __init__(self, data: CroppedImages, count: int, autoencoder: Autoencoder | None = None) -> None:
        self.data, self.autoencoder = data, autoencoder
        self.path = Path("originals" if autoencoder is None else "reconstructions")
        self.shape = (count, data.size, data.size)

    @torch.no_grad()
    def batches(self, size: int) -> Iterator[np.ndarray]:
        for images in held_out_batches(self.data, self.shape[0], size):
            if self.autoencoder is not None:
                latents = self.autoencoder.encode(images.to(self.autoencoder.quantize.embedding.device))
                images = self.autoencoder.decode(self.autoencoder.quantize_latents(latents))
            yield np.ascontiguousarray(to_uint8(images).permute(0, 2, 3, 1).cpu().numpy())


def measure_rfid(
    autoencoder: Autoencoder, data: CroppedImages, count: int, inception: Network
) -> tuple[str, float, list[str]]:
    """The distance's name, which tells the number of images below 50,000, its value, and what is doubtful about it.

    Raises:
        UserError: one image has no covariance.
    """
    if count < 2:
        raise UserError("rFID needs at least 2 images; raise num_images, or leave the Inception weights out")
    statistics, warnings = [], []
    for images in (EightBitImages(data, count), EightBitImages(data, count, autoencoder)):
        found = compute_features(images, inception, BATCH)
        statistics.append(Statistics.of_names(found, inception.key_suffixes[0]))
        warnings += warnings_of(images, found, inception)
    return with_count("rFID", count), frechet_distance(*statistics), warnings
