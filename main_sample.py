"""Sample images from a checkpoint, a grid of a few or 50,000.

    python main_sample.py --checkpoint pretrained_models/checkerboard-L-2x --cfg 1.5 --steps_per_scale 4

writes single images (or one npz), a grid and samples.json (every setting) to --output_dir. The same command again goes
on where it was killed. Several GPUs: torchrun --nproc_per_node=N main_sample.py ...
"""

from collections.abc import Sequence

from runtime.command import run
from runtime.config import parse_open_flags
from sampling.options import SampleArgs, drawing_options


def main(argv: Sequence[str]) -> None:
    args, drawing = parse_open_flags(argv, "main_sample.py", __doc__, SampleArgs, drawing_options())
    from sampling.job import draw_samples  # takes seconds to import

    draw_samples(args, drawing)


def command() -> None:
    """``checkerboard-sample``."""
    run(main)


if __name__ == "__main__":
    command()
