"""Which layer, and how many of its most confident neurons: a grid that is scored on the adaptation examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...models.families import UnitGroup, unit_groups
from ...models.modes import evaluating
from ...models.suffix import starting_at, walk
from ...surgery import masked
from ...utils.progress import stage
from .scoring import Normalisation, Questions, log_probabilities, outcome


@dataclass(frozen=True)
class GridPoint:
    """A layer without a share of its neurons, on the adaptation examples.

    Attributes:
        layer: index of the layer; None is the whole model.
        share: share of its neurons asked for.
        removed: number of neurons that go.
        accuracy: share of examples that are right.
        label_log_probability: mean log of the right choice's share in the probability of all choices.
    """

    layer: int | None
    share: float
    removed: int
    accuracy: float
    label_log_probability: float


def num_removed(group: UnitGroup, share: float, round_to: int) -> int:
    """Neurons that a share takes from a layer: so many that the width left is a multiple of `round_to`.

    Raises:
        ValueError: all would go, or none.
    """
    kept = math.ceil((group.size - round(share * group.size)) / round_to) * round_to
    if kept <= 0:
        raise ValueError(f"The share {share} would zero the whole layer {group.layer} ({group.size} neurons). Lower `shares`.")
    if kept >= group.size:
        raise ValueError(
            f"The share {share} of the {group.size} neurons of layer {group.layer} is less than a whole step of `round_to` "
            f"({round_to}). Raise `shares` or lower `round_to`."
        )
    return group.size - kept


def kept_neurons(attribution: Tensor, removed: int) -> Tensor:
    """(n_kept,) ascending indices without the `removed` highest attributions; of equal ones the lower index stays."""
    order = torch.sort(attribution, stable=True).indices
    return order[: len(order) - removed].sort().values


def grid_search(
    model: PreTrainedModel,
    attributions: Mapping[int, Tensor],
    questions: Questions,
    shares: Sequence[float],
    *,
    round_to: int = 1,
    normalisation: Normalisation = "sum",
    progress: bool = True,
) -> list[GridPoint]:
    """Scores every layer without each share of its neurons of highest attribution; the whole model comes first.

    Neurons are masked, which equals zeroed gate rows; only the masked layer and those after it are run.

    Args:
        attributions: {layer: (n_units,)}.

    Raises:
        ValueError: a grid point would zero a whole layer, or remove nothing; told before anything is run.
    """
    groups = {group.layer: group for group in unit_groups(model, ["ffn"]) if group.layer in attributions}
    grid = {layer: [num_removed(group, share, round_to) for share in shares] for layer, group in groups.items()}
    batches = [batch.to(model.device) for batch in questions.batches]
    runs = [partial(log_probabilities, model, batch) for batch in batches]
    with evaluating(model):
        whole = outcome(questions, [run() for run in runs], normalisation)
        points = [GridPoint(None, 0.0, 0, whole.accuracy, whole.label_log_probability)]
        with stage("Searching", total=len(grid) * len(shares), unit="cuts", show=progress) as bar:
            for layer, given in walk(model, runs, last=max(grid)):
                for share, removed in zip(shares, grid.get(layer, ()), strict=False):
                    kept = {groups[layer].key: kept_neurons(attributions[layer], removed)}
                    parts = []
                    with masked(model, kept):
                        for run, cached in zip(runs, given, strict=True):
                            with starting_at(model, layer, cached):
                                parts.append(run())
                    found = outcome(questions, parts, normalisation)
                    points.append(GridPoint(layer, share, removed, found.accuracy, found.label_log_probability))
                    bar.update()
    return points


def best_point(points: Sequence[GridPoint]) -> GridPoint:
    """The point of highest accuracy; among equals the smaller share (none at all is the smallest), then the higher
    probability of the right choices, then the lower layer."""
    return max(
        points,
        key=lambda point: (
            point.accuracy,
            -point.share,
            point.label_log_probability,
            -(point.layer if point.layer is not None else -1),
        ),
    )
