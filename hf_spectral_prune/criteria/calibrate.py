"""What a calibration pass leaves behind: all that scores and repairs read of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor
from transformers import PreTrainedModel

from ..arguments import SpectralPruningArguments
from ..calibration import GroupMoments, collect_moments
from ..calibration.parts import MomentsByPart, moments_within
from ..calibration.signals import Side
from ..data.texts import CalibrationData
from ..models.distributed import by_itself, of_first_process, share
from ..models.families import UnitGroup, family_of, unit_groups
from ..models.losses import Batch
from ..models.streams import Ascent
from . import Criterion, Statistics, collect_statistics, select_statistics


@dataclass(frozen=True)
class Evidence:
    """What a calibration pass leaves behind.

    Attributes:
        moments: by group, of the signals that the criterion reads. Where they do not fit into memory, `MomentsByPart`.
        statistics: the criterion's own, mostly none.
        repair: moments of the activations, for compensation; mostly the same object as `moments`.
        batches: the rows themselves, for a compensation that walks up the model with them.
    """

    moments: Mapping[str, GroupMoments]
    statistics: Statistics
    repair: Mapping[str, GroupMoments]
    batches: Sequence[Batch] = ()

    def select(self, groups: list[UnitGroup], kept: dict[str, Tensor]) -> Evidence:
        """What is left of it after a cut."""

        def cut(moments: Mapping[str, GroupMoments]) -> Mapping[str, GroupMoments]:
            if isinstance(moments, MomentsByPart):
                return moments.anew()
            return {group.key: moments[group.key].select(group, kept[group.key]) for group in groups if group.key in moments}

        moments = cut(self.moments)
        repair = moments if self.repair is self.moments else cut(self.repair)
        return Evidence(moments, select_statistics(self.statistics, kept), repair, self.batches)


def calibrate(
    model: PreTrainedModel,
    args: SpectralPruningArguments,
    criterion: Criterion,
    calibration: CalibrationData | None,
    *,
    scored: bool = False,
) -> Evidence:
    """Runs the calibration data through the model for all that scores and repair read; empty where they read nothing.

    Over several processes, which all have the same data, each runs its share of the batches and the sums are added up: they are
    those of one process to the last bit, as long as float64 holds every sum of float32 products exactly. A criterion's own
    statistics are gathered by the first process, and the moments that they may read by each of them from all batches.

    Args:
        scored: whether the scores are known, so that only the repair reads anything.
    """
    repairs = args.compensation in ("bias", "least_squares")
    batches = calibration.batches if calibration is not None and args.compensation == "sequential" else ()
    if not ((criterion.needs_data and not scored) or repairs):
        return Evidence({}, {}, {}, batches)
    assert calibration is not None
    if scored:
        moments = _collect(model, args, criterion, calibration, "activations", ("after",))
        return Evidence({}, {}, moments, batches)
    # Criteria that stream statistics of their own read no moments: no pass is spent on them.
    needed = criterion.needs_moments or repairs
    sides = criterion.sides if criterion.needs_moments else ("after",)
    moments = _collect(model, args, criterion, calibration, criterion.signals, sides) if needed else {}
    # A repair reproduces outputs, so it needs the moments of the activations themselves.
    repair = moments if criterion.signals == "activations" else {}
    if repairs and (criterion.signals == "loss" or isinstance(moments, MomentsByPart)):
        repair = _collect(model, args, criterion, calibration, "activations", ("after",))
    data = calibration.batches
    statistics = of_first_process(
        lambda: collect_statistics(
            model,
            unit_groups(model, args.units),
            criterion,
            data,
            moments,
            seed=args.seed,
            progress=not args.disable_tqdm,
        )
    )
    return Evidence(moments, statistics, repair, batches)


def _collect(
    model: PreTrainedModel,
    args: SpectralPruningArguments,
    criterion: Criterion,
    calibration: CalibrationData,
    signals: str,
    sides: tuple[Side, ...],
) -> Mapping[str, GroupMoments]:
    spatial, progress = replace(criterion.positions, seed=args.seed), not args.disable_tqdm

    # Gradients come from the end of the model, and not every model can be run a layer at a time: they take a pass a part.
    walks = signals == "activations" and not family_of(model.config).runs_whole
    kept = args.num_rounds > 1 and args.recalibrate_every > 1  # later rounds score by what a cut leaves of them
    repairs = args.compensation in ("bias", "least_squares") or (args.repairs and args.allocation in ("auto", "loss_curves"))
    read_once = not (kept or criterion.needs_statistics or repairs)
    batches = calibration.batches if criterion.needs_statistics else share(calibration.batches)
    ascent = Ascent(model, batches) if walks else None

    def collect(part: Sequence[UnitGroup]) -> dict[str, GroupMoments]:
        with by_itself() if criterion.needs_statistics else nullcontext():
            return collect_moments(
                model,
                part,
                batches,
                sides=sides,
                signals=signals,
                spatial=spatial,
                ascent=ascent,
                progress=progress,
            )

    groups = partial(unit_groups, model, args.units)
    return moments_within(model, groups, sides, collect, args.max_moment_gib, ascent, read_once=read_once)
