"""NDI: why its printed forms are not used, its three parts against exact references, its normalisation by hand, its bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import random_batch, tiny_model
from dense import data_of, raw_signals, scores_of, unit_entries
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_spectral_prune.calibration import collect_moments
from hf_spectral_prune.criteria import make_criterion
from hf_spectral_prune.criteria.passes import curvature
from hf_spectral_prune.criteria.passes import ndi_terms as differentiation
from hf_spectral_prune.criteria.passes.histograms import channel_histograms
from hf_spectral_prune.criteria.passes.streams import differentiable, split_parameters, unit_parameters
from hf_spectral_prune.models.families import unit_groups


def random_correlation(n=8, count=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    signal = torch.randn(count, n, dtype=torch.float64, generator=generator)
    signal = signal @ torch.randn(n, n, dtype=torch.float64, generator=generator)
    return torch.corrcoef(signal.T)


# ---- diversity


@settings(max_examples=20, deadline=None)
@given(n=st.integers(2, 12), seed=st.integers(0, 1_000))
def test_full_spectrum_gives_every_channel_the_same(n, seed):
    """Equation 9 as printed: sum_k v_k[c]^2 lambda_k = R[c, c] = 1, so phi is 1/n for all, whatever the signals."""
    phi = differentiation.redundancy(random_correlation(n, seed=seed), trace_share=1.0)
    torch.testing.assert_close(phi, torch.full_like(phi, 1 / n), rtol=1e-9, atol=1e-12)


def test_truncated_spectrum_tells_copies_from_loners():
    """Three copies of one signal and three independent ones: the copies share the leading mode."""
    signal = torch.randn(2_000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    correlation = torch.corrcoef(signal[:, [0, 0, 0, 1, 2, 3]].T)
    phi = differentiation.redundancy(correlation, trace_share=0.5)
    assert float(phi[:3].min()) > 3 * float(phi[3:].max())


def test_truncated_form_by_hand():
    """R = [[1, .6, 0], [.6, 1, 0], [0, 0, 1]]: modes 1.6 (1,1,0)/sqrt 2, 1 (0,0,1), 0.4; two of them hold 2.6/3 > 0.8."""
    correlation = torch.tensor([[1, 0.6, 0], [0.6, 1, 0], [0, 0, 1]], dtype=torch.float64)
    expected = torch.tensor([0.8, 0.8, 1.0], dtype=torch.float64) / 3
    torch.testing.assert_close(differentiation.redundancy(correlation, 0.8), expected)
    leading = torch.tensor([0.8, 0.8, 0.0], dtype=torch.float64) / 3
    torch.testing.assert_close(differentiation.redundancy(correlation, 0.5), leading)


def test_level_modes_are_counted_together():
    """Uncorrelated channels have no leading mode: none may be preferred."""
    phi = differentiation.redundancy(torch.eye(5, dtype=torch.float64), 0.5)
    torch.testing.assert_close(phi, torch.full_like(phi, 0.2))
    opposed = torch.full((7, 7), -0.1, dtype=torch.float64).fill_diagonal_(1)
    phi = differentiation.redundancy(opposed, 0.2)  # six modes of 1.1, level up to rounding, and one of 0.4
    torch.testing.assert_close(phi, torch.full_like(phi, 6 * 1.1 / 7 / 7))


def test_shrinkage_vanishes_with_data_and_takes_all_of_noise():
    noise = torch.randn(30, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shrunk = differentiation.shrink(torch.corrcoef(noise.T), 30)
    assert float((shrunk - torch.eye(40)).abs().max()) < 0.1
    correlation = random_correlation()
    torch.testing.assert_close(differentiation.shrink(correlation, 10**9), correlation, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(differentiation.shrink(correlation, 10, 0.25).diagonal(), torch.ones(8, dtype=torch.float64))
    torch.testing.assert_close(differentiation.shrink(correlation, 10, 0.25)[0, 1], 0.75 * correlation[0, 1])


def test_large_share_of_the_trace_takes_a_loner_for_redundant():
    """At 90 % the loner's own mode is among the leading ones and gives it the largest phi of all; shared modes do not."""
    block = torch.full((4, 4), 0.9, dtype=torch.float64).fill_diagonal_(1)
    correlation = torch.block_diag(block, torch.ones(1, 1, dtype=torch.float64))
    phi = differentiation.redundancy(correlation, 0.9)
    assert int(phi.argmax()) == 4 and float(phi[4]) == pytest.approx(1 / 5)
    phi = differentiation.redundancy(correlation, None)
    expected = torch.tensor([0.925, 0.925, 0.925, 0.925, 0], dtype=torch.float64) / 5  # one mode, 3.7 (1,1,1,1)/2
    torch.testing.assert_close(phi, expected)
    torch.testing.assert_close(differentiation.redundancy(torch.eye(3, dtype=torch.float64), None), torch.zeros(3).double())


