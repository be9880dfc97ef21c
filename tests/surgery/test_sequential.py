"""Sequential compensation: what it promises, on tiny models of every family."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import (
    CORE,
    ENCODERS,
    FAMILIES,
    FFN_ONLY,
    encoder_batch,
    logits,
    random_batch,
    refused,
    tiny_encoder,
    tiny_model,
)
from products import only

from hf_spectral_prune.calibration import collect_moments
from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.models import replay
from hf_spectral_prune.models.families import consumers, unit_groups
from hf_spectral_prune.surgery import PruningPlan, apply_plan, compensate, sequential
from hf_spectral_prune.surgery.compensate import correction, least_squares
from hf_spectral_prune.surgery.sequential import cut_sequentially

DECODERS = [*FAMILIES, *FFN_ONLY]


def make(family: str, **fields):
    return tiny_model(family, **fields) if family in DECODERS else tiny_encoder(family, task="ForMaskedLM", **fields)


def rows(family: str, padding: str | None = "right", number: int = 6) -> list[dict[str, torch.Tensor]]:
    """Batches of 4 sequences of 32 tokens."""
    if family in DECODERS:
        return [random_batch(4, 32, seed, padding) for seed in range(number)]
    return [encoder_batch(make(family), 4, 32, seed, padding) for seed in range(number)]


def last_states(model, batches) -> torch.Tensor:
    """(N, hidden size) of the base model's output at real positions."""
    with torch.inference_mode():
        return torch.cat([model.base_model(**batch)[0][batch["attention_mask"].bool()] for batch in batches])


def every_other(model) -> dict[str, torch.Tensor]:
    return {group.key: torch.arange(0, group.size, 2) for group in unit_groups(model)}


def plan_of(model, kept) -> PruningPlan:
    groups = unit_groups(model)
    after = num_parameters(model) - sum((group.size - len(kept[group.key])) * group.parameters_per_unit for group in groups)
    return PruningPlan(
        model_type=model.config.model_type,
        sizes={group.key: group.size for group in groups},
        kept={key: tuple(index.tolist()) for key, index in kept.items()},
        parameters_before=num_parameters(model),
        parameters_after=after,
    )


@pytest.mark.parametrize("family", only(CORE, [*DECODERS, *ENCODERS]))
def test_the_dense_stream_is_met_better_than_by_repairing_each_layer_alone(family):
    model, batches = make(family), rows(family, number=16)
    plan, dense = plan_of(model, every_other(model)), last_states(model, batches)
    moments = collect_moments(model, unit_groups(model), batches, sides=("after",), progress=False)
    away = {}
    for compensation in ("none", "least_squares", "sequential"):
        cut = apply_plan(copy.deepcopy(model), plan, compensation=compensation, moments=moments, batches=batches)
        assert num_parameters(cut) == plan.parameters_after
        away[compensation] = float((last_states(cut, batches) - dense).square().mean())
    assert away["sequential"] < min(away["least_squares"], away["none"])


@pytest.mark.parametrize("family", only(CORE, [*DECODERS, *ENCODERS]))
def test_what_is_replayed_is_what_would_be_run_again(family, monkeypatch):
    model, batches = make(family), rows(family, number=2)
    kept, cuts = every_other(model), []
    for most in (0, 2**30):
        monkeypatch.setattr(replay, "_MOST_KEPT", most)
        cuts.append(copy.deepcopy(model))
        ridges = cut_sequentially(cuts[-1], kept, batches, progress=False)
    assert any(ridge < float("inf") for ridge in ridges.values())
    assert all(torch.equal(value, cuts[1].state_dict()[name]) for name, value in cuts[0].state_dict().items())


@pytest.mark.parametrize("family", only(CORE, [*DECODERS, *ENCODERS]))
def test_refitted_producers_bring_rows_that_were_not_seen_nearer_to_the_dense_model(family, monkeypatch):
    model, batches = make(family), rows(family, number=20)
    batches, unseen = batches[:16], batches[16:]
    dense, away = last_states(model, unseen), []
    refit = sequential._refit_producers
    for step in (lambda *_args: None, refit):
        monkeypatch.setattr(sequential, "_refit_producers", step)
        cut = copy.deepcopy(model)
        cut_sequentially(cut, every_other(model), batches, progress=False)
        away.append(float((last_states(cut, unseen) - dense).square().mean()))
    # Of all 44 families 43 gain, by 5 % in the mean; one loses 0.4 %.
    assert away[1] < 1.01 * away[0]


