"""The search for sizes: its trials say what a cut would do and leave the model alone, and it never ends above its start."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import CORE, ENCODERS, FAMILIES, FFN_ONLY, encoder_batch, random_batch, refused, tiny_encoder, tiny_model
from products import only
from vision import image_batch, tiny_vision

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.models.families import layers_of, unit_groups
from hf_spectral_prune.models.losses import predicts_next_token
from hf_spectral_prune.models.streams import Streams
from hf_spectral_prune.planning import trial
from hf_spectral_prune.planning.allocate import Limits, parameters_after, uniform_options
from hf_spectral_prune.planning.choose import highest
from hf_spectral_prune.planning.trial import divergence, room_for_steps
from hf_spectral_prune.surgery.sequential import cut_layer, groups_by_layer, held_out
from hf_spectral_prune.utils.descent import descend

DECODERS = [*FAMILIES, *FFN_ONLY]


def make(family: str):
    return tiny_model(family) if family in DECODERS else tiny_encoder(family, task="ForMaskedLM")


def rows(family: str) -> list[dict[str, torch.Tensor]]:
    if family in DECODERS:
        return [random_batch(4, 16, seed, "right") for seed in range(2)]
    return [encoder_batch(make(family), 4, 16, seed, "right") for seed in range(2)]


def said(model, batch) -> torch.Tensor:
    """Log-probabilities of every real position of a batch's last row, (N, V)."""
    inputs = {name: value[-1:] for name, value in batch.items() if name != "labels"}
    with torch.inference_mode():
        return model(**inputs).logits[inputs["attention_mask"].bool()].log_softmax(dim=-1)


@pytest.mark.parametrize("family", only(CORE, [*DECODERS, *ENCODERS]))
def test_a_trial_is_the_divergence_of_the_cut_and_repaired_model(family):
    model, batches = make(family).eval(), rows(family)
    kept = {group.key: torch.arange(0, group.size, 2) for group in unit_groups(model)}
    before = copy.deepcopy(model.state_dict())
    found = divergence(model, kept, batches)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    cut = copy.deepcopy(model)
    streams, judged = Streams(cut, batches), held_out(batches, 4)  # the last row of each of the two batches
    for layer, groups in groups_by_layer(cut).items():
        cut_layer(cut, groups, kept, streams, judged, (0.1,), draft=True)
        if layer < len(layers_of(cut)) - 1:
            streams.pruned_step(layer)
    dense, pruned = (torch.cat([said(one, batch) for batch in batches]).double() for one in (model, cut))
    expected = float((dense.exp() * (dense - pruned)).sum(dim=-1).mean())
    assert found == pytest.approx(expected, rel=1e-3) and found > 0


def test_the_rows_that_judge_a_trial_are_not_fitted_on():
    model, kept = make("llama").eval(), {group.key: torch.arange(0, group.size, 2) for group in unit_groups(make("llama"))}
    batches, others = ([random_batch(16, 16, seed, "right") for seed in seeds] for seeds in ((0, 1), (8, 9)))
    mixed = [
        {name: torch.where(judged[:, None], other[name], value) for name, value in batch.items()}
        for batch, other, judged in zip(batches, others, held_out(batches, 4), strict=True)
    ]

    def fitted(batches, draft: bool) -> torch.Tensor:
        cut, judged = copy.deepcopy(model), held_out(batches, 4)
        cut_layer(cut, groups_by_layer(cut)[0], kept, Streams(cut, batches), judged, (1.0,), draft)
        return layers_of(cut)[0].mlp.down_proj.weight

    assert not torch.equal(fitted(batches, draft=False), fitted(mixed, draft=False))
    torch.testing.assert_close(fitted(batches, draft=True), fitted(mixed, draft=True))


