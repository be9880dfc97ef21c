"""Cuts an optimizer with the weights: its parameters and the state that follows them element by element."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ..architectures import unit_groups
from ..planning import PruningPlan
from .cut import narrowings

logger = logging.get_logger(__name__)

# (layer, name of its parameter, the parameter before the cut, {dimension: indices kept})
_Watched = tuple[nn.Module, str, Tensor, dict[int, Tensor]]


@contextmanager
def optimizer_follows(optimizer: Any, model: PreTrainedModel, plan: PruningPlan) -> Iterator[None]:
    """While open, a cut of `model` by `plan` is carried over to the optimizer.

    A cut replaces parameters; an optimizer that still held the old ones would go on training those and leave the model's
    as they are. State of a parameter's shape (Adam's moments, a momentum) keeps the entries of the kept units; a scalar
    (the step count) stays; other state (factored or quantised moments) has no entries of units, so that the optimizer
    starts this parameter's state anew.

    Args:
        optimizer: a torch optimizer, or what wraps one with its `param_groups` and `state`; None does nothing.
    """
    watched = _watch(model, plan)
    yield
    if optimizer is None:
        return
    replaced = {old: (getattr(layer, name), indices) for layer, name, old, indices in watched}
    replaced = {old: new for old, new in replaced.items() if new[0] is not old}
    for group in optimizer.param_groups:
        group["params"] = [replaced[old][0] if old in replaced else old for old in group["params"]]
    started_anew = 0
    for old, (new, indices) in replaced.items():
        if old in optimizer.state:
            state = optimizer.state.pop(old)
            kept = _cut_state(state, old, indices)
            started_anew += bool(state) and kept is None
            if kept:
                optimizer.state[new] = kept
    if started_anew:
        logger.warning(f"The optimizer keeps state that cannot be cut for {started_anew} parameters; it starts anew for them.")


def _watch(model: PreTrainedModel, plan: PruningPlan) -> list[_Watched]:
    watched: dict[Tensor, _Watched] = {}
    groups = [group for group in unit_groups(model) if group.key in plan.kept]
    for layer, rows, columns in narrowings(model, groups, {group.key: plan.kept_index(group.key) for group in groups}):
        of_grouped_convolution = getattr(layer, "groups", 1) > 1  # its rows take their inputs with them
        kept = {0: rows, 1: None if of_grouped_convolution else columns}
        for name in ("weight", "bias"):
            value = getattr(layer, name, None)
            if value is not None:
                indices = {dim: index for dim, index in kept.items() if index is not None and dim < value.dim()}
                watched[value] = (layer, name, value, indices)
    return list(watched.values())


def _cut_state(state: dict[str, Any], old: Tensor, indices: dict[int, Tensor]) -> dict[str, Any] | None:
    """One parameter's state after the cut; None where a part of it cannot be cut."""
    kept = {}
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.numel() == 1:
            kept[name] = value
        elif value.shape == old.shape:
            for dim, index in indices.items():
                value = value.index_select(dim, index.to(value.device))
            kept[name] = value
        else:
            return None
    return kept
