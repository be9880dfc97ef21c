"""What gradient criteria share: the parameters that leave with a unit, and sums over processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from ...models.families import Part, UnitGroup, parts, take
from ...models.losses import check_gradients, frozen


@dataclass(frozen=True)
class UnitParameter:
    """One tensor whose entries leave with the units of a group.

    A weight between two groups of channels is here twice: its rows belong to one group, its columns to the other.

    Attributes:
        group: the units.
        part: its module, and which of the entries belong to the units.
        value: the parameter.
    """

    group: UnitGroup
    part: Part
    value: nn.Parameter

    @property
    def module(self) -> str:
        """Name of the module; a producer's weight and bias share it."""
        return self.part.name

    @property
    def num_blocks(self) -> int:
        """Fused projections that lie one above the other in the rows."""
        return self.part.slice.num_blocks

    @property
    def is_consumer(self) -> bool:
        """Its columns belong to units, not its rows."""
        return self.part.is_input

    def by_unit(self, tensor: Tensor) -> Tensor:
        """A tensor of the parameter's shape as (n_units, num_blocks, entries per unit and block)."""
        rows = tensor.movedim(1, 0) if self.is_consumer else tensor
        return take(rows, self.part.slice.index.flatten()).reshape(self.group.size, self.num_blocks, -1)


def unit_parameters(model: PreTrainedModel, group: UnitGroup, *, consumer_only: bool = False) -> list[UnitParameter]:
    """Everything that leaves with a unit: the consumers' weights, and the weights and biases of what makes or norms it."""
    found = []
    for part in sorted(parts(model, group), key=lambda part: not part.is_input):
        names = ("weight",) if part.is_input else () if consumer_only else ("weight", "bias")
        values = [getattr(part.module, name, None) for name in names]
        found += [UnitParameter(group, part, value) for value in values if value is not None]
    return found


@contextmanager
def differentiable(model: PreTrainedModel, parameters: Iterable[UnitParameter]) -> Iterator[None]:
    """While open, these parameters of the model and no others require gradients; gradients they had come back after.

    Raises:
        ValueError: see `check_gradients`.
    """
    check_gradients(model)
    values = [parameter.value for parameter in parameters]
    held = [value.grad for value in values]
    with frozen(model):
        for value in values:
            value.requires_grad_(True)
            value.grad = None
        try:
            yield
        finally:
            for value, gradient in zip(values, held, strict=True):
                value.grad = gradient


def split_parameters(groups: Sequence[list[UnitParameter]], limit: int) -> list[list[UnitParameter]]:
    """Joins the parameters of neighbouring groups into runs of at most `limit` entries (a larger group runs alone)."""
    runs: list[list[UnitParameter]] = [[]]
    used = 0
    for parameters in groups:
        entries = sum(parameter.value.numel() for parameter in parameters)
        if runs[-1] and used + entries > limit:
            runs.append([])
            used = 0
        runs[-1] += parameters
        used += entries
    return runs
