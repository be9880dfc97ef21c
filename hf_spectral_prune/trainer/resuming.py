"""Lets a dense model take the weights of a checkpoint that was pruned further: it is narrowed as they are loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..evaluation.figures import num_parameters
from ..models.families import UnitGroup, parts, unit_groups
from ..surgery import apply_plan, settle_class
from ..surgery.plan import PruningPlan
from .optimizer import Replacements


@contextmanager
def narrow_on_load(model: PreTrainedModel) -> Iterator[Replacements]:
    """While open, `model.load_state_dict` first narrows the model to the widths of the weights it is given.

    Trainer loads a checkpoint's weights before any callback is told of it, and widths that differ are an error there. Which
    units are kept does not matter, as all their weights are overwritten.

    Yields:
        what it replaced, for an optimizer that the user has built before.
    """
    replacements = Replacements()
    handle = model.register_load_state_dict_pre_hook(partial(_narrow, replacements))
    try:
        yield replacements
    finally:
        handle.remove()


def _narrow(
    replacements: Replacements, model: PreTrainedModel, state_dict: Mapping[str, Tensor], prefix: str, *_args: object
) -> None:
    paths = {module: name for name, module in model.named_modules()}
    groups = unit_groups(model)
    sizes = {group.key: _size_in(model, group, state_dict, prefix, paths) for group in groups}
    if any(sizes[group.key] < group.size for group in groups):
        plan = _first_units(model, groups, sizes)
        with replacements.watching(model, plan):
            apply_plan(model, plan, check_weights=False)
        settle_class(model)


def _size_in(
    model: PreTrainedModel, group: UnitGroup, state_dict: Mapping[str, Tensor], prefix: str, paths: Mapping[nn.Module, str]
) -> int:
    """Number of the group's units in a state dict; its present size if none of its weights is there (another shard)."""
    for part in reversed(parts(model, group)):
        dim = int(part.is_input != isinstance(part.module, Conv1D))
        weight = state_dict.get(f"{prefix}{paths[part.module]}.weight")
        # A module may read the channels of several groups; then its width says nothing of one of them.
        if weight is not None and part.slice.index.numel() == part.module.weight.shape[dim]:
            return group.size * weight.shape[dim] // part.module.weight.shape[dim]
    return group.size


def _first_units(model: PreTrainedModel, groups: list[UnitGroup], sizes: Mapping[str, int]) -> PruningPlan:
    return PruningPlan(
        model_type=model.config.model_type,
        sizes={group.key: group.size for group in groups},
        kept={group.key: tuple(range(min(sizes[group.key], group.size))) for group in groups},
        parameters_before=num_parameters(model),
        parameters_after=0,
    )
