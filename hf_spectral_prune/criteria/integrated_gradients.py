"""Integrated gradients: how much of the loss each unit has made or saved, between its layer's absence and presence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from ..calibration import GroupMoments
from ..models.distributed import all_reduce
from ..models.families import UnitGroup
from ..models.losses import Batch, check_gradients, check_targets, frozen, loss_of, moved_to, num_positions, single_sequences
from ..models.modes import evaluating
from ..models.suffix import walk
from ..utils.progress import stage
from .base import Criterion, GroupData, Statistics, register
from .passes.interpolation import Integral, integrate, path_slopes, without_group

logger = logging.get_logger(__name__)


@register("integrated_gradients")
@dataclass(frozen=True)
class IntegratedGradients(Criterion):
    """Minus the integrated gradients of the mean loss (path and midpoint rule of arXiv:2507.09185, there for logits).

    One group at a time, its input-side signal z (pre-activations; value states) goes from 0 to its value by a factor
    alpha, which for `gate_proj` is the weights' own way from 0, with the rest of the model intact:
    `IG_j = mean_alpha sum_t z_j(t) dL/d(alpha z_j(t))`. The IG of a group add up to `L(group) - L(group at zero)`. The sign
    is kept: a unit that lowers the loss scores above zero, a detrimental one below. Scores compare across layers.

    Costs about `2 * num_steps` runs of half the model for every group and sequence; layers below a group are not run again.

    Options:
        num_steps: midpoints of alpha to begin with. Where the IG of a sequence fail to add up to the change of its loss by
            more than `tolerance`, more are taken where the loss bends, up to `max_steps`.
        max_steps: the most midpoints.
        tolerance: allowed error, as a share of the change; a larger one that is left is logged as a warning.
        num_sequences: calibration sequences that are used, the first ones.
    """

    num_steps: int = 20
    max_steps: int = 60
    tolerance: float = 0.01
    num_sequences: int = 8
    needs_statistics = True
    needs_loss = True

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.num_sequences < 1:
            raise ValueError("`num_steps` and `num_sequences` of `integrated_gradients` must be at least 1.")
        if self.max_steps < self.num_steps:
            raise ValueError(
                f"`max_steps` of `integrated_gradients` is {self.max_steps}; it must be at least `num_steps` ({self.num_steps})."
            )
        if self.tolerance <= 0:
            raise ValueError(f"`tolerance` of `integrated_gradients` is {self.tolerance}; it must be above 0.")

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
        """`attribution` (n_units,) of every group, of the mean loss of a position, one sequence at a time."""
        check_gradients(model)
        if any(group.kind == "channels" for group in groups):
            raise ValueError(
                "`integrated_gradients` follows the gate of a transformer's FFN neurons and heads, and these units are channels. "
                "Choose another criterion, e.g. `spectral` or `taylor`."
            )
        sums = {group.key: torch.zeros(group.size, dtype=torch.float64, device=model.device) for group in groups}
        # A row per group: the error of completeness, and the change that it is a share of. Then the number of positions.
        gaps = torch.zeros(len(groups), 2, dtype=torch.float64, device=model.device)
        count = torch.zeros((), dtype=torch.float64, device=model.device)
        with evaluating(model), frozen(model):
            sequences = list(islice(single_sequences(batches), self.num_sequences))
            for batch in stage("Integrating gradients", sequences, show=progress):
                moved = moved_to(model, batch)
                for row, (group, integral, change) in enumerate(self._integrals(model, groups, moved)):
                    sums[group.key] += integral.values.to(model.device)
                    gaps[row] += torch.tensor([integral.error, abs(change)], dtype=torch.float64, device=model.device)
                count += num_positions(batch)
        all_reduce([*sums.values(), gaps, count])
        self._warn(groups, gaps)
        return {key: {"attribution": total / float(count.clamp(min=1))} for key, total in sums.items()}

    def score(self, data: GroupData) -> Tensor:
        """(n_units,) nats per position that each unit saves."""
        return -data.statistics["attribution"]

    def _integrals(
        self, model: PreTrainedModel, groups: Sequence[UnitGroup], batch: Batch
    ) -> Iterator[tuple[UnitGroup, Integral, float]]:
        """Of every group, in the groups' order: integral for one sequence's summed loss, and the change it should make."""
        check_targets(model, batch)

        def loss(copies: int) -> Tensor:
            assert copies == 1  # a loss is of a whole batch, and the logits of one sequence are large enough
            return loss_of(model, batch)[None]

        with torch.no_grad():
            whole = float(loss(1))
        found: dict[str, tuple[Integral, float]] = {}
        for layer, (given,) in walk(model, [lambda: loss(1)], last=max(group.layer for group in groups)):
            for group in groups:
                if group.layer != layer:
                    continue
                path = partial(path_slopes, model, group, given, loss, 1)
                ends = without_group(model, group, given, loss), whole
                allowed = self.tolerance * abs(ends[1] - ends[0])
                integral = integrate(path, ends, steps=self.num_steps, max_steps=self.max_steps, tolerance=allowed)
                found[group.key] = integral, ends[1] - ends[0]
        for group in groups:
            yield group, *found[group.key]

    def _warn(self, groups: Sequence[UnitGroup], gaps: Tensor) -> None:
        shares = (gaps[:, 0] / gaps[:, 1].clamp(min=torch.finfo(torch.float64).tiny)).tolist()
        worst = max(range(len(groups)), key=lambda row: shares[row])
        if shares[worst] > self.tolerance:
            over = sum(share > self.tolerance for share in shares)
            logger.warning(
                f"Integrated gradients of {over} of {len(groups)} groups miss the change of the loss by more than "
                f"{self.tolerance:.2%}; most in `{groups[worst].key}`, by {shares[worst]:.2%}. Raise `max_steps`, or load the "
                "model in a wider `dtype`."
            )
