"""Spectral structural distortion: which units the map from the input graph to the output graph stretches.

The generalised eigenproblem is `L_in v = lambda B v` with `B = L_out + shift * mean(diag L_out) * I` and
`V^T B V = I` (SPADE; SSI applies it to units instead of samples). A k-nearest-neighbour graph may fall into pieces and
a Laplacian is singular in any case; the shift keeps B definite. Notable:

- All modes need no eigenvectors: `V V^T = B^-1`, so `sum_k lambda_k v_k[i]^2 = (B^-1 L_in B^-1)[i, i]`.
- Everything is float64. Results lie on the device of the input graph; dense linear algebra runs there, the eigensolvers
  run on the CPU. A system in B is solved by its inverse on an accelerator and by a sparse factor on the CPU.
- Results depend on the two graphs and the generator alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import Tensor

from .graphs import Graph

# Above this many nodes "auto" takes the sketch. The exact form takes n^3 (on one CPU core 3 s at 4,864 nodes and 15 s at
# 8,960), which is a small part of the forward pass of a model that wide, and at the limit 6 GiB. The sketch is ten times
# faster, but its scores have a rank correlation of only 0.91 to 0.96 with the exact ones.
_EXACT_LIMIT = 16_384
# Up to this many nodes the dense eigensolver is as fast as Lanczos (at 1536, for 20 modes, 0.20 s against 0.06 s).
_DENSE_EIGH_LIMIT = 512
# With more than one mode in so many nodes it is faster (at 1536, for 76 modes 0.5 s against 1.1 s, for 153 0.6 s against 2.0 s).
_LANCZOS_SHARE = 30
# Up to this many nodes one thread factorises a matrix as fast as several.
_ONE_THREAD = 2048
# Columns of B^-1 that are multiplied by L_in at a time.
_COLUMNS = 1024
# Random rows per sparse solve: bounds the memory of the random signs, (E, 64).
_SKETCH_BLOCK = 64


def participation(
    input_graph: Graph,
    output_graph: Graph,
    modes: int | None = None,
    shift: float = 1e-3,
    method: Literal["auto", "exact", "sketch"] = "auto",
    num_sketch_rows: int = 256,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Participation of every node in the distortion: `sum_k lambda_k v_k[i]^2` (SSI). Low means redundant.

    The exact form is one Cholesky factorisation and inverse of B, O(n^3) with two (n, n) float64 matrices. The sketch
    (Johnson-Lindenstrauss: `L_in = C^T W C`, so the value is `||W^(1/2) C B^-1 e_i||^2`) takes q random-sign rows
    and q sparse solves. It is unbiased with a relative standard deviation of at most `sqrt(2 / q)` per node.

    Args:
        input_graph: Graph of the units' signals before the step, n nodes.
        output_graph: Graph of the same units after it.
        modes: None for all modes, s for the s dominant ones (largest lambda). s >= n is the same as None.
        shift: Shift of B as a share of the mean degree of the output graph (of 1 if that has no edges).
        method: How all modes are summed: "exact", "sketch", or "auto", which is exact up to 16,384 nodes.
        num_sketch_rows: q, the random rows of the sketch.
        generator: Source of the sketch's signs. None is a new generator with seed 0.

    Returns:
        (n,) float64, not negative. Inverse weights give the unit D2_out^2 / D2_in, D2 being squared distances.

    Raises:
        ValueError: Graphs of different size, an argument out of range, or "sketch" together with `modes`.
    """
    _check(input_graph, output_graph, shift)
    if method not in ("auto", "exact", "sketch"):
        raise ValueError(f'`method` is {method!r}, which is not known. Set "auto", "exact" or "sketch".')
    if modes is not None and method == "sketch":
        raise ValueError(f"`method`='sketch' sums all modes, but `modes` is {modes}. Set `modes`=None or another method.")
    num_nodes = input_graph.num_nodes
    if modes is not None and modes < num_nodes:
        return dominant_modes(input_graph, output_graph, modes, shift)[1].square().sum(1)
    if not input_graph.weights.any():
        return torch.zeros(num_nodes, dtype=torch.float64, device=input_graph.weights.device)
    if method == "exact" or (method == "auto" and num_nodes <= _EXACT_LIMIT):
        return _exact_participation(input_graph, output_graph, shift)
    if num_sketch_rows < 1:
        raise ValueError(f"`num_sketch_rows` is {num_sketch_rows}. Set 1 or more.")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    return _sketched_participation(input_graph, output_graph, shift, num_sketch_rows, generator)


