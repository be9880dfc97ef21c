"""YAML that others wrote, read within bounds: a few bytes of it can stand for gigabytes."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

_DEEPEST = 30  # levels of lists and tables in one another


class _Loader(yaml.SafeLoader):
    """Takes no aliases, no deep nesting and no key twice, and reads `1e-4` as a number, as YAML 1.2 and JSON do.

    PyYAML's own loaders follow YAML 1.1, where that is text.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int | yaml.Node | None) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise ComposerError(None, None, f"the alias `*{event.anchor}` is not taken, write the value out", event.start_mark)
        self.depth += 1
        if self.depth > _DEEPEST:
            raise ComposerError(None, None, f"more than {_DEEPEST} levels in one another", self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        mapping: dict[Hashable, object] = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            keys = [self.construct_object(key) for key, _ in node.value]
            twice = next(number for number, key in enumerate(keys) if key in keys[:number])
            mark = node.value[twice][0].start_mark
            raise ConstructorError(None, None, f"the key `{str(keys[twice])[:100]}` stands there twice", mark)
        return mapping


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def load_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        ValueError: it cannot be read, or has aliases, a key twice, or too many levels; one line that names the line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        # Not the error's whole text: it quotes the line, which may hold a token.
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        raise ValueError(f"{where}{problem or type(error).__name__}") from None
    except (ValueError, OverflowError) as error:  # a number with thousands of digits, a date that is none
        raise ValueError(" ".join(str(error).split())[:200]) from None
