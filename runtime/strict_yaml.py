"""YAML as text, read strictly. Apart from config.py, so that a program that reads none needs no PyYAML."""

from collections.abc import Mapping
from typing import Any

import yaml

MAX_DEPTH = 100  # of settings within settings


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a mapping that names a key twice: YAML would keep the last and drop the first silently.

    And settings that are nested deeper than any of ours: they would exhaust Python's stack here, or later.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(problem=f"more than {MAX_DEPTH} settings lie within each other")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice[0]} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def load(text: str) -> Any:
    """What a text says as YAML, or a ValueError."""
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(error) from error


def dump(content: Mapping[str, Any]) -> str:
    """A mapping as YAML, its keys in their order."""
    return yaml.safe_dump(dict(content), sort_keys=False)
