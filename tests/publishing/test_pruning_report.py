"""The report as a value: what an earlier version wrote is read, and what is written is what was read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_spectral_prune.publishing.pruning_report import PruningReport

# Written when reports were plain dicts: of images in FLOPs with a recovery, and of detrimental neurons.
OLD = {name: (Path(__file__).parent / "reports" / f"{name}.json").read_text() for name in ("images", "detrimental")}
# Figures that such a report had twice; they stand in `metrics_before` and `metrics_after`.
TWICE = {"before_accuracy", "after_accuracy"}


@pytest.mark.parametrize("name", OLD)
def test_reports_that_were_written_as_dicts_are_read_whole(name):
    before = json.loads(OLD[name])
    report = PruningReport.from_json(OLD[name])
    assert json.loads(report.to_json()) == {key: value for key, value in before.items() if key not in TWICE}
    assert all(report[key] == value for key, value in before.items() if key not in TWICE)
    assert PruningReport.from_json(report.to_json()) == report


def test_entries_of_a_later_version_are_left_out():
    found = json.loads(OLD["images"])
    assert PruningReport.from_json(json.dumps(found | {"energy_in_joules": 3.0})) == PruningReport.from_json(OLD["images"])


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("images", "reduction"),
        ("images", "target_scope"),
        ("images", "arguments.allocation"),
        ("images", "macs.after"),
        ("images", "recovery.kept"),
        ("detrimental", "machine.system"),
        ("detrimental", "self_check.remote_code.max_abs_diff"),
    ],
)
def test_a_figure_that_every_such_run_has_is_missed_by_name(name, path):
    found = json.loads(OLD[name])
    *above, last = path.split(".")
    place = found
    for key in above:
        place = place[key]
    del place[last]
    with pytest.raises(ValueError, match=f"`report.json` has no figure `{path}`"):
        PruningReport.from_json(json.dumps(found), "`report.json`")
