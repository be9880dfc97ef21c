"""Packages whose public names are imported when they are first asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazily(package: str, public: Mapping[str, Sequence[str]]) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """`__all__`, `__getattr__` and `__dir__` of a package.

    Args:
        package: its `__name__`.
        public: {module inside it: names that the package offers from there}.
    """
    homes = {name: module for module, names in public.items() for name in names}
    names = sorted(homes)

    def getattr_of_package(name: str) -> Any:
        if name in homes:
            return getattr(import_module(f".{homes[name]}", package), name)
        raise AttributeError(f"module `{package}` has no attribute `{name}`")

    return names, getattr_of_package, lambda: names
