"""Narrows the modules of unit groups to the units that stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..models.cria.channels import narrow, weight_of, widths_of
from ..models.families import UnitGroup, module_of, parts, row_of


def narrowings(
    model: PreTrainedModel, groups: Sequence[UnitGroup], kept: Mapping[str, Tensor]
) -> list[tuple[Any, Tensor | None, Tensor | None]]:
    """What a cut keeps of each module of the groups: (module, outputs, inputs), ascending, None for all; consumers come last.

    All groups are taken together, because a module may make the channels of one and read those of several others.
    """
    modules: dict[nn.Module, dict[str, Tensor]] = {}
    for group in groups:
        removed = torch.ones(group.size, dtype=torch.bool)
        removed[kept[group.key]] = False
        for part in parts(model, group):
            side = "in" if part.is_input else "out"
            sides = modules.setdefault(part.module, {})
            stays = sides.setdefault(side, torch.ones(widths_of(part.module)[side], dtype=torch.bool))
            stays[part.slice.index[removed].flatten()] = False
    found = []
    for module, sides in modules.items():
        outputs, inputs = (
            None if side not in sides or bool(sides[side].all()) else sides[side].nonzero().flatten() for side in ("out", "in")
        )
        if outputs is not None or inputs is not None:
            found.append((module, outputs, inputs))
    return found


@torch.no_grad()
def cut_group(model: PreTrainedModel, group: UnitGroup, kept: Tensor, repair: Tensor | None = None) -> None:
    """Narrows one group's producers and consumer to the kept units, in place, and writes the consumer's repair into it.

    The model then computes with what is left; `write_layer_fields` says so in its config.
    """
    if len(kept) == group.size:
        return
    cuts = narrowings(model, [group], {group.key: kept})
    for module, outputs, inputs in cuts:
        narrow(module, outputs, inputs)
    for path, attribute in row_of(model, group).module_fields:
        owner = module_of(model, group.layer, path)
        setattr(owner, attribute, getattr(owner, attribute) * len(kept) // group.size)
    if repair is not None:
        consumer = cuts[-1][0]
        (weight_of(consumer) if repair.dim() == 2 else consumer.bias).copy_(repair)
