"""Making the cache of codes, with progress, and going on with one that was interrupted."""

import shutil
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data.crops import NUM_CROPS, crop_image, to_floats
from data.datasets import LabelledImages
from data.token_cache import Manifest, PartialCache
from models.autoencoder import Autoencoder
from models.errors import UserError


class AllCrops(Dataset):
    """(index, crops (K, 3, size, size) as bytes) of chosen images."""

    def __init__(self, images: LabelledImages, indices: np.ndarray, manifest: Manifest) -> None:
        self.images, self.indices, self.manifest = images, indices, manifest

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> tuple[int, torch.Tensor]:
        index = int(self.indices[item])
        image, recipe = self.images.read(index), self.manifest.crop
        crops = [crop_image(image, self.manifest.img_size, recipe, crop) for crop in range(NUM_CROPS[recipe])]
        return index, torch.stack(crops)


def create_cache(
    root: Path,
    images: LabelledImages,
    autoencoder: Autoencoder,
    manifest: Manifest,
    batch_size: int,
    num_workers: int,
    device: torch.device,
) -> Path:
    """Tokenize every crop of every image at every scale; return the finished cache's folder.

    Args:
        root: folder of caches.
        images: the dataset.
        autoencoder: the tokenizer.
        manifest: of the cache to make.
        batch_size: crops encoded at once.
        num_workers: processes that load images.
        device: where to encode.

    Raises:
        UserError: not enough disk space, or an image cannot be read. What was done stays done.
    """
    folder = root / manifest.folder_name
    if folder.exists():
        print(f"the cache {folder} is complete already")
        return folder
    root.mkdir(parents=True, exist_ok=True)
    _check_space(root, manifest)
    partial = PartialCache(folder, manifest, images.labels)
    todo = np.flatnonzero(~partial.done)
    loader = DataLoader(
        AllCrops(images, todo, manifest),
        batch_size=max(1, batch_size // NUM_CROPS[manifest.crop]),
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
    )
    autoencoder.to(device)
    with tqdm(total=len(images), initial=len(images) - len(todo), unit="image", desc="caching codes") as bar:
        for indices, crops in loader:
            pixels = to_floats(crops.flatten(0, 1).to(device))
            codes = autoencoder.tokenize(pixels, tuple(manifest.scale_sizes))
            rows = torch.cat([scale.flatten(1) for scale in codes], dim=1).cpu()
            partial.write(indices.tolist(), rows.unflatten(0, crops.shape[:2]))
            bar.update(len(indices))
    return partial.finish()


def _check_space(root: Path, manifest: Manifest) -> None:
    free = shutil.disk_usage(root).free
    print(f"the cache takes {manifest.num_bytes / 1e9:.3g} GB; {free / 1e9:.3g} GB are free under {root}")
    if manifest.num_bytes > free:
        raise UserError(f"the cache does not fit under {root}; free space there or set cached_path")
