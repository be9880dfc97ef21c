"""Norm of a unit's output, alone and times the range of its weights: the simplest strong rivals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Criterion, GroupData, register
from .magnitude import peak_to_peak


@register("activation")
@dataclass(frozen=True)
class Activation(Criterion):
    """Root mean square of the unit's output, `sqrt(sum_c E[x_c^2])` over its channels c."""

    needs_moments = True
    sides = ("after",)

    def score(self, data: GroupData) -> Tensor:
        """(n_units,) norms."""
        return data.per_unit(data.after_energy()).sqrt()


@register("activation_weights")
@dataclass(frozen=True)
class ActivationWeights(Criterion):
    """Norm of the unit's output times the range of its weights.

    `||x_u|| * sum_M range_u(M) / max_u' range_u'(M)`: for every matrix M that the unit has weights in (gate, up and down of
    a gated FFN) the peak-to-peak of the unit's weights, relative to the largest of the layer. This is how optipfair
    computes its data-driven score of gated FFN pairs (arXiv:2512.22671), after equation 8 of CFSP (arXiv:2409.13199); here
    it extends to any kind of unit.
    """

    needs_moments = True
    sides = ("after",)

    def score(self, data: GroupData) -> Tensor:
        """(n_units,)."""
        ranges = [peak_to_peak(matrix) for _, matrix in data.unit_matrices()]
        # A matrix of constant weights says nothing about its units: 0, not 0/0.
        relative = [values / values.max().clamp(min=torch.finfo(torch.float64).tiny) for values in ranges]
        norms = data.per_unit(data.after_energy()).sqrt()
        return norms * torch.stack(relative).sum(dim=0).to(norms.device)
