"""Judge an autoencoder on held-out images, scale by scale.

    python train_ae_codebook/evaluate.py --autoencoder pretrained_models/digits --dataset digits --img_size 32

Prints a table; writes it as JSON, and a grid of originals over reconstructions, where asked to. SSIM is scikit-image's,
of scales that have the 7 pixels of its window. With Inception's weights it measures rFID of the full size too.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, the project is not on the path

from data.images import CroppedImages, open_dataset
from data.options import DatasetName
from evaluation.features.choose import load_network
from evaluation.features.network import Network
from evaluation.options import NetworkArgs
from models.autoencoder import Autoencoder
from models.checkerboard.order import compute_scale_sizes
from models.loading.autoencoder import open_autoencoder
from runtime.command import run
from runtime.config import parse_flags
from runtime.device import pick_device
from runtime.errors import UserError
from runtime.files import write_json
from train_ae_codebook.measure import BATCH, SHOWN_IMAGES, ScaleMetrics, held_out_batches, measure_scales, save_pyramid
from train_ae_codebook.rfid import measure_rfid

FORMATS = {"psnr": "{:.2f}", "ssim": "{:.4f}", "l1": "{:.4f}", "usage": "{:.1%}", "perplexity": "{:.1f}"}


@dataclass(frozen=True)
class EvaluateArgs:
    """What to judge.

    Attributes:
        autoencoder: folder of an autoencoder, or its file (LlamaGen's, published or ours).
        dataset: folder (class folders of images), cifar10, food101 or celeba (torchvision's files), digits (built in).
        data_path: root of the dataset; a folder's held-out images are in val/CLASS or test/CLASS.
        split: val for held-out images, train for those to train on.
        img_size: side of the full images, in pixels.
        scale_sizes: sides of the code maps to judge; by default the full one, halved down to 1.
        num_images: how many images, evenly spaced over the split; 0 takes all.
        output_file: JSON to write.
        grid: PNG to write: originals over reconstructions at every scale.
        inception_weights: torch-fidelity's weights-inception-2015-12-05-6726825d.pth, for rFID by torch.
        inception_graph: ADM's classify_image_graph_def.pb, for rFID by TensorFlow.
        device: auto, cuda, mps or cpu.
    """

    autoencoder: str | None = None
    dataset: DatasetName = "folder"
    data_path: str = "data/imagenet"
    split: Literal["val", "train"] = "val"
    img_size: int = 256
    scale_sizes: tuple[int, ...] = ()
    num_images: int = 0
    output_file: str | None = None
    grid: str | None = None
    inception_weights: str | None = None
    inception_graph: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.autoencoder is None:
            raise UserError("name the --autoencoder to judge: a folder, or a file of weights")
        if self.img_size < 1:
            raise UserError(f"img_size is {self.img_size}; it must be at least 1")
        if self.grid is not None and Path(self.grid).suffix.lower() != ".png":
            raise UserError(f"grid is {self.grid}; name a .png file")
        if self.num_images < 0:
            raise UserError(f"num_images is {self.num_images}; give a number of images, or 0 for all")
        if self.inception_weights is not None and self.inception_graph is not None:
            raise UserError("inception_weights and inception_graph are the same network; name one of them")
        if self.scale_sizes and min(self.scale_sizes) < 1:
            raise UserError(f"scale_sizes is {list(self.scale_sizes)}; each must be at least 1")


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "train_ae_codebook/evaluate.py", __doc__, EvaluateArgs)
    device = pick_device(args.device)
    autoencoder = open_autoencoder(args.autoencoder).to(device)
    data = CroppedImages(open_dataset(args.dataset, args.data_path, args.img_size, args.split), args.img_size, "center")
    levels = len(autoencoder.config.ch_mult)
    if args.img_size % autoencoder.config.stride:
        raise UserError(f"img_size {args.img_size} is no multiple of the autoencoder's {autoencoder.config.stride}")
    inception = load_inception(args, device)
    sides = args.scale_sizes or compute_scale_sizes(args.img_size, levels, 2)
    count = min(args.num_images or len(data), len(data))
    batches = _with_progress(held_out_batches(data, count), count)
    by_side, num_used = measure_scales(autoencoder, batches, sides, with_ssim=True)
    print(f"{args.autoencoder} on {count} images ({args.split}) of {data.images.name}")
    print(table(by_side))
    print(f"{num_used} of {autoencoder.config.n_embed} codes occur at some scale")
    distance = {} if inception is None else _rfid(autoencoder, data, count, inception)
    if args.grid is not None:
        Path(args.grid).parent.mkdir(parents=True, exist_ok=True)
        shown = torch.cat(list(held_out_batches(data, min(count, SHOWN_IMAGES))))
        save_pyramid(autoencoder, shown.to(device), sides, Path(args.grid))
    if args.output_file is not None:
        scales = {str(side): asdict(figures) for side, figures in by_side.items()}
        Path(args.output_file).parent.mkdir(parents=True, exist_ok=True)
        content = {"settings": asdict(args), "images": count, "n_embed": autoencoder.config.n_embed}
        write_json(Path(args.output_file), content | {"used_codes": num_used, "scales": scales} | distance)


def load_inception(args: EvaluateArgs, device: torch.device) -> Network | None:
    """The network whose weights are named, if any."""
    if args.inception_weights is not None:
        return load_network(NetworkArgs(backend="torch", inception_weights=args.inception_weights), device)
    if args.inception_graph is not None:
        return load_network(NetworkArgs(inception_graph=args.inception_graph), device)
    return None


def _rfid(autoencoder: Autoencoder, data: CroppedImages, count: int, inception: Network) -> dict[str, Any]:
    """Print the distance; return what the output file holds of it."""
    name, value, doubts = measure_rfid(autoencoder, data, count, inception)
    for doubt in doubts:
        print(f"warning: {doubt}", file=sys.stderr)
    print(f"{name}: {value:.6g}")
    return {name: value, "inception_sha256": inception.sha256, "versions": inception.versions}


def table(by_side: Mapping[int, ScaleMetrics]) -> str:
    """Figures of each side of a code map, a line each, as Markdown."""
    names = [field.name for field in fields(ScaleMetrics)]
    rows = [["scale", *names], ["---"] * (1 + len(names))]
    for side, figures in by_side.items():
        values = [(name, getattr(figures, name)) for name in names]
        cells = ["-" if value is None else FORMATS.get(name, "{:.5f}").format(value) for name, value in values]
        rows.append([str(side), *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _with_progress(batches: Iterable[Tensor], num_images: int) -> Iterator[Tensor]:
    yield from tqdm(batches, total=-(-num_images // BATCH), unit="batch")


if __name__ == "__main__":
    run(main)
