"""A user's models come back in the mode that they were given in, part by part."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import random_batch, tiny_model
from recovering import patterned_rows
from transformers import TrainingArguments

from hf_spectral_prune import ComparisonArguments, RecoveryArguments, SpectralPruner, SpectralPruningArguments, compare, recover
from hf_spectral_prune.calibration.collect import collect_moments
from hf_spectral_prune.data.generated import self_generated
from hf_spectral_prune.evaluation.figures import latency, perplexity
from hf_spectral_prune.models.families import unit_groups
from hf_spectral_prune.models.modes import evaluating
from hf_spectral_prune.studies.ablation import AblationArguments, ablate
from hf_spectral_prune.studies.detrimental.attribution import attribute


def _compare(model, batches, folder):
    options = {"criteria": ["energy"], "reductions": [0.2], "round_to": 4, "min_ffn_units": 4, "disable_tqdm": True}
    compare(model, ComparisonArguments(output_dir=str(folder), **options), batches, batches)


def _ablate(model, batches, folder):
    ablate(
        model,
        AblationArguments(str(folder), criteria=["magnitude"], units_per_layer=1, layers=[1], disable_tqdm=True),
        None,
        batches,
    )


USES = {
    "evaluate": lambda model, batches, _: SpectralPruner(
        model, SpectralPruningArguments(disable_tqdm=True), batches, batches
    ).evaluate(),
    "perplexity": lambda model, batches, _: perplexity(model, batches, progress=False),
    "latency": lambda model, *_: latency(model, repeats=1, warmup=0, prefill_tokens=4, decode_tokens=2),
    "calibrate": lambda model, batches, _: collect_moments(model, unit_groups(model), batches, progress=False),
    "generate": lambda model, *_: self_generated(model, None, num_samples=2, max_seq_length=4),
    "compare": _compare,
    "ablate": _ablate,
    "attribute": lambda model, *_: attribute(model, [torch.tensor([5, 6, 7])], [1], steps=2, max_steps=2, progress=False),
}


def modes(model) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def half_frozen():
    model = tiny_model().train()
    model.model.layers[1].eval()
    return model


@pytest.mark.parametrize("name", USES)
def test_a_model_comes_back_in_its_modes(name, tmp_path):
    model = half_frozen()
    before = modes(model)
    USES[name](model, [random_batch(2, 12, seed) for seed in (0, 1)], tmp_path)
    assert modes(model) == before


@pytest.mark.parametrize("method", ["distill", "blocks"])
def test_a_teacher_comes_back_in_its_modes(method, tmp_path):
    teacher = half_frozen()
    student, before = copy.deepcopy(teacher).eval(), modes(teacher)
    training = TrainingArguments(str(tmp_path), max_steps=1, report_to="none", disable_tqdm=True, use_cpu=True)
    recover(student, RecoveryArguments(method=method), training, patterned_rows(8), patterned_rows(4, seed=1), teacher=teacher)
    assert modes(teacher) == before
    assert not any(modes(student).values())


def test_new_parts_take_the_mode_of_their_model():
    model = half_frozen()
    with evaluating(model):
        model.lm_head = torch.nn.Linear(32, 64).eval()
    assert model.lm_head.training and model.training and not model.model.layers[1].mlp.training
