"""How many codes each step draws (RandAR Sec. 3.3; formats.md R5). Without torch."""

from math import cos, pi

from runtime.errors import UserError


def parallel_schedule(num_locations: int, steps: int, num_known: int = 0) -> tuple[int, ...]:
    """Number of codes that each step draws: few at first, then more. ``num_known`` locations have their codes already.

    ``steps`` of -1, or of ``num_locations`` and more, means one code a step. The first step always draws one code, so
    ``steps`` 1 takes two. UserError: another number below 1.
    """
    if steps < 1 and steps != -1:
        raise UserError(f"steps is {steps}; it must be at least 1, or -1 for one code a step")
    left = num_locations - num_known
    if steps == -1 or (steps >= num_locations and not num_known):
        return (1,) * left
    counts: list[int] = []
    done = num_known
    while done < num_locations:
        step = len(counts)
        # In double precision and in this order of operations: other ones round to other schedules.
        target = int((1 - cos(pi / 2 * (step + 1) / steps)) * num_locations + 1) if step else 0
        counts.append(max(1, min(target, num_locations) - done))
        done += counts[-1]
    return tuple(counts)
