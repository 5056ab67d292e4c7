"""OmegaConf's objects in a file of ``torch.save``, read without OmegaConf: RandAR's training keeps its settings so.

Stand-ins take their places while the file is read. They keep what they are given and do nothing.
"""

from typing import Any

from runtime.errors import UserError


class StandIn:
    """In the place of an object, or as it is of a type that the file names."""

    def __init__(self, *args: Any) -> None:
        """An empty one, whatever the file makes the object of."""


# What such a pickle names: containers, their leaves, and what the containers note about both.
_LEAVES = ("Any", "String", "Integer", "Float", "Boolean", "Bytes", "Path")
_NAMES = (
    *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"),
    *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata", "collections.defaultdict"),
    *(f"omegaconf.nodes.{name}Node" for name in _LEAVES),
    *(f"typing.{name}" for name in ("Any", "Dict", "List", "Optional", "Union")),
    *(f"builtins.{name}" for name in ("dict", "list", "tuple", "str", "int", "float", "bool")),
)
STAND_INS = [(StandIn, name) for name in _NAMES]  # as torch.serialization.safe_globals takes them


def plain_values(content: dict[str, Any], source: str) -> dict[str, Any]:
    """The contents of a file, called ``source``, with plain containers where it holds configurations."""
    try:
        return {
            key: _plain(value) if key == "config" or isinstance(value, StandIn) else value
            for key, value in content.items()
        }
    except RecursionError as error:
        raise UserError(f"{source} was refused: it holds a configuration that contains itself") from error


def _plain(value: Any) -> Any:
    if isinstance(value, StandIn):  # a container's children are its _content, a leaf's value is its _val
        held = vars(value)
        return _plain(held.get("_content", held.get("_val")))
    if isinstance(value, dict):
        return {key: _plain(child) for key, child in value.items()}
    return [_plain(child) for child in value] if isinstance(value, list) else value
