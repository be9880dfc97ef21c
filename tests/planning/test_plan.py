"""A plan survives JSON, composes, and refuses nonsense."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_spectral_prune.models.families import UnitGroup
from hf_spectral_prune.planning import choose_units
from hf_spectral_prune.surgery.plan import PruningPlan

GROUPS = [UnitGroup(0, "ffn", 6, 1, 10), UnitGroup(1, "ffn", 6, 1, 10)]


def make_plan(**fields) -> PruningPlan:
    scores = {"layers.0.ffn": torch.tensor([5.0, 1, 4, 2, 3, 0]), "layers.1.ffn": torch.tensor([0.0, 1, 2, 3, 4, 5])}
    return choose_units(GROUPS, scores, {"layers.0.ffn": 3, "layers.1.ffn": 4}, 1_000, model_type="llama", **fields)


def test_highest_scores_stay_and_the_count_is_exact():
    plan = make_plan()
    assert plan.kept == {"layers.0.ffn": (0, 2, 4), "layers.1.ffn": (2, 3, 4, 5)}
    assert plan.parameters_after == 1_000 - 5 * 10


def test_equal_scores_keep_the_lower_index():
    plan = choose_units(GROUPS[:1], {"layers.0.ffn": torch.ones(6)}, {"layers.0.ffn": 2}, 100, model_type="llama")
    assert plan.kept["layers.0.ffn"] == (0, 1)


def test_json_round_trip_is_the_same_plan(tmp_path):
    plan = make_plan(criterion="spectral", criterion_args={"modes": 3}, notes=("a note",), versions={"torch": "2"})
    plan.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == plan
    assert json.loads(plan.to_json())["kept"]["layers.0.ffn"] == [0, 2, 4]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_composed_indices_point_at_the_original_units(data):
    size = data.draw(st.integers(2, 30))
    first = sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1)))
    second = sorted(data.draw(st.sets(st.integers(0, len(first) - 1), min_size=1)))
    one = PruningPlan("llama", {"g": size}, {"g": tuple(first)}, 100, 50)
    two = PruningPlan("llama", {"g": len(first)}, {"g": tuple(second)}, 50, 20)
    units = torch.arange(size)
    assert one.then(two).kept_index("g").tolist() == units[first][second].tolist()
    assert (one.then(two).parameters_before, one.then(two).parameters_after) == (100, 20)


def test_plans_that_do_not_meet_do_not_compose():
    with pytest.raises(ValueError, match="does not start where"):
        make_plan().then(make_plan())


@pytest.mark.parametrize("kept", [(), (2, 1), (0, 9), (-1, 2), (1, 1)], ids=str)
def test_kept_units_must_be_ascending_and_in_range(kept):
    with pytest.raises(ValueError, match="ascending"):
        PruningPlan("llama", {"g": 4}, {"g": kept}, 10, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "not a pruning plan"),
        ("[]", "not a pruning plan"),
        ('{"format_version": 99}', "format 99"),
        ('{"format_version": 1}', "lacks"),
    ],
    ids=["text", "list", "version", "empty"],
)
def test_files_that_are_no_plan_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        PruningPlan.from_json(text)
