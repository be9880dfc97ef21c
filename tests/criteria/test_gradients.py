"""Gradient criteria against autograd on the full weights, sequence by sequence and token by token."""

from __future__ import annotations

import gc

import pytest
import torch
from conftest import random_batch, tiny_model
from dense import scores_of, unit_entries

from hf_spectral_prune.calibration import collect_moments
from hf_spectral_prune.criteria import CRITERIA, make_criterion
from hf_spectral_prune.criteria.passes.streams import differentiable, unit_parameters
from hf_spectral_prune.criteria.taylor import Taylor, streamed_gradients
from hf_spectral_prune.models.families import unit_groups

GRADIENT_CRITERIA = ["fisher", "integrated_gradients", "taylor", "ndi"]


@pytest.fixture(scope="module")
def padded():
    return [random_batch(2, 16, 1), random_batch(2, 16, 2, padding="right")]


def sequences(batches):
    return [{name: value[row : row + 1] for name, value in batch.items()} for batch in batches for row in range(2)]


def summed_loss(model, sequence):
    """Next-token loss over real targets, written out."""
    log_probability = model(**sequence).logits[0].double().log_softmax(-1)
    ids, mask = sequence["input_ids"][0], sequence["attention_mask"][0]
    return -sum(log_probability[t, ids[t + 1]] for t in range(len(ids) - 1) if mask[t] and mask[t + 1])


def weight_gradients(model, batches):
    """Gradients of every weight for every sequence, all held at once: [{name: gradient}]."""
    names, values = zip(*model.named_parameters(), strict=True)
    found = []
    for sequence in sequences(batches):
        gradients = torch.autograd.grad(summed_loss(model, sequence), values, allow_unused=True)
        found.append(dict(zip(names, gradients, strict=True)))
    return found


@pytest.mark.parametrize("weights", ["all", "consumer"])
@pytest.mark.parametrize("aggregate", ["vector", "element"])
@pytest.mark.parametrize("order", [1, 2])
def test_taylor_equals_autograd_on_the_full_weights(order, aggregate, weights, padded):
    model = tiny_model("llama-biases")
    gradients = weight_gradients(model, padded)
    values = dict(model.named_parameters())
    count = sum(int(batch["attention_mask"].sum()) for batch in padded)
    scores = scores_of(model, padded, "taylor", order=order, aggregate=aggregate, weights=weights)
    for group in unit_groups(model):
        for unit, entries in enumerate(unit_entries(model, group)):
            matrices: dict[str, torch.Tensor] = {}
            for name, index in entries if weights == "all" else entries[-1:]:
                w = values[name].detach().double()[index]
                g = torch.stack([sequence[name].double()[index] for sequence in gradients])  # (S, ...)
                change = w * g - (0 if order == 1 else (w * g) ** 2 / 2)
                change = change.abs().sum() if aggregate == "element" else change.sum()
                module = name.rsplit(".", 1)[0]
                matrices[module] = matrices.get(module, 0) + change
            expected = sum(abs(change) for change in matrices.values()) / count
            assert float(scores[group.key][unit]) == pytest.approx(float(expected), rel=2e-4, abs=1e-9)


def output_products(model, batches):
    """{group key: [(T, n) float64 a sequence]}: outputs times their loss gradients, by autograd on the consumers' inputs."""
    found = {group.key: [] for group in unit_groups(model)}
    for sequence in sequences(batches):
        inputs, handles = {}, []
        for index, layer in enumerate(model.model.layers):
            for kind, module in (("ffn", layer.mlp.down_proj), ("heads", layer.self_attn.o_proj)):

                def keep(_module, args, key=f"layers.{index}.{kind}", inputs=inputs):
                    inputs[key] = args[0]

                handles.append(module.register_forward_pre_hook(keep))
        loss = summed_loss(model, sequence)
        gradients = torch.autograd.grad(loss, list(inputs.values()))
        for handle in handles:
            handle.remove()
        for (key, value), gradient in zip(inputs.items(), gradients, strict=True):
            found[key].append((value * gradient)[0].detach().double())
    return found


@pytest.mark.parametrize("samples", ["token", "sequence"])
def test_fisher_equals_autograd_on_the_outputs(samples, padded):
    model = tiny_model()
    products = output_products(model, padded)
    count = sum(int(batch["attention_mask"].sum()) for batch in padded)
    scores = scores_of(model, padded, "fisher", samples=samples)
    for group in unit_groups(model):
        if samples == "token":
            channels = sum(m.square().sum(0) for m in products[group.key]) / count
        else:
            channels = sum(m.sum(0).square() for m in products[group.key]) / count
        expected = channels.reshape(group.size, -1).sum(1)
        torch.testing.assert_close(scores[group.key], expected, rtol=1e-4, atol=1e-12)


