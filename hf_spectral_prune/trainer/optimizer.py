"""Cuts an optimizer with the weights: its parameters and the state that follows them element by element."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import PreTrainedModel
from transformers.utils import logging

from ..models.families import unit_groups
from ..surgery.narrow import narrowings
from ..surgery.plan import PruningPlan
from ..utils.types import Json

logger = logging.get_logger(__name__)

# (layer, name of its parameter, the parameter before the cut, {dimension: indices kept})
_Watched = tuple[nn.Module, str, Tensor, dict[int, Tensor]]


@contextmanager
def optimizer_follows(optimizer: Optimizer | None, model: PreTrainedModel, plan: PruningPlan) -> Iterator[None]:
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
    _replace(optimizer, {old: new for old, (new, _) in replaced.items()})
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


class Replacements:
    """Parameters that cuts have replaced while no optimizer was at hand, for one that was built before them.

    The old ones are not kept alive: where no optimizer holds them, there is nothing to carry over.
    """

    def __init__(self) -> None:
        self._new: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()

    @contextmanager
    def watching(self, model: PreTrainedModel, plan: PruningPlan) -> Iterator[None]:
        """While open, a cut of `model` by `plan` is noted."""
        watched = _watch(model, plan)
        yield
        for layer, name, old, _ in watched:
            new = getattr(layer, name)
            if new is not old:
                self._new[old] = new

    def carry_over(self, optimizer: Optimizer | None) -> None:
        """Gives an optimizer the new parameters in the places of the old ones, and forgets them.

        Their state is that of a checkpoint, which has the new shapes already; state of an old shape is dropped, since nobody
        knows the units that it belongs to.

        Args:
            optimizer: as for `optimizer_follows`.
        """
        if optimizer is None:
            return
        replaced = {}
        for old in (old for group in optimizer.param_groups for old in group["params"]):
            new = old
            while new in self._new:
                new = self._new[new]
            if new is not old:
                replaced[old] = new
        _replace(optimizer, replaced)
        for old, new in replaced.items():
            state = optimizer.state.pop(old, {})
            if state and not any(isinstance(value, Tensor) and value.shape == old.shape for value in state.values()):
                optimizer.state[new] = state
        self._new.clear()


def _replace(optimizer: Optimizer, replaced: dict[Tensor, Tensor]) -> None:
    for group in optimizer.param_groups:
        group["params"] = [replaced.get(old, old) for old in group["params"]]


def warn_of_untrained(model: PreTrainedModel, optimizer: Optimizer | None) -> None:
    """Warns of trainable parameters that an optimizer does not hold, as may be when it was built before they were.

    Args:
        optimizer: as for `optimizer_follows`.
    """
    if optimizer is None:
        return
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    missing = [name for name, value in model.named_parameters() if value.requires_grad and value not in held]
    if missing:
        logger.warning(
            f"The optimizer does not hold {len(missing)} of the trainable parameters, `{missing[0]}` first, so they stay as they "
            "are. If they should be trained, let the Trainer build the optimizer, or build it from the model as it is now."
        )


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


def _cut_state(state: Json, old: Tensor, indices: dict[int, Tensor]) -> Json | None:
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
