"""Distortion between two graphs: participation, edge scores, spectrum."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_spectral_prune.spectral import (
    Graph,
    correlation,
    distortion,
    distortion_spectrum,
    dominant_modes,
    edge_scores,
    knn_graph,
    participation,
    squared_distances,
)


def make_graph(num_nodes: int, *weighted_edges: tuple[int, int, float]) -> Graph:
    edges = torch.tensor([edge[:2] for edge in weighted_edges], dtype=torch.int64).reshape(-1, 2)
    return Graph(num_nodes, edges, torch.tensor([edge[2] for edge in weighted_edges], dtype=torch.float64))


def random_signals(num_positions: int, num_channels: int, seed: int) -> torch.Tensor:
    return torch.randn(num_positions, num_channels, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def graphs_of(before: torch.Tensor, after: torch.Tensor, num_neighbors: int = 15, weighting="inverse"):
    """The criterion's two graphs: standardised signals before, raw signals after."""
    matrix = correlation(before.T @ before / len(before), before.mean(0))
    input_graph = knn_graph(squared_distances(matrix), num_neighbors, weighting)
    return input_graph, knn_graph(squared_distances(after.T @ after / len(after)), num_neighbors, weighting)


def random_graphs(num_nodes: int, seed: int, num_neighbors: int = 8, weighting="inverse") -> tuple[Graph, Graph]:
    before, scale = random_signals(50, num_nodes, seed), random_signals(1, num_nodes, seed + 1)
    return graphs_of(before, torch.relu(before) * scale, num_neighbors, weighting)


def reference_modes(input_graph: Graph, output_graph: Graph, shift: float = 1e-3) -> tuple[np.ndarray, np.ndarray]:
    """All eigenpairs of the stated problem, largest first, by the textbook route."""
    right = output_graph.laplacian().numpy()
    mean_degree = np.diag(right).mean()
    right = right + shift * (mean_degree if mean_degree > 0 else 1.0) * np.eye(len(right))
    values, vectors = scipy.linalg.eigh(input_graph.laplacian().numpy(), right)
    return values[::-1], vectors[:, ::-1]


def reference_participation(input_graph: Graph, output_graph: Graph, num_modes: int | None = None) -> torch.Tensor:
    values, vectors = reference_modes(input_graph, output_graph)
    return torch.from_numpy((vectors**2 * values)[:, :num_modes].sum(1))


@pytest.mark.parametrize("weighting", ["inverse", "gaussian", "binary"])
@pytest.mark.parametrize("num_nodes", [2, 5, 40, 120])
@pytest.mark.parametrize("seed", [0, 10])
def test_closed_form_equals_the_sum_over_all_eigenpairs(num_nodes, weighting, seed):
    graphs = random_graphs(num_nodes, seed, weighting=weighting)
    torch.testing.assert_close(participation(*graphs), reference_participation(*graphs), rtol=1e-7, atol=0)


def test_two_nodes_by_hand():
    # L_in = 3 K and L_out = 5 K with K = [[1, -1], [-1, 1]]; the mean degree is 5, so B = 5 K + 0.2 * 5 I = 5 K + I.
    # K has eigenvalue 2 on u = (1, -1) / sqrt(2): there L_in is 6 and B is 11. lambda = 6/11,
    # participation = 6/11^2 * 1/2 = 3/121 at both nodes. v = u / sqrt(11), and the edge sees
    # lambda * (v_0 - v_1)^2 = 6/11 * (4/2)/11 = 12/121.
    graphs = make_graph(2, (0, 1, 3.0)), make_graph(2, (0, 1, 5.0))
    exact = {"rtol": 1e-13, "atol": 1e-15}
    both, spectrum = torch.ones(2, dtype=torch.float64), torch.tensor([6 / 11, 0], dtype=torch.float64)
    torch.testing.assert_close(distortion_spectrum(*graphs, shift=0.2), spectrum, **exact)
    torch.testing.assert_close(participation(*graphs, shift=0.2), both * 3 / 121, **exact)
    torch.testing.assert_close(edge_scores(*graphs, modes=1, shift=0.2), both * 12 / 121, **exact)


