"""Histograms of channels over bins that their layer shares, in two streaming passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...calibration import GroupMoments, Moments
from ...calibration.collect import stream_signals
from ...calibration.signals import ALL, Spatial
from ...models.distributed import all_reduce
from ...models.families import UnitGroup
from ...models.losses import Batch

# Boundaries of the fine grid on which the pooled quantiles are found, in standard deviations: evenly spaced in asinh(100 z),
# so within 1 % of a boundary's size, and 1e-4 near zero, where most values of a gated neuron lie.
_GRID = 0.01 * torch.linspace(-math.asinh(1e6), math.asinh(1e6), 4096, dtype=torch.float64).sinh().float()


def channel_histograms(
    model: PreTrainedModel,
    groups: Sequence[UnitGroup],
    batches: Sequence[Batch],
    moments: Mapping[str, GroupMoments],
    num_bins: int,
    *,
    spatial: Spatial = ALL,
    progress: bool = True,
) -> dict[str, Tensor]:
    """Counts (n_channels, num_bins) of every channel's standardised output-side signal.

    The bins' edges are the quantiles 1/B, 2/B, ... of the layer's standardised signals, all channels together. One pass
    finds them, one counts.
    """
    standardise, sizes = {}, {}
    for group in groups:
        after = moments[group.key].after
        standardise[group.key], sizes[group.key] = _standardiser(after), after.num_channels
    fine = {group.key: torch.zeros(1, len(_GRID) + 1, dtype=torch.int64, device=model.device) for group in groups}

    def pooled(key: str) -> Callable[[Tensor], None]:
        return lambda signal: _count(fine[key], standardise[key](signal).reshape(-1, 1), _GRID)

    stream_signals(model, groups, batches, {key: pooled(key) for key in fine}, spatial=spatial, progress=progress)
    all_reduce(fine.values())
    edges = {key: grid_quantiles(counts[0], num_bins) for key, counts in fine.items()}
    counts = {key: torch.zeros(size, num_bins, dtype=torch.int64, device=model.device) for key, size in sizes.items()}

    def single(key: str) -> Callable[[Tensor], None]:
        return lambda signal: _count(counts[key], standardise[key](signal), edges[key])

    stream_signals(model, groups, batches, {key: single(key) for key in counts}, spatial=spatial, progress=progress)
    all_reduce(counts.values())
    return counts


def grid_quantiles(counts: Tensor, num_bins: int) -> Tensor:
    """(num_bins - 1,) quantiles of a fine histogram over `_GRID`, at its boundaries."""
    shares = counts.cumsum(0).double() / counts.sum().clamp(min=1)
    wanted = torch.arange(1, num_bins, dtype=torch.float64, device=counts.device) / num_bins
    index = torch.searchsorted(shares, wanted).clamp(max=len(_GRID) - 1)
    return _GRID.to(counts.device)[index]


def _standardiser(moments: Moments) -> Callable[[Tensor], Tensor]:
    mean = moments.mean()
    energy = moments.second_moment.diagonal() / max(moments.count, 1)
    variance = energy - mean.square()
    # A dead or constant channel has no shape: all its values are put into one bin.
    alive = (variance > 1e-6 * energy) & (variance > 0)
    scale = torch.where(alive, variance, 1).rsqrt() * alive
    mean, scale = mean.float(), scale.float()
    return lambda signal: (signal.float() - mean) * scale


def _count(counts: Tensor, values: Tensor, edges: Tensor) -> None:
    """Adds values (N, n) to counts (n, B), in place; bin i holds `edges[i - 1] < value <= edges[i]`."""
    channels, num_bins = counts.shape
    bins = torch.bucketize(values, edges.to(values.device)) + num_bins * torch.arange(channels, device=values.device)
    counts += torch.bincount(bins.flatten(), minlength=channels * num_bins).reshape(channels, num_bins).to(counts.device)
