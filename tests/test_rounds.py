"""What the steps of a round read."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from conftest import encoder_batch, random_batch, tiny_encoder, tiny_model

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments, rounds
from hf_spectral_prune.calibration import collect_moments
from hf_spectral_prune.data.texts import CalibrationData
from hf_spectral_prune.models.families import consumers, unit_groups
from hf_spectral_prune.models.losses import loss_of, num_rows
from hf_spectral_prune.planning import Limits
from hf_spectral_prune.planning.damage import SuffixLoss, fisher_damage, loss_curves
from hf_spectral_prune.planning.equal_heads import EqualHeads
from hf_spectral_prune.rounds import _first_sequences
from hf_spectral_prune.surgery.cut import repairs
from hf_spectral_prune.surgery.narrow import cut_group


def sizes(model, batches, number=None):
    data = CalibrationData(batches, {})
    return [num_rows(batch) for batch in _first_sequences(model, data, number)]


def test_curves_of_a_language_model_are_measured_on_a_few_thousand_tokens():
    batches = [random_batch(rows=3, length=501, seed=seed) for seed in range(3)]
    assert sizes(tiny_model(), batches) == [3, 1]  # 4 x 500 targets


def test_curves_of_a_classifier_are_measured_on_hundreds_of_labels():
    model = tiny_encoder()
    labels = {"labels": torch.zeros(100, dtype=torch.int64)}
    batches = [encoder_batch(model, rows=100, length=4, seed=seed) | labels for seed in range(4)]
    assert sizes(model, batches) == [100, 100, 56]
    assert sizes(model, batches[:2]) == [100, 100]


@pytest.mark.parametrize(("number", "expected"), [(1, [1]), (4, [3, 1]), (6, [3, 3]), (99, [3, 3, 3])])
def test_a_given_number_of_sequences_is_taken(number, expected):
    batches = [random_batch(rows=3, length=600, seed=seed) for seed in range(3)]
    assert sizes(tiny_model(), batches, number) == expected


def test_rows_come_in_order():
    batches = [random_batch(rows=3, seed=seed) for seed in range(2)]
    found = _first_sequences(tiny_model(), CalibrationData(batches, {}), 4)
    assert torch.equal(torch.cat([batch["input_ids"] for batch in found]), torch.cat([b["input_ids"] for b in batches])[:4])


def test_less_than_one_sequence_is_told():
    with pytest.raises(ValueError, match="num_allocation_samples"):
        SpectralPruningArguments(num_allocation_samples=0)


def prune(model, batches, **fields):
    options = {"target_reduction": 0.2, "target_scope": "prunable", "round_to": 4, "min_ffn_units": 4, "disable_tqdm": True}
    options |= {"compensation": "none"}
    return SpectralPruner(model, SpectralPruningArguments(**options | fields), batches).prune()


@pytest.mark.parametrize(("consumer", "spared"), [("mlp.down_proj", "heads"), ("self_attn.o_proj", "ffn")])
def test_a_uniform_layout_spares_the_kind_whose_loss_is_dear(consumer, spared, batches):
    model = tiny_model()
    for layer in model.model.layers:
        layer.get_submodule(consumer).weight.data.zero_()  # cutting this kind costs nothing
    fields = {"stock_class": "mistral", "round_to": 1, "target_reduction": 0.3}  # any number of heads loads
    measured = prune(copy.deepcopy(model), batches, **fields).plan.kept
    shared = prune(copy.deepcopy(model), batches, allocation="proportional", **fields).plan.kept
    for group in unit_groups(model):
        more, less = (measured, shared) if group.kind == spared else (shared, measured)
        assert len(more[group.key]) > len(less[group.key])


@pytest.mark.parametrize("compensation", ["none", "least_squares"])
def test_curves_of_a_kind_are_of_all_its_layers_cut_at_once(compensation, batches):
    model = tiny_model()
    groups = unit_groups(model)
    scores = {group.key: torch.arange(group.size, dtype=torch.float64) for group in groups}
    moments = collect_moments(model, groups, batches, progress=False)
    repair = moments if compensation == "least_squares" else None
    before = copy.deepcopy(model.state_dict())
    curves = loss_curves(model, groups, scores, batches, by_kind=True, fractions=(0.5,), repair=repair, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    clean = SuffixLoss(model, batches).clean
    for kind in ("ffn", "heads"):
        members = [group for group in groups if group.kind == kind]
        half = members[0].size // 2
        kept = {group.key: torch.arange(group.size)[half if group.kind == kind else 0 :] for group in groups}
        cut = copy.deepcopy(model)
        repaired = repairs(cut, kept, compensation, moments)
        for group in unit_groups(cut):
            cut_group(cut, group, kept[group.key], repaired.get(group.key))
        for layer in cut.model.layers:  # without a config: widths are the modules'
            layer.self_attn.num_key_value_groups = cut.config.num_attention_heads // cut.config.num_key_value_heads
        added = SuffixLoss(cut, batches).clean - clean
        assert sum(float(curves[group.key][half]) for group in members) == pytest.approx(max(added, 0), abs=1e-5)


@pytest.mark.parametrize("task", ["Model", "ForSequenceClassification"])
def test_without_a_loss_kinds_give_up_equal_shares(task):
    model = tiny_encoder(task=task)
    batches = [{name: value for name, value in encoder_batch(model, seed=seed).items() if name != "labels"} for seed in (0, 1)]
    kept = prune(copy.deepcopy(model), batches).plan.kept
    assert kept == prune(model, batches, allocation="proportional").plan.kept


@pytest.mark.parametrize("kind", ["ffn", "heads"])
def test_fisher_damage_is_the_squared_gradient_of_switching_a_whole_unit(kind):
    model, batch = tiny_model(), random_batch(rows=1, length=10)
    group = next(group for group in unit_groups(model) if group.kind == kind and group.layer == 1)
    gates = torch.ones(1, 10, group.size, requires_grad=True)  # one for every unit and position
    width = group.channels_per_unit
    handle = consumers(model, group)[0].module.register_forward_pre_hook(
        lambda _module, args: (args[0] * gates.repeat_interleave(width, dim=2),)
    )
    loss_of(model, batch).backward()
    handle.remove()
    information = gates.grad.double().square().mean(dim=(0, 1)) / 2
    expected = torch.cat([torch.zeros(1, dtype=torch.float64), information.sort().values.cumsum(0)])
    damage = fisher_damage(model, [group], [batch], progress=False)[group.key]
    torch.testing.assert_close(damage, expected, rtol=1e-4, atol=1e-9)


def test_fisher_widths_do_not_hang_on_the_criterion_and_keep_a_floor(batches):
    fields = {"allocation": "fisher", "layout": "per_layer", "target_reduction": 0.5}
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.zero_()  # of no information at all
    found = [prune(copy.deepcopy(model), batches, criterion=name, **fields).plan.kept for name in ("spectral", "energy")]
    widths = [{key: len(kept) for key, kept in plan.items()} for plan in found]
    assert widths[0] == widths[1] and found[0] != found[1]
    assert len(set(widths[0].values())) > 2
    group = next(group for group in unit_groups(model) if group.key == "layers.1.ffn")
    assert widths[0][group.key] == Limits(4, {"ffn": 4}, least_share=0.2).floor(group) == 8


@pytest.mark.parametrize("samples", ["token", "sequence"])
def test_scores_and_widths_by_fisher_information_share_a_pass(samples, batches, monkeypatch):
    fields = {"allocation": "fisher", "layout": "per_layer", "criterion": "fisher", "criterion_args": {"samples": samples}}
    monkeypatch.setattr(rounds, "INFORMATION", "not kept")
    expected = prune(tiny_model(), batches, **fields).plan.kept
    monkeypatch.undo()
    monkeypatch.setattr(rounds, "fisher_damage", lambda *args, **options: pytest.fail("a second pass"))
    assert prune(tiny_model(), batches, **fields).plan.kept == expected


def test_uniform_heads_leave_only_ffn_widths_to_differ(batches):
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.zero_()
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()  # heads cost nothing
    fields = {"layout": "per_layer", "allocation": "loss_curves", "target_reduction": 0.4}
    output = prune(model, batches, uniform_heads=True, **fields)
    counts = {kind: {len(kept) for key, kept in output.plan.kept.items() if key.endswith(kind)} for kind in ("ffn", "heads")}
    assert len(counts["heads"]) == 1 and counts["heads"] != {4} and len(counts["ffn"]) > 1
    config = output.model.config
    assert config.num_key_value_heads == counts["heads"].pop() and config.num_attention_heads == 2 * config.num_key_value_heads


def test_uniform_heads_cost_what_they_cost_in_all_layers():
    groups = unit_groups(tiny_model())
    damage = {group.key: torch.arange(group.size + 1.0) * (group.layer + 1) for group in groups}
    equal = EqualHeads(groups)
    [heads] = [group for group in equal.groups() if group.kind == "heads"]
    assert heads.parameters_per_unit == sum(group.parameters_per_unit for group in groups if group.kind == "heads")
    assert torch.equal(equal.damage(damage)[heads.key], 6 * torch.arange(heads.size + 1.0))
    sizes = {group.key: group.size for group in equal.groups()} | {heads.key: 2}
    assert {size for key, size in equal.everywhere(sizes).items() if key.endswith("heads")} == {2}
    counted = equal.count(lambda sizes: len(sizes))
    assert counted is not None and counted(sizes) == len(groups)


def test_uniform_heads_need_layers_that_agree():
    with pytest.raises(ValueError, match="uniform_heads"):
        SpectralPruningArguments(uniform_heads=True)
    groups = unit_groups(tiny_model(), ["heads"])
    with pytest.raises(ValueError, match="already differ"):
        EqualHeads([*groups, replace(groups[0], layer=9, size=1)])


ALLOCATIONS = {
    "scores": {"allocation": "scores", "criterion": "fisher"},
    "loss_curves": {"allocation": "loss_curves"},
    "fisher": {"allocation": "fisher"},
    "search": {"allocation": "search", "compensation": "sequential"},
}


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_allocation_made_anew_in_every_round_meets_the_target_and_is_the_first_ones_where_there_is_one_round(allocation, batches):
    fields = {"layout": "per_layer", "target_reduction": 0.4, **ALLOCATIONS[allocation]}
    model = tiny_model()
    groups = unit_groups(model)
    prunable = sum(group.size * group.parameters_per_unit for group in groups)
    plans = [prune(copy.deepcopy(model), batches, **fields, reallocate=value).plan for value in (True, False)]
    assert plans[0].kept == plans[1].kept
    plan = prune(copy.deepcopy(model), batches, **fields, reallocate=True, num_rounds=3).plan
    step = max(group.parameters_per_unit * (4 if group.kind == "ffn" else 1) for group in groups)
    removed = plan.parameters_before - plan.parameters_after
    assert 0.4 * prunable - step < removed <= 0.4 * prunable


def test_shares_follow_scores_that_a_cut_has_changed_only_where_they_are_allocated_anew(batches, monkeypatch):
    """The second round finds the last layer the cheapest, which it was not in the first one."""
    order = {"first": (0.1, 1.0, 1.0), "later": (1.0, 1.0, 0.1)}

    def scored(model, args, *more):
        values = order["first" if all(group.size == 24 for group in unit_groups(model, ["ffn"])) else "later"]
        return {
            group.key: torch.full((group.size,), value, dtype=torch.float64)
            for group, value in zip(unit_groups(model, ["ffn"]), values, strict=True)
        }

    monkeypatch.setattr("hf_spectral_prune.rounds.score", scored)
    fields = {"units": ["ffn"], "layout": "per_layer", "allocation": "scores", "num_rounds": 2, "target_reduction": 1 / 3}
    widths = {
        value: [
            len(kept) for kept in prune(tiny_model(), batches, **fields, criterion="energy", reallocate=value).plan.kept.values()
        ]
        for value in (False, True)
    }
    assert widths == {False: [4, 20, 24], True: [12, 24, 12]}


def test_a_layer_keeps_its_share_of_the_whole_model_in_every_round():
    group = unit_groups(tiny_model(), ["ffn"])[0]
    cut = replace(group, size=12)
    assert Limits(1, {}, least_share=0.4).floor(cut) == 5
    assert Limits(1, {}, least_share=0.4, whole={group.key: 24}).floor(cut) == 10


def test_resumed_run_allocates_anew_like_the_whole_one(batches, tmp_path):
    fields = {"layout": "per_layer", "allocation": "scores", "criterion": "fisher", "num_rounds": 3, "reallocate": True}
    whole = prune(tiny_model(), batches, **fields, save_strategy="steps", output_dir=str(tmp_path)).plan
    args = SpectralPruningArguments(
        target_reduction=0.2,
        round_to=4,
        min_ffn_units=4,
        disable_tqdm=True,
        compensation="none",
        **fields,
        output_dir=str(tmp_path),
    )
    resumed = SpectralPruner(tiny_model(), args, batches).prune(resume_from_checkpoint=tmp_path / "checkpoint-1")
    assert resumed.plan.kept == whole.kept
