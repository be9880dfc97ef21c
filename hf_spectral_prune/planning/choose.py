"""PruningPlan: the kept units of every group, as JSON on disk; the only thing surgery reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..models.families import UnitGroup
from ..surgery.plan import PruningPlan
from .allocate import Count, Sizes, parameters_after


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
    kept = {}
    for group in groups:
        order = torch.sort(scores[group.key], descending=True, stable=True).indices
        kept[group.key] = tuple(sorted(order[: sizes[group.key]].tolist()))
    return PruningPlan(
        sizes={group.key: group.size for group in groups},
        kept=kept,
        parameters_before=parameters_now,
        parameters_after=parameters_after(groups, sizes, parameters_now) if count is None else count(sizes),
        **fields,
    )
