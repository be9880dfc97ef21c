"""One number of heads for all layers, while every layer has its own FFN width."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ..models.families import UnitGroup

Sizes = dict[str, int]


@dataclass(frozen=True)
class EqualHeads:
    """Stands one group of heads in for those of all layers, so that `per_layer_sizes` decides about them together.

    Args:
        members: the groups of the model as it is.

    Raises:
        ValueError: layers already differ in their number of heads.
    """

    members: Sequence[UnitGroup]

    def __post_init__(self) -> None:
        if len({group.size for group in self._heads}) > 1:
            raise ValueError(
                "The layers already differ in their number of heads, so `uniform_heads` cannot be met. Leave it out."
            )

    @property
    def _heads(self) -> list[UnitGroup]:
        return [group for group in self.members if group.kind == "heads"]

    def groups(self) -> list[UnitGroup]:
        """All groups, of those of heads the first alone: one of its units costs what a unit costs in all layers."""
        others = [group for group in self.members if group.kind != "heads"]
        cost = sum(group.parameters_per_unit for group in self._heads)
        return [*others, *(replace(group, parameters_per_unit=cost) for group in self._heads[:1])]

    def damage(self, damage: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Damage of these groups: what a number of heads costs in all layers together."""
        heads = self._heads
        return {**damage, **{group.key: sum((damage[one.key] for one in heads[1:]), damage[group.key]) for group in heads[:1]}}

    def everywhere(self, sizes: Sizes) -> Sizes:
        """Sizes of all groups of the model."""
        return sizes | {group.key: sizes[self._heads[0].key] for group in self._heads}

    def count(self, count: Callable[[Sizes], int] | None) -> Callable[[Sizes], int] | None:
        """`count` for sizes of these groups."""
        return None if count is None else lambda sizes: count(self.everywhere(sizes))