def test_path_of_three_nodes_by_hand():
    # Both graphs are the path 0 - 1 - 2 with unit weights: L has eigenvalues 0, 1, 3 with eigenvectors
    # (1, 1, 1) / sqrt(3), (1, 0, -1) / sqrt(2), (1, -2, 1) / sqrt(6), and mean degree 4/3. shift = 3/4 gives
    # B = L + I and lambda = mu / (mu + 1) = 0, 1/2, 3/4.
    # Participation adds mu / (mu + 1)^2 * u_i^2: 1/4 * 1/2 + 3/16 * 1/6 = 5/32 at the ends, 3/16 * 4/6 = 4/32 between;
    # the dominant mode alone gives 1/32 and 4/32.
    # Its V_s is u * sqrt(3/16): an edge sees 3/16 * (1 + 2)^2 / 6 = 9/32; the middle node has two edges.
    path = make_graph(3, (0, 1, 1.0), (1, 2, 1.0))

    def close(value: torch.Tensor, expected: list[float]) -> None:
        torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64), rtol=1e-13, atol=1e-15)

    close(distortion_spectrum(path, path, shift=0.75), [3 / 4, 1 / 2, 0])
    close(participation(path, path, shift=0.75), [5 / 32, 4 / 32, 5 / 32])
    close(participation(path, path, modes=1, shift=0.75), [1 / 32, 4 / 32, 1 / 32])
    close(edge_scores(path, path, modes=1, shift=0.75), [9 / 32, 18 / 32, 9 / 32])


def test_an_output_graph_without_edges_shifts_by_the_bare_shift():
    # B = 0.5 I, so participation = diag(L_in) / 0.5^2.
    graphs = make_graph(3, (0, 1, 2.0)), make_graph(3)
    expected = torch.tensor([8.0, 8.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(participation(*graphs, shift=0.5), expected)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), num_nodes=st.integers(2, 40), num_neighbors=st.integers(1, 10))