def test_refitted_producers_give_on_the_pruned_stream_what_they_gave_on_the_dense_one():
    model, batches = make("llama"), rows("llama", number=16)
    kept = {key: index for key, index in every_other(model).items() if key.startswith("layers.0.")}
    cut, producer, read = copy.deepcopy(model), "model.layers.1.mlp.up_proj", {}
    before = cut.get_submodule(producer).weight.clone()
    cut_sequentially(cut, kept, batches, progress=False)
    for name, one in (("dense", model), ("pruned", cut)):
        found: list[torch.Tensor] = []
        handle = one.get_submodule(producer).register_forward_pre_hook(lambda _module, args, found=found: found.append(args[0]))
        last_states(one, batches)
        handle.remove()
        read[name] = torch.cat([value[batch["attention_mask"].bool()] for value, batch in zip(found, batches, strict=True)])
    wanted = read["dense"] @ before.T
    errors = [
        float((read["pruned"] @ weight.T - wanted).square().mean()) for weight in (before, cut.get_submodule(producer).weight)
    ]
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize(("most", "runs"), [(0, [3, 5]), (2**30, [2, 2])])
def test_a_part_runs_once_in_each_stream(most, runs, monkeypatch):
    monkeypatch.setattr(replay, "_MOST_KEPT", most)
    model, batches = make("llama"), rows("llama", number=2)
    layer, counts = model.model.layers[0], [0, 0]

    def counter(index):
        def count(*_args):
            counts[index] += 1

        return count

    layer.mlp.gate_proj.register_forward_hook(counter(0))
    layer.self_attn.q_proj.register_forward_hook(counter(1))
    cut_sequentially(model, every_other(model), batches, progress=False)
    # The dense stream; the pruned one for the attention's consumer, the FFN's producers and its consumer, and to go on.
    assert counts == [len(batches) * number for number in runs]


@pytest.mark.parametrize("family", ["llama", "granite", "modernbert"])
def test_behind_dense_layers_it_is_the_least_squares_repair(family):
    """With nothing wrong in front, all that a consumer has to make up for is what was removed of it."""
    model, batches, ridge = make(family), rows(family, padding="left"), 0.03
    attention, ffn = (next(group for group in unit_groups(model) if group.kind == kind) for kind in ("heads", "ffn"))
    before, consumer = consumers(model, attention)[0].module.weight.clone(), consumers(model, ffn)[0]
    kept = torch.arange(0, ffn.size, 2)
    moments = collect_moments(model, [ffn], batches, progress=False)[ffn.key].after
    energy = moments.raw().diagonal()
    # Each takes its ridge as a share of its own mean: of all channels, or of those that stay.
    expected = least_squares(consumer.module.weight, moments, kept, ridge * float(energy[kept].mean() / energy.mean()))
    cut_sequentially(model, {ffn.key: kept}, batches, ridges=(ridge,), progress=False)
    torch.testing.assert_close(consumers(model, attention)[0].module.weight, before, rtol=0, atol=1e-5)
    torch.testing.assert_close(consumer.module.weight.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["llama-biases", "gemma2", "granite", "bert", "qwen3_5"])