def test_copies_are_the_least_diverse_units_of_a_layer(batches):
    model = tiny_model()
    with torch.no_grad():
        mlp = model.model.layers[0].mlp
        mlp.gate_proj.weight[1:6], mlp.up_proj.weight[1:6] = mlp.gate_proj.weight[0], mlp.up_proj.weight[0]
    criterion = make_criterion("ndi", {"trace_share": None})
    diversity = criterion.components(data_of(model, batches[:1], criterion, ["ffn"])[0]).diversity
    assert sorted(diversity.argsort()[:6].tolist()) == [0, 1, 2, 3, 4, 5]


# ---- informativeness


@settings(max_examples=20, deadline=None)
@given(bins=st.integers(2, 16), seed=st.integers(0, 1_000))
def test_bins_at_a_channels_own_quantiles_give_the_constant(bins, seed):
    """Every own-quantile bin holds N/B values, so the entropy is ln B for a spike as for a normal distribution."""
    generator = torch.Generator().manual_seed(seed)
    signal = torch.randn(bins * 20, 3, dtype=torch.float64, generator=generator).pow(torch.tensor([1, 3, 9]))
    edges = torch.quantile(signal, torch.arange(1, bins) / torch.tensor(bins, dtype=torch.float64), dim=0)
    counts = torch.stack(
        [torch.bincount(torch.bucketize(x, e), minlength=bins) for x, e in zip(signal.T.contiguous(), edges.T, strict=True)]
    )
    torch.testing.assert_close(differentiation.informativeness(counts), torch.ones(3, dtype=torch.float64))


def test_entropy_by_hand():
    """Counts (6, 2, 0, 0), alpha 1: p = (7, 3, 1, 1)/12, plus (4 - 1)/(2 * 8), over ln 4."""
    p = [7 / 12, 3 / 12, 1 / 12, 1 / 12]
    expected = (-sum(x * math.log(x) for x in p) + 3 / 16) / math.log(4)
    assert float(differentiation.informativeness(torch.tensor([[6, 2, 0, 0]]))[0]) == pytest.approx(expected)


def test_histograms_share_the_quantiles_of_the_layer():
    model = tiny_model()
    batches = [random_batch(4, 32, 1), random_batch(4, 32, 2, padding="right")]
    groups = unit_groups(model)
    moments = collect_moments(model, groups, batches, progress=False)
    counts = channel_histograms(model, groups, batches, moments, 8, progress=False)
    for key, signal in raw_signals(model, batches).items():
        z = (signal - signal.mean(0)) / signal.std(0)
        edges = np.quantile(z, np.arange(1, 8) / 8)
        expected = np.stack([np.bincount(np.searchsorted(edges, column), minlength=8) for column in z.T])
        assert (counts[key].sum(1) == len(signal)).all()
        # The edges lie on a grid of 1 %: values next to one may fall on its other side.
        assert np.abs(counts[key].numpy() - expected).sum() <= 0.02 * z.size
        pooled = counts[key].sum(0).double() / z.size
        assert float((pooled - 1 / 8).abs().max()) < 0.01


