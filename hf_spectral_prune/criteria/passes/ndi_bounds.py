"""What the bounds of Wang and Jiang say of a plan: how far it moves the parameters, and how alike the units of a layer can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import torch
from torch import Tensor

from .ndi_terms import incoherence_bound, leading_modes, pair_bound, parameter_distance, parameter_distance_bound

# Names of the diagnostics that `note_bounds` leaves.
NORMS, COHERENCE = "norms", "coherence"


class GroupBounds(TypedDict):
    """Of the correlations R of one layer's channels, shrunk, taken as known exactly (delta = 0).

    Attributes:
        modes: k, the number of leading modes.
        gap: `lambda_k - lambda_(k+1)`.
        largest_mass: the largest mu_c of a channel in them.
        incoherence: the largest `sqrt(mu_c mu_j)` of two channels (eq. 27).
        correlation: the largest `correlation_bound` of two channels.
        largest_correlation: the largest |R| of two channels.
    """

    modes: int
    gap: float
    largest_mass: float
    incoherence: float
    correlation: float
    largest_correlation: float


class PlanBounds(TypedDict):
    """Bounds of a plan.

    Attributes:
        parameter_distance: Delta (eq. 30) of all removed units, by the weights of the dense model.
        parameter_distance_bound: the looser sum (eq. 53).
        groups: {group key: bounds}.
    """

    parameter_distance: float
    parameter_distance_bound: float
    groups: dict[str, GroupBounds]


def note_bounds(diagnostics: dict[str, Tensor], correlation: Tensor, norms: Tensor, trace_share: float | None) -> None:
    """Leaves what `plan_bounds` needs of a group in its diagnostics.

    Args:
        correlation: (n_channels, n_channels), shrunk.
        norms: (n_units,) `||W_c||_F`.
        trace_share: see `redundancy`.
    """
    values, vectors = torch.linalg.eigh(correlation)
    k = max(1, int(leading_modes(values, trace_share).sum()))
    mass = vectors[:, -k:].square().sum(dim=1)  # (n_channels,)
    gap = values[-k] - (values[-k - 1] if k < len(values) else 0)
    figures = [mass.new_tensor(float(k)), gap, mass.max()]
    pairs = (incoherence_bound(mass, float(gap)), pair_bound(values, mass, k), correlation.abs())
    others = ~torch.eye(len(values), dtype=torch.bool, device=values.device)
    figures += [pair[others].max() if len(values) > 1 else mass.new_zeros(()) for pair in pairs]
    diagnostics[COHERENCE] = torch.stack(figures).cpu()
    diagnostics[NORMS] = norms.cpu()


def plan_bounds(diagnostics: Mapping[str, Mapping[str, Tensor]], kept: Mapping[str, Sequence[int]]) -> PlanBounds | None:
    """The bounds of a plan; None where a criterion has left nothing to make them of.

    Args:
        diagnostics: {group key: what `note_bounds` left} of the dense model.
        kept: {group key: indices of the units that stay}, in the dense model's numbering.
    """
    if any(NORMS not in diagnostics.get(key, {}) for key in kept):
        return None
    removed = []
    groups: dict[str, GroupBounds] = {}
    for key, indices in kept.items():
        norms = diagnostics[key][NORMS]
        stays = torch.zeros(len(norms), dtype=torch.bool)
        stays[list(indices)] = True
        removed.append(norms[~stays])
        modes, gap, mass, incoherence, bound, largest = diagnostics[key][COHERENCE].tolist()
        groups[key] = {
            "modes": int(modes),
            "gap": gap,
            "largest_mass": mass,
            "incoherence": incoherence,
            "correlation": bound,
            "largest_correlation": largest,
        }
    every = torch.cat(removed)
    return {
        "parameter_distance": parameter_distance(every),
        "parameter_distance_bound": parameter_distance_bound(every),
        "groups": groups,
    }
