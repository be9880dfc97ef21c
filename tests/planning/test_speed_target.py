"""A target of tokens per second: the least reduction whose timed copy is fast enough, whatever the clock of the machine says."""

from __future__ import annotations

import pytest
import torch
from conftest import random_batch, refused, tiny_encoder, tiny_model

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.planning import speed_target
from hf_spectral_prune.planning.speed_target import reduction_for_speed


def arguments(wanted: float | None, **fields) -> SpectralPruningArguments:
    options = {"target_tokens_per_second": wanted, "round_to": 1, "compensation": "none", "criterion": "magnitude"}
    return SpectralPruningArguments(**options | fields, disable_tqdm=True)


@pytest.fixture
def clock(monkeypatch):
    """Decoding takes as long as there are parameters, and the models that were timed."""
    timed = []

    def paired(models, **_settings):
        timed.append({name: num_parameters(model) for name, model in models.items()})
        return {name: {"decode_tokens_per_second": 1e6 / count} for name, count in timed[-1].items()}

    monkeypatch.setattr(speed_target, "paired_latency", paired)
    return timed


def test_the_least_reduction_that_is_fast_enough_is_found(clock):
    model = tiny_model()
    before, weights = num_parameters(model), {name: value.clone() for name, value in model.state_dict().items()}
    wanted = 1.2e6 / before
    found = reduction_for_speed(model, arguments(wanted), wanted)
    assert found.cut >= wanted > found.dense
    assert len(clock) < 10  # halved, not tried one by one
    cuts = sorted(timed["cut"] for timed in clock)
    assert all(timed["dense"] == before for timed in clock)
    nearest = [count for count in cuts if 1e6 / count >= wanted][-1]
    assert found.cut == 1e6 / nearest
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_a_run_cuts_to_the_speed_and_says_what_was_timed(clock, batches):
    model = tiny_model()
    before = num_parameters(model)
    pruner = SpectralPruner(model, arguments(1.25e6 / before), batches)
    output = pruner.prune()
    assert num_parameters(output.model) <= before / 1.25 * 1.02
    assert pruner.args.target_reduction == pytest.approx(output.report.target_reduction)
    assert any("tokens/s were asked for" in note for note in output.plan.notes)


@pytest.mark.parametrize(("factor", "words"), [(0.5, "already. Raise it."), (50, "Lower it.")])
def test_a_speed_that_is_no_target_is_told(clock, factor, words):
    model = tiny_model()
    wanted = factor * 1e6 / num_parameters(model)
    refused(lambda: reduction_for_speed(model, arguments(wanted), wanted), words)


def test_real_clocks_are_read():
    model = tiny_model()
    refused(lambda: reduction_for_speed(model, arguments(1e9), 1e9), "the model decodes", "tokens/s here", "Lower it.")


def test_what_does_not_decode_is_refused_before_any_work():
    classifier = tiny_encoder(task="ForSequenceClassification")
    refused(lambda: SpectralPruner(classifier, arguments(10), [random_batch(2, 8, 0)]), "a speed of decoding")
    refused(lambda: arguments(10, target_bytes=1e6), "Both `target_bytes` and `target_tokens_per_second`")
    refused(lambda: arguments(-1), "`target_tokens_per_second` is -1")