def test_dead_channel_is_uninformative():
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[5] = 0
    data = data_of(model, [random_batch(4, 32)], make_criterion("ndi"), ["ffn"])
    scores = data[1].statistics["informativeness"]
    assert int(scores.argmin()) == 5
    assert float(scores[5]) < 0.5 * float(scores.sort().values[1])


@pytest.mark.parametrize("wobble", [0, 1e-4])
def test_channel_without_a_shape_has_one_bin(wobble):
    """A value that hardly ever changes (by a millionth of its energy at most) is constant, not a distribution."""
    model, batches = tiny_model("llama-biases").double(), [random_batch(4, 32)]
    with torch.no_grad():
        mlp = model.model.layers[0].mlp
        mlp.gate_proj.weight[3] *= wobble
        mlp.up_proj.weight[3] *= wobble
        mlp.gate_proj.bias[3], mlp.up_proj.bias[3] = 1.1, 0.7
    groups = unit_groups(model, ["ffn"])
    moments = collect_moments(model, groups, batches, progress=False)
    counts = channel_histograms(model, groups, batches, moments, 8, progress=False)["layers.0.ffn"]
    assert (counts[3] > 0).sum() == 1
    assert (counts[2] > 0).sum() > 1


# ---- sensitivity


def exact_diagonal(loss, weights):
    """Diagonal of the Hessian by one second derivative an entry."""
    gradients = torch.autograd.grad(loss, weights, create_graph=True)
    found = []
    for weight, gradient in zip(weights, gradients, strict=True):
        flat = gradient.flatten()
        rows = [torch.autograd.grad(flat[i], weight, retain_graph=True)[0].flatten()[i] for i in range(flat.numel())]
        found.append(torch.stack(rows).reshape(weight.shape))
    return found


def test_hutchinson_comes_to_the_exact_hessian_diagonal():
    torch.manual_seed(0)
    x = torch.randn(20, 4, dtype=torch.float64)
    weights = [
        torch.randn(3, 4, dtype=torch.float64, requires_grad=True),
        torch.randn(2, 3, dtype=torch.float64, requires_grad=True),
    ]

    def loss():
        return ((torch.tanh(x @ weights[0].T) @ weights[1].T).square()).mean()

    exact = torch.cat([part.flatten() for part in exact_diagonal(loss(), weights)])
    errors = []
    for probes in (16, 4096):
        estimate = curvature.hessian_diagonal(loss(), weights, probes, torch.Generator().manual_seed(1))
        errors.append(float((torch.cat([part.flatten() for part in estimate]) - exact).norm() / exact.norm()))
    assert errors[1] < 0.03
    assert errors[1] < errors[0] / 4


def test_hutchinson_is_exact_for_a_diagonal_hessian_with_one_probe():
    weight = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64, requires_grad=True)
    (estimate,) = curvature.hessian_diagonal(weight.pow(4).sum(), [weight], 1, torch.Generator().manual_seed(0))
    torch.testing.assert_close(estimate, 12 * weight.detach().square())