@pytest.mark.parametrize("family", ["llama", "gemma2", "bert", "vit"])
def test_trials_of_one_model_share_its_dense_stream(family, monkeypatch):
    images = [{"pixel_values": image_batch(4, seed)["pixel_values"]} for seed in range(2)]
    model, batches = (tiny_vision("vit").eval(), images) if family == "vit" else (make(family).eval(), rows(family))
    cuts = [{group.key: torch.arange(0, group.size, step) for group in unit_groups(model)} for step in (2, 3)]
    expected = [divergence(model, kept, batches) for kept in cuts]
    runs = []  # all layers are called whenever one is run
    layers_of(model)[0].register_forward_hook(lambda *_args: runs.append(1))
    assert divergence(model, cuts[0], batches) == expected[0]
    alone, known = len(runs), room_for_steps(model, batches)
    assert [divergence(model, kept, batches, known) for kept in cuts] == expected
    assert len(runs) == 3 * alone - len(layers_of(model)) * len(batches)
    monkeypatch.setattr(trial, "_MOST_KEPT", 0)
    assert room_for_steps(model, batches) is None


def test_nothing_removed_is_no_divergence(batches):
    assert divergence(tiny_model(), {}, batches) == pytest.approx(0, abs=1e-6)


def test_a_classifiers_rows_are_judged_by_their_classes():
    model = tiny_encoder(task="ForSequenceClassification")
    assert not predicts_next_token(model)
    batches = [encoder_batch(model, 8, 16, 0, "right")]
    kept = {group.key: torch.arange(1) for group in unit_groups(model)}
    assert divergence(model, kept, batches) > 0


@pytest.mark.parametrize(
    ("values", "first", "best", "judged"),
    [
        ([3, 2, 1, 2], 1, 2, {0, 1, 2, 3}),
        ([0, 1, 2, 3], 2, 0, {0, 1, 2}),
        ([5, 1, 5], 1, 1, {0, 1, 2}),
        ([1], 0, 0, set()),
        ([1, 5, 2, 3], 2, 2, {1, 2, 3}),  # a valley, not the lowest of all
    ],
)
def test_a_search_goes_downhill_and_never_ends_above_its_start(values, first, best, judged):
    asked = []
    assert descend(len(values), first, lambda index: asked.append(index) or values[index]) == best
    assert set(asked) == judged and len(asked) == len(judged)


def test_uniform_options_have_one_size_per_kind_and_meet_the_target_from_above():
    model = tiny_model()
    groups, limits = unit_groups(model), Limits(round_to=1)
    now = sum(group.size * group.parameters_per_unit for group in groups)
    target = now * 3 // 4
    options = uniform_options(groups, now, target, limits)
    step = sum(group.parameters_per_unit for group in groups if group.kind == "ffn")
    heads = [sizes["layers.0.heads"] for sizes in options]
    assert len(options) > 1 and heads == sorted(set(heads), reverse=True)
    for sizes in options:
        assert 0 <= parameters_after(groups, sizes, now) - target < step
        assert len({sizes[group.key] for group in groups if group.kind == "ffn"}) == 1


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
def test_the_default_searches_and_is_no_worse_than_its_start(layout, batches):
    model = tiny_model()
    options = {"layout": layout, "target_scope": "prunable", "target_reduction": 0.3, "disable_tqdm": True, "round_to": 4}
    start = "proportional" if layout == "uniform" else "fisher"
    away = {}
    for allocation in ("auto", start):
        pruner = SpectralPruner(model, SpectralPruningArguments(**options, allocation=allocation), batches)
        plan = pruner.plan()
        away[pruner.args.allocation] = divergence(
            model, highest(pruner.scores, {k: len(v) for k, v in plan.kept.items()}), batches
        )
    assert away["search"] <= away[start]


def test_the_preset_for_quality_searches_widths_with_scores_that_know_the_loss(batches):
    args = SpectralPruningArguments.from_preset("quality", target_scope="prunable", disable_tqdm=True, round_to=1)
    pruner = SpectralPruner(tiny_model(), args, batches)
    assert (pruner.args.allocation, pruner.args.compensation, pruner.criterion.signals) == ("search", "sequential", "loss")
    widths = {len(kept) for key, kept in pruner.prune().plan.kept.items() if key.endswith("ffn")}
    assert len(widths) > 1


def test_a_search_for_another_compensation_is_refused(batches):
    args = SpectralPruningArguments(allocation="search", compensation="none")
    refused(lambda: SpectralPruner(tiny_model(), args, batches), 'compensation="sequential"')
