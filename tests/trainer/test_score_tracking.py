"""Scores tracked while a Trainer trains: when, where they go, what stays untouched, errors."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import refused, tiny_model
from test_pruning import make_trainer, pruning_args
from transformers import MambaConfig, MambaForCausalLM

from hf_spectral_prune import ScoreTrackingCallback, SpectralPruner


def scored_steps(trainer) -> list[int]:
    return [entry["step"] for entry in trainer.state.log_history if "scores/layers.1.ffn/mean" in entry]


@pytest.mark.parametrize("attached", [True, False])
def test_scores_are_logged_at_intervals_and_the_weights_are_those_of_a_plain_run(attached, batches, tmp_path):
    watched, plain = tiny_model(), tiny_model()
    callback = ScoreTrackingCallback(pruning_args(), batches, score_steps=2)
    trainer = make_trainer(watched, tmp_path, () if attached else [callback])
    if attached:
        assert callback.attach(trainer) is callback
    trainer.train()
    make_trainer(plain, tmp_path).train()
    assert scored_steps(trainer) == [2, 4, 6]
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in watched.state_dict().items())


def test_the_scores_are_those_of_a_pruner(batches, tmp_path):
    model = tiny_model()
    callback = ScoreTrackingCallback(pruning_args(), batches, score_steps=6)
    make_trainer(model, tmp_path, [callback]).train()
    wanted = SpectralPruner(copy.deepcopy(model), pruning_args(), batches).score()
    assert wanted.keys() == callback.scores.keys()
    assert all(torch.equal(score, callback.scores[key]) for key, score in wanted.items())


def test_what_cannot_be_scored_is_told_before_any_step(batches, tmp_path):
    mamba = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1))
    refused(lambda: ScoreTrackingCallback(pruning_args(), batches, score_steps=0), "score_steps", "at least 1")
    with pytest.raises(TypeError, match=r"`target_reducton`.*Did you mean `target_reduction`"):
        SpectralPruner.attach(make_trainer(tiny_model(), tmp_path), target_reducton=0.3)
    refused(lambda: make_trainer(mamba, tmp_path, [ScoreTrackingCallback(pruning_args(), batches)]), "`mamba`", "family")