def edge_scores(input_graph: Graph, output_graph: Graph, modes: int = 20, shift: float = 1e-3) -> Tensor:
    """SPADE node score: distortion of the input-graph edges at every node.

    For node i the sum over its input-graph neighbours j of `||V_s^T (e_i - e_j)||^2`, with
    `V_s = [v_1 sqrt(lambda_1), ..., v_s sqrt(lambda_s)]`. Edge weights enter through V_s only.

    Args:
        input_graph: Graph of the units' signals before the step, n nodes.
        output_graph: Graph of the same units after it.
        modes: s, the number of dominant modes; n or more is all of them.
        shift: As in `participation`.

    Returns:
        (n,) float64, not negative.

    Raises:
        ValueError: Graphs of different size, or an argument out of range.
    """
    scaled_modes = dominant_modes(input_graph, output_graph, modes, shift)[1].cpu()  # (n, s)
    first, second = input_graph.edges.cpu().unbind(1)
    stretch = (scaled_modes[first] - scaled_modes[second]).square().sum(1)  # (E,)
    scores = torch.zeros(input_graph.num_nodes, dtype=torch.float64)
    scores.index_add_(0, first, stretch).index_add_(0, second, stretch)
    return scores.to(input_graph.weights.device)


def distortion_spectrum(input_graph: Graph, output_graph: Graph, num_values: int | None = None, shift: float = 1e-3) -> Tensor:
    """Eigenvalues lambda of `L_in v = lambda B v`, largest first.

    Args:
        input_graph: Graph of the units' signals before the step, n nodes.
        output_graph: Graph of the same units after it.
        num_values: None for all n values, or how many of the largest.
        shift: As in `participation`.

    Returns:
        (n,) or (num_values,) float64, not negative.

    Raises:
        ValueError: Graphs of different size, or an argument out of range.
    """
    _check(input_graph, output_graph, shift)
    if num_values is not None and num_values < input_graph.num_nodes:
        return dominant_modes(input_graph, output_graph, num_values, shift)[0]
    if input_graph.num_nodes == 0:
        return torch.zeros(0, dtype=torch.float64, device=input_graph.weights.device)
    left, right = input_graph.laplacian().cpu().numpy(), _shifted_laplacian(output_graph, shift).cpu().numpy()
    values = scipy.linalg.eigh(left, right, eigvals_only=True, overwrite_a=True, overwrite_b=True)
    return torch.from_numpy(values[::-1].copy()).clamp_(min=0).to(input_graph.weights.device)


def dominant_modes(
    input_graph: Graph,
    output_graph: Graph,
    num_modes: int,
    shift: float = 1e-3,
    method: Literal["auto", "dense", "lanczos"] = "auto",
) -> tuple[Tensor, Tensor]:
    """The s dominant eigenvalues and SPADE's `V_s`, their eigenvectors scaled by `sqrt(lambda)`.

    Where lambda_s equals lambda_(s+1), which vectors of their common eigenspace are returned is arbitrary.

    Args:
        input_graph: Graph of the units' signals before the step, n nodes.
        output_graph: Graph of the same units after it.
        num_modes: s; more than n counts as n.
        shift: As in `participation`.
        method: "dense", "lanczos" (needs s < n), or "auto": dense up to 512 nodes or for more than n / 30 modes.

    Returns:
        Eigenvalues (s,), largest first, and scaled modes (n, s), both float64. `B`-norm of column k: `sqrt(lambda_k)`.

    Raises:
        ValueError: Graphs of different size, or an argument out of range.
    """
    _check(input_graph, output_graph, shift)
    if num_modes < 1:
        raise ValueError(f"The number of modes is {num_modes}. Set 1 or more, or None for all modes where offered.")
    num_nodes, device = input_graph.num_nodes, input_graph.weights.device
    num_modes = min(num_modes, num_nodes)
    if not input_graph.weights.any():  # no edges: all eigenvalues are zero, and with them the scaled modes
        zeros = torch.zeros(num_nodes + 1, num_modes, dtype=torch.float64, device=device)
        return zeros[0], zeros[1:]
    if method == "dense" or (method == "auto" and (num_nodes <= _DENSE_EIGH_LIMIT or _LANCZOS_SHARE * num_modes > num_nodes)):
        values, vectors = _dense_modes(input_graph, output_graph, num_modes, shift)
    elif method in ("auto", "lanczos"):
        values, vectors = _lanczos_modes(input_graph, output_graph, num_modes, shift)
    else:
        raise ValueError(f'`method` is {method!r}, which is not known. Set "auto", "dense" or "lanczos".')
    order = np.argsort(-values, kind="stable")
    values = values[order].clip(min=0)
    scaled = vectors[:, order] * np.sqrt(values)
    return torch.from_numpy(values).to(device), torch.from_numpy(scaled).to(device)