def test_fisher_per_token_is_the_diagonal_of_the_loss_moments(padded):
    model = tiny_model()
    groups = unit_groups(model)
    moments = collect_moments(model, groups, padded, signals="loss", progress=False)
    for group in groups:
        diagonal = moments[group.key].after.raw().diagonal().reshape(group.size, -1).sum(1)
        torch.testing.assert_close(scores_of(model, padded, "fisher")[group.key], diagonal, rtol=1e-5, atol=1e-12)


def test_first_order_vector_is_the_same_from_outputs_and_from_weights(padded):
    """`sum_t h(t) dL/dh(t)` is `sum w dL/dw` over the consumer's columns, so the cheap way loses nothing."""
    model = tiny_model()
    cheap = scores_of(model, padded, "taylor", aggregate="vector", weights="consumer")
    for key, change in (
        Taylor(aggregate="vector", weights="consumer")._from_weights(model, unit_groups(model), padded, progress=False).items()
    ):
        torch.testing.assert_close(cheap[key], change.abs().sum(1), rtol=1e-4, atol=1e-9)


def test_weight_gradients_are_freed_as_soon_as_they_are_read(padded):
    """During a backward pass no earlier weight's gradient is left when a later one arrives."""
    model = tiny_model()
    parameters = [parameter for group in unit_groups(model) for parameter in unit_parameters(model, group)]
    alive, seen = [], []

    def use(parameter, gradient):
        seen.append(parameter)
        alive.append(sum(other.value.grad is not None for other in parameters))

    with differentiable(model, parameters), streamed_gradients(parameters, use):
        summed_loss(model, sequences(padded)[0]).backward()
    assert len(seen) == len(parameters)
    assert set(alive) == {0}


@pytest.mark.parametrize("name", GRADIENT_CRITERIA)
def test_model_is_left_as_it_was(name, padded):
    model = tiny_model().train()
    chosen = model.model.layers[0].mlp.gate_proj.weight
    chosen.grad = torch.ones_like(chosen)
    model.lm_head.weight.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    scores_of(model, padded, name)
    gc.collect()
    assert model.training
    assert torch.equal(chosen.grad, torch.ones_like(chosen))
    assert [key for key, value in model.named_parameters() if value.grad is not None] == ["model.layers.0.mlp.gate_proj.weight"]
    assert [key for key, value in model.named_parameters() if not value.requires_grad] == ["lm_head.weight"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_criteria_say_what_they_need():
    needs = {name: make_criterion(name) for name in CRITERIA}
    assert {name for name, criterion in needs.items() if criterion.needs_loss} == set(GRADIENT_CRITERIA)
    assert {name for name, criterion in needs.items() if not criterion.needs_data} == {"random", "magnitude"}
    assert make_criterion("spectral", {"signals": "loss"}).needs_loss


@pytest.mark.parametrize("name", GRADIENT_CRITERIA)
def test_inference_mode_is_told_in_one_line(name, padded):
    model = tiny_model()
    groups = unit_groups(model)
    with torch.inference_mode(), pytest.raises(ValueError, match=r"`torch.inference_mode` is on") as raised:
        scores_of(model, padded, name)
    assert "\n" not in str(raised.value)
    with torch.inference_mode():
        made_inside = tiny_model()
    with pytest.raises(ValueError, match=r"embed_tokens.weight` was made under `torch.inference_mode`.*outside"):
        scores_of(made_inside, padded, name)
    with torch.inference_mode(), pytest.raises(ValueError, match=r"`torch.inference_mode` is on"):
        collect_moments(model, groups, padded, signals="loss", progress=False)


@pytest.mark.parametrize("name", GRADIENT_CRITERIA)
def test_quantised_weights_are_told_by_name(name, padded):
    """Weights that no cut touches can be quantised too: a gradient still has to pass through them."""
    model = tiny_model()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"`lm_head.weight` is quantised \(torch.int8\).*without quantisation"):
        scores_of(model, padded, name)


@pytest.mark.parametrize("name", GRADIENT_CRITERIA)
def test_missing_labels_are_told(name, padded):
    model = tiny_model(task="ForSequenceClassification")
    with pytest.raises(ValueError, match=r"`labels`.*Add them"):
        scores_of(model, padded, name)
    with_labels = [{**batch, "labels": torch.tensor([0, 1])} for batch in padded]
    assert all(torch.isfinite(score).all() for score in scores_of(model, with_labels, name).values())
