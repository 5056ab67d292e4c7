"""The table of classes of a model that starts from weights which know other classes.

Letters: K classes, D hidden size. A table is (K + 1, D), a row for each class, then one for none.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from models.class_names import NUM_IMAGENET, imagenet_names
from models.family import Generator


def fit_classes(
    model: Generator, saved: Mapping[str, Tensor], saved_names: Sequence[str] | None
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights ``saved`` of classes of these names, with a table of this model's classes; and a remark if it is another.

    A class begins with the row of the class of its name there. One that is not there begins as an image without a
    class, of which a model trained for guidance knows more than a fresh row does: so the loss begins near its own.
    Without names on both sides a table of as many rows stays as it is; 1000 rows without names are ImageNet's classes.
    """
    key, names = model.class_table, model.class_names
    if key is None or key not in saved or saved[key].shape[1:] != model.state_dict()[key].shape[1:]:
        return dict(saved), []
    num_classes, num_saved = (len(table) - 1 for table in (model.state_dict()[key], saved[key]))
    if saved_names is None and num_saved == NUM_IMAGENET:  # published files name no classes
        saved_names = imagenet_names()
    if saved_names is not None and len(saved_names) != num_saved:
        saved_names = None
    rows = _rows(num_classes, num_saved, names, saved_names)
    if rows == list(range(num_saved)):
        return dict(saved), []
    known = sum(row != num_saved for row in rows)
    remark = f"{known} of {num_classes} classes start as those of the same name there, the others as no class does"
    return {**saved, key: saved[key][[*rows, num_saved]]}, [remark]


def _rows(num_classes: int, num_saved: int, names: Sequence[str] | None, saved: Sequence[str] | None) -> list[int]:
    """For each class the row that it starts from; ``num_saved`` is that of no class."""
    if names is None or saved is None or names == saved:
        return list(range(num_saved)) if num_classes == num_saved else [num_saved] * num_classes
    row_of = {name: row for row, name in enumerate(saved) if saved.count(name) == 1}
    return [row_of.get(name, num_saved) for name in names]
