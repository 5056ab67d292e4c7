"""Train an autoregressive image model (checkerboard, llamagen or randar) from a YAML configuration.

    python main.py --config configs/quickstart.yaml

--config FILE --help, or --architecture NAME --help, lists the options of that family.

The same command again goes on where the run stopped. Several GPUs or machines: torchrun --nproc_per_node=N main.py ...
"""

from collections.abc import Sequence

from models.config import FAMILIES, Family, family_of
from runtime.command import run
from runtime.config import given_text, options_of, parse_config, read_yaml
from runtime.errors import UserError
from runtime.files import located
from training.options import TrainArgs


def main(argv: Sequence[str]) -> None:
    if not argv:
        raise UserError("name a configuration, such as --config configs/quickstart.yaml; docs/training.md lists them")
    path = given_text(argv, "config")
    family = family_of({} if path is None else read_yaml(located(path)).get("model") or {})
    if (named := given_text(argv, "architecture")) is not None:
        family = family_of({"architecture": named})
    sections = {"model": family.load("config"), "args": (TrainArgs, family.load("drawing"))}
    settings, name = parse_config(argv, "main.py", __doc__, sections, others=["sampling"], owners=_owners(family))
    from training.job import prepare_and_train  # takes seconds to import

    prepare_and_train(settings["model"], *settings["args"], name, None if path is None else located(path))


def _owners(family: Family) -> dict[str, str]:
    """Whose the settings are that this family lacks."""
    names = {name: _settings(other) for name, other in FAMILIES.items()}
    lacking = set().union(*names.values()) - _settings(family)
    return {
        setting: f"architecture {' or '.join(name for name in names if setting in names[name])}" for setting in lacking
    }


def _settings(family: Family) -> set[str]:
    """Names of all that a family's model and drawing are set by."""
    return {option.name for part in ("config", "drawing") for option in options_of(family.load(part))}


def command() -> None:
    """``checkerboard-train``."""
    run(main)


if __name__ == "__main__":
    command()
