"""How well an autoencoder represents images at each scale, and pictures of it.

Letters: B batch, C code dimension, H, W image sides in pixels, S side of a code map, V codes.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity
from torch import Tensor
from torch.utils.data import Dataset

from data.crops import from_floats
from data.images import CroppedImages, open_dataset
from evaluation.compare import warn, with_count
from evaluation.features.classifier import Classifier
from evaluation.features.network import Network, load_network
from evaluation.image_files import Images
from evaluation.image_sets import compute_features, warnings_of
from evaluation.metrics import Statistics, frechet_distance
from evaluation.options import NetworkArgs
from models.autoencoder import Autoencoder, resize_image, to_uint8
from models.loading.autoencoder import open_autoencoder
from runtime.device import exact_float32, pick_device
from runtime.errors import UserError
from runtime.files import prepare_output, write_json
from runtime.progress import Progress
from sampling.pictures import save_grid
from train_ae_codebook.codebook import perplexity
from train_ae_codebook.options import EvaluateArgs

BATCH = 32
SHOWN_IMAGES = 16
MAX_HELD_OUT = 1000  # evenly spaced over the validation images
SSIM_WINDOW = 7  # pixels of the library's uniform window
SMALLEST_ERROR = 1e-10  # mean square, so that an exact reconstruction has 100 dB
# How a table shows each of ``ScaleMetrics``.
FORMATS = {"psnr": ".2f", "ssim": ".4f", "l1": ".4f", "quantization_error": ".5f", "usage": ".1%", "perplexity": ".1f"}


@dataclass(frozen=True)
class ScaleMetrics:
    """What one scale of the pyramid keeps of the images, resized to its own number of pixels."""

    psnr: float  # mean over images, in dB
    ssim: float | None  # mean over images; None of images too small for its window of 7 pixels, or not asked for
    l1: float  # mean absolute error of pixels in [-1, 1]
    quantization_error: float  # mean square distance of latents from their codes, a component
    usage: float  # share of the codes that occur
    perplexity: float  # exp of the entropy of the codes' frequencies


def evaluate(args: EvaluateArgs) -> None:
    """What evaluate.py does: judge an autoencoder; print and write what was found."""
    for file in (args.grid, args.output_file):
        prepare_output(file)
    device = pick_device(args.device)
    autoencoder = open_autoencoder(args.autoencoder).to(device)
    data = CroppedImages(open_dataset(args.dataset, args.data_path, args.img_size, args.split), args.img_size, "center")
    full, rest = divmod(args.img_size, autoencoder.config.stride)
    if rest:
        raise UserError(f"img_size {args.img_size} is no multiple of the autoencoder's {autoencoder.config.stride}")
    weights, inception = {name: getattr(args, name) for name in ("inception_weights", "inception_graph")}, None
    if any(weights.values()):
        backend = "torch" if args.inception_graph is None else "tensorflow"
        inception = load_network(NetworkArgs(backend=backend, **weights), device)
    sides = args.scale_sizes or sorted({round(full / 2**i) for i in range(full.bit_length() + 1)} - {0})
    count = min(args.num_images or len(data), len(data))
    originals, labels = EightBitImages(data, count), np.array([])
    if count < 2 and (args.features is not None or inception is not None):
        raise UserError("distances need at least 2 images; raise num_images, or measure no features")
    classifier = None if args.features is None else Classifier(args.features, device)
    if classifier is not None:
        labels = originals.labels(classifier.class_names)
    batches = Progress(held_out_batches(data, count), total=-(-count // BATCH), unit="batch")
    by_side, num_used = measure_scales(autoencoder, batches, sides, with_ssim=True)
    data.check_all_readable()
    print(f"{args.autoencoder} on {count} images ({args.split}) of {data.images.name}")
    print(table(by_side))
    print(f"{num_used} of {autoencoder.config.n_embed} codes occur at some scale")
    result = {"settings": asdict(args), "images": count, "n_embed": autoencoder.config.n_embed, "used_codes": num_used}
    result["scales"] = {str(side): asdict(found) for side, found in by_side.items()}
    if classifier is not None:
        for images in (originals, EightBitImages(data, count, autoencoder)):
            result[images.path.name] = recognised = measure_recognition(images, labels, classifier)
            print(f"{images.path}: " + ", ".join(f"{name} {value:.4g}" for name, value in recognised.items()))
    if inception is not None:
        name, value, warnings = measure_rfid(autoencoder, data, count, inception)
        warn(warnings)
        print(f"{name}: {value:.6g}")
        result |= {name: value, "inception_sha256": inception.sha256, "versions": inception.versions}
    if args.grid is not None:
        save_pyramid(autoencoder, data, sides, Path(args.grid), min(count, SHOWN_IMAGES))
    if args.output_file is not None:
        write_json(Path(args.output_file), result)


def table(by_side: Mapping[int, ScaleMetrics]) -> str:
    """What was measured at each side of a code map, a line each, as Markdown."""
    rows = [["scale", *FORMATS], ["---"] * (1 + len(FORMATS))]
    for side, found in by_side.items():
        cells = ["-" if value is None else format(value, FORMATS[name]) for name, value in asdict(found).items()]
        rows.append([str(side), *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def held_out_batches(images: Dataset, most: int = MAX_HELD_OUT, size: int = BATCH) -> Iterator[Tensor]:
    """Batches (B, 3, H, W), B ``size`` or fewer, of at most ``most`` images evenly spaced over a data set of crops."""
    count = min(most, len(images))
    spread = [i * len(images) // count for i in range(count)]
    for start in range(0, count, size):
        yield torch.stack([images[(i, 0)][0] for i in spread[start : start + size]])


@torch.no_grad()
def measure_scales(
    autoencoder: Autoencoder, batches: Iterable[Tensor], sides: Sequence[int], with_ssim: bool = False
) -> tuple[dict[int, ScaleMetrics], int]:
    """Metrics of each side of a code map, and how many codes occur at any; of images (B, 3, H, W) in [-1, 1]."""
    num_codes = autoencoder.config.n_embed
    counts = {side: torch.zeros(num_codes, dtype=torch.long) for side in sides}
    values: dict[int, dict[str, list[float]]] = {side: defaultdict(list) for side in sides}  # of each image
    for images in batches:
        for side in sides:
            codes, measured = _measure(autoencoder, _resized(autoencoder, images, side), with_ssim)
            counts[side] += torch.bincount(codes.flatten(), minlength=num_codes).cpu()
            for name, more in measured.items():
                values[side][name] += more
    metrics = {}
    for side, count in counts.items():
        means = {"ssim": None} | {name: sum(found) / len(found) for name, found in values[side].items()}
        used, diversity = (count > 0).float().mean().item(), perplexity(count.double()).item()
        metrics[side] = ScaleMetrics(**means, usage=used, perplexity=diversity)
    return metrics, int((sum(counts.values()) > 0).sum())


def _measure(autoencoder: Autoencoder, images: Tensor, with_ssim: bool) -> tuple[Tensor, dict[str, list[float]]]:
    """Codes (B, S, S) of images (B, 3, H, W), and metrics of each image."""
    latents = _latents(autoencoder, images)
    codes = autoencoder.quantize_latents(latents)
    difference = autoencoder.lookup(codes) - latents
    rebuilt = autoencoder.decode(codes).clamp(-1, 1)
    mse = ((rebuilt - images) / 2).square().mean((1, 2, 3)).clamp_min(SMALLEST_ERROR)  # of pixels in [0, 1]
    metrics = {
        "psnr": (-10 * mse.log10()).tolist(),
        "l1": (rebuilt - images).abs().mean((1, 2, 3)).tolist(),
        "quantization_error": difference.square().mean((1, 2, 3)).tolist(),
    }
    if with_ssim and images.shape[-1] >= SSIM_WINDOW:
        pairs = zip(images.cpu().numpy(), rebuilt.cpu().numpy(), strict=True)
        metrics["ssim"] = [float(structural_similarity(*pair, channel_axis=0, data_range=2.0)) for pair in pairs]
    return codes, metrics


def _resized(autoencoder: Autoencoder, images: Tensor, side: int) -> Tensor:
    """Images for code maps of this side, on the autoencoder's device."""
    return resize_image(images.to(autoencoder.device), side * autoencoder.config.stride)


