"""Scores every unit group of a model with one criterion."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..calibration import GroupMoments
from ..models.cria.channels import MATRICES, weight_of
from ..models.distributed import gathered, share
from ..models.families import Part, UnitGroup, parts, take
from ..models.losses import Batch
from ..models.offload import resident
from ..utils.progress import stage
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
    producers: dict[str, Tensor] = {}
    readers: list[Tensor] = []
    for part in parts(model, group):
        if part.is_input:
            readers.append(_columns(part, group))
        elif isinstance(part.module, MATRICES):
            producers |= _rows(part)
    consumer = readers[0] if len(readers) == 1 else torch.cat(readers)
    # Seeded by the group's name, so that a group's draw does not depend on which other groups are scored.
    digest = hashlib.sha256(f"{seed}/{group.key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return GroupData(group, producers, consumer, moments, statistics or {}, generator, diagnostics)


def _rows(part: Part) -> dict[str, Tensor]:
    """Rows of a producer in unit order, (n_units * rows_per_unit, inputs): one matrix a block."""
    weight, index, num_blocks = weight_of(part.module).detach().flatten(1), part.slice.index, part.slice.num_blocks
    if num_blocks == 1:
        return {part.name: take(weight, index.flatten())}
    blocks = index.reshape(len(index), num_blocks, -1).unbind(dim=1)
    return {f"{part.name}.{number}": take(weight, block.flatten()) for number, block in enumerate(blocks)}


def _columns(part: Part, group: UnitGroup) -> Tensor:
    """Columns of a consumer in unit order, (outputs, n_channels); kernel positions and flattened maps count as outputs."""
    rows = take(weight_of(part.module).detach().movedim(1, 0), part.slice.index.flatten())  # (n_channels * inputs a channel, ...)
    return rows.reshape(group.size * group.channels_per_unit, -1).T


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

    Over several processes each scores its share of the groups, unless the criterion compares groups with one another.

    Args:
        diagnostics: filled, where given, with what the criterion has to tell of each group beside its scores.

    Raises:
        ValueError: a score is not finite (names the group and the criterion), or statistics are needed and not given.
    """
    if criterion.needs_statistics and not statistics:
        raise ValueError(f"`{criterion.name}` reads statistics of its own. Gather them with `collect_statistics` and pass them.")
    by_group = type(criterion).score_all is Criterion.score_all
    own = {group.key for group in (share(groups) if by_group else groups)}

    def data() -> Iterator[GroupData]:
        for group in stage("Scoring", groups, unit="groups", show=progress):
            if group.key in own:
                with resident(model, group.layer):
                    yield group_data(
                        model,
                        group,
                        moments[group.key] if moments else None,
                        seed,
                        (statistics or {}).get(group.key),
                        None if diagnostics is None else diagnostics.setdefault(group.key, {}),
                    )
            elif moments:
                moments.get(group.key)  # moments that are not kept are summed over all processes when they are asked for

    scores = {key: score.double().cpu() for key, score in criterion.score_all(data()).items()}
    if by_group:
        found_by_all = gathered(scores)
        scores = {group.key: found_by_all[group.key] for group in groups}
        if diagnostics is not None:
            diagnostics.update(gathered(diagnostics))
    for key, score in scores.items():
        if not bool(torch.isfinite(score).all()):
            raise ValueError(f"`{criterion.name}` gave a score that is not finite in `{key}`. Check the model's weights.")
    return scores
