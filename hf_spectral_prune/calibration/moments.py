"""Streaming first and second moments of a unit group's channels: all that the spectral criterion keeps of the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.distributed import works_together
from ..models.families import UnitGroup

# Width of the column blocks of a second moment. Only blocks on and above the diagonal are multiplied, which saves a third
# of the work at 1,536 channels and close to half at 10,000.
_BLOCK = 512
# On an accelerator, where small products leave its units idle.
_GPU_BLOCK = 2048


@dataclass
class Moments:
    """Sums over calibration positions of one side of one unit group.

    Attributes:
        count: number of positions N (padding never counts).
        sum: (n,) float64, sum of the signal over positions.
        second_moment: (n, n) float64, sum of outer products over positions; divide by `count` for the mean.
    """

    count: int
    sum: Tensor
    second_moment: Tensor

    @classmethod
    def zeros(cls, num_channels: int, device: torch.device | str = "cpu") -> Moments:
        """Moments of no data."""
        return cls(
            count=0,
            sum=torch.zeros(num_channels, dtype=torch.float64, device=device),
            second_moment=torch.zeros(num_channels, num_channels, dtype=torch.float64, device=device),
        )

    @property
    def num_channels(self) -> int:
        return self.sum.numel()

    def update(self, signal: Tensor, workspace: Tensor | None = None) -> None:
        """Adds positions: `signal` is (N, n) of any float type.

        Products are taken in float32 (float64 for float64 input) and summed in float64. Only the upper block triangle of
        `second_moment` is kept until `symmetrise`.

        Args:
            workspace: (n, n) scratch of the product's dtype, to be reused between calls: fresh memory for every product
                costs as much as the product itself.
        """
        self.count += signal.shape[0]
        self.sum += signal.sum(0, dtype=torch.float64)
        if signal.is_cuda and signal.dtype in (torch.bfloat16, torch.float16):
            self._update_by_tensor_cores(signal)
            return
        signal = signal if signal.dtype == torch.float64 else signal.float()
        n = self.num_channels
        product = signal.new_empty(n, n) if workspace is None else workspace
        for start in range(0, n, _BLOCK):
            rows = slice(start, min(start + _BLOCK, n))
            torch.mm(signal[:, rows].T, signal[:, start:], out=product[rows, start:])
            self.second_moment[rows, start:] += product[rows, start:]

    def _update_by_tensor_cores(self, signal: Tensor) -> None:
        """Products of half-precision values, which float32 holds exactly, summed in float32 on the matrix units."""
        n = self.num_channels
        for start in range(0, n, _GPU_BLOCK):
            rows = slice(start, min(start + _GPU_BLOCK, n))
            product = torch.mm(signal[:, rows].T, signal[:, start:], out_dtype=torch.float32)
            self.second_moment[rows, start:] += product

    def symmetrise(self) -> Moments:
        """Copies the upper triangle to the lower one; call once after the last `update`."""
        self.second_moment.triu_()
        self.second_moment += self.second_moment.triu(1).T
        return self

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of positions together."""
        return Moments(self.count + other.count, self.sum + other.sum, self.second_moment + other.second_moment)

    def all_reduce(self) -> None:
        """Sums the moments over all processes of a distributed run; does nothing in a single process."""
        if not works_together():
            return
        count = torch.tensor(self.count, device=self.sum.device)
        for tensor in (count, self.sum, self.second_moment):
            torch.distributed.all_reduce(tensor)
        self.count = int(count)

    def select(self, channels: Tensor) -> Moments:
        """Moments of a subset of channels (the sub-block): what analytic re-scoring needs after a cut."""
        return Moments(self.count, self.sum[channels], self.second_moment[channels][:, channels])

    def of_noise(self) -> Moments:
        """Moments of independent channels of variance 1: those of a signal of which nothing is known, as there is no data."""
        identity = torch.eye(self.num_channels, dtype=torch.float64, device=self.sum.device)
        return Moments(1, torch.zeros_like(self.sum), identity)

    def mean(self) -> Tensor:
        """(n,) mean signal."""
        return self.sum / max(self.count, 1)

    def raw(self) -> Tensor:
        """(n, n) uncentred second moment divided by the count."""
        return self.second_moment / max(self.count, 1)


class GroupMoments(NamedTuple):
    """The sides of one unit group: after (output side) the transformation and, where it was asked for, before (input side)."""

    before: Moments | None
    after: Moments

    def of_noise(self) -> GroupMoments:
        """Those of an expert that no token reached: scores then tell its units apart by their weights."""
        return GroupMoments(None if self.before is None else self.before.of_noise(), self.after.of_noise())

    def select(self, group: UnitGroup, kept: Tensor) -> GroupMoments:
        """Moments after a cut that leaves the units `kept` (indices) of `group`."""

        def cut(side: Moments) -> Moments:
            return side.select(unit_channels(kept, side.num_channels // group.size))

        return GroupMoments(None if self.before is None else cut(self.before), cut(self.after))


def unit_channels(units: Tensor, channels_per_unit: int) -> Tensor:
    """Channel indices that the given units own, in order: (len(units) * channels_per_unit,)."""
    return (units[:, None] * channels_per_unit + torch.arange(channels_per_unit, device=units.device)).flatten()