def _latents(autoencoder: Autoencoder, images: Tensor) -> Tensor:
    """(B, C, S, S), of which the codes are those of ``tokenize``."""
    with exact_float32():
        return autoencoder.encode(images)


def _rebuilt(autoencoder: Autoencoder, images: Tensor) -> Tensor:
    return autoencoder.decode(autoencoder.quantize_latents(_latents(autoencoder, images)))


@torch.no_grad()
def save_pyramid(
    autoencoder: Autoencoder, data: Dataset, sides: Sequence[int], path: Path, most: int = SHOWN_IMAGES
) -> None:
    """A grid of some images, a column each: originals over reconstructions at every scale, pixels enlarged."""
    images, rows = torch.cat(list(held_out_batches(data, most))), []
    for side in sides:
        small = _resized(autoencoder, images, side)
        rows += [F.interpolate(x, images.shape[-2:], mode="nearest") for x in (small, _rebuilt(autoencoder, small))]
    captions = [caption for side in sides for caption in ("original", f"from {side} x {side} codes")]
    save_grid(to_uint8(torch.cat(rows)), path, len(images), captions)


class EightBitImages(Images):
    """As evaluation takes them: ``count`` crops evenly spaced over a data set, or an autoencoder's reconstructions.

    Both rounded to bytes, so that the originals stay what they are.
    """

    def __init__(self, data: CroppedImages, count: int, autoencoder: Autoencoder | None = None) -> None:
        self.data, self.autoencoder = data, autoencoder
        self.path = Path("originals" if autoencoder is None else "reconstructions")
        self.shape = (count, data.size, data.size)

    def labels(self, names: Sequence[str]) -> np.ndarray:
        """(count,) class of each image as its place among ``names``; UserError if its class is none of them."""
        images, count, index_of = self.data.images, self.shape[0], {name: index for index, name in enumerate(names)}
        strange = next((name for name in images.class_names if name not in index_of), None)
        if strange is not None:
            raise UserError(f"class {strange} is none of the classifier's: {', '.join(names)}; leave --features out")
        chosen = [images.labels[i * len(images) // count] for i in range(count)]
        return np.array([index_of[images.class_names[label]] for label in chosen])

    @torch.no_grad()
    def batches(self, size: int) -> Iterator[np.ndarray]:
        for images in held_out_batches(self.data, self.shape[0], size):
            if self.autoencoder is not None:
                images = _rebuilt(self.autoencoder, images.to(self.autoencoder.device))
            yield np.ascontiguousarray(from_floats(images).permute(0, 2, 3, 1).cpu().numpy())


def measure_recognition(images: EightBitImages, labels: np.ndarray, classifier: Classifier) -> dict[str, float]:
    """The distance of images from the classifier's training images, and the share of them that it recognises."""
    found = compute_features(images, classifier, BATCH)
    of_images = Statistics.of_names(found, classifier.key_suffixes[0])
    distance = frechet_distance(classifier.real_data("train").statistics, of_images)
    accuracy = classifier.accuracy(found["features"], labels)
    return {with_count(f"FD-{classifier.name}", len(labels)): distance, "Class accuracy": accuracy}


def measure_rfid(
    autoencoder: Autoencoder, data: CroppedImages, count: int, inception: Network
) -> tuple[str, float, list[str]]:
    """rFID: its name with the number of images below 50,000, its value, and what is doubtful about it."""
    statistics, warnings = [], []
    for images in (EightBitImages(data, count), EightBitImages(data, count, autoencoder)):
        found = compute_features(images, inception, BATCH)
        statistics.append(Statistics.of_names(found, inception.key_suffixes[0]))
        warnings += warnings_of(images, found, inception)
    return with_count("rFID", count), frechet_distance(*statistics), warnings
