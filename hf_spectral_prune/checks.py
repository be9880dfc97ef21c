"""Tells of what cannot work before any work: the model, its data, the recovery and the push that a run asks for."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import PreTrainedModel, TrainingArguments
from transformers.utils import logging

from .arguments import MEASURED_ALLOCATIONS, TAUGHT_RECOVERIES, SpectralPruningArguments
from .criteria import Criterion, make_criterion
from .data.texts import CalibrationData
from .models.distributed import works_together
from .models.families import check_unshared, family_of, kinds_of, unit_groups
from .models.folder_files import read_config
from .models.losses import Batch, check_outputs_have_names, check_targets, has_targets, loss_of, moved_to, num_targets
from .models.modes import evaluating
from .models.offload import is_offloaded
from .planning.reduction_target import check_scope
from .planning.settled import settle_allocation
from .publishing import hub
from .recovery.arguments import recovery_arguments
from .recovery.distillation import check_teacher
from .recovery.judging import check_judge, check_trainable
from .recovery.recover import check_blocks, lora_targets
from .saving.folder import check_config, check_generation_options
from .saving.place import check_output_dir
from .saving.reload import check_reloads
from .saving.scores_file import SharedScores
from .saving.structure_proof import check_structure
from .surgery import check_compensation, check_mistral, fingerprint, has_batch_norms
from .surgery.settle import check_class
from .utils.environment import emulates
from .utils.files import SMALL_FILES, check_room, num_bytes
from .utils.option_values import at_fixed_paths, json_option
from .utils.plain_options import HubOptions
from .utils.words import first_line, in_a_line

logger = logging.get_logger(__name__)

# Fewer texts than this are told: they may be chapters of one book.
_FEW_TEXTS = 8


def check_model(model: PreTrainedModel, args: SpectralPruningArguments) -> Criterion:
    """Tells of an unknown family, criterion or kind of unit, of weights that cannot be cut, of options that the family does
    not have, and of a device that cannot compute the scores, before any work."""
    if model.device.type == "mps":
        raise ValueError(
            "The model lies on Apple's MPS, which has no float64, and scores are computed in it. Use the CPU: "
            '`model.to("cpu")`, or `use_cpu=True` for a Trainer.'
        )
    if model.device.type == "cpu":
        _warn_of_slow_type(model.dtype, "Load the model with `dtype` float32")
    check_outputs_have_names(model)
    check_unshared(model, unit_groups(model, args.units))
    check_scope(model, args)
    if args.compensation != "auto":
        check_compensation(model, args.compensation)
    if args.stock_class == "mistral":
        check_mistral(model)
    check_result_class(model, args)
    return make_criterion(args.criterion, args.criterion_options)


def _warn_of_slow_type(dtype: torch.dtype, remedy: str) -> None:
    """Tells of a type that this CPU computes slowly."""
    if emulates(dtype):
        name = str(dtype).removeprefix("torch.")
        logger.warning_once(
            f"This CPU has no instructions for {name}. {remedy}: that takes more memory and a fraction of the time."
        )


def check_arguments(args: object) -> SpectralPruningArguments:
    """The options of a pruner, or the defaults; tells of what belongs elsewhere."""
    if args is None:
        return SpectralPruningArguments()
    if isinstance(args, TrainingArguments):
        raise ValueError(
            "`args` is a `TrainingArguments`, which say how to train. Pass `SpectralPruningArguments`, and how to recover in its "
            "`training_args`, as a dict."
        )
    if not isinstance(args, SpectralPruningArguments):
        raise ValueError(f"`args` is a `{type(args).__name__}`. Pass `SpectralPruningArguments`.")
    if args.target_reductions:
        raise ValueError("A run has one target. Pass `target_reductions` to `prune_to_targets`.")
    args = at_fixed_paths(args, "output_dir", "scores", "save_scores")  # a notebook may change its folder meanwhile
    if args.save_scores is not None:
        SharedScores.check_place(args.save_scores)
    training = json_option("training_args", args.training_args)
    if isinstance(training.get("output_dir"), str):
        args = replace(args, training_args=training | {"output_dir": os.path.abspath(training["output_dir"])})
    return args


def settle_options(
    model: PreTrainedModel, args: SpectralPruningArguments, calibration: CalibrationData | None
) -> SpectralPruningArguments:
    """The options with what is left open in them: all kinds of `units` that the model has, what `auto` compensation stands for
    (`sequential`, or `least_squares` where the residual stream is not known; none for channels and without calibration
    data), and what `auto` allocation does."""
    family = family_of(model.config)
    units: list[str] = [*kinds_of(model)] if args.units is None else args.units
    compensation = args.compensation
    if compensation == "auto" and (calibration is None or family.traced):
        compensation = "none"
    elif compensation == "auto":
        compensation = "least_squares" if family.stream_unknown else "sequential"
    settled = settle_allocation(model, replace(args, units=units, compensation=compensation), calibration)
    return replace(settled, self_check=False) if is_offloaded(model) else settled


def check_offloaded(model: PreTrainedModel, args: SpectralPruningArguments, criterion: Criterion) -> None:
    """Tells of what needs all weights in memory, for a model whose layers lie on the disk, before any work.

    Args:
        args: as `settle_options` leaves them.

    Raises:
        ValueError: something does; says what, and what can be done instead.
    """
    if not is_offloaded(model):
        return
    family = family_of(model.config)
    search = args.allocation == "search" and args.layout == "per_layer"  # begins with Fisher information
    measured = search or args.allocation == "fisher" or (args.allocation == "loss_curves" and args.repairs)
    needs = {
        f"`{type(model).__name__}`, whose layers are not run one by one,": family.runs_whole or family.stream_unknown,
        f"the criterion `{args.criterion}`, which reads gradients,": criterion.needs_loss or criterion.needs_statistics,
        f'`compensation="{args.compensation}"`': args.compensation in ("bias", "least_squares"),
        f'`allocation="{args.allocation}"` with `compensation="{args.compensation}"`': measured,
        f'`recovery="{args.recovery}"`': args.recovery != "none",
        '`stock_class="mistral"`': args.stock_class == "mistral",
        '`save_strategy="steps"`': args.save_strategy != "no",
        "`scores` and `save_scores`": args.scores is not None or args.save_scores is not None,
        "a run on several processes": works_together(),
    }
    for what, needed in needs.items():
        if needed:
            raise ValueError(
                f"The layers of the model lie on the disk, and {what} needs them in memory. Load it whole, or take a criterion "
                'without gradients (`spectral`) with `compensation` `sequential` or `none`, which for `layout="per_layer"` is '
                "`none`."
            )


def check_result_class(model: PreTrainedModel, args: SpectralPruningArguments) -> None:
    """Tells of a class that the result needs and does not have, before any work."""
    if args.stock_class == "mistral" and args.compensation == "bias":
        raise ValueError(
            '`compensation="bias"` adds biases, which `stock_class="mistral"` cannot hold. Use '
            '`compensation="least_squares"`, or leave `stock_class` out.'
        )
    check_class(model, args.layout)


def check_data(
    model: PreTrainedModel, args: SpectralPruningArguments, criterion: Criterion, calibration: CalibrationData | None
) -> None:
    """Tells of missing calibration data, of missing targets where a loss is needed, and of a model without a table whose
    structure does not prove itself on the data, before any work."""
    check_structure(model, calibration.batches[0] if calibration is not None else None)
    args = settle_allocation(model, args, calibration)
    measured = args.allocation in MEASURED_ALLOCATIONS
    needs = {
        f"the criterion `{args.criterion}`": criterion.needs_data,
        f"`compensation` `{args.compensation}`": args.repairs,
        f'`allocation="{args.allocation}"`': measured,
    }
    for what, needed in needs.items():
        if needed and calibration is None:
            raise ValueError(f"There is no calibration data, and {what} needs it. Pass `calibration_dataset`.")
    if calibration is not None:
        _warn_of_few_texts(calibration)
    if args.allocation == "search" and args.compensation != "sequential":
        raise ValueError(
            f'`allocation="search"` tries models that are compensated sequentially, and `compensation` is `{args.compensation}`. '
            'Use `compensation="sequential"`, or another allocation.'
        )
    if calibration is not None and (criterion.needs_loss or measured):
        for batch in calibration.batches:
            check_targets(model, batch, ', or use `allocation="scores"` and a criterion with `signals="activations"`')
        if not any(num_targets(model, batch) for batch in calibration.batches):
            raise ValueError(
                "A loss is needed, and no position of the calibration data has a target: every label is -100, or the rows are of "
                "one token. Give rows with an answer in them (they may have been cut before it), or leave `labels` out."
            )


def _warn_of_few_texts(calibration: CalibrationData) -> None:
    """Tells of calibration text that may be a single document: what a cut keeps of a model is what that text asks for."""
    number = calibration.protocol.get("num_texts")
    if number is not None and number < _FEW_TEXTS:
        what = "is one text" if number == 1 else f"has {number} texts"
        logger.warning_once(
            f"The calibration source `{calibration.protocol['source']}` {what}. If that is one document or few, the model will "
            "suffer on text of other kinds: a table with a row per document, or a mix of sources, keeps more of it."
        )


def needs_data(model: PreTrainedModel, args: SpectralPruningArguments, criterion: Criterion) -> bool:
    """Whether anything in a run reads calibration data: also batch norms after a cut, and the size of the images for FLOPs."""
    measured = args.allocation in MEASURED_ALLOCATIONS or (args.allocation == "auto" and args.layout == "per_layer")
    return criterion.needs_data or measured or args.repairs or args.target_scope == "flops" or has_batch_norms(model)


def check_loss(model: PreTrainedModel, figures: Mapping[str, float], data: CalibrationData | None) -> None:
    """Tells of a dense model whose loss is not a finite number, before the first cut.

    Args:
        figures: held-out figures of the dense model, if any were taken; else the first batch of `data` that has targets is run.
    """
    losses = [value for name, value in figures.items() if name.endswith("loss")]
    if not losses and data is not None:
        batch = next((batch for batch in data.batches if has_targets(model, batch)), None)
        losses = [] if batch is None else [_loss_of_dense(model, batch)]
    if any(not math.isfinite(loss) for loss in losses):
        raise ValueError(
            f"The loss of the dense model is {losses[0]}, before anything was cut. Load the model in a wider `dtype` (float32 or "
            "bfloat16), or check its weights and labels."
        )


@torch.inference_mode()
def _loss_of_dense(model: PreTrainedModel, batch: Batch) -> float:
    with evaluating(model):
        return float(loss_of(model, moved_to(model, batch)))


def check_recovery(
    model: PreTrainedModel,
    args: SpectralPruningArguments,
    train_dataset: object,
    teacher: PreTrainedModel | str | Path | None,
) -> None:
    """Tells of a recovery without rows or teacher, of adapters that find no layer, and of options that the model cannot take."""
    recovery_args, training = recovery_arguments(args)
    if args.recovery == "none":
        return
    try:
        made = TrainingArguments(**training)
    except (ValueError, TypeError, ImportError) as error:
        raise ValueError(f"`training_args` cannot be used here: {in_a_line(error)}.") from None
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size"):
        if getattr(made, name) < 1:
            raise ValueError(f"`{name}` in `training_args` is {getattr(made, name)}; it must be at least 1.")
    if train_dataset is None:
        raise ValueError(f"`recovery` is `{args.recovery}`, but there is nothing to train on. Pass `train_dataset`.")
    if not hasattr(train_dataset, "__len__") and training.get("max_steps", -1) < 1:
        raise ValueError(
            "`train_dataset` is a stream, whose end is not known. Say how long to train: `max_steps` in `training_args`, e.g. "
            '`{"max_steps": 500}`.'
        )
    if made.bf16 and made.device.type == "cpu":
        _warn_of_slow_type(torch.bfloat16, "Leave `bf16` out of `training_args`")
    check_trainable(model, args.recovery)
    if args.recovery == "lora" and family_of(model.config).traced:
        raise ValueError('`recovery="lora"` is for transformers, whose linear layers take adapters. Use `full` or `distill`.')
    if args.recovery == "lora":
        lora_targets(model, recovery_args.lora_target_modules)
    if args.recovery == "blocks":
        check_blocks(model)
    taught = args.recovery in TAUGHT_RECOVERIES
    if taught and (teacher is None or teacher is model):
        raise ValueError(
            f'`recovery="{args.recovery}"` needs the dense model. Pass `teacher`: a copy of the model, or its folder.'
        )
    if taught:
        check_teacher_fits(model, teacher)


def check_judged(args: SpectralPruningArguments, before: dict[str, float]) -> None:
    """Tells of held-out figures without the one that the recovery is judged by, before the first cut.

    Args:
        before: figures `before_*` of the dense model, if any were taken.
    """
    if before and args.recovery not in ("none", "blocks"):  # `blocks` judges by the residual stream where there are no labels
        metric = recovery_arguments(args)[1]["metric_for_best_model"] or "loss"
        check_judge(metric.removeprefix("eval_"), before, "before")


def check_teacher_fits(model: PreTrainedModel, teacher: Any) -> None:
    """Tells of a teacher that cannot be loaded or has another shape, before any work; of a folder, the config is read."""
    if isinstance(teacher, (str, Path)):
        try:
            config = read_config(teacher)
            family_of(config)
        except (ValueError, OSError) as error:
            reason = first_line(error)
            raise ValueError(f"`teacher` `{teacher}` cannot be loaded: {reason}. Name the folder of the dense model.") from None
        teacher = SimpleNamespace(config=config)
    elif not isinstance(teacher, PreTrainedModel):
        raise ValueError(
            f"`teacher` is a `{type(teacher).__name__}`, no model of transformers. Pass the dense model, its folder or its name."
        )
    check_teacher(model, teacher)


def check_output(model: PreTrainedModel, args: SpectralPruningArguments, source: str | None = None) -> None:
    """Tells of a folder, a disk, options of generation and a model that saving will refuse, before any work.

    Args:
        source: folder or name of the model that is pruned.
    """
    if args.output_dir is None:
        return
    place = Path(args.output_dir).resolve()
    if args.recovery != "none" and Path(recovery_arguments(args)[1]["output_dir"]).resolve() == place:
        raise ValueError(
            f"`training_args` has the `output_dir` `{args.output_dir}`, which is the folder of the result. Leave it out, or name "
            "another folder."
        )
    check_output_dir(args.output_dir, args.overwrite_output_dir, source)
    check_config(model)
    check_generation_options(model)
    if args.self_check:
        check_reloads(model)
    # What is left at the least, once; what more it takes is told when it is known.
    check_room("The pruned model", place, int(num_bytes(model) * (1 - args.target_reduction)) + SMALL_FILES)


def check_push(model: PreTrainedModel, args: HubOptions) -> None:
    """Tells of a push that will be refused, and makes the repo."""
    if args.push_to_hub:
        repo = hub.open_repo(args.hub_model_id, args.hub_token, args.hub_private_repo or None)
        hub.check_free(repo, hub.look_into(repo), fingerprint(model), overwrite=False)
