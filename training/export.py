"""Export a checkpoint of ours without what only training needs, as a folder that is all of the model.

    python -m training.export --checkpoint output/quickstart --output_dir output/quickstart-published

The published layout is what the published code reads. With --format safetensors it is model.safetensors, in any
precision, config.yaml and the autoencoder: less to store, and every family has it. With --format hub there is a model
card too, and --push_to uploads all of it to the Hugging Face hub.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from models.config import CHECKPOINT_HELP
from runtime.command import run
from runtime.config import option, parse_flags
from runtime.errors import UserError


@dataclass(frozen=True)
class ExportArgs:
    """What to export."""

    checkpoint: str | None = option(None, CHECKPOINT_HELP)
    output_dir: str | None = option(None, "folder to write; new or empty")
    format: Literal["published", "safetensors", "hub"] = option(
        "published", "published layout; model.safetensors; or that with a model card, as the hub has it"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = option(
        "float32", "of safetensors and hub: precision of what is stored"
    )
    use_ema: bool = option(
        False, "of safetensors and hub: take the averaged weights, which published layouts but RandAR's have too"
    )
    autoencoder: str | None = option(
        None,
        "of safetensors and hub: folder of the project or name of the hub with the same autoencoder, to be named and "
        "not copied",
    )
    license: str | None = option(None, "of hub: licence of the weights, as the hub calls it: mit, apache-2.0")
    data: str | None = option(None, "of hub: what the model was trained on, for its card")
    results: str | None = option(None, "of hub: result.json of an evaluation, whose metrics the card shows")
    push_to: str | None = option(None, "of hub: owner/name to upload to, instead of an output_dir")
    private: bool = option(False, "of hub: make a repository that others cannot read")

    def __post_init__(self) -> None:
        if self.checkpoint is None or (self.output_dir is None) == (self.push_to is None):
            raise UserError("name the --checkpoint to export, and the --output_dir to write or where to --push_to")
        of_hub = ("license", "data", "results", "push_to", "private")
        refused = {"published": ("dtype", "use_ema", "autoencoder", *of_hub), "safetensors": of_hub, "hub": ()}
        for name in refused[self.format]:
            if getattr(self, name) != getattr(ExportArgs, name):
                mend = "hub" if name in of_hub else "safetensors"
                raise UserError(f"--{name} means nothing with --format {self.format}; add --format {mend}")
        if self.private and self.push_to is None:
            raise UserError("--private is of a repository; name it with --push_to")


def main(argv: Sequence[str]) -> None:
    args = parse_flags(argv, "training.export", __doc__, ExportArgs)
    from models.loading.checkpoint import export_published, load_checkpoint  # takes seconds to import
    from models.loading.save import save_model
    from runtime.device import DTYPES
    from sampling.sharing import push_to_hub, save_pretrained
    from training.sharded import join_shares

    join_shares(args.checkpoint)
    place = args.output_dir
    if args.format == "published":
        export_published(args.checkpoint, place)
    else:
        model = load_checkpoint(args.checkpoint, use_ema=args.use_ema)
        details: dict[str, Any] = {"dtype": DTYPES[args.dtype], "autoencoder": args.autoencoder}
        about = {"license": args.license, "data": args.data, "results": args.results}
        if args.format == "safetensors":
            save_model(model, Path(place), **details)
        elif args.push_to is None:
            save_pretrained(model, place, **details, **about)
        else:
            place = push_to_hub(model, args.push_to, private=args.private or None, **details, **about)
    print(f"exported to {place}")


def command() -> None:
    """``checkerboard-export``."""
    run(main)


if __name__ == "__main__":
    command()
