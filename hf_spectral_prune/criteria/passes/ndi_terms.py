"""The maths of the neural differentiation index (NDI), on tensors: components, normalisation, product and bounds.

Equation numbers are those of Wang and Jiang, "Neural Differentiation in Deep Networks" (CVPR 2026). Two of its formulas
are constant as printed and take another form here, see `redundancy` and `informativeness`; a third, the incoherence bound,
holds for less than it says, see `incoherence_bound`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_EPS = 1e-8


def shrink(correlation: Tensor, count: int, intensity: float | None = None) -> Tensor:
    """Linear shrinkage towards uncorrelated channels: `(1 - a) R + a I`.

    Args:
        correlation: (n, n), R.
        count: number of positions N that R was estimated from.
        intensity: a; None takes `sum Var[r_ij] / sum r_ij^2` over i != j (Schaefer and Strimmer 2005), with the variance of
            a correlation of normal signals, `(1 - r^2)^2 / (N - 1)`.
    """
    identity = torch.eye(len(correlation), dtype=correlation.dtype, device=correlation.device)
    if intensity is None:
        off_diagonal = correlation - identity
        square = off_diagonal.square()
        # The diagonal of `off_diagonal` is zero and would count n times as variance 1.
        variance = (((1 - square).square().sum() - len(correlation)) / max(count - 1, 1)).clamp(min=0)
        intensity = float((variance / square.sum().clamp(min=torch.finfo(square.dtype).tiny)).clamp(max=1))
    return (1 - intensity) * correlation + intensity * identity


def redundancy(correlation: Tensor, trace_share: float | None = 0.9) -> Tensor:
    """(n,): `phi_c = sum_{i<=m} lambda_i v_i[c]^2 / sum_j lambda_j` (eq. 38), high where a channel shares the leading modes.

    m is the number of leading modes that hold `trace_share` of the trace; modes equal to the last one are all counted,
    since no order among them is meant. With all modes (eq. 9 as printed, `trace_share=1`) the sum is the diagonal of R,
    so that every channel gets 1/n: only a truncated sum tells channels apart.

    A large share has a fault of the same origin: a channel that shares nothing has a mode of its own with eigenvalue 1, and
    once that mode is among the leading ones the channel gets 1/n, the largest value there is. `trace_share=None` takes the
    modes of eigenvalue above 1 instead, those that hold more than one channel's variance.
    """
    values, vectors = torch.linalg.eigh(correlation)
    leading = leading_modes(values, trace_share)
    return (vectors[:, leading].square() @ values[leading]) / values.sum()


def leading_modes(values: Tensor, trace_share: float | None) -> Tensor:
    """Which of the eigenvalues (n,), ascending, are those of the leading modes, see `redundancy`: a mask (n,)."""
    if trace_share is None:
        return values > 1 + 1e-8
    shares = values.flip(0).clamp(min=0).cumsum(0)
    last = values[len(values) - 1 - int((shares < trace_share * shares[-1]).sum())]
    return values >= last * (1 - 1e-10)


def informativeness(counts: Tensor, smoothing: float = 1.0) -> Tensor:
    """(n,) in [0, 1]: entropy of each channel's histogram over the layer's common bins, divided by ln B.

    `p_i = (n_i + alpha) / (N + alpha B)`, `H = -sum p_i ln p_i + (B - 1) / (2 N)` (Miller and Madow), clipped. The bins must
    be shared by the layer's channels: bins at a channel's own quantiles hold N/B values each, and every channel gets ln B.

    Args:
        counts: (n, B).
        smoothing: alpha (Laplace).
    """
    num_bins = counts.shape[1]
    total = counts.sum(dim=1, keepdim=True).double()
    probability = (counts + smoothing) / (total + smoothing * num_bins)
    entropy = torch.special.entr(probability).sum(dim=1) + (num_bins - 1) / (2 * total[:, 0])
    return (entropy / math.log(num_bins)).clamp(0, 1)


def min_max(values: Tensor) -> Tensor:
    """Values moved to [0, 1] over the layer; all 0 where they are equal."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low).clamp(min=torch.finfo(values.dtype).tiny)


