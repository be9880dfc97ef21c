"""Random scores: what every criterion must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Criterion, GroupData, register


@register("random")
@dataclass(frozen=True)
class Random(Criterion):
    """Uniform random scores, seeded per group."""

    is_random = True

    def score(self, data: GroupData) -> Tensor:
        """(n_units,) in [0, 1)."""
        return torch.rand(data.group.size, dtype=torch.float64, generator=data.generator)
