"""Masks units without removing them: the consumer sees zeros where they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..calibration import GroupMoments
from ..models.cria.channels import CONVOLUTIONS, weight_of, widths_of
from ..models.distributed import zero_columns
from ..models.families import Part, UnitGroup, consumers, unit_groups
from .cut import repairs


@contextmanager
def masked(model: PreTrainedModel, kept: Mapping[str, Tensor]) -> Iterator[None]:
    """While open, the model computes as if only the units `kept` ({group key: indices}) were there."""
    with ExitStack() as stack:
        for group in unit_groups(model):
            for consumer in consumers(model, group) if group.key in kept else ():
                module = consumer.module
                mask = torch.ones(widths_of(module)["in"], dtype=module.weight.dtype)
                mask[_removed_inputs(group, consumer, kept[group.key])] = 0
                if isinstance(module, CONVOLUTIONS):
                    mask = mask.reshape(-1, *(1 for _ in module.kernel_size))  # channels come before the map
                mask = mask.to(model.device)
                handle = module.register_forward_pre_hook(
                    lambda _module, args, mask=mask: (args[0] * mask.to(args[0]), *args[1:])
                )
                stack.callback(handle.remove)
        yield


@contextmanager
def refitted(
    model: PreTrainedModel, kept: Mapping[str, Tensor], moments: Mapping[str, GroupMoments], ridge: float = 1e-2
) -> Iterator[None]:
    """While open, the consumers' columns of the units `kept` ({group key: indices}) are those of a least-squares repair."""
    repaired = repairs(model, kept, "least_squares", moments, ridge)
    before = []
    for group in unit_groups(model):
        if group.key in repaired:
            (consumer,) = consumers(model, group)
            weight = weight_of(consumer.module).data
            before.append((weight, weight.clone()))
            weight[:, consumer.slice.index[kept[group.key]].flatten().to(weight.device)] = repaired[group.key]
    try:
        yield
    finally:
        for weight, values in before:
            weight.copy_(values)


def _removed_inputs(group: UnitGroup, consumer: Part, kept: Tensor) -> Tensor:
    removed = torch.ones(group.size, dtype=torch.bool)
    removed[kept] = False
    return consumer.slice.index[removed].flatten()


@torch.no_grad()
def zero_masked(model: PreTrainedModel, kept: Mapping[str, Tensor]) -> None:
    """Sets the consumer columns of all units but `kept` ({group key: indices}) to zero, in place: they add nothing for good."""
    for group in unit_groups(model):
        for consumer in consumers(model, group) if group.key in kept else ():
            weight = weight_of(consumer.module)
            removed = torch.zeros(widths_of(consumer.module)["in"], dtype=torch.bool)
            removed[_removed_inputs(group, consumer, kept[group.key])] = True
            zero_columns(weight, removed.reshape(-1, *(1 for _ in weight.shape[2:])))  # a kernel goes whole
