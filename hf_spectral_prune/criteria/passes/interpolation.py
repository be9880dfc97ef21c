"""Integrated gradients of one unit group: its input-side signal goes from zero to its value, the rest of the model is intact."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...models.families import Signal, UnitGroup, module_of, row_of
from ...models.suffix import starting_at


@dataclass(frozen=True)
class Integral:
    """Integrated gradients of one function F along one path.

    Attributes:
        values: (n_units,) float64 attributions.
        steps: number of midpoints in the end.
        error: |sum of the attributions - (F(1) - F(0))|, which a fine enough grid makes zero (completeness).
    """

    values: Tensor
    steps: int
    error: float


def midpoints(steps: int) -> Tensor:
    """(steps,) midpoints of as many equal parts of [0, 1]."""
    return (torch.arange(steps, dtype=torch.float64) + 0.5) / steps


def integrate(
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]],
    ends: tuple[float, float],
    *,
    steps: int,
    max_steps: int,
    tolerance: float,
) -> Integral:
    """Mean of the slopes over midpoints, of which more are taken until the attributions add up to `F(1) - F(0)`.

    Between one midpoint and the next the values of F tell by how much the slopes miss the change there; where they miss most,
    a part of the way is cut into three. Its middle third keeps the midpoint, so nothing is computed twice. A deep model may
    turn over within a thousandth of the way, which no equal parts would find.

    Args:
        evaluate: from alphas (k,) to F at each, (k,) float64, and its slope for every unit, (k, n_units) float64.
        ends: F(0) and F(1).
        steps: midpoints to begin with, of equal parts.
        max_steps: no more midpoints than this.
        tolerance: error to get below, absolute.
    """
    alphas, widths = midpoints(steps), torch.full((steps,), 1 / steps, dtype=torch.float64)
    values, slopes = evaluate(alphas)  # (k,), (k, n_units)
    while True:
        attributions = widths @ slopes
        error = abs(float(attributions.sum()) - (ends[1] - ends[0]))
        if not math.isfinite(error):
            raise ValueError(
                "A loss or gradient along the way from zero to the signal is not finite. Load the model in a wider `dtype`, or "
                "leave out calibration rows without a target."
            )
        room = (max_steps - len(alphas)) // 2
        if error <= tolerance or room < 1:
            return Integral(attributions, len(alphas), error)
        bad = _worst_parts(ends, values, widths * slopes.sum(dim=1), tolerance)[: min(room, max(1, len(alphas) // 4))]
        thirds = widths[bad] / 3
        outer = torch.cat([alphas[bad] - thirds, alphas[bad] + thirds])
        more_values, more_slopes = evaluate(outer)
        widths[bad] = thirds
        alphas, widths = torch.cat([alphas, outer]), torch.cat([widths, thirds, thirds])
        order = alphas.argsort()
        alphas, widths = alphas[order], widths[order]
        values, slopes = torch.cat([values, more_values])[order], torch.cat([slopes, more_slopes])[order]


def _worst_parts(ends: tuple[float, float], values: Tensor, steps: Tensor, tolerance: float) -> Tensor:
    """Indices of the parts of the way beside which the midpoint rule misses the change of F most, the worst first.

    Args:
        values: (k,) F at the midpoints.
        steps: (k,) change over each part by the rule; half of it lies on either side of the midpoint.
    """
    changes = torch.cat([values.new_tensor([ends[0]]), values, values.new_tensor([ends[1]])]).diff()
    none = steps.new_zeros(1)
    missed = (changes - (torch.cat([none, steps]) + torch.cat([steps, none])) / 2).abs()  # (k + 1,) between midpoints
    beside = torch.maximum(missed[:-1], missed[1:])
    order = beside.argsort(descending=True)
    # Together the small ones stay within the tolerance: nothing is spent on them.
    return order[beside[order] > tolerance / len(missed)]


@contextmanager
def scaled_signal(
    model: PreTrainedModel, group: UnitGroup, alphas: Tensor, signal: Signal | None = None
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """While open, a signal z of the group's units is replaced by `alpha z`, with one alpha for every row of a batch.

    Rows of one alpha lie side by side. To scale what a linear layer makes is to scale its weights and bias, and to scale what it
    reads is to scale its weights alone.

    Args:
        signal: the input-side signal where it is None (Llama: what `gate_proj` makes).

    Yields:
        list that a forward pass adds (z, alpha z) to, both (rows, T, n); the second is the leaf to differentiate by.
    """
    place = signal or row_of(model, group).before
    seen: list[tuple[Tensor, Tensor]] = []

    def scaled(value: Tensor) -> Tensor:
        blocks = list(value.chunk(place.num_blocks, dim=-1))
        original = blocks[place.block].detach()
        factors = alphas.repeat_interleave(len(original) // len(alphas)).to(original)
        leaf = (original * factors.reshape(-1, *[1] * (original.dim() - 1))).requires_grad_(torch.is_grad_enabled())
        seen.append((original, leaf))
        blocks[place.block] = leaf
        return leaf if len(blocks) == 1 else torch.cat(blocks, dim=-1)

    module = module_of(model, group.layer, place.module)
    if place.side == "input":
        handle = module.register_forward_pre_hook(lambda _module, args: (scaled(args[0]), *args[1:]))
    else:
        handle = module.register_forward_hook(lambda _module, _args, output: scaled(output))
    try:
        yield seen
    finally:
        handle.remove()


def path_slopes(
    model: PreTrainedModel,
    group: UnitGroup,
    given: Tensor | None,
    function: Callable[[int], Tensor],
    at_once: int,
    alphas: Tensor,
    signal: Signal | None = None,
) -> tuple[Tensor, Tensor]:
    """F (k,) at every alpha, and its slopes (k, n_units): `sum_t z_j(t) dF/d(alpha z_j(t))`, float64 on the CPU.

    The slope is `sum_i W_ji dF/dW_ji` at the weights alpha W. The layer reads the same whatever its own weights are, so the
    gradient of the weights is never made.

    Args:
        given: what the group's layer reads, (rows, T, hidden size); see `starting_at`.
        function: F (copies,) of so many copies of the input, from a call of the model on them.
        at_once: alphas that run together.
        signal: see `scaled_signal`.
    """
    values, slopes = [], []
    for part in alphas.split(at_once):
        copies = None if given is None else given.repeat(len(part), *[1] * (given.dim() - 1))
        with scaled_signal(model, group, part, signal) as seen, starting_at(model, group.layer, copies), torch.enable_grad():
            value = function(len(part))
            ((original, scaled),) = seen
            (gradient,) = torch.autograd.grad(value.sum(), scaled)
        products = original.double() * gradient.double()  # (rows, T, n_channels)
        slopes.append(products.reshape(len(part), -1, group.size, products.shape[-1] // group.size).sum(dim=(1, 3)).cpu())
        values.append(value.detach().double().cpu())
    return torch.cat(values), torch.cat(slopes)


@torch.no_grad()
def without_group(
    model: PreTrainedModel,
    group: UnitGroup,
    given: Tensor | None,
    function: Callable[[int], Tensor],
    signal: Signal | None = None,
) -> float:
    """F(0): the function with the group's signal at zero, see `scaled_signal`."""
    with scaled_signal(model, group, torch.zeros(1), signal), starting_at(model, group.layer, given):
        return float(function(1))
