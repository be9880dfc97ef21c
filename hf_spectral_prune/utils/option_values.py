"""Values of options in a dataclass: what they may be, JSON that is read, and tokens that are not shown."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar, get_type_hints

from .types import Json

Options = TypeVar("Options")


@functools.cache
def choices(kind: type, name: str) -> tuple[str, ...]:
    """Values of a field that is a Literal. Cached, because the text of every hint of the class is evaluated."""
    return get_type_hints(kind)[name].__args__


def masked(values: Json) -> Json:
    """The same values with every token in them (also inside `training_args`) replaced by its name."""
    return {
        name: f"<{name.upper()}>"
        if name.endswith("_token") and isinstance(value, str)
        else (masked(value) if isinstance(value, dict) else value)
        for name, value in values.items()
    }


def published(values: Any) -> Any:
    """The same values for a report that is published: of absolute paths the last part. The folders above are nobody's concern."""
    if isinstance(values, dict):
        return {published(name): published(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [published(value) for value in values]
    return os.path.basename(os.path.normpath(values)) if isinstance(values, str) and os.path.isabs(values) else values


def at_fixed_paths(options: Options, *names: str) -> Options:
    """A dataclass of options whose relative paths of these names start at the working directory as it is now."""
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return replace(options, **{name: os.path.abspath(os.path.expanduser(path)) for name, path in given.items()})  # type: ignore[type-var]


_EXAMPLES = {
    "criterion_args": '{"num_neighbors": 30}',
    "network_args": '{"depth": 56}',
    "recovery_args": '{"lora_r": 8}',
    "training_args": '{"max_steps": 500}',
}


def json_option(name: str, value: Json | str | None) -> Json:
    """An option that is a JSON object, as a dict.

    Raises:
        ValueError: it is none; shows one.
    """
    example = _EXAMPLES[name]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"`{name}` is not JSON ({error}). Write it like '{example}'.") from None
    if not isinstance(value or {}, dict):
        raise ValueError(f"`{name}` must be a JSON object, like '{example}'.")
    return {str(key): as_json(part) for key, part in (value or {}).items()}  # type: ignore[union-attr]


def as_json(value: Any) -> Any:
    """A value as JSON has it: numbers of numpy as Python's, and paths as text; anything else as it is."""
    if isinstance(value, Mapping):
        return {key: as_json(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(as_json, value)) if type(value) in (list, tuple) else value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if type(value).__module__ == "numpy" and hasattr(value, "item") and not value.shape else value
