"""Tells of what cannot work before any work: the model, its data, the recovery and the push that a run asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainingArguments

from .architectures import family_of, unit_groups
from .arguments import SpectralPruningArguments
from .calibration import CalibrationData
from .calibration.collect import check_targets
from .criteria import Criterion, make_criterion
from .publishing import hub
from .recovery import lora_targets, recovery_arguments
from .surgery import check_compensation, check_mistral, fingerprint
from .targets import check_scope


def check_model(model: PreTrainedModel, args: SpectralPruningArguments) -> Criterion:
    """Tells of an unknown family, criterion or kind of unit, of weights that cannot be cut, and of options that the family
    does not have, before any work."""
    unit_groups(model, args.units)
    check_scope(model, args)
    check_compensation(model, args.compensation)
    if args.stock_class == "mistral":
        check_mistral(model)
    return make_criterion(args.criterion, args.criterion_options)


def check_data(
    model: PreTrainedModel, args: SpectralPruningArguments, criterion: Criterion, calibration: CalibrationData | None
) -> None:
    """Tells of missing calibration data, and of missing targets where a loss is needed, before any work."""
    needs = {
        f"the criterion `{args.criterion}`": criterion.needs_data,
        f"`compensation` `{args.compensation}`": args.compensation != "none",
        '`allocation="loss_curves"`': args.allocation == "loss_curves",
    }
    for what, needed in needs.items():
        if needed and calibration is None:
            raise ValueError(f"There is no calibration data, and {what} needs it. Pass `calibration_dataset`.")
    if calibration is not None and (criterion.needs_loss or args.allocation == "loss_curves"):
        for batch in calibration.batches:
            check_targets(model, batch)


def check_recovery(
    model: PreTrainedModel,
    args: SpectralPruningArguments,
    train_dataset: Any,
    teacher: PreTrainedModel | str | Path | None,
) -> None:
    """Tells of a recovery without rows or teacher, of adapters that find no layer, and of options that the model cannot take."""
    recovery_args, training = recovery_arguments(args)
    if args.recovery == "none":
        return
    try:
        TrainingArguments(**training)
    except (ValueError, TypeError, ImportError) as error:
        raise ValueError(f"`training_args` cannot be used here: {' '.join(str(error).split())}") from None
    if train_dataset is None:
        raise ValueError(f"`recovery` is `{args.recovery}`, but there is nothing to train on. Pass `train_dataset`.")
    if args.recovery == "lora" and family_of(model.config).traced:
        raise ValueError('`recovery="lora"` is for transformers, whose linear layers take adapters. Use `full` or `distill`.')
    if args.recovery == "lora":
        lora_targets(model, recovery_args.lora_target_modules)
    if args.recovery == "distill" and (teacher is None or teacher is model):
        raise ValueError('`recovery="distill"` needs the dense model. Pass `teacher`: a copy of the model, or its folder.')


def check_push(model: PreTrainedModel, args: SpectralPruningArguments) -> None:
    """Tells of a push that will be refused, and makes the repo."""
    if args.push_to_hub:
        repo = hub.open_repo(args.hub_model_id, args.hub_token, args.hub_private_repo or None)
        hub.check_free(repo, hub.look_into(repo), fingerprint(model), overwrite=False)