def _exact_participation(input_graph: Graph, output_graph: Graph, shift: float) -> Tensor:
    """`diag(B^-1 L_in B^-1)` by the inverse of B, with one product that uses the sparsity of L_in."""
    with _few_threads(input_graph.num_nodes):
        return _inverse_participation(input_graph, output_graph, shift)


@contextmanager
def _few_threads(num_nodes: int) -> Iterator[None]:
    """One thread for matrices that gain nothing from more.

    Up to some 2,000 nodes a threaded LAPACK is hardly faster on an idle machine, and on a busy one its threads wait for one
    another: medians of seconds instead of 0.2 s were measured at 1,536 nodes.
    """
    threads = torch.get_num_threads()
    if num_nodes <= _ONE_THREAD:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _inverse_participation(input_graph: Graph, output_graph: Graph, shift: float) -> Tensor:
    inverse = _inverse(output_graph, shift)
    laplacian = _torch_sparse_laplacian(input_graph)
    # A few columns at a time: another (n, n) matrix, of L_in B^-1, would be the third.
    parts = (torch.mm(laplacian, columns).mul_(columns).sum(0) for columns in inverse.split(_COLUMNS, dim=1))
    return torch.cat(list(parts)).clamp_(min=0)


def _sketched_participation(
    input_graph: Graph, output_graph: Graph, shift: float, num_rows: int, generator: torch.Generator
) -> Tensor:
    """Mean over random sign rows r of `(r W^(1/2) C B^-1 e_i)^2`."""
    solve = _solver(output_graph, shift)
    num_edges = len(input_graph.weights)
    root = input_graph.weights.sqrt().cpu().numpy()
    rows = input_graph.edges.cpu().numpy().T.ravel()
    columns = np.tile(np.arange(num_edges), 2)
    incidence = scipy.sparse.csr_array(  # (n, E) = C^T W^(1/2)
        (np.concatenate([root, -root]), (rows, columns)), shape=(input_graph.num_nodes, num_edges)
    )
    total = np.zeros(input_graph.num_nodes)
    for start in range(0, num_rows, _SKETCH_BLOCK):
        size = (num_edges, min(_SKETCH_BLOCK, num_rows - start))
        signs = torch.randint(0, 2, size, generator=generator, device=generator.device).cpu().numpy() * 2.0 - 1.0
        total += np.square(solve(incidence @ signs)).sum(1)
    return torch.from_numpy(total / num_rows).to(input_graph.weights.device)


