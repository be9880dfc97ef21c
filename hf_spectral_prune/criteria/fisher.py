"""Fisher information of a unit's output: squared loss gradients of switching it off."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..calibration import GroupMoments
from ..calibration.collect import stream_signals
from ..models.distributed import all_reduce
from ..models.families import UnitGroup
from ..models.losses import Batch
from .base import Criterion, GroupData, Statistics, register


@register("fisher")
@dataclass(frozen=True)
class Fisher(Criterion):
    """Squared loss gradient with respect to a factor on each channel, summed over the unit's channels.

    With `m_c(t) = h_c(t) dL/dh_c(t)` of a sequence's summed loss L, at position t and channel c, the score is
    `sum_c E_t[m_c(t)^2]`: the diagonal of `E[m m^T]` (on CNN channels: Theis et al., arXiv:1801.05787). Scores of different
    layers share one unit, so they may be ranked together.

    Options:
        samples: what counts as one sample of the gradient: a "token", or a "sequence", `sum_s (sum_t m_c(t))^2 / N`, where N
            counts tokens. The second is the Fisher information of the channel's factor when sequences are independent.
    """

    samples: Literal["token", "sequence"] = "token"
    needs_statistics = True
    needs_loss = True

    def collect(
        self,
        model: PreTrainedModel,
        groups: Sequence[UnitGroup],
        batches: Sequence[Batch],
        moments: Mapping[str, GroupMoments],
        *,
        seed: int,
        progress: bool,
    ) -> Statistics:
        """`fisher` (n_units, channels_per_unit) of every group, in one backward pass a sequence."""
        square = _token_squares if self.samples == "token" else _sequence_square
        sums = mean_products(model, groups, batches, square, progress=progress)
        return {group.key: {"fisher": sums[group.key].reshape(group.size, -1)} for group in groups}

    def score(self, data: GroupData) -> Tensor:
        """(n_units,) information."""
        return data.statistics["fisher"].sum(dim=1)


def mean_products(
    model: PreTrainedModel,
    groups: Sequence[UnitGroup],
    batches: Sequence[Batch],
    reduce: Callable[[Tensor], Tensor],
    *,
    progress: bool,
) -> dict[str, Tensor]:
    """{group key: (n_channels,) float64}: sum over sequences of `reduce(m)`, m (N, n_channels), over all real positions."""
    channels = {group.key: group.size * group.channels_per_unit for group in groups}
    sums = {key: torch.zeros(count, dtype=torch.float64, device=model.device) for key, count in channels.items()}
    counts = {key: torch.zeros((), dtype=torch.float64, device=model.device) for key in channels}

    def adder(key: str) -> Callable[[Tensor], None]:
        def add(products: Tensor) -> None:
            sums[key] += reduce(products.double()).to(sums[key].device)
            counts[key] += len(products)

        return add

    stream_signals(model, groups, batches, {key: adder(key) for key in channels}, signals="loss", progress=progress)
    all_reduce([*sums.values(), *counts.values()])
    return {key: sums[key] / counts[key].clamp(min=1) for key in channels}


def _token_squares(products: Tensor) -> Tensor:
    return products.square().sum(dim=0)


def _sequence_square(products: Tensor) -> Tensor:
    return products.sum(dim=0).square()
