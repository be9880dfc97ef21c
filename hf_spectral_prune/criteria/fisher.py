"""Fisher information of a unit's output: squared loss gradients of switching it off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from transformers import PreTrainedModel

from ..calibration import GroupMoments
from ..calibration.products import mean_products, unit_information
from ..models.families import UnitGroup
from ..models.losses import Batch
from .base import Criterion, GroupData, Statistics, register

# Name of the statistic that tells what removing whole units costs.
INFORMATION = "information"


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
        """`fisher` (n_units, channels_per_unit) and `information` (n_units,) of every group, in one backward pass a sequence.

        The second is not scored by: widths by Fisher information are allocated from it.
        """
        square = _token_squares if self.samples == "token" else _sequence_square

        def reduce(products: Tensor, group: UnitGroup) -> dict[str, Tensor]:
            squares = square(products).reshape(group.size, -1)
            return {"fisher": squares, INFORMATION: unit_information(products, group)}

        return mean_products(model, groups, batches, reduce, progress=progress)

    def score(self, data: GroupData) -> Tensor:
        """(n_units,) information."""
        return data.statistics["fisher"].sum(dim=1)


def _token_squares(products: Tensor) -> Tensor:
    return products.square().sum(dim=0)


def _sequence_square(products: Tensor) -> Tensor:
    return products.sum(dim=0).square()
