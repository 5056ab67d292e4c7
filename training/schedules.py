"""Learning rate and patch side as pure functions of where a run stands. Without torch.

formats.md M5, G5, R4.

A *stage* of Next Patch Prediction learns from patches of one side p = 2 ** (L - 1), .., 2, 1 for L levels. Without it
there is one stage, of single codes.
"""

from math import cos, pi

from runtime.errors import UserError

MAX_LEVELS = 4


def stage_ends(epochs: int, patch_level: int, epoch_rate: float) -> list[int]:
    """Epoch at which each stage ends; a stage may be empty. UserError for levels or a rate that make no stages."""
    levels = max(1, patch_level)
    if levels > MAX_LEVELS:
        raise UserError(f"patch_level is {patch_level}; it must be at most {MAX_LEVELS}, and 1 for single codes alone")
    if not 0 < epoch_rate <= 1:
        raise UserError(f"epoch_rate is {epoch_rate}; it must lie above 0 and be at most 1")
    return [int(epochs * epoch_rate ** (levels - 1 - k)) for k in range(levels)]


def patch_side(epoch: int, *, epochs: int, patch_level: int, epoch_rate: float) -> int:
    """Side of the patches, in codes, that an epoch learns from; epochs count from 0, and past the last it is 1."""
    ends = stage_ends(epochs, patch_level, epoch_rate)
    stage = next((k for k, end in enumerate(ends) if epoch < end), len(ends) - 1)
    return 2 ** (len(ends) - 1 - stage)


def lr_factor(
    step: int,
    *,
    epochs: int,
    steps_per_epoch: int,
    patch_level: int,
    epoch_rate: float,
    warmup_epochs: float = 1.0,
    decay_ratio: float = 0.2,
    lr: float = 1e-4,
    end_lr: float = 1e-5,
) -> float:
    """Factor on ``lr`` in a step, counted from 0, where every stage warms up and decays anew, to ``end_lr`` at its end.

    The first step of a stage has 0. A warm-up that reaches into the decay is followed by the middle of it.
    """
    ends = [steps_per_epoch * end for end in stage_ends(epochs, patch_level, epoch_rate)]
    starts = [0, *ends]
    stage = next((k for k, end in enumerate(ends) if step < end), None)
    if stage is None:
        return end_lr / lr
    length, done = ends[stage] - starts[stage], step - starts[stage]
    warmup, decay = steps_per_epoch * warmup_epochs, decay_ratio * length
    if done < warmup:
        return done / max(1, warmup)
    if done < length - decay:
        return 1.0
    return (end_lr + (lr - end_lr) * max(0.0, 1 - (done - (length - decay)) / decay)) / lr


def cosine_factor(epoch: float, *, epochs: int, warmup_epochs: float, end_factor: float) -> float:
    """Factor on the learning rate after so many epochs: from 0 up to 1, then along a half cosine to ``end_factor``."""
    if epoch < warmup_epochs:
        return epoch / warmup_epochs
    done = min(1.0, (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-9))
    share = (1 + cos(pi * done)) / 2
    return end_factor * (1 - share) + share
