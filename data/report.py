"""Look at a dataset before days are spent on it."""

from collections import Counter
from functools import partial

from torch.utils.data import BatchSampler

from data.images import Attempts, LabelledImages, imagenet_keys
from data.loading import load_batches
from runtime.progress import Progress


def check_data(images: LabelledImages, num_workers: int) -> int:
    """Print the report and every unreadable file; return how many there are."""
    print("\n".join(data_report(images)))
    attempts = Attempts(partial(_read, images), range(len(images)))
    groups = BatchSampler(range(len(images)), batch_size=64, drop_last=False)
    errors: list[str] = []
    with Progress(total=len(images), unit="image", desc="reading") as bar:
        for group in load_batches(attempts, groups, num_workers, list):
            errors += [str(error) for _, error in group if error is not None]
            bar.update(len(group))
    print("\n".join([*errors, f"{len(errors)} of {len(images)} images are unreadable"]))
    return len(errors)


def _read(images: LabelledImages, index: int) -> None:
    images.read(index)


def data_report(dataset: LabelledImages) -> list[str]:
    """Remarks on a dataset that training would not notice: sizes of classes and suspicious class orders."""
    counts = Counter(dataset.labels)
    sizes = sorted(counts[label] for label in range(len(dataset.class_keys)))
    keys = dataset.class_keys
    remarks = [
        *dataset.remarks,
        f"{dataset.name}: {len(dataset)} images of {len(keys)} classes; "
        f"{sizes[0]} to {sizes[-1]} images a class, median {sizes[len(sizes) // 2]}",
        f"first class: {keys[0]} ({dataset.class_names[0]}); last class: {keys[-1]} ({dataset.class_names[-1]})",
    ]
    if sizes[0] == 0:
        empty = next(key for label, key in enumerate(keys) if not counts[label])
        remarks.append(f"warning: class {empty} has no image")
    if all(key.isdecimal() for key in keys) and keys != sorted(keys, key=int):
        remarks.append(
            "warning: class folders are numbers and sort as text (10 before 2), so class indices are not the folders' "
            "numbers; pad them with zeros if they should be"
        )
    if len(keys) == 1000 and keys != imagenet_keys():
        remarks.append("warning: 1000 classes, but not ImageNet's in their usual order; released models expect that")
    return remarks
