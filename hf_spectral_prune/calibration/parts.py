"""Moments within a memory limit: of as many groups at a time as fit, one pass over the data each."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import psutil
import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from ..models.distributed import agreed, works_together
from ..models.families import UnitGroup
from ..models.streams import Ascent
from .moments import GroupMoments
from .signals import Side, num_signal_channels

logger = logging.get_logger(__name__)
# Share of the free memory that moments may take where no limit is given: scoring needs some of it too.
_SHARE = 0.5
# Moments that are read but once are collected a layer at a time, or as many layers as fit this: holding more saves nothing.
_READ_ONCE = 2**29


class MomentsByPart(Mapping[str, GroupMoments]):
    """Moments of groups that do not fit into memory together, collected when one of a part is asked for.

    At most one part is held. They are always those of the model as it stands: whoever changes it reads what it needs before. To
    go through the groups in order costs one pass over the data in all where there is an `ascent`, else one a part.

    Args:
        split: the groups of the model as it stands, part by part.
        collect: moments of one part.
        ascent: what `collect` goes up the layers with.
    """

    def __init__(
        self,
        split: Callable[[], list[list[UnitGroup]]],
        collect: Callable[[Sequence[UnitGroup]], dict[str, GroupMoments]],
        ascent: Ascent | None = None,
    ) -> None:
        self._split, self._collect, self._ascent = split, collect, ascent
        self._parts = {group.key: part for part in split() for group in part}
        self._held: dict[str, GroupMoments] = {}

    def __getitem__(self, key: str) -> GroupMoments:
        if key not in self._held:
            part = self._parts[key]
            self._held = {}  # the old part goes before the new one is made
            self._held = self._collect(part)
        return self._held[key]

    def __contains__(self, key: object) -> bool:
        return key in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def let_go(self) -> None:
        """Frees the part that is held; to ask for it again costs a pass."""
        self._held = {}

    def anew(self) -> MomentsByPart:
        """The same for a model that was cut since."""
        if self._ascent is not None:
            self._ascent.restart()
        return MomentsByPart(self._split, self._collect, self._ascent)


def moment_bytes(model: PreTrainedModel, group: UnitGroup, sides: Collection[Side]) -> int:
    """Memory that a group's moments take."""
    return sum(8 * num_signal_channels(model, group, side) ** 2 for side in sides)


def split_by_memory(
    model: PreTrainedModel, groups: Sequence[UnitGroup], sides: Collection[Side], max_bytes: int
) -> list[list[UnitGroup]]:
    """Splits groups into parts whose moments fit `max_bytes` together; a group that does not is a part by itself."""
    parts: list[list[UnitGroup]] = [[]]
    used = 0
    for group in groups:
        size = moment_bytes(model, group, sides)
        if parts[-1] and used + size > max_bytes:
            parts.append([])
            used = 0
        parts[-1].append(group)
        used += size
    return parts


def memory_limit(model: PreTrainedModel, max_gib: float | None) -> int:
    """Bytes that moments may take: `max_gib`, or half of what is free now on the model's device; on all processes the same."""
    return int(max_gib * 2**30) if max_gib is not None else agreed(_free_share(model))


def _free_share(model: PreTrainedModel) -> int:
    if model.device.type == "cuda":
        cached = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
        return int(_SHARE * (torch.cuda.mem_get_info(model.device)[0] + cached))
    sharers = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if works_together() else 1  # processes on this machine
    return int(_SHARE * psutil.virtual_memory().available / sharers)


def moments_within(
    model: PreTrainedModel,
    groups: Callable[[], list[UnitGroup]],
    sides: Collection[Side],
    collect: Callable[[Sequence[UnitGroup]], dict[str, GroupMoments]],
    max_gib: float | None,
    ascent: Ascent | None = None,
    *,
    read_once: bool = False,
) -> Mapping[str, GroupMoments]:
    """Moments of all groups: at once where they fit `memory_limit`, else by parts.

    Args:
        groups: gives the groups of the model as it stands.
        sides: that `collect` fills.
        ascent: what `collect` goes up the layers with, if it does.
        read_once: whether they are read once, group by group. With an `ascent` parts then cost nothing, and are made small.
    """
    limit = memory_limit(model, max_gib)
    if ascent is not None and read_once:  # no pass more, however many parts
        layers: dict[int, int] = {}
        for group in groups():
            layers[group.layer] = layers.get(group.layer, 0) + moment_bytes(model, group, sides)
        limit = min(limit, max(_READ_ONCE, *layers.values()))
    elif (parts := len(split_by_memory(model, groups(), sides, limit))) > 1:
        needed = sum(moment_bytes(model, group, sides) for group in groups())
        logger.warning_once(
            f"The calibration moments would take {needed / 2**30:.1f} GiB, and {limit / 2**30:.1f} GiB "
            f"{'are free for them' if max_gib is None else 'are allowed'}: they are collected in {parts} parts, "
            "and never kept together (`max_moment_gib`)."
        )

    def split() -> list[list[UnitGroup]]:
        return split_by_memory(model, groups(), sides, limit)

    found = split()
    return collect(found[0]) if len(found) == 1 else MomentsByPart(split, collect, ascent)


__all__ = ["MomentsByPart", "memory_limit", "moment_bytes", "moments_within", "split_by_memory"]
