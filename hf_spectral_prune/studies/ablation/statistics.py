"""How well scores agree with measured damage: rank correlation, overlap of the lowest, chance and noise. Arrays only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr

Array = NDArray[np.float64]

# Resamples of every interval, and how much of them an interval holds.
NUM_RESAMPLES = 1000
CONFIDENCE = 0.95
# Below this many units a bootstrap draws the same few samples again and again, and its interval says nothing.
_LEAST_UNITS = 5
# Random splits of the text into halves over which the noise of the truth is averaged.
_NUM_SPLITS = 50


@dataclass(frozen=True)
class Agreement:
    """Scores of one criterion against the true damage, in one unit group.

    Attributes:
        spearman: rank correlation, 1 where the units stand in the true order; None where it is undefined (see `note`).
        overlap: share of the truly least damaging units among as many lowest-scored ones.
        spearman_draws, overlap_draws: (NUM_RESAMPLES,) the same over units drawn with replacement, nan where undefined;
            None where there are too few units.
        note: why a value is None.
    """

    spearman: float | None
    overlap: float
    spearman_draws: Array | None
    overlap_draws: Array | None
    note: str | None = None


def spearman(scores: Array, damage: Array) -> float | None:
    """Spearman's rank correlation of (m,) and (m,), ties by mean rank; None where one side has no two different values."""
    if len(scores) < 2 or np.ptp(scores) == 0 or np.ptp(damage) == 0:
        return None
    return float(spearmanr(scores, damage).statistic)


def spearman_rows(scores: Array, damage: Array) -> Array:
    """(R,) Spearman's correlation of each row of (R, m) and (R, m); nan where a row has no two different values."""
    first, second = (rankdata(values, axis=1) for values in (scores, damage))
    first, second = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (first, second))
    norms = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    return np.divide((first * second).sum(axis=1), norms, out=np.full(len(norms), np.nan), where=norms > 0)


def num_lowest(size: int, share: float) -> int:
    """Number of units that a share of a group of `size` is: at least one."""
    return max(1, round(share * size))


def overlap_rows(scores: Array, damage: Array, count: int) -> Array:
    """(R,) share of the `count` least damaging units of each row of (R, m) among its `count` lowest-scored.

    Where ties stand across the border, the tied units share what is left evenly: the mean over all ways to break the ties.
    """
    return (_membership(scores, count) * _membership(damage, count)).sum(axis=1) / count


def _membership(values: Array, count: int) -> Array:
    """(R, m) how far each unit is among the `count` lowest of its row, in [0, 1]; the rows sum to `count`."""
    border = np.partition(values, count - 1, axis=1)[:, count - 1 : count]
    below, tied = values < border, values == border
    left = count - below.sum(axis=1, keepdims=True)
    return below + tied * (left / tied.sum(axis=1, keepdims=True))


def agreement(scores: Array, damage: Array, top_share: float, seed: int) -> Agreement:
    """Agreement of a criterion's scores (m,), higher = keep, with the true damage (m,), signed.

    Two criteria with the same seed see the same resamples, so that their draws may be subtracted.
    """
    size = len(scores)
    count = num_lowest(size, top_share)
    value = spearman(scores, damage)
    overlap = float(overlap_rows(scores[None], damage[None], count)[0])
    note = None
    if value is None:
        note = "one unit only" if size < 2 else "all scores are equal" if np.ptp(scores) == 0 else "all damages are equal"
    if size < _LEAST_UNITS:
        return Agreement(value, overlap, None, None, note)
    drawn = np.random.default_rng(seed).integers(size, size=(NUM_RESAMPLES, size))
    draws = spearman_rows(scores[drawn], damage[drawn]) if value is not None else None
    return Agreement(value, overlap, draws, overlap_rows(scores[drawn], damage[drawn], count), note)


def interval(draws: Array | None) -> list[float] | None:
    """[low, high] that holds the central 95 % of the draws, those that are nan left out; None where there are none."""
    found = np.empty(0) if draws is None else draws[~np.isnan(draws)]
    if len(found) == 0:
        return None
    tail = 50 * (1 - CONFIDENCE)
    return [float(edge) for edge in np.percentile(found, [tail, 100 - tail])]


@dataclass(frozen=True)
class Chance:
    """What scores that know nothing give: the expected values, and what 95 % of random orders lie within."""

    spearman: float
    spearman_interval: list[float] | None
    overlap: float
    overlap_interval: list[float] | None


def chance(damage: Array, top_share: float, seed: int) -> Chance:
    """Chance level for a group's damage (m,), by random orders of its units."""
    size = len(damage)
    count = num_lowest(size, top_share)
    rng = np.random.default_rng(seed)
    order = rng.permuted(np.tile(np.arange(size, dtype=np.float64), (NUM_RESAMPLES, 1)), axis=1)
    same = np.broadcast_to(damage, order.shape)
    return Chance(0.0, interval(spearman_rows(order, same)), count / size, interval(overlap_rows(order, same, count)))


def standard_error(sums: Array, targets: Array) -> Array | None:
    """(m,) standard error over batches of the damage `sums.sum(axis=1) / targets.sum()`; None for a single batch.

    Args:
        sums: (m, B) change of the summed loss of every batch, a row per unit.
        targets: (B,) number of targets of every batch.
    """
    batches = len(targets)
    if batches < 2:
        return None
    residuals = sums - np.outer(mean_change(sums, targets), targets)
    return np.sqrt(batches / (batches - 1) * (residuals**2).sum(axis=1)) / targets.sum()


def mean_change(sums: Array, targets: Array) -> Array:
    """(m,) change of the mean loss of a target; `sums`, `targets` as for `standard_error`."""
    return sums.sum(axis=1) / targets.sum()


def shift(sums: Array, targets: Array) -> Array:
    """(m,) root mean square over batches of the change of the mean loss, batches weighted by their targets.

    Without a neuron one text is often told better and another one worse. `mean_change` lets the two cancel, this does not.
    """
    return np.sqrt((sums**2 / targets).sum(axis=1) / targets.sum())


def reliability(sums: Array, targets: Array, seed: int, truth: Callable[[Array, Array], Array] = mean_change) -> float | None:
    """How well the truth would agree with itself on as much other text, from 0 to 1; None where that cannot be told.

    Spearman's correlation of the truth on one half of the batches with that on the other, mean over random halves, stepped
    up to the whole text by the formula of Spearman and Brown, 2 r / (1 + r). No score can be expected to correlate with
    this truth by more than about its square root.

    Args:
        sums, targets: as for `standard_error`.
        truth: what is made of them, an average over batches or a monotone function of one.
    """
    batches = len(targets)
    if batches < 2 or len(sums) < 3:
        return None
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(_NUM_SPLITS):
        order = rng.permutation(batches)
        halves = (order[: batches // 2], order[batches // 2 :])
        value = spearman(*(truth(sums[:, half], targets[half]) for half in halves))
        if value is not None:
            found.append(value)
    if not found:
        return None
    mean = max(0.0, float(np.mean(found)))
    return 2 * mean / (1 + mean)
