"""How much goes from which group: from a parameter target to the number of units that every group keeps."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product

from torch import Tensor

from ..models.families import UnitGroup
from .equal_heads import EqualHeads

Sizes = dict[str, int]
# Parameters or MACs of the model once every group has its size.
Count = Callable[[Sizes], int]
# Loss added by removing the first 1, 2, ... units of a group in score order: (size + 1,), non-decreasing, [0] == 0.
Damage = Mapping[str, Tensor]


# What a processor computes fastest, as far as the target leaves the choice.
ALIGNMENT = 8


@dataclass(frozen=True)
class Limits:
    """What sizes are allowed.

    Attributes:
        round_to: kept FFN widths and numbers of channels are multiples of this (a width that is left whole keeps its size).
        min_units: least number of units (of channels where a unit has several) a group keeps, by kind.
        loadable_heads: whether a stock config accepts this number of heads units in every layer.
        least_share: least share of its units that a group keeps.
        whole: units of the groups before the first round, of which that is a share; where it is None those of now.
        equal_heads: whether all layers keep one number of heads where each has its own FFN width.
    """

    round_to: int = ALIGNMENT
    min_units: Mapping[str, int] | None = None
    loadable_heads: Callable[[int], bool] = lambda count: True
    least_share: float = 0.0
    whole: Mapping[str, int] | None = None
    equal_heads: bool = False

    def step(self, group: UnitGroup) -> int:
        """Number of units that go at a time."""
        if group.kind == "channels":
            return max(1, self.round_to // group.channels_per_unit)
        return self.round_to if group.kind != "heads" else 1

    def floor(self, group: UnitGroup) -> int:
        """Least allowed size of a group."""
        least = max(1, (self.min_units or {}).get(group.kind, 1))
        if group.kind == "channels":
            least = -(-least // group.channels_per_unit)
        least = max(least, math.ceil(self.whole_size(group) * self.least_share))
        step = self.step(group)
        return min(group.size, -(-least // step) * step)

    def whole_size(self, group: UnitGroup) -> int:
        """Units of a group before the first round."""
        return (self.whole or {}).get(group.key, group.size)

    def choices(self, group: UnitGroup) -> list[int]:
        """Allowed sizes, largest first: the group's own size, then multiples of the step down to the floor."""
        step = self.step(group)
        below = range((group.size - 1) // step * step, self.floor(group) - 1, -step)
        return [group.size, *below]


def alignment_for(groups: Sequence[UnitGroup], wanted: int, uniform: bool) -> int:
    """What FFN widths are kept at multiples of, where nobody says: `ALIGNMENT`, or less in a model so small that a step of it
    would be more than half of what is to go.

    Args:
        wanted: parameters to remove.
        uniform: whether a step is taken in all layers at once.
    """
    costs = [group.parameters_per_unit for group in groups if group.kind == "ffn"]
    if not costs or "channels" in {group.kind for group in groups}:
        return ALIGNMENT
    cost = sum(costs) if uniform else min(costs)
    step = ALIGNMENT
    while step > 1 and 2 * step * cost > wanted:
        step //= 2
    return step


def parameters_after(groups: Sequence[UnitGroup], sizes: Sizes, parameters_now: int) -> int:
    """Exact parameter count of the model once every group has its size in `sizes`."""
    return parameters_now - sum((group.size - sizes[group.key]) * group.parameters_per_unit for group in groups)


def _check_reachable(
    groups: Sequence[UnitGroup], now: int, target: int, limits: Limits, uniform: bool, count: Count | None = None
) -> None:
    choices = {group.key: _uniform_choices(limits, group) if uniform else limits.choices(group) for group in groups}
    smallest = {key: sizes[-1] for key, sizes in choices.items()}
    least = parameters_after(groups, smallest, now) if count is None else count(smallest)
    if least <= target:
        return
    if count is not None:
        raise ValueError(
            f"The target of {target:,} is out of reach: with the floors in force (`min_channels`, `round_to`), below which a cut "
            f"would empty layers, at least {least:,} of {now:,} stay. Lower `target_reduction` or the floors."
        )
    blocked = any(choices[group.key] != limits.choices(group) for group in groups)
    remedy = '`layout="per_layer"` (the stock config holds back heads)' if blocked else "lower floors or more `units`"
    raise ValueError(
        f"The target of {target:,} is out of reach: with these `units` and the floors in force (`min_ffn_units`, "
        f"`min_kv_groups`, `round_to`) at least {least:,} of {now:,} stay. Lower `target_reduction` (raise `target_bytes`), or "
        f"use {remedy}."
    )


def share_sizes(groups: Sequence[UnitGroup], now: int, target: int, limits: Limits, count: Count) -> Sizes:
    """One share for all groups whose costs interact: the largest whose count stays above `target`, then single steps.

    Every group keeps the smallest allowed size that is no less than its share, so that the count falls with the share; what is
    left up to the target is filled by one further step of groups that rounding left furthest above it.

    Args:
        now: cost of the model as it is.
        target: cost wanted, in what `count` counts.

    Raises:
        ValueError: the target is out of reach.
    """
    _check_reachable(groups, now, target, limits, uniform=False, count=count)
    choices = {group.key: limits.choices(group) for group in groups}

    def at(share: float) -> Sizes:
        least = {group.key: group.size * (1 - share) for group in groups}
        return {key: min((size for size in sizes if size >= least[key]), default=sizes[-1]) for key, sizes in choices.items()}

    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if count(at(middle)) >= target else (low, middle)
    sizes = at(low)
    for group in sorted(groups, key=lambda group: -sizes[group.key] / group.size):
        smaller = [size for size in choices[group.key] if size < sizes[group.key]]
        if smaller and count(sizes | {group.key: smaller[0]}) >= target:
            sizes[group.key] = smaller[0]
    return sizes


def _by_kind(groups: Sequence[UnitGroup]) -> tuple[dict[str, list[UnitGroup]], dict[str, int]]:
    """{kind: its groups} and {kind: cost of one unit in all of them}."""
    kinds: dict[str, list[UnitGroup]] = {}
    for group in groups:
        kinds.setdefault(group.kind, []).append(group)
    return kinds, {kind: sum(group.parameters_per_unit for group in members) for kind, members in kinds.items()}


def uniform_sizes(groups: Sequence[UnitGroup], now: int, target: int, limits: Limits, damage: Damage | None = None) -> Sizes:
    """One size per kind for all layers, with the parameter count as close above `target` as the steps allow.

    Without `damage`, every kind gives up the same share of its units: the head count nearest to that share (and loadable)
    is taken, and FFN neurons fill the rest. With `damage`, the combination with the least summed damage is taken.

    Args:
        now: parameters of the model as it is.
        target: parameters wanted.

    Raises:
        ValueError: layers differ in size (a uniform layout cannot be made), or the target is out of reach.
    """
    kinds, cost_per_unit = _by_kind(groups)
    for kind, members in kinds.items():
        if len({group.size for group in members}) > 1:
            raise ValueError(
                f'The layers already differ in their number of `{kind}` units, so `layout="uniform"` cannot be met. '
                'Use `layout="per_layer"`.'
            )
    _check_reachable(groups, now, target, limits, uniform=True)
    share = (now - target) / sum(group.size * group.parameters_per_unit for group in groups)
    # The finest kind fills up to the target; among the fillings within its step, the nearest to equal shares (or the least
    # damage) wins.
    step = min(limits.step(members[0]) * cost_per_unit[kind] for kind, members in kinds.items())
    best: tuple[tuple[float, ...], dict[str, int]] | None = None
    for counts in product(*(_uniform_choices(limits, members[0]) for members in kinds.values())):
        chosen = dict(zip(kinds, counts, strict=True))
        removed = sum((kinds[kind][0].size - count) * cost_per_unit[kind] for kind, count in chosen.items())
        gap = now - removed - target
        if gap < 0 or (best is not None and gap // step > best[0][0]):
            continue
        if damage is not None:
            cost = sum(float(damage[group.key][group.size - chosen[group.kind]]) for group in groups)
        else:
            cost = max(abs(count / kinds[kind][0].size - (1 - share)) for kind, count in chosen.items())
        rank = (gap // step, cost, gap)
        if best is None or rank < best[0]:
            best = (rank, chosen)
    assert best is not None  # keeping every unit is always among the choices
    return {group.key: best[1][group.kind] for group in groups}


def uniform_options(groups: Sequence[UnitGroup], now: int, target: int, limits: Limits) -> list[Sizes]:
    """What a uniform layout can leave at one parameter count: for every count of the coarser kinds, the fill by the finest.

    Returns:
        Sizes within one step of the finest kind above `target`, from most units of the coarser kinds to fewest.
    """
    kinds, cost_per_unit = _by_kind(groups)
    steps = {kind: limits.step(members[0]) * cost_per_unit[kind] for kind, members in kinds.items()}
    finest = min(steps, key=lambda kind: steps[kind])
    coarser = [kind for kind in kinds if kind != finest]
    options = []
    for counts in product(*(_uniform_choices(limits, kinds[kind][0]) for kind in coarser)):
        chosen = dict(zip(coarser, counts, strict=True))
        left = now - target - sum((kinds[kind][0].size - count) * cost_per_unit[kind] for kind, count in chosen.items())
        fits = [
            size for size in limits.choices(kinds[finest][0]) if (kinds[finest][0].size - size) * cost_per_unit[finest] <= left
        ]
        if fits and left - (kinds[finest][0].size - fits[-1]) * cost_per_unit[finest] < steps[finest]:
            chosen[finest] = fits[-1]
            options.append({group.key: chosen[group.kind] for group in groups})
    return options


def _uniform_choices(limits: Limits, group: UnitGroup) -> list[int]:
    """Allowed sizes that the stock config loads, largest first."""
    choices = limits.choices(group)
    if group.kind != "heads":
        return choices
    return [count for count in choices if count == group.size or limits.loadable_heads(count)]


def per_layer_sizes(
    groups: Sequence[UnitGroup], now: int, target: int, limits: Limits, damage: Damage, count: Count | None = None
) -> Sizes:
    """A size for every group: the cheapest damage per parameter goes first, until the target is met from above.

    Each group's damage curve is replaced by its lower convex hull, on which taking the smallest slope first is the
    optimum of the budgeted problem up to one step per group.

    Args:
        now: parameters of the model as it is.
        target: parameters wanted.
        damage: by group key, see `Damage`.
        count: cost of a shape where the groups' costs interact; `parameters_per_unit` then only ranks the steps.

    Raises:
        ValueError: the target is out of reach with the floors.
    """
    if limits.equal_heads:
        equal, limits = EqualHeads(groups), replace(limits, equal_heads=False)
        return equal.everywhere(per_layer_sizes(equal.groups(), now, target, limits, equal.damage(damage), equal.count(count)))
    _check_reachable(groups, now, target, limits, uniform=False, count=count)
    queue: list[tuple[float, int, int]] = []
    paths = []
    for index, group in enumerate(groups):
        path = _hull_path(group, limits.choices(group), damage[group.key])
        paths.append(path)
        if path:
            heapq.heappush(queue, (path[0][0], index, 0))
    sizes = {group.key: group.size for group in groups}
    left = now - target
    while queue:
        _, index, position = heapq.heappop(queue)
        group, size = groups[index], paths[index][position][1]
        after = sizes | {group.key: size}
        rest = left - (sizes[group.key] - size) * group.parameters_per_unit if count is None else count(after) - target
        if rest < 0:
            continue
        sizes, left = after, rest
        if position + 1 < len(paths[index]):
            heapq.heappush(queue, (paths[index][position + 1][0], index, position + 1))
    return sizes


def at_most(bound: int, sizes_for: Callable[[int], Sizes], cost: Count) -> Sizes:
    """Sizes that cost no more than a bound, where allocations give sizes just above a goal: those for the highest goal that do.

    Args:
        sizes_for: allocation for a goal; raises a ValueError where it is out of reach.

    Raises:
        ValueError: there are none.
    """
    sizes = sizes_for(bound)
    if cost(sizes) <= bound:
        return sizes
    found: Sizes | None = None
    low, high = 0, bound
    while high - low > max(1, bound >> 20):
        middle = (low + high) // 2
        try:
            sizes = sizes_for(middle)
        except ValueError:
            low = middle
            continue
        if cost(sizes) <= bound:
            found, low = sizes, middle
        else:
            high = middle
    if found is None:
        raise ValueError(f"No allowed sizes take at most {bound:,}. Raise `target_bytes`, or lower the floors and `round_to`.")
    return found


def within_sizes(
    groups: Sequence[UnitGroup],
    now: int,
    target: int,
    limits: Limits,
    sizes: Sizes,
    most: Mapping[str, int],
    damage: Damage | None = None,
) -> Sizes:
    """The sizes, none above `most`. With `damage`, what a bound takes from one group is given back to others up to the target.

    Without `damage`, where layers must not differ, the result may lie below the target.
    """
    found = {key: min(size, most.get(key, size)) for key, size in sizes.items()}
    while damage is not None and parameters_after(groups, found, now) < target:
        gains = {}
        for group in groups:
            if group.kind == "heads" and limits.equal_heads:
                continue
            own, bound = found[group.key], most.get(group.key, group.size)
            larger = [size for size in limits.choices(group) if own < size <= bound]
            if larger:
                curve, size = damage[group.key], larger[-1]
                saved = float(curve[group.size - own] - curve[group.size - size])
                gains[group.key, size] = saved / ((size - own) * group.parameters_per_unit)
        if not gains:
            break
        key, size = max(gains, key=lambda place: gains[place])
        found[key] = size
    return found


def _hull_path(group: UnitGroup, choices: list[int], damage: Tensor) -> list[tuple[float, int]]:
    """[(damage per parameter of this step, size after it)] along the lower convex hull, one entry per allowed size."""
    points = [(float(group.size - size), float(damage[group.size - size])) for size in choices]
    hull: list[tuple[float, float]] = []
    for x, y in points:
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (x - hull[-2][0]) >= (y - hull[-2][1]) * (
            hull[-1][0] - hull[-2][0]
        ):
            hull.pop()
        hull.append((x, y))
    path = []
    segment = 0
    for size in choices[1:]:
        removed = group.size - size
        while hull[segment + 1][0] < removed:
            segment += 1
        (x0, y0), (x1, y1) = hull[segment], hull[segment + 1]
        path.append(((y1 - y0) / (x1 - x0) / group.parameters_per_unit, size))
    return path


def sizes_after_round(groups: Sequence[UnitGroup], final: Sizes, share: Fraction | int, limits: Limits) -> Sizes:
    """Sizes once `share` (0 to 1, exact) of the way from the original sizes to `final` is gone.

    Every size on the way is an allowed one, so that a run that is stopped early leaves a model as good as any.

    Args:
        groups: the groups of the original model.
        final: sizes after the last round.
    """
    sizes = {}
    for group in groups:
        target = group.size - (group.size - final[group.key]) * share
        allowed = [size for size in _uniform_choices(limits, group) if size >= final[group.key]]
        sizes[group.key] = final[group.key] if share == 1 else min(size for size in allowed if size >= target)
    return sizes
