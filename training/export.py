"""Export a checkpoint of ours without what only training needs, as a folder that is all of the model.

    python -m training.export --checkpoint output/quickstart --output_dir output/quickstart-published

The published layout is what the published code reads. With --format safetensors it is model.safetensors, in any
precision, config.yaml and the autoencoder: less to store, and every family has it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runtime.command import run
from runtime.config import option, parse_flags
from runtime.errors import UserError


@dataclass(frozen=True)
class ExportArgs:
    """What to export."""

    checkpoint: str | None = option(None, "checkpoint file, or the folder holding checkpoint-last.pth")
    output_dir: str | None = option(None, "folder to write; new or empty")
    format: Literal["published", "safetensors"] = option("published", "published layout, or model.safetensors")
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "of safetensors: precision of what is stored")
    use_ema: bool = option(False, "of safetensors: take the averaged weights; the published layout has both")
    autoencoder: str | None = option(
        None, "of safetensors: folder of the project with the same autoencoder, to be named and not copied"
    )

    def __post_init__(self) -> None:
        if self.checkpoint is None or self.output_dir is None:
            raise UserError("name the --checkpoint to export and the --output_dir to write")
        for name in ("dtype", "use_ema", "autoencoder") if self.format == "published" else ():
            if getattr(self, name) != getattr(ExportArgs, name):
                raise UserError(f"--{name} means nothing with the published layout; add --format safetensors")


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "training.export", __doc__, ExportArgs)
    from models.loading.checkpoint import export_published, load_checkpoint  # takes seconds to import
    from models.loading.save import save_model
    from runtime.device import DTYPES
    from training.sharded import join_shares

    join_shares(Path(args.checkpoint))
    if args.format == "published":
        export_published(args.checkpoint, args.output_dir)
    else:
        model = load_checkpoint(args.checkpoint, use_ema=args.use_ema)
        save_model(model, Path(args.output_dir), DTYPES[args.dtype], args.autoencoder)
    print(f"exported to {args.output_dir}")


def command() -> None:
    """``checkerboard-export``."""
    run(main)


if __name__ == "__main__":
    command()
