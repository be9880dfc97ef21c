"""NDP, tracking and the regulariser in a data-parallel run of two processes."""

from __future__ import annotations

import pytest
from processes import run_in_two_processes

pytestmark = pytest.mark.slow


def test_two_processes_prune_track_and_regularise_alike(forks, tmp_path):
    """Masked while training and removed at the end; what the processes end with is the same."""
    one, other = run_in_two_processes(forks, "ndp_parallel.py", tmp_path)
    assert one == other and one["parameters"] == one["planned"]
    assert [point["step"] for point in one["points"]] == [0, 3, 6]
    # What does not learn stands still; of the learning weights all move.
    assert one["moved"] == one["learning"]
