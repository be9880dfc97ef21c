"""Integrated gradients against a dense sum over weight gradients, completeness, and the reuse of activations."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from conftest import random_batch, tiny_encoder, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_spectral_prune.criteria.passes.interpolation import integrate, midpoints
from hf_spectral_prune.models.families import layers_of
from hf_spectral_prune.models.suffix import next_input, starting_at, walk
from hf_spectral_prune.studies.detrimental.attribution import attribute, confidence

CONTEXTS = [torch.tensor([5, 9, 30, 44]), torch.tensor([7, 8]), torch.tensor([90, 3, 12, 55, 61, 18, 4])]


def dense_attribution(model, layer, steps, name="gate_proj"):
    """(n_units,): weight by weight, a full forward and backward pass for every alpha and example."""
    module = model.model.layers[layer].mlp.get_submodule(name)
    columns = name == "down_proj"  # of the weight alone: a bias belongs to no neuron
    own = (module.weight,) if columns else (module.weight, module.bias)
    whole = [(value, value.detach().clone()) for value in own if value is not None]
    found = torch.zeros(module.weight.shape[1 if columns else 0], dtype=torch.float64)
    for context in CONTEXTS:
        for index in range(steps):
            with torch.no_grad():
                for value, original in whole:
                    value.copy_(original * (index + 0.5) / steps)
            largest = model(input_ids=context[None]).logits[0, -1].max()
            for (_, original), gradient in zip(whole, torch.autograd.grad(largest, [value for value, _ in whole]), strict=True):
                products = original * gradient
                for unit in range(len(found)):
                    part = products[:, unit] if columns else products[unit]
                    found[unit] += float(part.sum()) / steps / len(CONTEXTS)
    with torch.no_grad():
        for value, original in whole:
            value.copy_(original)
    return found


@pytest.mark.parametrize("family", ["llama", "llama-biases", "mistral-window", "qwen2-tied", "qwen3", "granite", "gemma3"])
def test_attributions_equal_a_dense_sum_over_weight_gradients(family):
    model = tiny_model(family).double()
    found = attribute(model, CONTEXTS, [0, 2], steps=6, max_steps=6, progress=False)
    assert set(found) == {0, 2}
    for layer, attribution in found.items():
        torch.testing.assert_close(attribution.values, dense_attribution(model, layer, 6), rtol=1e-9, atol=1e-12)
        assert attribution.steps == 6


@pytest.mark.parametrize("weights", ["up_proj", "down_proj"])
def test_attributions_by_other_weights_equal_a_dense_sum_and_add_up(weights):
    model = tiny_model("llama-biases").double()
    found = attribute(model, CONTEXTS, [0, 2], weights=weights, steps=6, max_steps=6, progress=False)
    for layer, attribution in found.items():
        torch.testing.assert_close(attribution.values, dense_attribution(model, layer, 6, weights), rtol=1e-9, atol=1e-12)
    fine = attribute(model, CONTEXTS, [1], weights=weights, steps=20, max_steps=400, tolerance=1e-3, progress=False)[1]
    assert fine.gap <= 1e-3


@pytest.mark.parametrize("family", ["llama", "llama-biases"])
def test_a_neuron_is_scaled_alike_by_its_up_and_down_weights(family):
    """What docs/detrimental.md says: the layer's output is linear in either, so that both attributions are the same."""
    model = tiny_model(family).double()
    up, down = (
        attribute(model, CONTEXTS, [1], weights=weights, steps=6, max_steps=6, progress=False)[1].values
        for weights in ("up_proj", "down_proj")
    )
    torch.testing.assert_close(up, down, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("batch_tokens", [1, 30, 10_000])
def test_batching_changes_nothing(batch_tokens):
    model = tiny_model().double()
    found = attribute(model, CONTEXTS, [1], steps=5, max_steps=5, batch_tokens=batch_tokens, progress=False)[1]
    torch.testing.assert_close(found.values, dense_attribution(model, 1, 5), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", ["llama", "llama-biases", "qwen3"])
def test_attributions_add_up_to_what_the_layer_adds(family):
    model = tiny_model(family)
    for layer, found in attribute(model, CONTEXTS, range(3), progress=False).items():
        without = copy.deepcopy(model)
        with torch.no_grad():
            for value in without.model.layers[layer].mlp.gate_proj.parameters():
                value.zero_()
            changes = [float(confidence(model, ids[None]) - confidence(without, ids[None])) for ids in CONTEXTS]
        assert found.gap < 0.01
        expected = sum(changes) / len(changes)
        assert abs(float(found.values.sum()) - expected) < 0.01 * sum(map(abs, changes)) / len(changes)


def test_a_gap_that_is_left_is_measured():
    model = tiny_model()
    coarse = attribute(model, CONTEXTS, [0], steps=1, max_steps=1, progress=False)[0]
    fine = attribute(model, CONTEXTS, [0], steps=1, max_steps=400, tolerance=1e-3, progress=False)[0]
    assert coarse.steps == 1 and coarse.gap > 0.01
    assert 1 < fine.steps <= 400 and fine.gap <= 1e-3
    many = dense_attribution(tiny_model().double(), 0, 120)
    assert float((fine.values - many).norm() / many.norm()) < 0.02


class Steep:
    """F with a cliff, `tanh((x - place) / width) + x^2 / 2`, split over two units; counts the points it is asked for."""

    def __init__(self, place: float, width: float) -> None:
        self.place, self.width, self.points = place, width, []

    def value(self, x):
        return torch.tanh((x - self.place) / self.width) + x**2 / 2

    def __call__(self, alphas):
        self.points += alphas.tolist()
        cliff = (1 - torch.tanh((alphas - self.place) / self.width) ** 2) / self.width
        return self.value(alphas), torch.stack([cliff, alphas], dim=1)


@settings(deadline=None, max_examples=50)
@given(place=st.floats(0.05, 0.95), width=st.floats(0.0005, 1.0))
def test_midpoints_are_added_where_the_function_is_steep(place, width):
    steep = Steep(place, width)
    ends = (float(steep.value(torch.zeros((), dtype=torch.float64))), float(steep.value(torch.ones((), dtype=torch.float64))))
    found = integrate(steep, ends, steps=20, max_steps=180, tolerance=0.01)
    assert found.error <= 0.01 and found.steps == len(set(steep.points)) == len(steep.points) <= 180
    assert abs(float(found.values[1]) - 0.5) < 0.01 and abs(float(found.values.sum()) - (ends[1] - ends[0])) <= 0.01


def test_the_midpoint_rule_stands_where_it_is_good_enough():
    flat = Steep(0.5, 2.0)
    ends = (float(flat.value(torch.tensor(0.0))), float(flat.value(torch.tensor(1.0))))
    assert integrate(flat, ends, steps=20, max_steps=180, tolerance=0.01).steps == 20
    assert flat.points == midpoints(20).tolist()


@pytest.mark.parametrize("family", ["llama", "mistral-window", "qwen3-biases"])
def test_a_run_from_a_cached_input_equals_a_whole_one_bit_for_bit(family):
    model, batch = tiny_model(family), random_batch(padding="right")
    with torch.no_grad():
        whole = model(**batch, use_cache=False).logits
        layers = []
        for layer, (given,) in walk(model, [lambda: model(**batch, use_cache=False)]):
            with starting_at(model, layer, given):
                assert torch.equal(model(**batch, use_cache=False).logits, whole)
            layers.append(layer)
        assert torch.equal(model(**batch, use_cache=False).logits, whole)
    assert layers == [0, 1, 2]


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_encoders_start_at_any_layer_too(family):
    model, batch = tiny_encoder(family), random_batch(padding="left")
    with torch.no_grad():
        whole = model(**batch).logits
        for layer, (given,) in walk(model, [lambda: model(**batch)]):
            with starting_at(model, layer, given):
                assert torch.equal(model(**batch).logits, whole)


def test_layers_before_the_interpolated_one_are_not_run_again():
    model, runs = tiny_model(), []
    for index, layer in enumerate(layers_of(model)):
        layer.mlp.register_forward_hook(lambda *_args, index=index: runs.append(index))
    attribute(model, CONTEXTS[:1], [2], steps=50, max_steps=50, batch_tokens=4, progress=False)
    # A whole pass, one more for the input of layer 2, its absence, and 50 alphas one by one.
    assert [runs.count(layer) for layer in range(3)] == [2, 2, 1 + 1 + 50]


def test_a_forward_of_an_instances_own_is_put_back():
    """As accelerate's hooks leave it on models that are spread over devices."""
    model, batch = tiny_model(), random_batch()
    first = layers_of(model)[0]
    own = first.forward
    first.forward = lambda *args, **kwargs: own(*args, **kwargs)
    mine = first.forward
    given = next_input(model, 0, None, lambda: model(**batch))
    with starting_at(model, 1, given):
        assert first.forward is not mine
    assert first.forward is mine and "forward" not in layers_of(model)[1].__dict__


def test_the_model_is_left_as_it_was():
    model = tiny_model().train()
    chosen = model.model.layers[0].mlp.gate_proj.weight
    chosen.grad = torch.ones_like(chosen)
    model.lm_head.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attribute(model, CONTEXTS, range(3), steps=3, max_steps=3, progress=False)
    gc.collect()
    assert model.training and torch.equal(chosen.grad, torch.ones_like(chosen))
    assert [name for name, value in model.named_parameters() if not value.requires_grad] == ["lm_head.weight"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all("forward" not in layer.__dict__ for layer in layers_of(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
