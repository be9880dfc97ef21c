"""Products of test parameters, thinned for the fast tests."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pytest


def pairwise(*axes: Sequence[Any]) -> list:
    """Every combination of the values, for `pytest.mark.parametrize`; `make test` runs some, `make test-slow` the others.

    The fast ones hold every pair of two values: what fails, fails for a value or for two that do not go together.
    """
    rows = list(itertools.product(*(range(len(axis)) for axis in axes)))
    missing = set().union(*map(_pairs, rows))
    fast = set()
    while missing:
        row = max(rows, key=lambda row: len(_pairs(row) & missing))
        missing -= _pairs(row)
        fast.add(row)
    marks = {True: (), False: pytest.mark.slow}
    values = [(row, [axis[index] for axis, index in zip(axes, row, strict=True)]) for row in rows]
    return [pytest.param(*chosen, id="-".join(map(_name, chosen)), marks=marks[row in fast]) for row, chosen in values]


def but(slow: Collection[str], names: Iterable[Any]) -> list:
    """The names, or tuples that begin with one, for `pytest.mark.parametrize`; those in `slow` are left to `make test-slow`."""
    rows = [name if isinstance(name, tuple) else (name,) for name in names]
    return [pytest.param(*row, id="-".join(row), marks=pytest.mark.slow if row[0] in slow else ()) for row in rows]


def only(fast: Collection[Any], values: Iterable[Any]) -> list:
    """The values, for `pytest.mark.parametrize`; those that are not in `fast` are left to `make test-slow`."""
    return [pytest.param(value, marks=() if value in fast else pytest.mark.slow) for value in values]


def each_once(rows: Iterable[tuple[str, ...]]) -> list:
    """The rows, for `pytest.mark.parametrize`; the fast ones hold every value of every column once."""
    seen: set[tuple[int, str]] = set()
    params = []
    for row in rows:
        new = set(enumerate(row)) - seen
        seen |= new
        params.append(pytest.param(*row, id="-".join(row), marks=() if new else pytest.mark.slow))
    return params


def _pairs(row: tuple[int, ...]) -> set:
    return set(itertools.combinations(enumerate(row), 2))


def _name(value: Any) -> str:
    return "+".join(value) if isinstance(value, tuple) else str(value)
