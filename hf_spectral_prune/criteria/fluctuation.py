"""Fluctuation: FLAP's metric, what a unit's output does beyond its mean."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import Criterion, GroupData, register


@register("fluctuation")
@dataclass(frozen=True)
class Fluctuation(Criterion):
    """Variance of a channel times the squared norm of its consumer column, `sum_c Var[x_c] ||W_c||^2` (arXiv:2312.11983).

    FLAP's WIFV. A channel that is nearly constant can be replaced by its mean: `compensation="bias"` does that.
    """

    needs_moments = True
    sides = ("after",)

    def score(self, data: GroupData) -> Tensor:
        """(n_units,) fluctuations."""
        mean, raw = data.after()
        # Below zero only by rounding, for constant channels.
        variance = (raw.diagonal() - mean.square()).clamp(min=0)
        return data.per_unit(variance * data.consumer.double().square().sum(dim=0))
