"""Curvature of the loss along a unit's weights: Hutchinson's estimate of the Hessian's diagonal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from ...calibration.collect import sequence_losses
from ...models.distributed import all_reduce
from ...models.families import UnitGroup
from ...models.losses import Batch
from .streams import differentiable, split_parameters, unit_parameters

# Weights that are probed together; their gradients and products are the largest thing in memory (1 GiB each in float32).
_PROBED_AT_ONCE = 2**28


def hessian_diagonal(loss: Tensor, weights: Sequence[Tensor], num_probes: int, generator: torch.Generator) -> list[Tensor]:
    """Estimate of the diagonal of the Hessian, in the shapes of the weights: mean of `v * (H v)` over sign vectors v.

    `E[v_i (H v)_i] = H_ii` for independent signs (Hutchinson; Bekas et al. 2007); the products are exact, by differentiating
    twice (Pearlmutter).
    """
    gradients = torch.autograd.grad(loss, weights, create_graph=True)
    estimates = [torch.zeros_like(weight) for weight in weights]
    for probe in range(num_probes):
        signs = [_signs(weight, generator) for weight in weights]
        more = probe + 1 < num_probes
        products = torch.autograd.grad(gradients, weights, signs, retain_graph=more, allow_unused=True, materialize_grads=True)
        for estimate, sign, product in zip(estimates, signs, products, strict=True):
            estimate += sign * product / num_probes
    return estimates


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    # Drawn on the CPU, so that every device sees the same probes.
    return torch.randint(0, 2, like.shape, generator=generator).mul_(2).sub_(1).to(like)


def unit_curvature(
    model: PreTrainedModel,
    groups: Sequence[UnitGroup],
    batches: Sequence[Batch],
    *,
    num_probes: int,
    num_sequences: int,
    seed: int,
    progress: bool = True,
) -> dict[str, Tensor]:
    """{group key: (n_units,) float64}: diagonal of the mean loss's Hessian, averaged over the weights that leave with a unit.

    One sequence and a bounded number of weights at a time; every sequence has probes of its own.
    """
    generator = torch.Generator().manual_seed(seed)
    sums = {group.key: torch.zeros(group.size, dtype=torch.float64, device=model.device) for group in groups}
    count = torch.zeros((), dtype=torch.float64, device=model.device)
    runs = split_parameters([unit_parameters(model, group) for group in groups], _PROBED_AT_ONCE)
    # Fused attention kernels cannot be differentiated twice.
    with sdpa_kernel(SDPBackend.MATH):
        for index, parameters in enumerate(runs):
            # A weight between two groups of channels is probed once for both.
            values = list(dict.fromkeys(parameter.value for parameter in parameters))
            with differentiable(model, parameters):
                for loss, positions in sequence_losses(model, batches, limit=num_sequences, progress=progress):
                    estimates = dict(zip(values, hessian_diagonal(loss, values, num_probes, generator), strict=True))
                    for parameter in parameters:
                        per_unit = parameter.by_unit(estimates[parameter.value]).sum(dim=(1, 2), dtype=torch.float64)
                        sums[parameter.group.key] += per_unit.to(model.device)
                    count += positions if index == 0 else 0
    all_reduce([*sums.values(), count])
    return {group.key: sums[group.key] / (count.clamp(min=1) * group.parameters_per_unit) for group in groups}
