"""Closed-form compensation of a consumer after units are removed: no training, only the output-side moments."""

from __future__ import annotations

import scipy.linalg
import torch
from torch import Tensor

from ..calibration import Moments

# Above this size SciPy's LAPACK takes half as long as torch's on processors of AMD.
_BY_SCIPY = 2048


def least_squares(weight: Tensor, moments: Moments, kept: Tensor, ridge: float = 1e-2) -> Tensor:
    """New columns for the kept channels that best reproduce the consumer's output.

    Minimises `E||W x - W' x_K||^2 + lam ||W' - W_K||^2` with `lam = ridge * mean diag G`, so
    `W' = W_K + W_R G[R,K] (G[K,K] + lam I)^-1`, a ridge toward the old columns.

    Args:
        weight: (out, n) consumer weight W.
        moments: output-side moments, G = E[x x^T] (n, n).
        kept: (n_kept,) channel indices K; R is the rest.

    Returns:
        (out, n_kept) in float64.
    """
    gram = moments.raw()
    kept = kept.to(gram.device)
    removed = _rest(kept, gram.shape[0])
    weight = weight.double()
    cross = weight[:, removed] @ gram[removed][:, kept]  # (out, n_kept)
    return weight[:, kept] + _solve(gram[kept][:, kept], cross, ridge * gram.diagonal().mean())


def correction(gram: Tensor, cross: Tensor, ridge: float, has_bias: bool = False) -> Tensor:
    """Change D of a consumer's columns that best makes up for an error e of its output: `E||e - D x||^2 + lam ||D||^2` is least.

    Args:
        gram: E[x x^T] (k, k) of what the consumer reads, with a constant 1 as last channel where it has a bias; overwritten.
        cross: E[e x^T] (out, k).
        ridge: lam as a share of the mean diagonal of `gram`; a bias is not held back.

    Returns:
        (out, k) float64, the bias as last column.
    """
    weights = len(gram) - has_bias
    shift = torch.zeros(len(gram), dtype=gram.dtype, device=gram.device)
    shift[:weights] = ridge * gram.diagonal()[:weights].mean()
    return _solve(gram, cross, shift)


def _solve(gram: Tensor, cross: Tensor, shift: Tensor) -> Tensor:
    """`cross (gram + diag(shift))^-1`; `gram` is overwritten."""
    # A floor beside the ridge: a group whose kept channels never fire still has a definite system.
    gram.diagonal().add_(shift + torch.finfo(torch.float64).tiny ** 0.5)
    if gram.device.type == "cpu" and len(gram) > _BY_SCIPY:
        factor = scipy.linalg.cho_factor(gram.numpy().T, overwrite_a=True, check_finite=False)
        return torch.from_numpy(scipy.linalg.cho_solve(factor, cross.T.numpy(), check_finite=False).T)
    return torch.cholesky_solve(cross.T, torch.linalg.cholesky(gram)).T


def bias_correction(weight: Tensor, moments: Moments, kept: Tensor) -> Tensor:
    """(out,) float64: mean contribution of the removed channels, to be added to the consumer's bias."""
    mean = moments.mean()
    removed = _rest(kept.to(mean.device), mean.shape[0])
    return weight.double()[:, removed] @ mean[removed]


def _rest(kept: Tensor, size: int) -> Tensor:
    mask = torch.ones(size, dtype=torch.bool, device=kept.device)
    mask[kept] = False
    return mask.nonzero().flatten()
