"""Integrated gradients of the loss against a dense sum, unit by unit; completeness; and the sign."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import encoder_batch, random_batch, tiny_encoder, tiny_model
from dense import scores_of

from hf_spectral_prune.criteria import integrated_gradients
from hf_spectral_prune.models.families import unit_groups

BATCHES = [random_batch(2, 10, 1), random_batch(2, 10, 2, padding="right")]
COUNT = sum(int(batch["attention_mask"].sum()) for batch in BATCHES)


def mean_loss(model):
    """Next-token loss over real targets, per real position."""
    total = 0
    for batch in BATCHES:
        table = model(**batch).logits.double().log_softmax(-1)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        for row in range(len(ids)):
            places = [t for t in range(ids.shape[1] - 1) if mask[row, t] and mask[row, t + 1]]
            total = total - sum(table[row, t, ids[row, t + 1]] for t in places)
    return total / COUNT


def interpolated(model, group, alpha):
    """A copy of the model with the weights and biases of one group's gate (or value) projection scaled."""
    model = copy.deepcopy(model)
    layer = model.model.layers[group.layer]
    module = layer.mlp.gate_proj if group.kind == "ffn" else layer.self_attn.v_proj
    with torch.no_grad():
        for value in module.parameters():
            value.mul_(alpha)
    return model, list(module.parameters())


@pytest.mark.parametrize("family", ["llama", "qwen3-biases"])
def test_scores_equal_a_dense_sum_over_weight_gradients(family):
    model, steps = tiny_model(family).double(), 4
    scores = scores_of(model, BATCHES, "integrated_gradients", num_steps=steps, max_steps=steps)
    for group in unit_groups(model):
        expected = torch.zeros(group.size, dtype=torch.float64)
        _, whole = interpolated(model, group, 1.0)
        for index in range(steps):
            scaled, values = interpolated(model, group, (index + 0.5) / steps)
            gradients = torch.autograd.grad(mean_loss(scaled), values)
            for unit in range(group.size):
                for original, gradient in zip(whole, gradients, strict=True):
                    rows = slice(unit * len(original) // group.size, (unit + 1) * len(original) // group.size)
                    expected[unit] -= float((original[rows] * gradient[rows]).detach().sum()) / steps
        # The package makes the loss of float32 logits.
        torch.testing.assert_close(scores[group.key], expected, rtol=1e-5, atol=1e-8, msg=lambda text, g=group: f"{g}: {text}")


@pytest.mark.parametrize("family", ["llama", "llama-biases", "qwen2-tied"])
def test_scores_add_up_to_what_a_group_saves(family, monkeypatch):
    model = tiny_model(family).double()
    warned = []
    monkeypatch.setattr(integrated_gradients.logger, "warning", warned.append)
    scores = scores_of(model, BATCHES, "integrated_gradients")
    with torch.no_grad():
        whole = float(mean_loss(model))
        for group in unit_groups(model):
            saved = float(mean_loss(interpolated(model, group, 0.0)[0])) - whole
            # The tolerance is a share of each sequence's own change, and changes of sequences may cancel.
            assert float(scores[group.key].sum()) == pytest.approx(saved, abs=2e-3)
    assert not warned


def test_a_unit_that_lowers_the_loss_scores_above_one_that_raises_it():
    """The sign is kept: the same push toward the next token, and against it."""
    model = tiny_model().double()
    batch = {"input_ids": torch.full((1, 12), 5), "attention_mask": torch.ones(1, 12, dtype=torch.int64)}
    mlp, head = model.model.layers[2].mlp, model.lm_head.weight
    with torch.no_grad():
        mlp.gate_proj.weight[1], mlp.up_proj.weight[1] = mlp.gate_proj.weight[0], mlp.gate_proj.weight[0]
        mlp.up_proj.weight[0] = mlp.gate_proj.weight[0]
        direction = head[5] - head.mean(dim=0)
        mlp.down_proj.weight[:, 0], mlp.down_proj.weight[:, 1] = direction, -direction
    scores = scores_of(model, [batch], "integrated_gradients", kinds=["ffn"])["layers.2.ffn"]
    assert float(scores[0]) > 0 > float(scores[1])


def test_only_the_first_sequences_are_used():
    model = tiny_model().double()
    few = scores_of(model, BATCHES, "integrated_gradients", num_steps=2, max_steps=2, num_sequences=2)
    first = scores_of(model, BATCHES[:1], "integrated_gradients", num_steps=2, max_steps=2)
    assert all(torch.equal(few[key], first[key]) for key in few)


def test_a_gap_that_is_left_is_logged(monkeypatch):
    warned = []
    monkeypatch.setattr(integrated_gradients.logger, "warning", warned.append)
    scores_of(tiny_model(), BATCHES, "integrated_gradients", num_steps=1, max_steps=1)
    (message,) = warned
    assert "miss the change of the loss by more than 1.00%" in message and "\n" not in message


@pytest.mark.parametrize(
    ("family", "task"),
    [("bert", "ForSequenceClassification"), ("distilbert", "ForSequenceClassification"), ("modernbert", "ForMultipleChoice")],
)
def test_encoders_add_up_too(family, task):
    model = tiny_encoder(family, task=task).double()
    batch = {**encoder_batch(model, 2, 12, padding="right"), "labels": torch.tensor([0, 1])}
    scores = scores_of(model, [batch], "integrated_gradients", num_steps=20, max_steps=60)
    positions = int(batch["attention_mask"].sum())
    rows = [{name: value[row : row + 1] for name, value in batch.items()} for row in range(2)]
    with torch.no_grad():
        for group in unit_groups(model, ["heads"]):
            masked = copy.deepcopy(model)
            path = {"bert": "attention.self.value", "distilbert": "attention.v_lin", "modernbert": "attn.Wqkv"}[family]
            layers = {"bert": "encoder.layer", "distilbert": "transformer.layer", "modernbert": "layers"}[family]
            module = masked.base_model.get_submodule(f"{layers}.{group.layer}.{path}")
            for value in module.parameters():
                value[-32:] = 0  # ModernBERT's values lie behind its queries and keys
            saved = [float(masked(**row).loss - model(**row).loss) for row in rows]
            allowed = 0.01 * sum(map(abs, saved)) / positions
            assert float(scores[group.key].sum()) == pytest.approx(sum(saved) / positions, abs=allowed)