def _dense_modes(input_graph: Graph, output_graph: Graph, num_modes: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    num_nodes = input_graph.num_nodes
    left, right = input_graph.laplacian().cpu().numpy(), _shifted_laplacian(output_graph, shift).cpu().numpy()
    largest = (num_nodes - num_modes, num_nodes - 1)
    return scipy.linalg.eigh(left, right, subset_by_index=largest, overwrite_a=True, overwrite_b=True)


def _lanczos_modes(input_graph: Graph, output_graph: Graph, num_modes: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    shape = (input_graph.num_nodes, input_graph.num_nodes)
    solve = scipy.sparse.linalg.LinearOperator(shape, matvec=_solver(output_graph, shift), dtype=np.float64)
    # A fixed start for equal results from equal inputs; not a constant one, which L_in maps to zero.
    start = np.random.default_rng(0).standard_normal(input_graph.num_nodes)
    return scipy.sparse.linalg.eigsh(
        input_graph.sparse_laplacian(),
        k=num_modes,
        M=_sparse_shifted_laplacian(output_graph, shift),
        Minv=solve,
        which="LA",
        v0=start,
    )


def _inverse(output_graph: Graph, shift: float) -> Tensor:
    """B^-1, (n, n) row by row on the graph's device.

    Raises:
        ValueError: rounding leaves B indefinite.
    """
    matrix = _shifted_laplacian(output_graph, shift)
    if matrix.device.type == "cpu" and len(matrix) > _ONE_THREAD:
        return _inverse_by_scipy(matrix, shift)
    factor, info = torch.linalg.cholesky_ex(matrix)
    if info.item():
        raise _indefinite(shift)
    # The inverse comes column by column, which makes a sparse product ten times slower; being symmetric, its transpose is the
    # same matrix row by row.
    return torch.cholesky_inverse(factor).T


def _inverse_by_scipy(matrix: Tensor, shift: float) -> Tensor:
    """The same, in the place of `matrix`: SciPy's LAPACK takes half as long as torch's on processors of AMD."""
    factor, info = scipy.linalg.lapack.dpotrf(matrix.numpy().T, overwrite_a=True, clean=False)
    if info:
        raise _indefinite(shift)
    inverse, _ = scipy.linalg.lapack.dpotri(factor, overwrite_c=True)
    found = torch.from_numpy(inverse.T)
    # Its lower triangle is filled; the upper one is copied from it.
    for start in range(0, len(found), _COLUMNS):
        rows = slice(start, start + _COLUMNS)
        block = found[rows, rows]
        block.copy_(block.tril() + block.tril(-1).T)
        found[rows, rows.stop :] = found[rows.stop :, rows].T
    return found


def _indefinite(shift: float) -> ValueError:
    return ValueError(f"`shift` is {shift}, too small for B to be definite in float64. Set a larger shift.")


def _solver(output_graph: Graph, shift: float) -> Callable[[np.ndarray], np.ndarray]:
    """`b -> B^-1 b` for right-hand sides (n,) or (n, k), in NumPy."""
    device = output_graph.weights.device
    if device.type != "cpu":
        # By the inverse: substitution with a few columns leaves an accelerator idle, and Lanczos asks for one at a time.
        inverse = _inverse(output_graph, shift)
        return lambda right: (inverse @ torch.from_numpy(right).to(device)).cpu().numpy()
    # Without pivoting: B is symmetric positive definite.
    sparse = _sparse_shifted_laplacian(output_graph, shift)
    options = {"SymmetricMode": True}
    return scipy.sparse.linalg.splu(sparse, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=options).solve


def _absolute_shift(output_graph: Graph, shift: float) -> float:
    mean_degree = output_graph.degrees().mean().item()
    return shift * mean_degree if mean_degree > 0 else shift


def _shifted_laplacian(output_graph: Graph, shift: float) -> Tensor:
    laplacian = output_graph.laplacian()
    laplacian.diagonal().add_(_absolute_shift(output_graph, shift))
    return laplacian


def _sparse_shifted_laplacian(output_graph: Graph, shift: float) -> scipy.sparse.csc_array:
    identity = scipy.sparse.eye_array(output_graph.num_nodes)
    return scipy.sparse.csc_array(output_graph.sparse_laplacian() + _absolute_shift(output_graph, shift) * identity)


def _torch_sparse_laplacian(graph: Graph) -> Tensor:
    nodes = torch.arange(graph.num_nodes, device=graph.edges.device).expand(2, -1)
    indices = torch.cat([graph.edges.T, graph.edges.T.flip(0), nodes], dim=1)
    values = torch.cat([-graph.weights, -graph.weights, graph.degrees()])
    size = (graph.num_nodes, graph.num_nodes)
    return torch.sparse_coo_tensor(indices, values, size, check_invariants=False).coalesce()


def _check(input_graph: Graph, output_graph: Graph, shift: float) -> None:
    if input_graph.num_nodes != output_graph.num_nodes:
        raise ValueError(
            f"`input_graph` has {input_graph.num_nodes} nodes and `output_graph` {output_graph.num_nodes}. "
            "Build both from the same unit group."
        )
    if not shift > 0:
        raise ValueError(f"`shift` is {shift}, which leaves B singular. Set a positive shift.")
