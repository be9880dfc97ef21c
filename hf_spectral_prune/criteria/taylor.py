"""Taylor expansion of the loss: LLM-Pruner's metric, one sequence of gradients at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..calibration import GroupMoments
from ..calibration.collect import sequence_losses
from ..calibration.products import mean_products
from ..models.distributed import all_reduce
from ..models.families import UnitGroup
from ..models.losses import Batch
from .base import Criterion, GroupData, Statistics, register
from .passes.streams import UnitParameter, differentiable, unit_parameters


@register("taylor")
@dataclass(frozen=True)
class Taylor(Criterion):
    """Change of the loss, to first or second order, when the unit's weights w become zero (LLM-Pruner, arXiv:2305.11627).

    With `g_s` the gradient of sequence s's summed loss and N the number of real positions, the mean loss changes by
    `-sum_s w g_s / N + w^2 sum_s g_s^2 / (2 N)`: the second term puts the squared gradients of single sequences (the
    empirical Fisher diagonal) for the Hessian's diagonal. Scores are its absolute value, summed over matrices.

    Options:
        order: 1 or 2.
        aggregate: "vector" adds up the changes of a unit's weights in a matrix before the absolute value is taken, which is
            the expansion for the unit as a whole; "element" takes the absolute value of every weight in every sequence
            (weights never need to be stored together with their gradients, which the sum over sequences first would).
        weights: "all" that leave with the unit, or those of the "consumer" alone. Of these the first-order vector is
            `sum_t h_c(t) dL/dh_c(t)`, so that no gradient of a weight is computed.
    """

    order: Literal[1, 2] = 1
    aggregate: Literal["vector", "element"] = "element"
    weights: Literal["all", "consumer"] = "all"
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
        """`change` (n_units, matrices) of every group, in one backward pass a sequence."""
        if self.order == 1 and self.aggregate == "vector" and self.weights == "consumer":
            return mean_products(model, groups, batches, _change_of_units, progress=progress)
        changes = self._from_weights(model, groups, batches, progress)
        return {key: {"change": change} for key, change in changes.items()}

    def _from_weights(
        self, model: PreTrainedModel, groups: Sequence[UnitGroup], batches: Sequence[Batch], progress: bool
    ) -> dict[str, Tensor]:
        parameters = [
            parameter for group in groups for parameter in unit_parameters(model, group, consumer_only=self.weights == "consumer")
        ]
        # (n_units, num_blocks) a matrix; a producer's weight and bias add up in one.
        sums = {
            (parameter.group.key, parameter.module): torch.zeros(
                parameter.group.size, parameter.num_blocks, dtype=torch.float64, device=parameter.value.device
            )
            for parameter in parameters
        }

        def use(parameter: UnitParameter, gradient: Tensor) -> None:
            products = parameter.by_unit(parameter.value.detach().float() * gradient.float())  # w g, (n_units, blocks, p)
            changes = products if self.order == 1 else products - products.square() / 2
            if self.aggregate == "element":
                changes = changes.abs()
            sums[parameter.group.key, parameter.module] += changes.sum(dim=2, dtype=torch.float64)

        count = torch.zeros((), dtype=torch.float64, device=model.device)
        with differentiable(model, parameters), streamed_gradients(parameters, use):
            for loss, positions in sequence_losses(model, batches, progress=progress):
                loss.backward()
                count += positions
        all_reduce([*sums.values(), count])
        return {
            group.key: torch.cat([total for (key, _), total in sums.items() if key == group.key], dim=1)
            / float(count.clamp(min=1))
            for group in groups
        }

    def score(self, data: GroupData) -> Tensor:
        """(n_units,) absolute changes of the mean loss."""
        return data.statistics["change"].abs().sum(dim=1)


def _change_of_units(products: Tensor, group: UnitGroup) -> dict[str, Tensor]:
    return {"change": products.sum(dim=0).reshape(group.size, -1).sum(dim=1, keepdim=True)}


@contextmanager
def streamed_gradients(parameters: Sequence[UnitParameter], use: Callable[[UnitParameter, Tensor], None]) -> Iterator[None]:
    """While open, a parameter's gradient is passed to `use` as soon as a backward pass has it, and freed."""

    users: dict[nn.Parameter, list[UnitParameter]] = {}
    for parameter in parameters:
        users.setdefault(parameter.value, []).append(parameter)

    def hook(value: Tensor) -> None:
        gradient, value.grad = value.grad, None
        assert gradient is not None and isinstance(value, nn.Parameter)
        for parameter in users[value]:
            use(parameter, gradient)

    handles = [value.register_post_accumulate_grad_hook(hook) for value in users]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
