"""Values from YAML and JSON, by the type hints of the dataclass that they are for."""

from __future__ import annotations

import os
from argparse import ArgumentTypeError
from collections.abc import Mapping
from contextlib import suppress
from enum import Enum
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

_TYPES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    dict: "a table of `name: value`",
    NoneType: "null",
}
_LISTS = {str: "a list, like `[a, b]`", int: "a list, like `[1, 2]`", float: "a list, like `[0.1, 0.2]`"}


def fitted(name: str, value: object, hint: Any) -> Any:
    """A value as the type hint of its option wants it: `"1e-4"` is taken for a number, and 8.0 for 8.

    Args:
        name: what the error calls it.
        hint: as `get_type_hints` gives it. Types that YAML and JSON do not have are not checked.

    Raises:
        ValueError: it is of another type; says what is wanted.
    """
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    # Text first: what may be text is not taken for a number.
    for kind in sorted(kinds, key=lambda kind: kind is not str):
        with suppress(TypeError, ValueError, OverflowError, ArgumentTypeError):
            return _fitted(value, kind)
    shown = repr(value)
    given = f"a {type(value).__name__}" if name.endswith("_token") or len(shown) > 200 else shown
    raise ValueError(f"`{name}` is {given}; it must be {' or '.join(map(_type_words, kinds))}.")


def _fitted(value: Any, kind: Any) -> Any:
    choices, origin = _choices(kind), get_origin(kind) or kind
    if choices and value is False and "no" in choices:
        return "no"  # as YAML reads a bare `no`
    if origin is float and isinstance(value, str):
        return float(value)
    if origin is int:
        number = value if isinstance(value, Integral) else float(value)
        if not isinstance(value, bool) and number == int(number):
            return int(number)
    elif origin is bool and isinstance(value, str):
        from transformers.hf_argparser import string_to_bool

        return string_to_bool(value)
    elif origin is bool and value in (0, 1):
        return bool(value)
    elif origin is list and isinstance(value, (list, tuple)):
        return [_fitted(entry, inner) for entry in value for inner in get_args(kind)]
    elif _is_of(value, origin, choices):
        return value
    raise TypeError


def _choices(kind: object) -> tuple[object, ...]:
    if get_origin(kind) is Literal:
        return get_args(kind)
    return tuple(entry.value for entry in kind) if isinstance(kind, type) and issubclass(kind, Enum) else ()


def _is_of(value: object, kind: object, choices: tuple[object, ...]) -> bool:
    if choices:
        return value in choices
    if kind is float:
        return isinstance(value, Real) and not isinstance(value, bool)
    accepted: dict[object, type | tuple[type, ...]] = {
        str: (str, os.PathLike),
        dict: Mapping,
        NoneType: NoneType,
        list: (),
        bool: (),
    }
    return isinstance(value, accepted.get(kind, object))


def _type_words(kind: Any) -> str:
    if choices := _choices(kind):
        return f"one of {', '.join(f'`{choice}`' for choice in choices)}"
    if get_origin(kind) is list:
        return _LISTS.get(get_args(kind)[0], "a list")
    return _TYPES.get(get_origin(kind) or kind, getattr(kind, "__name__", str(kind)))
