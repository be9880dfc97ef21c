"""PruningPlan: the kept units of every group, as JSON on disk; the only thing surgery reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..models.families import UnitGroup
from ..surgery.plan import PruningPlan
from .allocate import Count, Sizes, parameters_after


def highest(scores: Mapping[str, Tensor], sizes: Sizes) -> dict[str, Tensor]:
    """{group key: indices, ascending} of the highest scores, as many as `sizes` says; ties keep the lower index."""
    order = {key: torch.sort(scores[key], descending=True, stable=True).indices for key in sizes}
    return {key: order[key][:count].sort().values for key, count in sizes.items()}


def choose_units(
    groups: list[UnitGroup],
    scores: dict[str, Tensor],
    sizes: Sizes,
    parameters_now: int,
    count: Count | None = None,
    **fields: Any,
) -> PruningPlan:
    """The plan that keeps the highest scores of every group; ties keep the lower index.

    Args:
        scores: {group key: (n_units,)}, higher = keep.
        sizes: units that each group keeps.
        parameters_now: exact parameter count before the cut.
        count: exact parameter count of a shape, where the groups' costs interact.
        fields: further attributes of the plan.
    """
    return PruningPlan(
        sizes={group.key: group.size for group in groups},
        kept={key: tuple(index.tolist()) for key, index in highest(scores, sizes).items()},
        parameters_before=parameters_now,
        parameters_after=parameters_after(groups, sizes, parameters_now) if count is None else count(sizes),
        **fields,
    )
