"""The largest generalised eigenvalues on an accelerator, where ARPACK, one vector at a time on the CPU, takes longest of all."""

from __future__ import annotations

import torch
from torch import Tensor

# Columns of a block: a product with a dense (n, n) matrix takes as long for so many as for one. Eigenvalues of a higher
# multiplicity than this would be found less often than they occur.
_BLOCK = 8
# Blocks between two looks at how far the eigenpairs are.
_BLOCKS_PER_LOOK = 6
# Of the residual `||B^-1 A v - lambda v||_B` that is left, as a share of the largest lambda.
_TOLERANCE = 1e-9


def largest_eigenpairs(left: Tensor, right: Tensor, right_inverse: Tensor, number: int) -> tuple[Tensor, Tensor] | None:
    """The largest eigenvalues of `A v = lambda B v` and their vectors, `V^T B V = I`, by block Lanczos, fully orthogonalised.

    Args:
        left: A, (n, n) float64, symmetric, positive semidefinite, sparse or dense.
        right: B, (n, n) float64, symmetric, positive definite, sparse or dense.
        right_inverse: B^-1, (n, n) dense.
        number: s, far below n.

    Returns:
        (s,) in ascending order and (n, s); None where they do not converge within a basis of n / 2 vectors, or where rounding
        leaves the basis dependent.
    """
    nodes = len(right_inverse)
    generator = torch.Generator().manual_seed(0)  # equal results from equal inputs
    start = torch.randn(nodes, _BLOCK, generator=generator, dtype=torch.float64)
    block = _orthonormal(start.to(right_inverse.device), right, None)
    if block is None:
        return None
    basis, images = block, torch.mm(left, block)  # V, A V
    while basis.shape[1] + _BLOCK <= nodes // 2:
        block = _orthonormal(right_inverse @ images[:, -_BLOCK:], right, basis)
        if block is None:
            return None
        basis = torch.cat([basis, block], dim=1)
        images = torch.cat([images, torch.mm(left, block)], dim=1)
        size = basis.shape[1]
        if size < 2 * number or size // _BLOCK % _BLOCKS_PER_LOOK:
            continue
        values, rotation = torch.linalg.eigh(basis.T @ images)
        values, rotation = values[-number:], rotation[:, -number:]
        vectors = basis @ rotation
        residual = right_inverse @ (images @ rotation) - vectors * values
        lengths = (residual * torch.mm(right, residual)).sum(dim=0).clamp(min=0).sqrt()
        if bool(lengths.max() <= _TOLERANCE * values[-1]):
            return values, vectors
    return None


def _orthonormal(block: Tensor, inner: Tensor, basis: Tensor | None) -> Tensor | None:
    """A block made orthonormal to `basis` (n, m) and within itself, in the inner product of B; None where its rank is too low."""
    for _ in range(2):  # once leaves what rounding did
        if basis is not None:
            block = block - basis @ (basis.T @ torch.mm(inner, block))
        block = block / block.norm(dim=0)
        factor, info = torch.linalg.cholesky_ex(block.T @ torch.mm(inner, block))
        if info.item():
            return None
        block = torch.linalg.solve_triangular(factor, block.T, upper=False).T
    return block


__all__ = ["largest_eigenpairs"]