def test_unit_curvature_is_the_mean_over_the_units_weights(monkeypatch):
    """With the exact diagonal in the estimate's place, the streamed sums equal autograd on the summed loss; in any split."""
    model = tiny_model("llama-biases", num_hidden_layers=1, hidden_size=8, intermediate_size=4, heads=(4, 2)).double()
    batches = [random_batch(2, 6, 1), random_batch(1, 6, 2)]
    parameters = dict(model.named_parameters())
    monkeypatch.setattr(curvature, "hessian_diagonal", lambda loss, weights, *_: exact_diagonal(loss, weights))
    expected = {group.key: torch.zeros(group.size, dtype=torch.float64) for group in unit_groups(model)}
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for batch in batches:
            for row in range(len(batch["input_ids"])):
                ids = batch["input_ids"][row : row + 1]
                logits = model(input_ids=ids).logits[0, :-1]
                loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
                names = [name for name in parameters if "proj" in name and not name.endswith(("o_proj.bias", "down_proj.bias"))]
                diagonal = dict(zip(names, exact_diagonal(loss, [parameters[name] for name in names]), strict=True))
                for group in unit_groups(model):
                    for unit, entries in enumerate(unit_entries(model, group)):
                        total = sum(float(diagonal[name][index].sum()) for name, index in entries)
                        expected[group.key][unit] += total / group.parameters_per_unit / 18
    for limit in (2**28, 1):
        monkeypatch.setattr(curvature, "_PROBED_AT_ONCE", limit)
        found = curvature.unit_curvature(
            model, unit_groups(model), batches, num_probes=1, num_sequences=8, seed=0, progress=False
        )
        for key, values in found.items():
            # The loss takes float32 logits.
            torch.testing.assert_close(values, expected[key], rtol=1e-5, atol=1e-8)


def test_probes_are_split_by_memory():
    model = tiny_model()
    groups = [unit_parameters(model, group) for group in unit_groups(model)]
    largest = max(sum(p.value.numel() for p in group) for group in groups)
    assert len(split_parameters(groups, 1)) == len(groups)
    assert split_parameters(groups, 10**9) == [[p for group in groups for p in group]]
    assert all(sum(p.value.numel() for p in run) <= 2 * largest for run in split_parameters(groups, 2 * largest))
    with differentiable(model, groups[0]):
        assert sum(p.requires_grad for p in model.parameters()) == len(groups[0])


# ---- normalisation, product, bounds


def test_two_stage_normalisation_by_hand():
    """Layer (0, 1, 3): median 1, MAD 1; layer (2, 4, 6, 8): median 5, MAD 2. Then mean and deviation of all seven."""
    layers = [torch.tensor([0.0, 1.0, 3.0]), torch.tensor([2.0, 4.0, 6.0, 8.0])]
    robust = [x / 1.4826 for x in (-1, 0, 2, -1.5, -0.5, 0.5, 1.5)]
    mean = sum(robust) / 7
    deviation = math.sqrt(sum((x - mean) ** 2 for x in robust) / 7)
    expected = [0.5 * (1 + math.erf((x - mean) / deviation / math.sqrt(2))) for x in robust]
    found = torch.cat(differentiation.normalise(layers))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_normalisation_survives_a_layer_of_mostly_equal_values():
    """A MAD of 0 would divide by eps alone, and one layer's deviation of 1e7 would press all others to one half."""
    layers = [torch.tensor([1.0, 1.0, 1.0, 1.0, 0.5]), torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]), torch.full((3,), 0.7)]
    found = differentiation.normalise(layers)
    assert float(found[1][-1] - found[1][0]) > 0.5
    assert float(found[0][-1]) < float(found[1][0]) + 0.2
    assert len(set(found[2].tolist())) == 1


def test_importance_is_the_product_of_its_parts(batches):
    model = tiny_model()
    criterion = make_criterion("ndi", {"p": 2.0, "r": 0.5, "floor": 0.01})
    data = data_of(model, batches[:1], criterion)
    parts = [criterion.components(entry) for entry in data]
    d, u, s = (
        differentiation.normalise([getattr(part, name) for part in parts])
        for name in ("diversity", "informativeness", "sensitivity")
    )
    for index, (entry, part) in enumerate(zip(data, parts, strict=True)):
        for values in (part.diversity, part.informativeness, part.sensitivity):
            assert values.shape == (entry.group.size,)
            assert float(values.min()) >= 0 and float(values.max()) <= 1
        norms = torch.tensor([float(value) for value in entry.unit_norms()], dtype=torch.float64)
        expected = (d[index] + 0.01) ** 2 * (u[index] + 0.01) * (s[index] + 0.01).sqrt() * norms / norms.mean()
        torch.testing.assert_close(criterion.score_all(data)[entry.group.key], expected, rtol=1e-6, atol=0)