def test_renumbering_the_units_renumbers_the_scores(seed, num_nodes, num_neighbors):
    before = random_signals(30, num_nodes, seed)
    after = torch.tanh(before) * random_signals(1, num_nodes, seed + 1)
    order = torch.randperm(num_nodes, generator=torch.Generator().manual_seed(seed))
    graphs = graphs_of(before, after, num_neighbors)
    renumbered = graphs_of(before[:, order], after[:, order], num_neighbors)
    torch.testing.assert_close(participation(*renumbered), participation(*graphs)[order], rtol=1e-6, atol=0)
    torch.testing.assert_close(
        edge_scores(*renumbered, modes=num_nodes), edge_scores(*graphs, modes=num_nodes)[order], rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("modes", [60, 61, 1000])
def test_as_many_modes_as_units_are_all_modes(modes):
    graphs = random_graphs(60, seed=2)
    assert torch.equal(participation(*graphs, modes=modes), participation(*graphs))
    all_but_the_last = participation(*graphs, modes=59)  # the last eigenvalue is zero
    torch.testing.assert_close(all_but_the_last, participation(*graphs), rtol=1e-7, atol=0)


@pytest.mark.parametrize("modes", [1, 7])
def test_dominant_modes_sum_the_largest_eigenpairs(modes):
    graphs = random_graphs(60, seed=3)
    expected = reference_participation(*graphs, num_modes=modes)
    torch.testing.assert_close(participation(*graphs, modes=modes), expected, rtol=1e-7, atol=1e-12)
    assert (participation(*graphs, modes=modes) <= participation(*graphs)).all()


@pytest.mark.parametrize("num_nodes", [40, 600])  # 600: where "auto" is Lanczos
def test_lanczos_modes_equal_dense_modes(num_nodes):
    graphs = random_graphs(num_nodes, seed=4)
    dense_values, dense = dominant_modes(*graphs, 10, method="dense")
    values, scaled = dominant_modes(*graphs, 10, method="lanczos")
    torch.testing.assert_close(values, dense_values, rtol=1e-9, atol=0)
    # Columns are defined up to sign only.
    signs = (scaled * dense).sum(0).sign()
    torch.testing.assert_close(scaled * signs, dense, rtol=0, atol=1e-7 * dense.abs().max().item())
    assert torch.equal(dominant_modes(*graphs, 10, method="lanczos")[1], scaled)


def test_spectrum_is_descending_and_equals_the_reference():
    graphs = random_graphs(50, seed=5)
    expected = torch.from_numpy(reference_modes(*graphs)[0].copy())
    spectrum = distortion_spectrum(*graphs)
    torch.testing.assert_close(spectrum, expected, rtol=1e-9, atol=1e-9)
    assert (spectrum.diff() <= 0).all()
    assert spectrum[0] > spectrum[-1]
    torch.testing.assert_close(distortion_spectrum(*graphs, num_values=6), spectrum[:6], rtol=1e-9, atol=0)


def test_edge_score_equals_a_loop_over_edges():
    input_graph, output_graph = random_graphs(45, seed=6)
    values, vectors = reference_modes(input_graph, output_graph)
    expected = torch.zeros(45, dtype=torch.float64)
    for i, j in input_graph.edges.tolist():
        for k in range(5):
            stretch = values[k] * (vectors[i, k] - vectors[j, k]) ** 2
            expected[i] += stretch
            expected[j] += stretch
    torch.testing.assert_close(edge_scores(input_graph, output_graph, modes=5), expected, rtol=1e-7, atol=1e-12)


def test_sketch_is_within_its_stated_error():
    # With q sign rows the relative standard deviation at a node is at most sqrt(2 / q) = 4.4 % for q = 1024. The
    # largest of 200 nodes may reach about 3.5 of these; 6 leave room for the tail.
    graphs = random_graphs(200, seed=7)
    exact = participation(*graphs, method="exact")
    error = participation(*graphs, method="sketch", num_sketch_rows=1024) / exact - 1
    assert error.abs().max() < 6 * (2 / 1024) ** 0.5
    assert error.abs().max() > 1e-6  # it is a sketch, not the exact form under another name


def test_sketch_is_unbiased():
    # 40 independent sketches of 100 rows: the standard deviation of their mean is at most sqrt(2 / 4000) = 2.2 % at a
    # node. 100 rows are one full block and a part of one: weighting the blocks wrongly would show as a bias.
    graphs = random_graphs(60, seed=8)
    exact = participation(*graphs, method="exact")
    sketches = [
        participation(*graphs, method="sketch", num_sketch_rows=100, generator=torch.Generator().manual_seed(seed))
        for seed in range(40)
    ]
    error = torch.stack(sketches).mean(0) / exact - 1
    assert error.abs().max() < 6 * (2 / 4000) ** 0.5
    assert error.mean().abs() < 3 * (2 / 4000) ** 0.5


def test_equal_generators_give_equal_sketches():
    graphs = random_graphs(50, seed=9)

    def sketch(generator: torch.Generator | None) -> torch.Tensor:
        return participation(*graphs, method="sketch", num_sketch_rows=8, generator=generator)

    assert torch.equal(sketch(None), sketch(None))
    assert torch.equal(sketch(torch.Generator().manual_seed(3)), sketch(torch.Generator().manual_seed(3)))
    assert not torch.equal(sketch(torch.Generator().manual_seed(3)), sketch(torch.Generator().manual_seed(4)))


def degenerate_signals(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    before = random_signals(40, 30, seed=11)
    after = torch.relu(before)
    if name == "dead units":
        after[:, :12] = 0
    elif name == "constant units":
        before[:, :12], after[:, :12] = -2.5, 0.3
    elif name == "duplicate units":
        before[:, 1:20], after[:, 1:20] = before[:, :1], after[:, :1]
    elif name == "all zero":
        before, after = torch.zeros_like(before), torch.zeros_like(after)
    elif name == "far apart":  # two groups of units that no neighbour edge joins
        before[:, :16] += 1e4 * before[:, :1]
        after[:, :16] += 1e4
    elif name == "tiny":
        before, after = before * 1e-20, after * 1e-20
    elif name == "few units":
        before, after = before[:, :4], after[:, :4]
    elif name == "one unit":
        before, after = before[:, :1], after[:, :1]
    return before, after


@pytest.mark.parametrize("weighting", ["inverse", "gaussian", "binary"])
@pytest.mark.parametrize(
    "name",
    ["dead units", "constant units", "duplicate units", "all zero", "far apart", "tiny", "few units", "one unit"],
)
def test_degenerate_signals_give_finite_scores(name, weighting):
    before, after = degenerate_signals(name)
    graphs = graphs_of(before, after, num_neighbors=5, weighting=weighting)
    scores = {
        "exact": participation(*graphs, method="exact"),
        "sketch": participation(*graphs, method="sketch", num_sketch_rows=16),
        "dominant": participation(*graphs, modes=3),
        "edge": edge_scores(*graphs, modes=3),
        "spectrum": distortion_spectrum(*graphs),
    }
    for score_name, score in scores.items():
        assert score.shape == (before.shape[1],), score_name
        assert score.isfinite().all(), score_name
        assert (score >= 0).all(), score_name


@pytest.mark.parametrize("num_nodes", [0, 1])
def test_fewer_than_two_units_have_no_distortion(num_nodes):
    graph = make_graph(num_nodes)
    zeros = torch.zeros(num_nodes, dtype=torch.float64)
    assert torch.equal(participation(graph, graph), zeros)
    assert torch.equal(participation(graph, graph, modes=1), zeros)
    assert torch.equal(edge_scores(graph, graph), zeros)
    assert torch.equal(distortion_spectrum(graph, graph), zeros)


def test_an_input_graph_without_edges_has_no_distortion():
    graphs = make_graph(4), make_graph(4, (0, 1, 1.0), (2, 3, 1.0))
    zeros = torch.zeros(4, dtype=torch.float64)
    assert torch.equal(participation(*graphs), zeros)
    assert torch.equal(participation(*graphs, method="sketch"), zeros)
    assert torch.equal(edge_scores(*graphs, modes=2), zeros)
    assert torch.equal(distortion_spectrum(*graphs, num_values=2), zeros[:2])


def test_duplicates_and_dead_units_score_below_all_others():
    before = random_signals(500, 64, seed=12)
    before[:, 1] = before[:, 0]
    after = torch.relu(before) * (1 + torch.arange(64) / 64)
    after[:, 1] = after[:, 0]
    after[:, 2:4] = 0
    scores = participation(*graphs_of(before, after))
    assert scores[:4].max() < scores[4:].min()


def test_a_stretched_edge_scores_above_an_unchanged_one():
    # Two separate pairs, close before; after the step the second pair has moved ten times apart.
    graphs = make_graph(4, (0, 1, 1.0), (2, 3, 1.0)), make_graph(4, (0, 1, 1.0), (2, 3, 0.1))
    for scores in (participation(*graphs), participation(*graphs, modes=1), edge_scores(*graphs)):
        assert scores[2:].min() > 5 * scores[:2].max()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shift": 0.0}, "`shift` is 0.0"),
        ({"modes": 0}, "number of modes is 0"),
        ({"modes": 2, "method": "sketch"}, "`method`='sketch'"),
        ({"method": "sketch", "num_sketch_rows": 0}, "`num_sketch_rows` is 0"),
        ({"method": "fast"}, "`method` is 'fast'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        participation(*random_graphs(10, seed=13), **arguments)


def test_scipy_inverts_what_torch_inverts(monkeypatch):
    graphs = random_graphs(250, seed=14)
    expected = participation(*graphs)
    monkeypatch.setattr(distortion, "_ONE_THREAD", 0)
    monkeypatch.setattr(distortion, "_COLUMNS", 100)  # two whole blocks of the triangle and a part of one
    torch.testing.assert_close(participation(*graphs), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("one_thread", [2048, 0])
def test_a_shift_lost_in_rounding_is_refused(one_thread, monkeypatch):
    monkeypatch.setattr(distortion, "_ONE_THREAD", one_thread)
    graphs = make_graph(2, (0, 1, 1.0)), make_graph(2, (0, 1, 1.0))
    with pytest.raises(ValueError, match="`shift` is 1e-30, too small"):
        participation(*graphs, shift=1e-30)


def test_graphs_of_different_size_are_refused():
    with pytest.raises(ValueError, match="`input_graph` has 3 nodes and `output_graph` 4"):
        participation(make_graph(3), make_graph(4))