def normalise(layers: Sequence[Tensor]) -> list[Tensor]:
    """Two-stage normalisation of one component (eq. 12-16): (n_units,) of every layer to comparable values in (0, 1).

    First the robust z-score `(x - median) / (1.4826 MAD + eps)` inside each layer, then mean and standard deviation over
    all units of the network, then the normal distribution function. Where more than half of a layer's values are equal
    the MAD is 0 and the printed formula divides by eps alone, which would swamp all other layers: the mean absolute
    deviation times 1.2533, the same unit for normal values, takes its place.
    """
    robust = torch.cat([_robust_scores(values.double()) for values in layers])
    network = (robust - robust.mean()) / (robust.std(correction=0) + _EPS)
    return list(torch.special.ndtr(network).split([len(values) for values in layers]))


def _robust_scores(values: Tensor) -> Tensor:
    centred = values - values.quantile(0.5)
    deviation = centred.abs()
    scale = 1.4826 * deviation.quantile(0.5)
    # Relative to the values, so that rounding noise in a constant component is not spread out into scores.
    noise = 1e-10 * values.abs().max()
    if scale <= noise:
        scale = 1.2533 * deviation.mean()
    return centred / (scale + _EPS) if scale > noise else torch.zeros_like(values)


def ndi(
    diversity: Tensor, informativeness: Tensor, sensitivity: Tensor, exponents: tuple[float, float, float], floor: float
) -> Tensor:
    """(n_units,): `(d + eps_f)^p (u + eps_f)^q (s + eps_f)^r` of normalised components (eq. 22)."""
    p, q, r = exponents
    return (diversity + floor).pow(p) * (informativeness + floor).pow(q) * (sensitivity + floor).pow(r)


def relative_norms(norms: Tensor) -> Tensor:
    """(n_units,): weight norms `||W_c||_F` over the layer's mean norm (eq. 35)."""
    return norms / (norms.mean() + _EPS)


def parameter_distance(removed: Tensor) -> float:
    """`Delta = sqrt(sum ||W_c||_F^2)` (eq. 30): how far setting the removed units to zero moves the parameters.

    Args:
        removed: `||W_c||_F` of every removed unit, of all layers.
    """
    return float(removed.double().square().sum().sqrt())


def parameter_distance_bound(removed: Tensor) -> float:
    """`sum ||W_c||_F >= Delta` (eq. 53): the looser bound, by the triangle inequality."""
    return float(removed.double().sum())


def projector_mass(correlation: Tensor, k: int) -> tuple[Tensor, float]:
    """Mass of every channel in the k leading modes, `mu_c = sum_{i<=k} v_i[c]^2` (n,), and the gap `lambda_k - lambda_{k+1}`."""
    values, vectors = torch.linalg.eigh(correlation)
    gap = float(values[-k] - (values[-k - 1] if k < len(values) else 0))
    return vectors[:, -k:].square().sum(dim=1), gap


def incoherence_bound(mass: Tensor, gap: float, error: float = 0.0) -> Tensor:
    """(n, n): `sqrt(mu_c mu_j) + 2 delta / gamma` (eq. 27).

    It bounds the entries of the projector on the k leading modes, `|P[c, j]|`, when R is known up to delta in spectral
    norm. As printed it is said to bound the correlations themselves, which it does not: two equal channels have mass 1/2
    each in the one leading mode, and correlation 1. `correlation_bound` does.
    """
    coherence = (mass[:, None] * mass).sqrt()
    return coherence + (2 * error / gap if error else 0.0)


def correlation_bound(correlation: Tensor, k: int, error: float = 0.0) -> Tensor:
    """(n, n): `lambda_1 sqrt(mu_c mu_j) + lambda_{k+1} sqrt((1 - mu_c) (1 - mu_j)) + delta`, at least `|R[c, j]|` for c != j.

    By Cauchy-Schwarz in the k leading modes and in the others; delta as in `incoherence_bound`, no gap needed.
    """
    values, vectors = torch.linalg.eigh(correlation)
    return pair_bound(values, vectors[:, -k:].square().sum(dim=1), k, error)


def pair_bound(values: Tensor, mass: Tensor, k: int, error: float = 0.0) -> Tensor:
    """`correlation_bound` from the eigenvalues (n,), ascending, and the mass (n,) of every channel in the k leading modes."""
    following = float(values[-k - 1]) if k < len(values) else 0.0
    rest = (1 - mass).clamp(min=0)
    return float(values[-1]) * (mass[:, None] * mass).sqrt() + following * (rest[:, None] * rest).sqrt() + error
