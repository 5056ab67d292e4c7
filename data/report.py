"""Look at a dataset before days are spent on it."""

from collections import Counter
from functools import partial

from torch.utils.data import BatchSampler

from data.images import Attempts, check_unreadable
from data.labelled_images import LabelledImages
from data.loading import load_batches
from models.class_names import NUM_IMAGENET, imagenet_keys
from runtime.progress import Progress


def check_data(images: LabelledImages, num_workers: int, num_classes: int) -> None:
    """Print the report and every unreadable file; UserError if training would stop at them.

    ``num_classes`` is the configuration's; 0 if it takes as many as there are.
    """
    print("\n".join(data_report(images, num_classes)))
    attempts = Attempts(partial(_read, images), range(len(images)))
    groups = BatchSampler(range(len(images)), batch_size=64, drop_last=False)
    errors: list[str] = []
    with Progress(total=len(images), unit="image", desc="reading") as bar:
        for group in load_batches(attempts, groups, num_workers, list):
            errors += [str(error) for _, error in group if error is not None]
            bar.update(len(group))
    print("\n".join([*errors, f"{len(errors)} of {len(images)} images are unreadable"]))
    check_unreadable(len(errors), len(images))
    if errors:
        print("training skips them, since they are few")


def _read(images: LabelledImages, index: int) -> None:
    images.read(index)


def data_report(dataset: LabelledImages, num_classes: int = 0) -> list[str]:
    """Every class with its number of images, and remarks on what training would not notice, as of strange orders.

    ``num_classes`` is that of a configuration to compare with, 0 of none.
    """
    counts = Counter(dataset.labels)
    sizes = sorted(counts[label] for label in range(len(dataset.class_keys)))
    keys = dataset.class_keys
    width = max(map(len, keys))
    remarks = [
        *(
            f"{label:>4}  {key:<{width}}  {counts[label]:>7}{'' if name == key else f'  {name}'}"
            for label, (key, name) in enumerate(zip(keys, dataset.class_names, strict=True))
        ),
        *dataset.remarks,
        f"{dataset.name}: {len(dataset)} images of {len(keys)} classes; "
        f"{sizes[0]} to {sizes[-1]} images a class, median {sizes[len(sizes) // 2]}",
    ]
    if num_classes not in (0, len(keys)):
        remarks.append(
            f"warning: the configuration has num_classes {num_classes}; to train, set num_classes {len(keys)}"
        )
    if sizes[0] == 0:
        empty = next(key for label, key in enumerate(keys) if not counts[label])
        remarks.append(f"warning: class {empty} has no image")
    if all(key.isdecimal() for key in keys) and keys != sorted(keys, key=int):
        remarks.append(
            "warning: class folders are numbers and sort as text (10 before 2), so class indices are not the folders' "
            "numbers; pad them with zeros if they should be"
        )
    if len(keys) == NUM_IMAGENET and keys != imagenet_keys():
        remarks.append("warning: 1000 classes, but not ImageNet's in their usual order; released models expect that")
    return remarks