def test_ndi_is_the_same_twice_and_moves_with_the_seed(batches):
    model = tiny_model()
    first, again, other = (scores_of(model, batches[:1], "ndi", seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_distance_of_removed_units_and_its_looser_bound():
    """Equation 30 is the distance that zeroing moves the parameters, equation 53 is above it."""
    model = tiny_model()
    (group,) = unit_groups(model, ["ffn"])[:1]
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    removed = [1, 7, 20]
    with torch.no_grad():
        for unit in removed:
            for name, index in unit_entries(model, group)[unit]:
                model.get_parameter(name)[index] = 0
    moved = math.sqrt(
        sum(float((value.detach() - before[name]).double().square().sum()) for name, value in model.named_parameters())
    )
    norms = [
        math.sqrt(sum(float(before[n][i].double().square().sum()) for n, i in unit_entries(model, group)[u])) for u in removed
    ]
    assert differentiation.parameter_distance(torch.tensor(norms)) == pytest.approx(moved, rel=1e-6)
    assert differentiation.parameter_distance_bound(torch.tensor(norms)) == pytest.approx(sum(norms)) and sum(norms) > moved


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 10), k=st.integers(1, 10), seed=st.integers(0, 1_000))
def test_bounds_hold_for_what_they_bound(n, k, seed):
    k = min(k, n)
    correlation = random_correlation(n, seed=seed)
    _, vectors = torch.linalg.eigh(correlation)
    projector = vectors[:, -k:] @ vectors[:, -k:].T
    mass, gap = differentiation.projector_mass(correlation, k)
    torch.testing.assert_close(mass, projector.diagonal(), rtol=1e-9, atol=1e-12)
    assert float(mass.sum()) == pytest.approx(k) and gap >= 0
    off_diagonal = ~torch.eye(n, dtype=torch.bool)
    assert bool((projector.abs() <= differentiation.incoherence_bound(mass, gap) + 1e-9)[off_diagonal].all())
    assert bool((correlation.abs() <= differentiation.correlation_bound(correlation, k) + 1e-9)[off_diagonal].all())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1_000), size=st.floats(1e-4, 0.3))
def test_incoherence_bound_holds_for_a_disturbed_projector(seed, size):
    correlation = random_correlation(6, seed=seed)
    mass, gap = differentiation.projector_mass(correlation, 2)
    noise = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    noise = (noise + noise.T) / 2
    noise *= size * gap / torch.linalg.matrix_norm(noise, 2)
    _, vectors = torch.linalg.eigh(correlation + noise)
    projector = vectors[:, -2:] @ vectors[:, -2:].T
    assert bool((projector.abs() <= differentiation.incoherence_bound(mass, gap, size * gap) + 1e-9).all())


def test_printed_incoherence_bound_does_not_bound_the_correlation():
    """Two equal channels: mass 1/2 each in the one leading mode, so that equation 27 says |R| <= 1/2 where R is 1."""
    correlation = torch.ones(2, 2, dtype=torch.float64)
    mass, gap = differentiation.projector_mass(correlation, 1)
    assert gap == pytest.approx(2)
    assert float(differentiation.incoherence_bound(mass, gap)[0, 1]) == pytest.approx(0.5)
    assert float(differentiation.correlation_bound(correlation, 1)[0, 1]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trace_share": 1.0}, "as diverse as any other"),
        ({"shrinkage": 1.0}, "below 1"),
        ({"num_bins": 1}, "at least 2"),
        ({"num_probes": 0}, "at least 1"),
        ({"floor": 0.0}, "above 0"),
    ],
)
def test_options_that_make_no_sense_are_told(options, message):
    with pytest.raises(ValueError, match=message):
        make_criterion("ndi", options)
