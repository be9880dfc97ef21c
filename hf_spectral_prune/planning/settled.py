"""Which allocation `auto` stands for."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from transformers import PreTrainedModel

from ..arguments import SpectralPruningArguments
from ..data.texts import CalibrationData
from ..models.families import family_of, unit_groups
from ..models.losses import has_targets, num_rows

Arguments = TypeVar("Arguments", bound=SpectralPruningArguments)


def settle_allocation(model: PreTrainedModel, args: Arguments, calibration: CalibrationData | None) -> Arguments:
    """The options with what `auto` allocation stands for.

    A uniform layout has something to weigh up only where there are several kinds of unit, and a loss to do it by; else all
    kinds give up equal shares. A search judges models that are repaired sequentially, so it is for those; else loss curves are
    measured.
    """
    if args.allocation != "auto":
        return args
    measurable = calibration is not None and all(has_targets(model, batch) for batch in calibration.batches)
    if args.layout == "uniform":
        kinds = {group.kind for group in unit_groups(model, args.units)}
        if args.target_scope == "flops" or len(kinds) < 2 or not measurable:
            return replace(args, allocation="proportional")
    rows = 0 if calibration is None else sum(num_rows(batch) for batch in calibration.batches)
    searchable = args.compensation == "sequential" and measurable and rows > 1 and not family_of(model.config).traced
    return replace(args, allocation="search" if searchable else "loss_curves")
