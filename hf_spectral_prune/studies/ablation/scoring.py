"""Scores of several criteria for the groups that are ablated, calibrated together and kept in the folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, cast

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from ...calibration import GroupMoments, collect_moments
from ...criteria import Criterion, collect_statistics, score_units
from ...models.families import UnitGroup, unit_groups
from ...models.losses import Batch
from ...utils.files import plain
from ...utils.types import Json
from ...utils.words import one_line
from .folder import read_fields, scores_path, write_record

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Scored:
    """Scores of one criterion.

    Attributes:
        scores: {group key: (n_units,) list, higher = keep}; empty where the criterion failed.
        options: name of the criterion and its options.
        seconds: {"moments": the pass that it shares with others, "scoring": statistics of its own and scores}.
        error: why it failed, or None.
    """

    scores: dict[str, list[float]]
    options: Json
    seconds: dict[str, float]
    error: str | None = None


def score_criteria(
    model: PreTrainedModel,
    criteria: Mapping[str, Criterion],
    kinds: list[str],
    groups: Sequence[UnitGroup],
    batches: Sequence[Batch],
    folder: str,
    *,
    seed: int,
    progress: bool,
    report: Callable[[str], None],
) -> dict[str, Scored]:
    """{label: scores of `groups`}, as a pruning run with these `kinds` of unit would see them.

    Criteria that normalise over the network score all groups of the model, others only those asked for: the same scores
    for less work. What fails in one criterion is kept as its error; scores that the folder holds are not made again.
    """
    every = unit_groups(model, kinds)
    scored = {label: every if _spans_groups(criterion) else list(groups) for label, criterion in criteria.items()}
    options = {label: _options(criterion) for label, criterion in criteria.items()}
    paths = {
        label: scores_path(folder, {**options[label], "seed": seed, "groups": [group.key for group in scored[label]]})
        for label in criteria
    }
    names = [entry.name for entry in fields(Scored)]
    found = {label: Scored(**record) for label, path in paths.items() if (record := read_fields(path, names)) is not None}
    missing = [label for label in criteria if label not in found]
    # One kind of moments after the other: together they may not fit into memory.
    for signals in dict.fromkeys(str(criteria[label].signals) for label in missing):
        labels = [label for label in missing if criteria[label].signals == signals]
        readers = [label for label in labels if criteria[label].needs_moments]
        began = time.perf_counter()
        moments, failure = _moments(model, [scored[label] for label in readers], batches, signals, progress)
        shared = {"moments": time.perf_counter() - began}
        for label in labels:
            if label in readers and failure is not None:
                made = Scored({}, options[label], shared, failure)
            else:
                made = _score(model, criteria[label], scored[label], groups, batches, moments, seed, progress)
                made = replace(made, options=options[label], seconds=made.seconds | (shared if label in readers else {}))
            found[label] = made
            if made.error is None:
                write_record(paths[label], asdict(made))
            report(f"`{label}`: " + (made.error or f"scored in {made.seconds['scoring']:.1f} s"))
        del moments
    return {label: found[label] for label in criteria}


def _options(criterion: Criterion) -> Json:
    return {"criterion": criterion.name, "criterion_args": plain(asdict(cast(Any, criterion)))}


def _spans_groups(criterion: Criterion) -> bool:
    """Whether a group's scores depend on the other groups."""
    return type(criterion).score_all is not Criterion.score_all


def _moments(
    model: PreTrainedModel, wanted: Sequence[Sequence[UnitGroup]], batches: Sequence[Batch], signals: str, progress: bool
) -> tuple[dict[str, GroupMoments], str | None]:
    """Moments of all these groups in one pass, and why there are none: criteria that read only weights go on without."""
    groups = list(dict.fromkeys(group for part in wanted for group in part))
    if not groups:
        return {}, None
    try:
        return collect_moments(model, groups, batches, signals=signals, progress=progress), None
    except Exception as error:
        logger.info("The calibration failed.", exc_info=True)
        return {}, one_line(error)


def _score(
    model: PreTrainedModel,
    criterion: Criterion,
    scored: list[UnitGroup],
    wanted: Sequence[UnitGroup],
    batches: Sequence[Batch],
    moments: dict[str, GroupMoments],
    seed: int,
    progress: bool,
) -> Scored:
    began = time.perf_counter()
    own = moments if criterion.needs_moments else {}
    try:
        statistics = collect_statistics(model, scored, criterion, batches, own, seed=seed, progress=progress)
        with torch.no_grad():
            scores = score_units(model, scored, criterion, own or None, statistics=statistics, seed=seed, progress=progress)
    except Exception as error:  # a plug-in can fail in any way, and the other criteria are not its business
        logger.info(f"`{criterion.name}` failed.", exc_info=True)
        return Scored({}, {}, {}, one_line(error))
    kept = {group.key: scores[group.key].tolist() for group in wanted}
    return Scored(kept, {}, {"scoring": time.perf_counter() - began})
