"""Export a checkpoint of ours to the published layout, with the autoencoder inside.

python -m training.export --checkpoint output/quickstart --output_dir output/quickstart-published
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.command import run
from runtime.config import option, parse_flags
from runtime.errors import UserError


@dataclass(frozen=True)
class ExportArgs:
    """What to export."""

    checkpoint: str | None = option(None, "checkpoint file, or the folder holding checkpoint-last.pth")
    output_dir: str | None = option(None, "folder to write; new or empty")


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "training.export", __doc__, ExportArgs)
    if args.checkpoint is None or args.output_dir is None:
        raise UserError("name the --checkpoint to export and the --output_dir to write")
    from models.loading.checkpoint import export_published  # takes seconds to import
    from training.sharded import join_shares

    join_shares(Path(args.checkpoint))
    export_published(args.checkpoint, args.output_dir)
    print(f"exported to {args.output_dir}")


if __name__ == "__main__":
    run(main)
