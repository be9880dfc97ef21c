"""Loss of a model with some units masked, re-running only the layers after the mask."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..calibration import GroupMoments
from ..calibration.parts import MomentsByPart
from ..calibration.products import mean_products, unit_information
from ..models.distributed import gathered, share
from ..models.families import UnitGroup, layers_of
from ..models.losses import Batch, loss_of, moved_to, num_targets
from ..models.modes import evaluating
from ..models.suffix import hidden_states, starting_at
from ..surgery import masked, refitted
from ..utils.progress import stage


class SuffixLoss:
    """Loss over fixed batches with one layer's units masked.

    A clean pass keeps what every layer reads (memory: positions x hidden size x layers); a masked layer then starts from
    its own input, so that on average half of the model is run.

    Args:
        layers: the layers that will be masked; None for all. Only their inputs are kept.

    Attributes:
        targets: (num_batches,) number of targets (positions or labels) in each batch.
        clean_sums: (num_batches,) float64, summed loss of each batch with all units.
        clean: mean loss of a target with all units.
    """

    def __init__(self, model: PreTrainedModel, batches: Sequence[Batch], layers: Collection[int] | None = None) -> None:
        self.model = model
        self.batches = [moved_to(model, batch) for batch in batches]
        self.targets = torch.tensor([num_targets(model, batch) for batch in self.batches], dtype=torch.float64)
        count = len(layers_of(model))
        kept = range(count) if layers is None else sorted(layers)
        self.inputs: list[dict[int, Tensor]] = []
        losses = []
        for batch in self.batches:
            inputs: dict[int, Tensor] = {}
            with _keep_inputs(model, kept, inputs):
                losses.append(self._loss(batch))
            self.inputs.append(inputs)
        self.clean_sums = torch.tensor(losses, dtype=torch.float64)
        self.clean = self._mean(self.clean_sums)
        if not math.isfinite(self.clean):
            raise ValueError(
                f"The loss with all units is {self.clean}, so no damage can be measured by it. Load the model in a wider `dtype` "
                "(float32 or bfloat16), or check its weights and labels."
            )

    @torch.inference_mode()
    def _loss(self, batch: Batch) -> float:
        with evaluating(self.model):
            return float(loss_of(self.model, batch))

    def _mean(self, sums: Tensor) -> float:
        return float(sums.sum() / self.targets.sum())

    def sums(self, layer: int, kept: Mapping[str, Tensor]) -> Tensor:
        """(num_batches,) float64: summed loss with only the units `kept` of their groups, none of which lies before `layer`."""
        losses = []
        with masked(self.model, kept):
            for batch, inputs in zip(self.batches, self.inputs, strict=True):
                with starting_at(self.model, layer, inputs.get(layer)):
                    losses.append(self._loss(batch))
        return torch.tensor(losses, dtype=torch.float64)

    def __call__(self, layer: int, kept: Mapping[str, Tensor]) -> float:
        """Mean loss of a target with only the units `kept` of their groups, none of which lies before `layer`."""
        return self._mean(self.sums(layer, kept))


@contextmanager
def _keep_inputs(model: PreTrainedModel, layers: Iterable[int], inputs: dict[int, Tensor]) -> Iterator[None]:
    """While open, `inputs` is filled with what these layers read: the outputs of those before them (the first needs none)."""
    all_layers = layers_of(model)

    def keeper(layer: int) -> Callable[[nn.Module, object, Tensor | tuple[Tensor, ...]], None]:
        def keep(_module: nn.Module, _args: object, output: Tensor | tuple[Tensor, ...]) -> None:
            inputs[layer] = hidden_states(output)

        return keep

    handles = [all_layers[layer - 1].register_forward_hook(keeper(layer)) for layer in layers if layer > 0]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def loss_curves(
    model: PreTrainedModel,
    groups: Sequence[UnitGroup],
    scores: Mapping[str, Tensor],
    batches: Sequence[Batch],
    *,
    by_kind: bool = False,
    fractions: Sequence[float] = (0.25, 0.5, 0.75, 0.9),
    repair: Mapping[str, GroupMoments] | None = None,
    ridge: float = 1e-2,
    progress: bool = True,
) -> dict[str, Tensor]:
    """Loss added by removing the lowest-scored units of one group alone, for every number of units.

    Measured at the given fractions of a group (rounded to whole units, never all) and joined by a smooth curve that keeps
    them in order (PCHIP): along straight lines every unit between two measurements would cost the same, and widths would only
    change in steps of such a distance. Beyond the last one the last slope goes on. A measured decrease counts as zero, since a
    sample's gain is not a promise.

    Over several processes each measures its share of the cuts.

    Args:
        by_kind: all groups of a kind, which then have one size, lose an equal number of units at once: what a uniform layout
            removes. They share the loss evenly, so that over a kind the curves add up to what was measured. A run of the whole
            model for every kind and fraction.
        repair: moments of the activations by group, where the cut will be repaired by least squares: the loss is then that of
            the repaired layer, which can be a tenth of the unrepaired one.

    Returns:
        {group key: (size + 1,)} added loss in nats per position after removing 0, 1, ..., size units; non-decreasing.
    """
    together: dict[str, list[UnitGroup]] = {}
    for group in groups:
        together.setdefault(group.kind if by_kind else group.key, []).append(group)
    first_layers = {name: min(group.layer for group in members) for name, members in together.items()}
    suffix_loss = SuffixLoss(model, batches, set(first_layers.values()) if by_kind else None)

    def losses(name: str, counts: Iterable[int]) -> dict[tuple[str, int], float]:
        orders = {group.key: torch.argsort(scores[group.key], stable=True) for group in together[name]}
        found = {}
        for count in counts:
            kept = {key: order[count:].sort().values for key, order in orders.items()}
            with nullcontext() if repair is None else refitted(model, kept, repair, ridge):
                found[name, count] = suffix_loss(first_layers[name], kept)
        return found

    cuts = [(name, count) for name, members in together.items() for count in _counts(members[0].size, fractions)]
    # Moments that are not kept are summed over all processes, which then must ask for the same ones.
    own = set(cuts if isinstance(repair, MomentsByPart) else share(cuts))
    measured: dict[tuple[str, int], float] = {}
    for name in stage("Allocating", together, unit="kinds" if by_kind else "groups", show=progress):
        measured |= losses(name, [count for cut, count in cuts if cut == name and (cut, count) in own])
    measured = gathered(measured)
    curves: dict[str, Tensor] = {}
    for name, members in together.items():
        points = [(0, 0.0)]
        for count in _counts(members[0].size, fractions):
            points.append((count, max(measured[name, count] - suffix_loss.clean, points[-1][1])))
        curves |= {group.key: _interpolate(points, group.size) / len(members) for group in members}
    return curves


def _counts(size: int, fractions: Sequence[float]) -> list[int]:
    """Numbers of units that are removed to measure: the fractions of a group, and neither none nor all of it."""
    return sorted({min(max(round(size * fraction), 1), size - 1) for fraction in fractions} - {0})


def _interpolate(points: list[tuple[int, float]], size: int) -> Tensor:
    if len(points) == 1:
        return torch.zeros(size + 1, dtype=torch.float64)
    (x0, y0), (x1, y1) = points[-2:]
    if x1 < size:
        points = [*points, (size, y1 + (y1 - y0) / (x1 - x0) * (size - x1))]
    smooth = PchipInterpolator(*zip(*points, strict=True))
    return torch.from_numpy(smooth(np.arange(size + 1, dtype=np.float64)))


def score_damage(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Damage curves from scores that compare across groups: the running sum in removal order, (size + 1,) each."""
    return {
        key: torch.cat([torch.zeros(1, dtype=torch.float64), score.double().clamp(min=0).sort().values.cumsum(0)])
        for key, score in scores.items()
    }


def fisher_damage(
    model: PreTrainedModel, groups: Sequence[UnitGroup], batches: Sequence[Batch], *, progress: bool = True
) -> dict[str, Tensor]:
    """Damage curves from the Fisher information of the units, whatever the scores that will choose among them.

    One backward pass per sequence; the state is one number per unit, see `unit_information`.

    Returns:
        {group key: (size + 1,)} the running sum, least informative first.
    """

    def reduce(products: Tensor, group: UnitGroup) -> dict[str, Tensor]:
        return {"each": unit_information(products, group)}

    found = mean_products(model, groups, batches, reduce, progress=progress)
    return score_damage({key: figures["each"].cpu() for key, figures in found.items()})
