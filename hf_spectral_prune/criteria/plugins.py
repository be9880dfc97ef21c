"""Criteria that installed packages offer by the entry point group `hf_spectral_prune.criteria`."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from ..utils.words import in_a_line

GROUP = "hf_spectral_prune.criteria"


def _points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def names() -> list[str]:
    """Names of the offered criteria; nothing is imported."""
    return sorted(_points())


def load(name: str) -> object:
    """Imports what the entry point `name` points at.

    Raises:
        ValueError: it cannot be imported; names the package and the cause.
    """
    point = _points()[name]
    try:
        return point.load()
    except Exception as error:  # a package's import can fail in any way
        package = f"the package `{point.dist.name}`" if point.dist else "an installed package"
        cause = in_a_line(error)
        raise ValueError(
            f"The criterion `{name}` is offered by {package} as `{point.value}`, which cannot be loaded "
            f"({type(error).__name__}: {cause}). Repair or uninstall that package."
        ) from error
