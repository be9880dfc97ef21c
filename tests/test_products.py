"""The fast half of a product of parameters holds every pair, and both halves together every combination."""

from __future__ import annotations

import itertools

from products import pairwise


def test_fast_rows_hold_every_pair_and_all_rows_are_there():
    axes = (["a", "b", "c", "d"], [1, 2], [("x",), ("y",), ("x", "y")])
    rows = pairwise(*axes)
    assert [row.values for row in rows] == list(itertools.product(*axes))
    fast = [row.values for row in rows if not row.marks]
    assert 12 <= len(fast) <= 13, "four by three pairs need at least twelve rows"
    for one, two in itertools.combinations(range(3), 2):
        assert {(row[one], row[two]) for row in fast} == set(itertools.product(axes[one], axes[two]))
    assert rows[5].id == "a-2-x+y"