def test_a_model_that_loses_nothing_stays_as_it_is(family):
    model, batches = make(family), rows(family)
    expected = last_states(model, batches)
    cut_sequentially(model, {}, batches, progress=False)
    torch.testing.assert_close(last_states(model, batches), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("by_scipy", [2048, 0])
@pytest.mark.parametrize("has_bias", [False, True])
def test_correction_finds_the_weights_again_as_the_ridge_vanishes(has_bias, by_scipy, monkeypatch):
    monkeypatch.setattr(compensate, "_BY_SCIPY", by_scipy)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator, dtype=torch.float64) + 0.5
    wanted = torch.randn(4, 6 + has_bias, generator=generator, dtype=torch.float64)
    if has_bias:
        x = torch.cat([x, torch.ones(200, 1, dtype=torch.float64)], dim=1)
    error = x @ wanted.T
    gram, cross = x.T @ x / 200, error.T @ x / 200
    torch.testing.assert_close(correction(gram.clone(), cross, 1e-12, has_bias), wanted, rtol=1e-8, atol=1e-8)
    held_back = correction(gram, cross, 1e12, has_bias)
    assert float(held_back[:, :6].abs().max()) < 1e-8
    if has_bias:  # a mean is always met
        torch.testing.assert_close(held_back[:, 6], error.mean(dim=0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gemma3", "bert", "opt"])
def test_the_ridge_is_the_one_that_gains_most_of_all(family, monkeypatch):
    """Few are tried on the way to it."""
    model, tried = make(family), []
    correction = sequential.Fit.correction
    monkeypatch.setattr(sequential.Fit, "correction", lambda *args: tried.append(1) or correction(*args))
    batches = rows(family, number=16)
    found = cut_sequentially(copy.deepcopy(model), every_other(model), batches, progress=False)
    few, tried[:] = len(tried), []
    monkeypatch.setattr(sequential, "descend", lambda count, _first, judge: min(range(count), key=judge))
    assert cut_sequentially(model, every_other(model), batches, progress=False) == found
    assert few < 0.8 * len(tried)


@pytest.mark.parametrize("family", ["llama", "gemma3", "bert"])
def test_layers_that_lose_nothing_make_up_for_those_before(family):
    batches, away = rows(family), []
    for refits in (1, 3):
        model = make(family)
        dense = last_states(model, batches)
        kept = {key: index for key, index in every_other(model).items() if key.startswith("layers.0.")}
        stock = {name: value.clone() for name, value in model.state_dict().items()}
        cut_sequentially(model, kept, batches, progress=False)
        if refits == 1:
            later = {name: stock[name] for name in stock if any(f".{layer}." in name for layer in (1, 2))}
            model.load_state_dict(later, strict=False)
        away.append(float((last_states(model, batches) - dense).square().mean()))
    assert away[1] < away[0]


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_what_lies_under_the_padding_does_not_count(family):
    found = []
    for fill in (5, 7):
        model, batches = make(family), rows(family, padding="right")
        for batch in batches:
            batch["input_ids"][batch["attention_mask"] == 0] = fill
        cut_sequentially(model, every_other(model), batches, progress=False)
        found.append(last_states(model, rows(family)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_the_split_into_batches_does_not_matter():
    whole = random_batch(12, 32)
    found = []
    for size in (1, 4, 12):
        model = tiny_model()
        batches = [{name: value[i : i + size] for name, value in whole.items()} for i in range(0, 12, size)]
        cut_sequentially(model, every_other(model), batches, progress=False)
        found.append(logits(model, whole))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found[0], found[2], rtol=1e-3, atol=1e-3)


def test_the_ridge_is_chosen_on_rows_that_the_fit_does_not_see():
    """Fewer positions than channels: the least ridge would meet the rows it was fitted on exactly, and no others."""
    model = tiny_model(intermediate_size=64)
    chosen = cut_sequentially(model, {"layers.0.ffn": torch.arange(48)}, [random_batch(2, 8)], progress=False)
    assert min(chosen.values()) > 1e-3
    single = cut_sequentially(tiny_model(), {}, [random_batch(1, 8)], progress=False)
    assert set(single.values()) == {0.1}


@pytest.mark.parametrize("task", ["ForMultipleChoice", "ForSequenceClassification"])
def test_rows_of_tasks(task):
    model = tiny_encoder("bert", task=task)
    batches = [encoder_batch(model, 2, 12, seed, "right") for seed in range(4)]
    away = []
    for compensation in ("none", "sequential"):
        cut = apply_plan(copy.deepcopy(model), plan_of(model, every_other(model)), compensation=compensation, batches=batches)
        away.append(sum(float((logits(cut, batch) - logits(model, batch)).square().sum()) for batch in batches))
    assert away[1] < away[0]


def test_training_mode_and_other_weights_are_left_alone():
    model = tiny_model("llama").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cut_sequentially(model, every_other(model), rows("llama", number=2), progress=False)
    assert model.training
    for name, value in model.state_dict().items():
        if not any(part in name for part in ("self_attn", "mlp")) and name != "model.norm.weight":  # which gets one factor
            assert torch.equal(value, before[name]), name


def test_faults_are_told():
    model = tiny_model()
    plan = plan_of(model, every_other(model))
    refused(lambda: apply_plan(model, plan, compensation="sequential"), "`batches`")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    refused(lambda: cut_sequentially(model, {}, [random_batch()], progress=False), "layers.1.ffn", "`dtype`")
    empty = random_batch()
    empty["attention_mask"].zero_()
    refused(lambda: cut_sequentially(tiny_model(), {}, [empty], progress=False), "no unpadded position")
