"""The eigensolver of accelerators, on the CPU, against the dense one."""

import pytest
import scipy.linalg
import torch

from hf_spectral_prune.spectral import distortion, knn_graph, squared_distances
from hf_spectral_prune.spectral.block_lanczos import largest_eigenpairs


def pencil(nodes: int, copies: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """A positive semidefinite A and a positive definite B; with copies, every eigenvalue so many times."""
    generator = torch.Generator().manual_seed(nodes)
    size = nodes // copies
    roots = torch.randn(2, size, size, dtype=torch.float64, generator=generator) / size**0.5
    left, right = roots @ roots.mT
    right += 0.1 * torch.eye(size)
    return torch.block_diag(*[left] * copies), torch.block_diag(*[right] * copies)


@pytest.mark.parametrize(("nodes", "copies", "number"), [(600, 1, 12), (600, 3, 9)])
def test_the_largest_eigenpairs_are_those_of_the_dense_solver(nodes, copies, number):
    left, right = pencil(nodes, copies)
    values, vectors = largest_eigenpairs(left, right, right.inverse(), number)
    expected = scipy.linalg.eigh(left.numpy(), right.numpy(), eigvals_only=True)[-number:]
    torch.testing.assert_close(values, torch.from_numpy(expected.copy()), rtol=1e-9, atol=0)
    torch.testing.assert_close(left @ vectors, right @ vectors * values, rtol=0, atol=1e-6 * float(values[-1]))
    torch.testing.assert_close(vectors.T @ right @ vectors, torch.eye(number, dtype=torch.float64), rtol=0, atol=1e-8)


def test_equal_inputs_give_equal_results():
    left, right = pencil(400)
    inverse = right.inverse()
    assert torch.equal(largest_eigenpairs(left, right, inverse, 4)[1], largest_eigenpairs(left, right, inverse, 4)[1])


@pytest.mark.parametrize("rank", [3, 20])
def test_a_matrix_of_too_low_a_rank_is_left_to_another_solver(rank):
    left, right = pencil(400)
    left[rank:], left[:, rank:] = 0, 0
    assert largest_eigenpairs(left, right, right.inverse(), 12) is None


def test_graphs_on_an_accelerator_have_the_modes_of_those_on_the_cpu():
    signals = torch.randn(2, 60, 700, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    graphs = [knn_graph(squared_distances(side.T @ side)) for side in signals]
    values, vectors = distortion._modes_on_device(*graphs, 5, 1e-3)
    expected, found = distortion._lanczos_modes(*graphs, 5, 1e-3)
    assert values == pytest.approx(expected, rel=1e-9)
    assert abs(vectors) == pytest.approx(abs(found), abs=1e-6 * abs(found).max())
