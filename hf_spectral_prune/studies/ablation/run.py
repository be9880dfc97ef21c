"""Runs a direct ablation: scores by every criterion, true damage of the same units, and how well they agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial

import torch
from transformers import PreTrainedModel
from transformers.utils import logging
from transformers.utils.generic import find_labels

from ...arguments import SpectralPruningArguments
from ...criteria import Criterion
from ...data.for_model import read_labelled
from ...data.texts import CalibrationData
from ...models.families import UnitGroup, layers_of, unit_groups
from ...models.loading import without_quantisation_marks
from ...models.losses import Batch, check_gradients, check_targets, predicts_next_token
from ...models.modes import evaluating
from ...utils.option_values import at_fixed_paths
from ...utils.types import ProcessingClass
from ...utils.words import listed
from ..protocol import study_protocol
from .arguments import AblationArguments
from .folder import FOLDER
from .results import AblationResult, write_results
from .scoring import score_criteria
from .truth import loss_batches, measure_damage, sample_units

logger = logging.get_logger(__name__)


def ablate(
    model: PreTrainedModel,
    args: AblationArguments,
    calibration_dataset: object = None,
    eval_dataset: object = None,
    processing_class: ProcessingClass | None = None,
    *,
    report: Callable[[str], None] = logger.info,
) -> AblationResult:
    """Measures the exact loss increase of removing single units, and how well every criterion's scores predict it.

    Scores and damages are kept in `output_dir` as they come, so that a killed run continues; more criteria, layers or units
    may be asked for later and only those are added. The model stays as it is.

    Args:
        model: a causal language model, or a model with a task head and labels in the data.
        calibration_dataset: what criteria read, as for SpectralPruner; None if none of them needs it.
        eval_dataset: the same, what the damage is measured on: all of it, so it decides about time and noise.
        processing_class: tokenizer; needed for raw text only.
        report: gets a line for every criterion that is scored.

    Raises:
        ValueError: options, data, model or folder that cannot work, before any work. What fails in a single criterion is kept
            as its `error` instead.
    """
    if args.output_dir is None:
        raise ValueError("There is no folder for the results. Set `output_dir`.")
    if eval_dataset is None:
        raise ValueError("There is nothing to measure the damage on. Pass `eval_dataset`.")
    criteria = args.make_criteria()
    args = at_fixed_paths(args, "output_dir")
    assert args.output_dir is not None
    FOLDER.check(args.output_dir)
    without_quantisation_marks(model)
    groups = chosen_groups(model, args)
    read = partial(read_labelled, processing_class=processing_class, model=model, args=SpectralPruningArguments(seed=args.seed))
    calibration = None if calibration_dataset is None else read(calibration_dataset, name="calibration_dataset")
    held_out = read(eval_dataset, name="eval_dataset")
    _check_calibration(model, criteria, calibration)
    batches = _checked_batches(model, held_out)
    protocol = study_protocol(model, calibration, held_out)
    FOLDER.open(args.output_dir, protocol, args.overwrite_output_dir)
    with evaluating(model):
        scored = score_criteria(
            model,
            criteria,
            args.units,
            groups,
            () if calibration is None else calibration.batches,
            args.output_dir,
            seed=args.seed,
            progress=not args.disable_tqdm,
            report=report,
        )
        samples = [(group, sample_units(group, args.units_per_layer, args.seed)) for group in groups]
        damage = list(measure_damage(model, samples, batches, args.output_dir, seed=args.seed, progress=not args.disable_tqdm))
    options = {name: value for name, value in asdict(args).items() if name not in ("output_dir", "overwrite_output_dir")}
    result = AblationResult(protocol, options, damage, scored)
    write_results(result, args.output_dir)
    return result


def chosen_groups(model: PreTrainedModel, args: AblationArguments) -> list[UnitGroup]:
    """The unit groups to ablate in, kind by kind and layer by layer.

    Raises:
        ValueError: a layer or kind of unit that the model does not have, or weights that cannot be cut.
    """
    layers = args.chosen_layers(len(layers_of(model)))
    return [group for kind in args.units for group in unit_groups(model, [kind]) if group.layer in layers]


def _check_calibration(model: PreTrainedModel, criteria: Mapping[str, Criterion], calibration: CalibrationData | None) -> None:
    """Tells of calibration data or gradients that a criterion needs and cannot have."""
    for label, criterion in criteria.items():
        if criterion.needs_data and calibration is None:
            raise ValueError(f"There is no calibration data, and the criterion `{label}` needs it. Pass `calibration_dataset`.")
        if criterion.needs_loss:
            assert calibration is not None
            check_gradients(model, f", or leave out the criterion `{label}`")
            for batch in calibration.batches:
                check_targets(model, batch)


def _checked_batches(model: PreTrainedModel, held_out: CalibrationData) -> list[Batch]:
    """The batches that the damage is measured on.

    Raises:
        ValueError: the model has no loss, or the data lacks its targets.
    """
    if not predicts_next_token(model):
        names = find_labels(type(model))
        if not names:
            raise ValueError(
                f"`{type(model).__name__}` has no task head, so there is no loss to measure damage by. Load the model with one."
            )
        missing = listed(name for name in names if any(name not in batch for batch in held_out.batches))
        if missing:
            raise ValueError(
                f"Damage is a change of the loss, but the held-out batches have no {missing}, which `{type(model).__name__}` "
                "needs for it. Add labels to the held-out data."
            )
    batches = loss_batches(model, held_out.batches)
    if not batches:
        raise ValueError("The held-out data has no target to measure a loss on. Give text of at least two tokens, or labels.")
    _warn_of_rounding(model)
    return batches


def _warn_of_rounding(model: PreTrainedModel) -> None:
    if torch.finfo(model.dtype).bits < 32:
        name = str(model.dtype).removeprefix("torch.")
        logger.warning(
            f'The model is in {name}, whose rounding is of the size of one unit\'s damage. Load it with `dtype="float32"`.'
        )
