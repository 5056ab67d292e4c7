"""Look at a dataset before days are spent on it."""

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data.datasets import LabelledImages, UnreadableImageError, data_report


class _Readable(Dataset):
    """Whether each image can be read: its error, or an empty string."""

    def __init__(self, images: LabelledImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> str:
        try:
            self.images.read(index)
        except UnreadableImageError as error:
            return str(error)
        return ""


def check_data(images: LabelledImages, num_workers: int) -> int:
    """Print the report and every unreadable file; return how many there are."""
    print("\n".join(data_report(images)))
    loader = DataLoader(_Readable(images), batch_size=64, num_workers=num_workers, collate_fn=list)
    errors: list[str] = []
    with tqdm(total=len(images), unit="image", desc="reading") as bar:
        for group in loader:
            errors += filter(None, group)
            bar.update(len(group))
    print("\n".join([*errors, f"{len(errors)} of {len(images)} images are unreadable"]))
    return len(errors)
