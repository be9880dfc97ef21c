"""Optimal brain surgeon: the error that stays when the other units repair what a removed unit did."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Criterion, GroupData, register


@register("obs")
@dataclass(frozen=True)
class OptimalBrainSurgeon(Criterion):
    """Growth of the consumer's squared output error when a unit goes and the best weight update repairs it.

    With `H = G + lam I`, `G = E[x x^T]` of the consumer's inputs, removing the columns b of unit u and updating all others at
    their best costs `tr(W_b ([H^-1]_bb)^-1 W_b^T)`; for a unit of one channel `||w_c||^2 / [H^-1]_cc` (OBS, Hassibi and Stork
    1993; on structures: ZipLM arXiv:2302.04089, SlimGPT arXiv:2412.18110, OSSCAR arXiv:2403.12983).

    Options:
        ridge: lam as a fraction of mean diag G; the same as the `ridge` of `compensation="least_squares"`.
        iterative: remove one unit at a time, update the weights and downdate the inverse exactly, and score a unit by the
            error at its removal. Then `compensation="least_squares"` writes exactly the weights that this assumed.
    """

    ridge: float = 1e-2
    iterative: bool = False
    needs_moments = True
    sides = ("after",)

    def __post_init__(self) -> None:
        if self.ridge <= 0:
            raise ValueError(f"`ridge` of `obs` is {self.ridge}; it must be above 0, since the second moment may be singular.")

    def score(self, data: GroupData) -> Tensor:
        """(n_units,) errors; with `iterative` their order is the removal order."""
        _, gram = data.after()
        weight = data.consumer.double().to(gram.device)
        inverse = inverse_second_moment(gram, self.ridge)
        if not self.iterative:
            return removal_errors(weight, inverse, data.group.size)
        order, errors, _ = eliminate(weight, inverse, data.group.size, data.group.size)
        # An update can make a later removal cheaper than an earlier one: the running maximum keeps the order, and the
        # growing factor keeps it among equals.
        steps = torch.arange(1, len(order) + 1, dtype=torch.float64, device=errors.device)
        scores = torch.empty_like(errors)
        scores[order] = errors.cummax(0).values * (1 + 1e-9 * steps)
        return scores


def inverse_second_moment(gram: Tensor, ridge: float) -> Tensor:
    """(n, n) float64 inverse of `G + lam I`, `lam = ridge * mean diag G`."""
    system = gram.double().clone()
    # A floor beside the ridge, as in `least_squares`: a group that never fires still has a definite system.
    system.diagonal().add_(ridge * system.diagonal().mean() + torch.finfo(torch.float64).tiny ** 0.5)
    return torch.cholesky_inverse(torch.linalg.cholesky(system))


def removal_errors(weight: Tensor, inverse: Tensor, size: int) -> Tensor:
    """(size,): `tr(W_b ([H^-1]_bb)^-1 W_b^T)` for every unit's columns b.

    Args:
        weight: (out, n) consumer weight W.
        inverse: (n, n) H^-1.
        size: number of units; their n / size channels lie side by side.
    """
    width = weight.shape[1] // size
    if width == 1:
        return weight.square().sum(dim=0) / inverse.diagonal()
    blocks = inverse.reshape(size, width, size, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (size, width, width)
    columns = weight.T.reshape(size, width, -1)  # (size, width, out)
    gram = columns @ columns.transpose(1, 2)
    return torch.linalg.solve(blocks, gram).diagonal(dim1=1, dim2=2).sum(dim=1)


def eliminate(weight: Tensor, inverse: Tensor, size: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Removes `count` units greedily, the one of least error first, and repairs the rest after every removal.

    With b the columns of the removed unit, `W -= W_b ([H^-1]_bb)^-1 [H^-1]_b,:` and, by block elimination, the inverse of the
    system without b is `H^-1 -= [H^-1]_:,b ([H^-1]_bb)^-1 [H^-1]_b,:`, exactly.

    Args:
        weight: (out, n) consumer weight W.
        inverse: (n, n) H^-1.

    Returns:
        order (count,) of unit indices; error (count,) added by each removal; (out, n_kept) weight of the channels left.
    """
    width = weight.shape[1] // size
    units = torch.arange(size, device=weight.device)
    order, errors = [], []
    for _ in range(count):
        candidates = removal_errors(weight, inverse, len(units))
        best = int(candidates.argmin())
        order.append(units[best])
        errors.append(candidates[best].clamp(min=0))
        units = units[torch.arange(len(units), device=units.device) != best]
        gone = slice(best * width, (best + 1) * width)
        rest = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
        rest[gone] = False
        transfer = torch.linalg.solve(inverse[gone, gone], inverse[gone, rest])  # (width, n_left)
        weight = torch.addmm(weight[:, rest], weight[:, gone], transfer, alpha=-1)
        inverse = torch.addmm(inverse[rest][:, rest], inverse[rest, gone], transfer, alpha=-1)
    return torch.stack(order), torch.stack(errors), weight
