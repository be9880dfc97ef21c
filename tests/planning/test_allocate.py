"""Budgets are exact, floors hold, and the target is met from above within one step."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_spectral_prune.models.families import UnitGroup
from hf_spectral_prune.planning import Limits, parameters_after, per_layer_sizes, sizes_after_round, uniform_sizes
from hf_spectral_prune.planning.allocate import alignment_for

FFN_COST, HEAD_COST = 96, 1_280


def make_groups(layers: int = 4, width: int = 64, heads: int = 4) -> list[UnitGroup]:
    groups = []
    for layer in range(layers):
        groups.append(UnitGroup(layer, "ffn", width, 1, FFN_COST))
        groups.append(UnitGroup(layer, "heads", heads, 8, HEAD_COST))
    return groups


def total(groups: list[UnitGroup]) -> int:
    return 10_000 + sum(group.size * group.parameters_per_unit for group in groups)


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0.05, 0.8), round_to=st.sampled_from([1, 4, 8, 24]), width=st.integers(24, 100), heads=st.integers(1, 8))
def test_uniform_target_is_met_within_one_step_and_never_overshot(share, round_to, width, heads):
    groups = make_groups(width=width, heads=heads)
    prunable = sum(group.size * group.parameters_per_unit for group in groups)
    now, limits = total(groups), Limits(round_to=round_to)
    target = now - int(share * prunable)
    least = parameters_after(groups, {group.key: limits.choices(group)[-1] for group in groups}, now)
    if least > target:
        with pytest.raises(ValueError, match="out of reach"):
            uniform_sizes(groups, now, target, limits)
        return
    sizes = uniform_sizes(groups, now, target, limits)
    gap = parameters_after(groups, sizes, now) - target
    # One step of a layer's neurons in every layer; a width that is no multiple first loses its odd rest.
    assert 0 <= gap < 4 * FFN_COST * (round_to + width % round_to) + 4 * HEAD_COST * (heads == 1 or round_to > FFN_COST)
    for kind in ("ffn", "heads"):
        assert len({sizes[group.key] for group in groups if group.kind == kind}) == 1
    for group in groups:
        assert sizes[group.key] == group.size or sizes[group.key] % limits.step(group) == 0


def test_uniform_shares_go_to_the_nearest_head_count():
    groups = make_groups(heads=4)
    prunable = sum(group.size * group.parameters_per_unit for group in groups)
    sizes = uniform_sizes(groups, total(groups), total(groups) - prunable // 4, Limits(round_to=1))
    assert sizes["layers.0.heads"] == 3
    assert sizes["layers.0.ffn"] == 48


def test_head_counts_that_do_not_load_are_avoided():
    groups = make_groups(heads=4)
    prunable = sum(group.size * group.parameters_per_unit for group in groups)
    limits = Limits(round_to=1, loadable_heads=lambda count: count != 3)
    sizes = uniform_sizes(groups, total(groups), total(groups) - prunable // 4, limits)
    assert sizes["layers.0.heads"] in (2, 4)
    assert 0 <= parameters_after(groups, sizes, total(groups)) - (total(groups) - prunable // 4) < 4 * FFN_COST


def test_uniform_of_unequal_layers_is_an_error():
    groups = [*make_groups(layers=1), UnitGroup(1, "ffn", 32, 1, FFN_COST)]
    with pytest.raises(ValueError, match="per_layer"):
        uniform_sizes(groups, total(groups), total(groups) - 1_000, Limits())


def test_unreachable_target_names_the_least_that_can_be_had():
    groups = make_groups()
    limits = Limits(round_to=8, min_units={"ffn": 32, "heads": 2})
    with pytest.raises(ValueError, match=f"{total(groups) // 2 + 5_000:,}"):
        uniform_sizes(groups, total(groups), 1_000, limits)
    with pytest.raises(ValueError, match="out of reach"):
        per_layer_sizes(groups, total(groups), 1_000, limits, {group.key: torch.arange(group.size + 1.0) for group in groups})


@settings(max_examples=40, deadline=None)
@given(share=st.floats(0.05, 0.9), seed=st.integers(0, 10_000), round_to=st.sampled_from([1, 8]))
def test_per_layer_target_is_met_within_one_step_of_one_group(share, seed, round_to):
    generator = torch.Generator().manual_seed(seed)
    groups = make_groups()
    damage = {group.key: torch.rand(group.size + 1, generator=generator).cumsum(0) for group in groups}
    now, limits = total(groups), Limits(round_to=round_to)
    target = now - int(share * sum(group.size * group.parameters_per_unit for group in groups))
    if parameters_after(groups, {group.key: limits.floor(group) for group in groups}, now) > target:
        return
    sizes = per_layer_sizes(groups, now, target, limits, damage)
    assert 0 <= parameters_after(groups, sizes, now) - target < max(FFN_COST * round_to, HEAD_COST)
    assert all(limits.floor(group) <= sizes[group.key] <= group.size for group in groups)


def test_per_layer_sizes_are_the_best_of_all_on_convex_damage():
    groups = [UnitGroup(layer, "ffn", 5, 1, 10) for layer in range(3)]
    damage = {
        "layers.0.ffn": torch.tensor([0.0, 1.0, 3.0, 6.0, 10.0, 15.0]),
        "layers.1.ffn": torch.tensor([0.0, 0.1, 0.3, 0.9, 4.0, 9.0]),
        "layers.2.ffn": torch.tensor([0.0, 2.0, 4.0, 6.0, 8.0, 10.0]),
    }
    sizes = per_layer_sizes(groups, 150, 150 - 60, Limits(round_to=1), damage)

    def cost(removed: tuple[int, ...]) -> float:
        return sum(float(damage[group.key][count]) for group, count in zip(groups, removed, strict=True))

    best = min((counts for counts in itertools.product(range(5), repeat=3) if sum(counts) == 6), key=cost)
    chosen = tuple(group.size - sizes[group.key] for group in groups)
    assert sum(chosen) == 6
    assert cost(chosen) == cost(best)


def test_a_flat_start_does_not_hide_a_cliff():
    """A curve that is free at first and steep later is cut only as far as it is cheaper than the others."""
    groups = [UnitGroup(layer, "ffn", 4, 1, 10) for layer in range(2)]
    damage = {"layers.0.ffn": torch.tensor([0.0, 0.0, 0.0, 50.0, 90.0]), "layers.1.ffn": torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])}
    sizes = per_layer_sizes(groups, 80, 40, Limits(round_to=1), damage)
    assert sizes == {"layers.0.ffn": 2, "layers.1.ffn": 2}


def test_rounds_go_in_equal_shares_through_allowed_sizes():
    groups = make_groups(width=64, heads=4)
    final = {group.key: 32 if group.kind == "ffn" else 2 for group in groups}
    limits = Limits(round_to=8)
    widths = [sizes_after_round(groups, final, Fraction(index, 4), limits)["layers.0.ffn"] for index in (1, 2, 3, 4)]
    heads = [sizes_after_round(groups, final, Fraction(index, 4), limits)["layers.0.heads"] for index in (1, 2, 3, 4)]
    assert widths == [56, 48, 40, 32]
    assert heads == [4, 3, 3, 2]


@settings(deadline=None)
@given(width=st.integers(8, 4_096), layers=st.integers(1, 32), uniform=st.booleans(), share=st.floats(0.001, 0.9))
def test_widths_are_multiples_of_eight_unless_a_step_would_be_most_of_the_target(width, layers, uniform, share):
    groups = [UnitGroup(layer, "ffn", width, 1, FFN_COST) for layer in range(layers)]
    wanted = int(share * width * layers * FFN_COST)
    step, cost = alignment_for(groups, wanted, uniform), FFN_COST * (layers if uniform else 1)
    assert step in (1, 2, 4, 8)
    assert step == 8 or 2 * (2 * step) * cost > wanted  # the next wider step would not do
    assert step == 1 or 2 * step * cost <= wanted


def test_channels_keep_their_alignment():
    assert alignment_for([UnitGroup(0, "channels", 16, 1, 10)], 1, uniform=False) == 8
