"""Looks for the least of a few values that fall and then rise, without asking for all of them."""

from __future__ import annotations

from collections.abc import Callable


def descend(count: int, first: int, judge: Callable[[int], float]) -> int:
    """Index of `range(count)` at which `judge` is least on the way down from `first`; each is judged once at most."""
    best, least = first, judge(first) if count > 1 else 0.0
    for step in (-1, 1):
        index = first + step
        while 0 <= index < count and (found := judge(index)) < least:
            best, least = index, found
            index += step
        if best != first:
            break  # downhill on this side
    return best
