"""Sums over the products of the units' signals with their loss gradients, in one backward pass a sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..models.distributed import all_reduce
from ..models.families import UnitGroup
from ..models.losses import Batch
from .collect import stream_signals

# Of the products m (N, n_channels) of one sequence, in float64: {name: tensor}, all zero where N is 0.
Reduce = Callable[[Tensor, UnitGroup], dict[str, Tensor]]


def mean_products(
    model: PreTrainedModel, groups: Sequence[UnitGroup], batches: Sequence[Batch], reduce: Reduce, *, progress: bool
) -> dict[str, dict[str, Tensor]]:
    """{group key: {name: float64}}: sums over sequences of what `reduce` makes of one, over the number of real positions.

    With h the units' signals and L a sequence's summed loss, its products are `m_c(t) = h_c(t) dL/dh_c(t)`.
    """
    empty = {
        group.key: torch.zeros(0, group.size * group.channels_per_unit, dtype=torch.float64, device=model.device)
        for group in groups
    }
    sums = {group.key: reduce(empty[group.key], group) for group in groups}
    counts = {key: torch.zeros((), dtype=torch.float64, device=model.device) for key in sums}

    def adder(group: UnitGroup) -> Callable[[Tensor], None]:
        def add(products: Tensor) -> None:
            for name, value in reduce(products.double(), group).items():
                sums[group.key][name] += value.to(model.device)
            counts[group.key] += len(products)

        return add

    stream_signals(model, groups, batches, {group.key: adder(group) for group in groups}, signals="loss", progress=progress)
    all_reduce([*(total for found in sums.values() for total in found.values()), *counts.values()])
    return {key: {name: total / counts[key].clamp(min=1) for name, total in found.items()} for key, found in sums.items()}


def unit_information(products: Tensor, group: UnitGroup) -> Tensor:
    """(n_units,) `sum_t (sum_c m_c(t))^2 / 2` over a unit's channels c; the mean over positions is its Fisher information.

    To second order it is what the loss of a position gains where the whole unit goes. It has one unit of measure in all layers
    and for neurons and heads alike.

    Args:
        products: m, (N, n_channels).
    """
    by_unit = products.unflatten(1, (group.size, -1)).sum(dim=2)
    return by_unit.square().sum(dim=0) / 2
