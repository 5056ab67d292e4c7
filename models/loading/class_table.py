"""The table of classes of a model that starts from weights which know other classes.

Letters: K classes, D hidden size. A table is (K + 1, D), a row for each class, then one for none.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from models.class_names import NUM_IMAGENET, imagenet_names
from models.family import Generator


def fit_classes(
    model: Generator, saved: Mapping[str, Tensor], saved_names: Sequence[str] | None, num_learned: int | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights ``saved`` of classes of these names, with a table of this model's classes; and a remark if it is another.

    A class begins with the row of the class of its name there, or of one of its names, which commas separate. One that
    is not there begins as an image without a class, of which a model trained for guidance knows more than a fresh row
    does: so the loss begins near its own. Without names on both sides a table of as many rows stays as it is; 1000 rows
    without names are ImageNet's classes, unless they fit no name and are as many. ``num_learned`` is how many classes
    the saved model learned, 0 of one without, None if that is not known.
    """
    key, names = model.class_table, model.class_names if model.config.class_cond else None
    if key is None or key not in saved or saved[key].shape[1:] != model.state_dict()[key].shape[1:]:
        return dict(saved), []
    saved = _with_row_of_none(saved, key, num_learned)
    num_classes, num_saved = (len(table) - 1 for table in (model.state_dict()[key], saved[key]))
    if num_learned == 0:
        return {**saved, key: saved[key][[num_saved] * (num_classes + 1)]}, []
    unnamed = saved_names is None and num_saved == NUM_IMAGENET  # as published files are
    if unnamed:
        saved_names = imagenet_names()
    if saved_names is not None and len(saved_names) != num_saved:
        saved_names = None
    rows = _rows(num_classes, num_saved, names, saved_names)
    if rows == list(range(num_saved)):
        return dict(saved), []
    known = sum(row != num_saved for row in rows)
    if unnamed and not known and num_classes == num_saved:  # ImageNet's, called otherwise
        return dict(saved), []
    remark = f"{known} of {num_classes} classes start as those of the same name there, the others as no class does"
    return {**saved, key: saved[key][[*rows, num_saved]]}, [remark] if model.config.class_cond else []


def _with_row_of_none(saved: Mapping[str, Tensor], key: str, num_classes: int | None) -> Mapping[str, Tensor]:
    """Weights whose table has a row for no class: of a model trained without one, the mean of its classes' rows."""
    table = saved[key]
    return {**saved, key: torch.cat([table, table.mean(0, keepdim=True)])} if len(table) == num_classes else saved


def _rows(num_classes: int, num_saved: int, names: Sequence[str] | None, saved: Sequence[str] | None) -> list[int]:
    """For each class the row that it starts from; ``num_saved`` is that of no class."""
    if names is None or saved is None or names == saved:
        return list(range(num_saved)) if num_classes == num_saved else [num_saved] * num_classes
    whole = [(name, row) for row, name in enumerate(saved)]
    any_of = [(part.strip(), row) for name, row in whole for part in name.split(",")]
    row_of = _of_one_name(any_of) | _of_one_name(whole)
    return [row_of.get(name, num_saved) for name in names]


def _of_one_name(rows: Sequence[tuple[str, int]]) -> dict[str, int]:
    """The row of each name that no other row has."""
    times = Counter(name for name, _ in rows)
    return {name: row for name, row in rows if times[name] == 1}
