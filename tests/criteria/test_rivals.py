"""The rivals that read weights and moments, against dense references computed from raw activations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import random_batch, tiny_model
from dense import raw_signals, scores_of, unit_entries

from hf_spectral_prune.calibration import Moments, unit_channels
from hf_spectral_prune.criteria.obs import eliminate, inverse_second_moment, removal_errors
from hf_spectral_prune.models.families import unit_groups
from hf_spectral_prune.surgery.compensate import least_squares


@pytest.fixture(scope="module")
def padded():
    return [random_batch(4, 24, 1), random_batch(2, 24, 2, padding="right"), random_batch(2, 24, 3, padding="left")]


def consumer_of(model, group):
    layer = model.model.layers[group.layer]
    return (layer.mlp.down_proj if group.kind == "ffn" else layer.self_attn.o_proj).weight.detach().double().numpy()


def over_units(values, group):
    return values.reshape(group.size, -1).sum(axis=1)


def assert_scores(scores, reference, model):
    for group in unit_groups(model):
        np.testing.assert_allclose(scores[group.key].numpy(), reference(group), rtol=2e-5, atol=1e-12, err_msg=group.key)


def test_energy_is_the_mean_squared_contribution(padded):
    model = tiny_model()
    signals = raw_signals(model, padded)

    def reference(group):
        x, weight = signals[group.key], consumer_of(model, group)
        # ||W_u x_u(t)||^2 of every unit with all its channels, averaged over the positions
        units = np.arange(x.shape[1]).reshape(group.size, -1)
        return np.array([((x[:, own] @ weight[:, own].T) ** 2).sum() / len(x) for own in units])

    assert_scores(scores_of(model, padded, "energy"), reference, model)


def test_fluctuation_is_flaps_metric_on_raw_activations(padded):
    model = tiny_model("llama-biases")
    signals = raw_signals(model, padded)

    def reference(group):
        x, weight = signals[group.key], consumer_of(model, group)
        return over_units(x.var(axis=0) * np.linalg.norm(weight, axis=0) ** 2, group)

    assert_scores(scores_of(model, padded, "fluctuation"), reference, model)


def test_activation_is_the_norm_of_the_units_output(padded):
    model = tiny_model()
    signals = raw_signals(model, padded)

    def reference(group):
        x = signals[group.key].reshape(-1, group.size, group.channels_per_unit)
        return np.linalg.norm(x, axis=(0, 2)) / np.sqrt(len(x))

    assert_scores(scores_of(model, padded, "activation"), reference, model)


def test_activation_weights_of_a_gated_ffn_is_norm_times_relative_ranges(padded):
    model = tiny_model()
    signals = raw_signals(model, padded)
    scores = scores_of(model, padded, "activation_weights", ["ffn"])
    for layer, module in enumerate(model.model.layers):
        gate, up = (w.weight.detach().double().numpy() for w in (module.mlp.gate_proj, module.mlp.up_proj))
        down = module.mlp.down_proj.weight.detach().double().numpy().T
        total = sum(np.ptp(matrix, axis=1) / np.ptp(matrix, axis=1).max() for matrix in (gate, up, down))
        expected = total * np.sqrt((signals[f"layers.{layer}.ffn"] ** 2).mean(axis=0))
        np.testing.assert_allclose(scores[f"layers.{layer}.ffn"].numpy(), expected, rtol=2e-5)


@pytest.mark.parametrize("matrices", ["all", "producers"])
@pytest.mark.parametrize("order", [1, 2, "max", "peak_to_peak"])
def test_magnitude_is_the_size_of_the_weights_that_leave(order, matrices):
    model = tiny_model()
    weights = {name: value.detach().double() for name, value in model.named_parameters()}

    def reference(group):
        expected = []
        for entries in unit_entries(model, group):
            parts = [weights[name][index].flatten() for name, index in entries]
            parts = parts if matrices == "all" else parts[:-1]
            if order in (1, 2):
                expected.append(float(torch.cat(parts).norm(p=order)))
            else:
                expected.append(float(sum(p.abs().max() if order == "max" else p.max() - p.min() for p in parts)))
        return np.array(expected)

    assert_scores(scores_of(model, [], "magnitude", order=order, matrices=matrices), reference, model)


def random_system(channels=12, outputs=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    signal = torch.randn(50, channels, dtype=torch.float64, generator=generator)
    signal @= torch.randn(channels, channels, dtype=torch.float64, generator=generator)
    weight = torch.randn(outputs, channels, dtype=torch.float64, generator=generator)
    return weight, signal.T @ signal / 50, Moments(50, signal.sum(0), signal.T @ signal)


def repair_error(weight, gram, removed, ridge):
    """Least squared error, in the norm of H = G + lam I, with the columns `removed` zero; by explicit sub-matrix inverses."""
    system = (gram + ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)).numpy()
    kept = [c for c in range(len(gram)) if c not in removed]
    weight = weight.numpy()
    schur = system[np.ix_(removed, removed)]
    if kept:
        cross = system[np.ix_(removed, kept)]
        schur = schur - cross @ np.linalg.inv(system[np.ix_(kept, kept)]) @ cross.T
    return float(np.trace(weight[:, removed] @ schur @ weight[:, removed].T))


@pytest.mark.parametrize("width", [1, 3])
def test_obs_error_is_what_stays_after_the_best_repair(width):
    weight, gram, _ = random_system()
    errors = removal_errors(weight, inverse_second_moment(gram, 0.01), 12 // width)
    for unit, error in enumerate(errors):
        removed = list(range(unit * width, (unit + 1) * width))
        assert float(error) == pytest.approx(repair_error(weight, gram, removed, 0.01), rel=1e-9)


@pytest.mark.parametrize("width", [1, 3])
def test_obs_downdate_is_exact_greedy_and_ends_at_least_squares(width):
    """Every step takes the unit that costs least given those gone, and the weights left are those of one least squares."""
    weight, gram, moments = random_system()
    size = 12 // width
    order, errors, left = eliminate(weight, inverse_second_moment(gram, 0.01), size, size - 1)
    gone: list[int] = []
    for unit, error in zip(order.tolist(), errors.tolist(), strict=True):
        before = repair_error(weight, gram, gone, 0.01) if gone else 0.0
        costs = {}
        for candidate in range(size):
            block = list(range(candidate * width, (candidate + 1) * width))
            if block[0] not in gone:
                costs[candidate] = repair_error(weight, gram, gone + block, 0.01) - before
        assert min(costs, key=costs.get) == unit
        assert error == pytest.approx(costs[unit], rel=1e-8)
        gone += range(unit * width, (unit + 1) * width)
        # The weights after this many removals are the compensation's, whatever the order was.
        kept = torch.tensor([c for c in range(12) if c not in gone])
        repaired = eliminate(weight, inverse_second_moment(gram, 0.01), size, len(gone) // width)[2]
        torch.testing.assert_close(repaired, least_squares(weight, moments, kept, ridge=0.01), rtol=1e-9, atol=1e-9)
    assert left.shape == (7, width)


@pytest.mark.parametrize("iterative", [False, True])
def test_obs_scores_of_a_model(iterative, padded):
    model = tiny_model()
    signals = raw_signals(model, padded)
    scores = scores_of(model, padded, "obs", iterative=iterative)
    for group in unit_groups(model):
        x, weight = torch.from_numpy(signals[group.key]), torch.from_numpy(consumer_of(model, group))
        gram = x.T @ x / len(x)
        if iterative:
            order, _, _ = eliminate(weight, inverse_second_moment(gram, 0.01), group.size, group.size)
            assert scores[group.key].argsort(stable=True).tolist() == order.tolist()
        else:
            removed = unit_channels(torch.tensor([2]), group.channels_per_unit).tolist()
            assert float(scores[group.key][2]) == pytest.approx(repair_error(weight, gram, removed, 0.01), rel=1e-4)
