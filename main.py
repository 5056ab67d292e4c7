"""Train an autoregressive image model (checkerboard, llamagen or randar) from a YAML configuration.

    python main.py --config configs/quickstart.yaml

--config FILE --help lists the options of the family of that file.

The same command again goes on where the run stopped. Several GPUs or machines: torchrun --nproc_per_node=N main.py ...
"""

from collections.abc import Sequence

from models.config import family_of
from runtime.command import run
from runtime.config import config_path, parse_config, read_yaml
from runtime.errors import UserError
from runtime.files import located
from training.options import TrainArgs


def main(argv: Sequence[str]) -> None:
    if not argv:
        raise UserError("name a configuration, such as --config configs/quickstart.yaml; docs/training.md lists them")
    path = config_path(argv)
    family = family_of({} if path is None else read_yaml(located(path)).get("model") or {})
    sections = {"model": family.load("config"), "args": (TrainArgs, family.load("drawing"))}
    settings, name = parse_config(argv, "main.py", __doc__, sections, others=["sampling"])
    from training.job import prepare_and_train  # takes seconds to import

    prepare_and_train(settings["model"], *settings["args"], name, None if path is None else located(path))


def command() -> None:
    """``checkerboard-train``."""
    run(main)


if __name__ == "__main__":
    command()
