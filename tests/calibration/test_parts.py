"""Moments within a memory limit."""

from __future__ import annotations

import weakref

import pytest
import torch
from conftest import logits, random_batch, tiny_encoder, tiny_model

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.calibration import parts
from hf_spectral_prune.calibration.collect import collect_moments
from hf_spectral_prune.calibration.moments import Moments
from hf_spectral_prune.criteria import make_criterion
from hf_spectral_prune.criteria.calibrate import calibrate
from hf_spectral_prune.criteria.spectral import Spectral
from hf_spectral_prune.data.texts import CalibrationData
from hf_spectral_prune.models.families import consumers, unit_groups

OPTIONS = {"target_reduction": 0.2, "disable_tqdm": True, "min_ffn_units": 1, "round_to": 1}


@pytest.fixture
def held(monkeypatch):
    """[the most moments of a side that were alive at a time]."""
    alive, most = [0], [0]
    zeros = Moments.zeros

    def gone():
        alive[0] -= 1

    def made(*args):
        moments = zeros(*args)
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        weakref.finalize(moments, gone)
        return moments

    monkeypatch.setattr(Moments, "zeros", made)
    return most


def prune(batches, **options):
    return SpectralPruner(tiny_model(), SpectralPruningArguments(**OPTIONS | {"compensation": "none"} | options), batches).prune()


def test_split_keeps_order_and_limit():
    model = tiny_model()
    groups = unit_groups(model)
    sizes = {group.key: parts.moment_bytes(model, group, ("before", "after")) for group in groups}
    limit = max(sizes.values()) + min(sizes.values())
    found = parts.split_by_memory(model, groups, ("before", "after"), limit)
    assert [group for part in found for group in part] == groups
    assert len(found) > 1 and all(sum(sizes[group.key] for group in part) <= limit for part in found)


def test_a_group_above_the_limit_is_a_part_by_itself():
    model = tiny_model()
    groups = unit_groups(model)
    assert parts.split_by_memory(model, groups, ("after",), 1) == [[group] for group in groups]


@pytest.mark.parametrize("compensation", ["none", "bias", "least_squares"])
@pytest.mark.parametrize("criterion", ["spectral", "energy", "ndi"])
def test_parts_give_the_same_model_as_the_whole(criterion, compensation, batches):
    options = {"criterion": criterion, "compensation": compensation}
    if compensation == "bias":
        options["layout"] = "per_layer"
    whole, split = (prune(batches, max_moment_gib=limit, **options) for limit in (None, 1e-9))
    assert whole.plan.kept == split.plan.kept
    probe = random_batch(seed=9)
    assert torch.equal(logits(whole.model, probe), logits(split.model, probe))


@pytest.mark.parametrize("options", [{}, {"compensation": "least_squares"}, {"num_rounds": 2, "recalibrate_every": 2}])
def test_no_more_than_a_part_is_held(options, batches, held):
    prune(batches, **options)
    whole, held[0] = held[0], 0
    prune(batches, max_moment_gib=1e-9, **options)
    groups = len(unit_groups(tiny_model()))
    assert whole >= 2 * groups
    assert held[0] <= 4  # both sides of one group, and what is left of another in the reader's hands


@pytest.mark.parametrize("options", [{}, {"compensation": "sequential", "num_rounds": 2}])
def test_moments_that_are_read_once_are_held_for_one_layer_at_a_time(options, batches, held, monkeypatch):
    whole = prune(batches, **options)
    assert held[0] >= 2 * len(unit_groups(tiny_model()))
    monkeypatch.setattr(parts, "_READ_ONCE", 0)
    held[0] = 0
    split = prune(batches, **options)
    assert whole.plan.kept == split.plan.kept
    assert held[0] <= 8  # of two layers, as the old part goes when the new one is asked for


def test_moments_that_are_read_again_are_kept_together(batches, held, monkeypatch):
    monkeypatch.setattr(parts, "_READ_ONCE", 0)
    prune(batches, compensation="least_squares")
    assert held[0] >= 2 * len(unit_groups(tiny_model()))


def test_rounds_between_calibrations_read_the_cut_model(batches):
    """Kept moments are selected from; those by parts are collected anew, from a model whose earlier layers are cut."""
    output = prune(batches, num_rounds=2, recalibrate_every=2, max_moment_gib=1e-9)
    assert [len(found) for found in output.plan.kept.values()] == [
        len(found) for found in prune(batches, num_rounds=2, recalibrate_every=2).plan.kept.values()
    ]


def test_one_side_has_the_same_moments_as_both(batches):
    model = tiny_model()
    groups = unit_groups(model)
    both = collect_moments(model, groups, batches, progress=False)
    one = collect_moments(model, groups, batches, sides=("after",), progress=False)
    for key, found in one.items():
        assert found.before is None
        assert torch.equal(found.after.second_moment, both[key].after.second_moment)


def test_a_criterion_that_left_out_a_side_it_reads_is_told(batches, monkeypatch):
    monkeypatch.setattr(Spectral, "sides", ("after",))
    with pytest.raises(ValueError, match=r"Put \"before\" into `sides`"):
        prune(batches)


def test_the_limit_is_what_was_asked_for_or_half_of_what_is_free(monkeypatch):
    model = tiny_model()
    assert parts.memory_limit(model, 0.5) == 2**29
    monkeypatch.setattr(parts.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 6 * 2**30})())
    assert parts.memory_limit(model, None) == 3 * 2**30


def test_too_little_free_memory_is_said_once_and_only_where_it_costs_passes(monkeypatch, batches, caplog):
    monkeypatch.setattr(parts.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 4})())
    monkeypatch.setattr(parts.logger, "propagate", True)
    parts.logger.warning_once.cache_clear()  # an earlier test may have had the same words
    prune(batches)
    assert "are collected in" not in caplog.text
    for _ in range(2):
        prune(batches, compensation="least_squares")
    assert caplog.text.count("are collected in") == 1


@pytest.mark.parametrize("family", ["llama", "gemma3", "bert"])
def test_all_parts_together_run_each_layer_about_once(family, batches):
    """Neurons and heads of a layer are a part each here, so that each layer is run for both, and never from the first one on."""
    model = tiny_encoder(family) if family == "bert" else tiny_model(family)
    batches = [random_batch(4, 32, seed, padding="right") for seed in range(2)]
    groups, runs = unit_groups(model), [0] * 3
    for group in groups:
        if group.kind == "ffn":
            module = consumers(model, group)[0].module
            module.register_forward_hook(lambda *_args, layer=group.layer: runs.__setitem__(layer, runs[layer] + 1))
    args = SpectralPruningArguments(max_moment_gib=1e-9, compensation="none", disable_tqdm=True)
    found = calibrate(model, args, make_criterion("spectral"), CalibrationData(tuple(batches), {})).moments
    whole = collect_moments(model, groups, batches, progress=False)
    runs[:] = [0] * 3
    for group in groups:
        assert torch.equal(found[group.key].after.second_moment, whole[group.key].after.second_moment)
        assert torch.equal(found[group.key].before.sum, whole[group.key].before.sum)
    assert runs == [2 * len(batches)] * 3
    assert torch.equal(found[groups[0].key].after.sum, whole[groups[0].key].after.sum)  # back at the first layer
