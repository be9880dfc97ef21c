"""Plans by neural differentiation: the published removal of the least important units, and the bounds that reports print."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.calibration import collect_moments
from hf_spectral_prune.criteria import make_criterion
from hf_spectral_prune.criteria.passes import ndi_terms
from hf_spectral_prune.criteria.score import collect_statistics, group_data, score_units
from hf_spectral_prune.models.families import unit_groups
from hf_spectral_prune.rounds import decide, start
from hf_spectral_prune.spectral import correlation

CHEAP = {"num_probes": 1, "num_curvature_sequences": 2}
PUBLISHED = {"criterion": "ndi", "layout": "per_layer", "allocation": "scores", "round_to": 1, "disable_tqdm": True}


def plan_of(scores, **fields):
    args = SpectralPruningArguments(**PUBLISHED | {"min_ffn_units": 1} | fields)
    model = tiny_model()
    run = start(model, args, weights="")
    return unit_groups(model, args.units), decide(model, args, run, scores(unit_groups(model, args.units)), 1)


def drawn(seed):
    def scores(groups):
        generator = torch.Generator().manual_seed(seed)
        return {group.key: torch.rand(group.size, dtype=torch.float64, generator=generator) + 0.01 for group in groups}

    return scores


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), share=st.floats(0.05, 0.6))
def test_a_target_in_units_removes_exactly_the_least_important_of_the_network(seed, share):
    """Algorithm 1, line 13, of both kinds of unit together."""
    scores = drawn(seed)
    groups, plan = plan_of(scores, target_scope="units", target_reduction=share)
    ranked = sorted((value, key) for key, values in scores(groups).items() for value in values.tolist())
    number = int(share * len(ranked))
    lowest = {group.key: sum(key == group.key for _, key in ranked[:number]) for group in groups}
    removed = {group.key: group.size - len(plan.kept[group.key]) for group in groups}
    floored = any(lowest[group.key] == group.size for group in groups)  # a group keeps one unit
    assert sum(removed.values()) <= number
    assert floored or removed == lowest


def test_ranking_by_importance_itself_takes_a_costly_unit_before_a_cheap_one_of_more_importance():
    """A key/value group has many times the parameters of a neuron: per parameter it goes first even where it matters more."""

    def scores(groups):
        return {
            group.key: torch.full((group.size,), 2.0 if group.kind == "heads" else 1.0, dtype=torch.float64) for group in groups
        }

    lost = {}
    for rank_by in ("cost", "importance"):
        groups, plan = plan_of(scores, target_scope="prunable", target_reduction=0.2, rank_by=rank_by)
        lost[rank_by] = {group.kind for group in groups if len(plan.kept[group.key]) < group.size}
    assert "heads" in lost["cost"] and lost["importance"] == {"ffn"}


@pytest.mark.parametrize("fields", [{"layout": "uniform"}, {"layout": "per_layer", "allocation": "loss_curves"}], ids=str)
def test_a_ranking_by_importance_needs_one_ranking(fields):
    with pytest.raises(ValueError, match="one ranking over all layers"):
        SpectralPruningArguments(rank_by="importance", **fields)


def test_norms_may_be_those_of_the_producers_alone(batches):
    model = tiny_model()
    groups = unit_groups(model, ["ffn"])
    options = {norms: make_criterion("ndi", CHEAP | {"norms": norms}) for norms in ("all", "producers")}
    moments = collect_moments(model, groups, batches, sides=("after",), progress=False)
    statistics = collect_statistics(model, groups, options["all"], batches, moments, progress=False)
    found = {
        norms: score_units(model, groups, criterion, moments, statistics=statistics, progress=False)
        for norms, criterion in options.items()
    }
    for group in groups:
        mlp = model.model.layers[group.layer].mlp
        rows = mlp.gate_proj.weight.square().sum(dim=1) + mlp.up_proj.weight.square().sum(dim=1)
        whole = rows + mlp.down_proj.weight.square().sum(dim=0)
        relative = [norm.sqrt().double() / norm.sqrt().mean() for norm in (rows, whole)]
        expected = found["all"][group.key] * relative[0] / relative[1]
        torch.testing.assert_close(found["producers"][group.key], expected.detach(), rtol=1e-5, atol=1e-8)


@pytest.mark.usefixtures("report_pages")
@pytest.mark.parametrize("num_rounds", [1, 2])
def test_report_card_and_page_have_the_bounds_of_the_plan(num_rounds, batches, tmp_path):
    model = tiny_model()
    dense = copy.deepcopy(model)
    args = SpectralPruningArguments(
        output_dir=str(tmp_path / "out"),
        target_reduction=0.3,
        units=["ffn"],
        min_ffn_units=4,
        criterion_args=CHEAP,
        num_rounds=num_rounds,
        compensation="none",
        self_check=False,
        **PUBLISHED,
    )
    pruner = SpectralPruner(model, args, batches)
    output = pruner.prune()
    pruner.save_model()
    groups, bounds = unit_groups(dense, ["ffn"]), output.report.bounds
    squares = []
    for group in groups:
        mlp = dense.model.layers[group.layer].mlp
        norm = (
            mlp.gate_proj.weight.square().sum(dim=1)
            + mlp.up_proj.weight.square().sum(dim=1)
            + mlp.down_proj.weight.square().sum(dim=0)
        )
        squares += [float(norm.detach()[unit]) for unit in range(group.size) if unit not in output.plan.kept[group.key]]
    assert bounds["parameter_distance"] == pytest.approx(sum(squares) ** 0.5, rel=1e-5)
    assert bounds["parameter_distance_bound"] == pytest.approx(sum(square**0.5 for square in squares), rel=1e-5)
    moments = collect_moments(dense, groups, batches, sides=("after",), progress=False)
    for group in groups:
        mean, raw = group_data(dense, group, moments[group.key], 0).after()
        shrunk = ndi_terms.shrink(correlation(raw, mean), moments[group.key].after.count)
        found = bounds["groups"][group.key]
        mass, gap = ndi_terms.projector_mass(shrunk, found["modes"])
        two = mass.topk(2).values.prod().sqrt()
        assert (found["gap"], found["largest_mass"]) == pytest.approx((gap, float(mass.max())), rel=1e-6)
        assert found["incoherence"] == pytest.approx(float(two), rel=1e-6)
        assert found["largest_correlation"] <= found["correlation"] + 1e-9
    card, page = ((tmp_path / "out" / name).read_text() for name in ("README.md", "report.html"))
    assert f"Δ = {bounds['parameter_distance']:.4g} (eq. 30)" in card
    assert "Bounds of the plan" in page and "layers.0.ffn" in page.partition("Bounds of the plan</h2>")[2]


def test_other_criteria_have_no_bounds(batches):
    args = SpectralPruningArguments(criterion="energy", units=["ffn"], round_to=4, compensation="none", disable_tqdm=True)
    assert SpectralPruner(tiny_model(), args, batches).prune().report.bounds is None
