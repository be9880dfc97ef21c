"""Looks among few candidates for the sizes that leave the repaired model nearest to the dense one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor
from transformers import PreTrainedModel

from ..models.losses import Batch
from ..utils.descent import descend
from ..utils.progress import stage
from .allocate import Limits, Sizes, per_layer_sizes, uniform_options, uniform_sizes
from .choose import highest
from .reduction_target import Target, cost_of
from .trial import divergence, room_for_steps

# Information says what a little change costs, not what emptying a layer does: each keeps this much of the mean share that stays.
_LEAST_SHARE = 0.4
# What the information of heads counts beside that of neurons. A repair makes up for the loss of whole heads better than
# information predicts, by how much differs from model to model.
HEAD_PRICES = (0.1, 0.3, 1.0, 3.0)


def fisher_sizes(target: Target, limits: Limits, damage: Mapping[str, Tensor], head_price: float = 1.0) -> Sizes:
    """Sizes by the Fisher information of the units (`fisher_damage`), ranked over all groups.

    No group keeps less than 0.4 of the share of the whole model that all together keep, unless that puts the target out of reach
    (sizes are rounded up to it).

    Args:
        head_price: factor of the heads' information.
    """
    costs = [(group.size, limits.whole_size(group), group.parameters_per_unit) for group in target.groups]
    left = sum(size * cost for size, _, cost in costs) - (target.now - target.goal)
    kept = left / sum(whole * cost for _, whole, cost in costs)
    floored = replace(limits, least_share=_LEAST_SHARE * max(0, kept))
    least = {group.key: floored.floor(group) for group in target.groups}
    if cost_of(target, least) > target.goal:
        floored = limits
    heads = {group.key for group in target.groups if group.kind == "heads"}
    priced = {key: curve * head_price if key in heads else curve for key, curve in damage.items()}
    return per_layer_sizes(target.groups, target.now, target.goal, floored, priced, target.count)


def search_uniform(
    model: PreTrainedModel,
    target: Target,
    limits: Limits,
    scores: Mapping[str, Tensor],
    batches: Sequence[Batch],
    progress: bool = True,
) -> Sizes:
    """One size per kind, by trials (`divergence`) of neighbouring head counts, beginning at equal shares.

    Raises:
        ValueError: see `uniform_sizes`.
    """
    first = uniform_sizes(target.groups, target.now, target.goal, limits)
    options = uniform_options(target.groups, target.now, target.goal, limits)
    if first not in options:
        options.insert(0, first)
    return _nearest(model, options, options.index(first), scores, batches, progress)


def search_per_layer(
    model: PreTrainedModel,
    target: Target,
    limits: Limits,
    damage: Mapping[str, Tensor],
    scores: Mapping[str, Tensor],
    batches: Sequence[Batch],
    progress: bool = True,
) -> Sizes:
    """A size for every group, by trials (`divergence`) of what heads should count beside neurons, beginning with `fisher_sizes`.

    Raises:
        ValueError: see `per_layer_sizes`.
    """
    by_price = {price: fisher_sizes(target, limits, damage, price) for price in HEAD_PRICES}
    options: list[Sizes] = []
    for sizes in by_price.values():
        if sizes not in options:
            options.append(sizes)
    return _nearest(model, options, options.index(by_price[1.0]), scores, batches, progress)


def _nearest(
    model: PreTrainedModel,
    options: Sequence[Sizes],
    first: int,
    scores: Mapping[str, Tensor],
    batches: Sequence[Batch],
    progress: bool,
) -> Sizes:
    known = room_for_steps(model, batches)
    with stage("Trying sizes", unit="trials", show=progress) as bar:

        def judge(index: int) -> float:
            bar.update()
            return divergence(model, highest(scores, options[index]), batches, known)

        return options[descend(len(options), first, judge)]


__all__ = ["HEAD_PRICES", "fisher_sizes", "search_per_layer", "search_uniform"]
