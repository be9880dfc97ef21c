"""Contribution energy: Wanda's metric per structure."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Criterion, GroupData, register


@register("energy")
@dataclass(frozen=True)
class Energy(Criterion):
    """Mean squared norm of what the unit adds to the residual stream: E||W_u x_u||^2 = sum over its channels c, c' of
    E[x_c x_c'] (W^T W)_cc'.

    For a unit of one channel this is E[x_c^2] ||W_c||^2, Wanda's metric (arXiv:2306.11695) in squared form.
    """

    needs_moments = True
    sides = ("after",)

    def score(self, data: GroupData) -> Tensor:
        """(n_units,) energies."""
        columns = data.consumer.double()
        size, width = data.group.size, data.group.channels_per_unit
        if width == 1:
            return data.after_energy() * columns.square().sum(dim=0)
        own = torch.arange(size)
        moments = data.after()[1].reshape(size, width, size, width)[own, :, own]  # (size, width, width)
        blocks = columns.reshape(-1, size, width)
        return (moments * torch.einsum("ouc,oud->ucd", blocks, blocks)).sum(dim=(1, 2))
