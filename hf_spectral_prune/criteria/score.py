"""Scores every unit group of a model with one criterion."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..architectures import UnitGroup, family_of, module_of
from ..calibration import GroupMoments
from ..calibration.collect import Batch
from .base import Criterion, Diagnostics, GroupData, Scores, Statistics


def group_data(
    model: PreTrainedModel,
    group: UnitGroup,
    moments: GroupMoments | None,
    seed: int,
    statistics: Mapping[str, Tensor] | None = None,
    diagnostics: dict[str, Tensor] | None = None,
) -> GroupData:
    """Gathers the weights, moments and statistics of one group."""
    row = family_of(model.config).kind(group.kind)
    producers = {}
    for producer in row.producers:
        weight = module_of(model, group.layer, producer.module).weight.detach()
        for block, rows in enumerate(weight.chunk(producer.num_blocks)):
            producers[producer.module if producer.num_blocks == 1 else f"{producer.module}.{block}"] = rows
    consumer = module_of(model, group.layer, row.consumer).weight.detach()
    # Seeded by the group's name, so that a group's draw does not depend on which other groups are scored.
    digest = hashlib.sha256(f"{seed}/{group.key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return GroupData(group, producers, consumer, moments, statistics or {}, generator, diagnostics)


def collect_statistics(
    model: PreTrainedModel,
    groups: Sequence[UnitGroup],
    criterion: Criterion,
    batches: Sequence[Batch],
    moments: Mapping[str, GroupMoments] | None = None,
    *,
    seed: int = 42,
    progress: bool = True,
) -> Statistics:
    """What the criterion wants to know of the data beyond the moments; empty for most criteria.

    Raises:
        ValueError: gradients are needed and the model or the batches do not allow them (says why).
    """
    if not criterion.needs_statistics:
        return {}
    statistics = criterion.collect(model, groups, batches, moments or {}, seed=seed, progress=progress)
    return {key: {name: value.cpu() for name, value in values.items()} for key, values in statistics.items()}


def select_statistics(statistics: Statistics, kept: Mapping[str, Tensor]) -> Statistics:
    """Statistics after a cut that leaves the units `kept` ({group key: indices})."""
    return {key: {name: value[kept[key]] for name, value in values.items()} for key, values in statistics.items()}


def score_units(
    model: PreTrainedModel,
    groups: Sequence[UnitGroup],
    criterion: Criterion,
    moments: Mapping[str, GroupMoments] | None = None,
    *,
    statistics: Statistics | None = None,
    diagnostics: Diagnostics | None = None,
    seed: int = 42,
    progress: bool = True,
) -> Scores:
    """Scores all groups: {group key: (n_units,) float64 on the CPU}, higher = keep.

    Args:
        diagnostics: filled, where given, with what the criterion has to tell of each group beside its scores.

    Raises:
        ValueError: a score is not finite (names the group and the criterion), or statistics are needed and not given.
    """
    if criterion.needs_statistics and not statistics:
        raise ValueError(f"`{criterion.name}` reads statistics of its own. Gather them with `collect_statistics` and pass them.")
    data = (
        group_data(
            model,
            group,
            moments[group.key] if moments else None,
            seed,
            (statistics or {}).get(group.key),
            None if diagnostics is None else diagnostics.setdefault(group.key, {}),
        )
        for group in tqdm(groups, desc="Scoring", disable=not progress, leave=False)
    )
    scores = {key: score.double().cpu() for key, score in criterion.score_all(data).items()}
    for key, score in scores.items():
        if not bool(torch.isfinite(score).all()):
            raise ValueError(f"`{criterion.name}` gave a score that is not finite in `{key}`. Check the model's weights.")
    return scores
