"""Recovery: the one training after the last round (full, LoRA merged back, distillation, block by block) on the HF Trainer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from ..arguments import TAUGHT_RECOVERIES, SpectralPruningArguments
from ..data.rows import default_collator, hold_out, training_rows
from ..models.distributed import is_sharded, of_first_process
from ..models.families import family_of, layers_of
from ..models.losses import predicts_next_token
from ..models.modes import modes_kept
from ..utils.types import Collator, Json, LossFunction, Metrics, Options, Preprocess, ProcessingClass
from .arguments import RecoveryArguments, recovery_arguments
from .blocks import stream_error, train_blocks
from .distillation import DistillationTrainer, check_teacher, load_teacher
from .judging import (
    MeasuredTrainer,
    check_trainable,
    checkpoint_to_resume,
    held_out_metrics,
    judged_by,
    left_as_it_was,
    no_worse,
    trained_in_float32,
    unprepared,
)
from .training_data import length_of_rows, tokenizer_for

if TYPE_CHECKING:
    from peft import PeftConfig

logger = logging.get_logger(__name__)


# The figure that a recovery without labels is judged by.
_STREAM_LOSS = "stream_loss"


@dataclass
class RecoveryOutput:
    """What `recover` returns.

    Attributes:
        model: the model that was given, recovered or as it was before.
        kept: "recovered", or "unrecovered" where training had made it worse on the held-out data.
        metrics: held-out figures `before_*` and `after_*` (after training, kept or not) and the Trainer's `train_*`.
        notes: sentences for the user.
        log_history: what the Trainer logged meanwhile: the curve of the loss.
        adapters: folder of the saved adapters, or None.
    """

    model: PreTrainedModel
    kept: Literal["recovered", "unrecovered"]
    metrics: dict[str, float]
    notes: list[str] = field(default_factory=list)
    log_history: list[dict[str, float]] = field(default_factory=list)
    adapters: Path | None = None

    def report(self) -> Json:
        """Everything but the model, as plain values."""
        return {"kept": self.kept, "metrics": self.metrics, "notes": self.notes, "log_history": self.log_history}


def recover(
    model: PreTrainedModel,
    args: RecoveryArguments | None = None,
    training_args: TrainingArguments | None = None,
    train_dataset: object = None,
    eval_dataset: object = None,
    processing_class: ProcessingClass | None = None,
    data_collator: Collator | None = None,
    teacher: PreTrainedModel | str | Path | None = None,
    compute_metrics: Metrics | None = None,
    callbacks: Sequence[TrainerCallback] | None = None,
    *,
    compute_loss_func: LossFunction | None = None,
    preprocess_logits_for_metrics: Preprocess | None = None,
    peft_config: PeftConfig | None = None,
) -> RecoveryOutput:
    """Fine-tunes a pruned model once, in place, and keeps the result only if it is no worse on held-out data.

    Better and worse are told by `training_args.metric_for_best_model` (the loss by default), which is measured as
    `SpectralPruner.evaluate` measures. A copy of the weights is kept on the CPU meanwhile, to go back to.
    `training_args.resume_from_checkpoint` is honoured; True begins anew where there is no checkpoint. Launched on several
    processes (data-parallel) all end with the same model; each measures all of the held-out rows.

    Args:
        args: how to recover; by default all weights are trained, or what `peft_config` says.
        training_args: the Trainer's own: optimizer, schedule, precision, loggers, checkpoints; by default those of `cria prune`.
        train_dataset: tokenised rows (a `datasets.Dataset`, any map-style data set of dicts), texts or chats, or
            `CalibrationData`. Texts are packed into blocks by `processing_class`, or by the tokenizer of the folder that the
            model was loaded from.
        eval_dataset: the same, held out; without it a tenth of the training rows (512 at most) is split off.
        data_collator: for causal language models the default makes labels of the ids that are not padding; else it is the
            Trainer's.
        teacher: the dense model, a folder or a Hub name, for "distill" and "blocks"; it may be on another device.
        compute_metrics: as for Trainer.
        preprocess_logits_for_metrics: as for Trainer.
        callbacks: as for Trainer.
        compute_loss_func: as for Trainer.
        peft_config: a `LoraConfig` in place of the `lora_*` options; the adapters are merged at the end.

    Raises:
        ValueError: nothing to train on, LoRA targets that the model does not have, a teacher that is missing or of another shape,
            data that cannot be split or has no labels, sharded training, a checkpoint that is not whole. All before the first
            step.
    """
    if train_dataset is None:
        raise ValueError("`recover` has nothing to train on. Pass `train_dataset`.")
    if training_args is None:
        training_args = TrainingArguments(**recovery_arguments(SpectralPruningArguments())[1])
    args = RecoveryArguments("lora" if peft_config is not None else "full") if args is None else args
    _check_peft(args, peft_config)
    if compute_loss_func is not None and args.method in TAUGHT_RECOVERIES:
        raise ValueError(f"`compute_loss_func` takes the place of the loss that `{args.method}` has of its own. Leave it out.")
    _check_unsharded(model, training_args)
    check_trainable(model, args.method)
    processing_class = tokenizer_for(model, processing_class, train_dataset, eval_dataset)
    notes: list[str] = []
    adapter = (peft_config or lora_targets(model, args.lora_target_modules)) if args.method == "lora" else None
    dense = _teacher(model, args, training_args, teacher)
    training_args = copy.copy(training_args)
    training_args.resume_from_checkpoint = checkpoint_to_resume(training_args)
    if judged_by(training_args).endswith("perplexity"):  # `TrainingArguments` take all but a loss for better when greater
        training_args.greater_is_better = False
    length = length_of_rows(model)
    train_rows = training_rows(train_dataset, processing_class, length)
    if eval_dataset is None:
        train_rows, eval_rows = hold_out(train_rows, training_args.seed)
        notes.append(f"No `eval_dataset` was given, so {len(eval_rows)} rows of the training data were held out to judge by.")
    else:
        eval_rows = training_rows(eval_dataset, processing_class, length)
    options: Options = {
        "processing_class": processing_class,
        "data_collator": data_collator or default_collator(model, processing_class),
        "compute_metrics": compute_metrics,
        "compute_loss_func": compute_loss_func,
        "preprocess_logits_for_metrics": preprocess_logits_for_metrics,
        "eval_dataset": eval_rows,
    }
    with left_as_it_was(model), modes_kept(*([] if dense is None else [dense])):
        metrics = _held_out(model, args, training_args, "before", options, dense)
        before = {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}
        training = options | {"train_dataset": train_rows, "callbacks": None if callbacks is None else list(callbacks)}
        history, adapters, told = _train(model, args, training_args, adapter, dense, training)
        metrics |= {name: value for entry in history for name, value in entry.items() if name.startswith("train_")}
        metrics |= _held_out(model, args, training_args, "after", options, dense)
        kept, worse = _keep_if_no_worse(model, before, metrics, training_args)
    notes += told + worse
    for note in notes:
        logger.warning(note)
    return RecoveryOutput(model, kept, metrics, notes, history, adapters)


def _teacher(
    model: PreTrainedModel,
    args: RecoveryArguments,
    training_args: TrainingArguments,
    teacher: PreTrainedModel | str | Path | None,
) -> PreTrainedModel | None:
    """The dense model, for a recovery that is taught by it."""
    dense = None
    if args.method in TAUGHT_RECOVERIES:
        dense = load_teacher(teacher)
        check_teacher(model, dense)
    if args.method == "blocks":
        check_blocks(model, training_args.world_size)
    return dense


def _train(
    model: PreTrainedModel,
    args: RecoveryArguments,
    training_args: TrainingArguments,
    adapter: PeftConfig | list[str] | None,
    teacher: PreTrainedModel | None,
    options: Options,
) -> tuple[list[dict[str, float]], Path | None, list[str]]:
    """Trains in place: the log, the folder of the adapters if they are kept, and notes.

    Args:
        adapter: for "lora": the user's adapter, or the layers that get one.
    """
    if adapter is not None:
        return *_train_lora(model, args, training_args, adapter, options), []
    with trained_in_float32(model) as widened:
        history = _train_whole(model, args, training_args, teacher, options)
    note = "The float16 weights were trained in float32, whose range Adam needs, and rounded back afterwards."
    return history, None, [note] if widened else []


def _keep_if_no_worse(
    model: PreTrainedModel, before: dict[str, Tensor], metrics: dict[str, float], training_args: TrainingArguments
) -> tuple[Literal["recovered", "unrecovered"], list[str]]:
    """Which model is kept, and notes; where the recovered one is worse, the weights `before` are put back."""
    name = _STREAM_LOSS if f"before_{_STREAM_LOSS}" in metrics else judged_by(training_args)
    was, now = metrics[f"before_{name}"], metrics[f"after_{name}"]
    # One process decides: a user's figures may differ between processes, and with them the models that are kept.
    if of_first_process(lambda: no_worse(was, now, training_args, name)):
        return "recovered", []
    model.load_state_dict(before)
    worse = f"Recovery made the held-out `{name}` worse ({was:.4g} to {now:.4g}), so the model was put back as it was before."
    return "unrecovered", [worse]


def check_blocks(model: PreTrainedModel, processes: int = 1) -> None:
    """Checks that a model's layers can be trained one after the other.

    Raises:
        ValueError: it has none that can be walked, or several processes were started.
    """
    if family_of(model.config).traced:
        raise ValueError(
            '`recovery="blocks"` is for transformers, whose layers follow each other in a list. Use `full` or `distill`.'
        )
    if processes > 1:
        raise ValueError(
            '`recovery="blocks"` works in one process. Start it without a launcher, or use `full`, `lora` or `distill`.'
        )


def _held_out(
    model: PreTrainedModel,
    args: RecoveryArguments,
    training_args: TrainingArguments,
    prefix: str,
    options: Options,
    teacher: PreTrainedModel | None,
) -> dict[str, float]:
    """Held-out figures; where there are no labels to measure by, how far the last layer's output is from the dense model's."""
    labelled = predicts_next_token(model) or {"label", "labels"} & set(next(iter(options["eval_dataset"])))
    if args.method == "blocks" and not labelled:
        assert teacher is not None
        with unprepared(model):
            return {f"{prefix}_{_STREAM_LOSS}": stream_error(model, teacher, training_args, options)}
    return held_out_metrics(model, training_args, prefix, options)


def _check_peft(args: RecoveryArguments, peft_config: PeftConfig | None) -> None:
    if peft_config is None:
        return
    kind = getattr(getattr(peft_config, "peft_type", None), "value", None)
    if kind != "LORA":
        raise ValueError(
            f"`peft_config` is a `{type(peft_config).__name__}`, whose adapters cannot be merged. Give a `LoraConfig`."
        )
    if args.method != "lora":
        raise ValueError(f"`peft_config` is for the method `lora`, and `method` is `{args.method}`. Leave one of them out.")


def _check_unsharded(model: PreTrainedModel, training_args: TrainingArguments) -> None:
    launched = any(parse_flag_from_env(f"ACCELERATE_USE_{kind}") for kind in ("FSDP", "DEEPSPEED"))
    if training_args.fsdp or training_args.deepspeed or launched or is_sharded(model):
        raise ValueError(
            "`recover` keeps a copy of the whole model to go back to, which `fsdp` and `deepspeed` shard over processes. "
            "Use `accelerate launch` without them (data-parallel), or fine-tune the saved model with a Trainer of your own."
        )


# ---- the ways to train


def _train_whole(
    model: PreTrainedModel,
    args: RecoveryArguments,
    training_args: TrainingArguments,
    teacher: PreTrainedModel | None,
    options: Options,
) -> list[dict[str, float]]:
    if args.method == "blocks":
        assert teacher is not None
        with unprepared(model):
            return train_blocks(model, teacher, training_args, options)
    if args.method == "full":
        trainer = MeasuredTrainer(model=model, args=training_args, **options)
    else:
        assert teacher is not None
        trainer = DistillationTrainer(
            model=model,
            args=training_args,
            teacher=teacher,
            temperature=args.distill_temperature,
            alpha=args.distill_alpha,
            hidden_weight=args.distill_hidden_weight,
            **options,
        )
    with unprepared(model):
        trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    return trainer.state.log_history


def _train_lora(
    model: PreTrainedModel,
    args: RecoveryArguments,
    training_args: TrainingArguments,
    adapter: PeftConfig | list[str],
    options: Options,
) -> tuple[list[dict[str, float]], Path | None]:
    from peft import LoraConfig, get_peft_model  # slow to import, and needed here alone

    config = adapter  # the user's, or the layers that get one
    if isinstance(config, list):
        alpha: Any = args.lora_alpha  # a fraction is taken too
        config = LoraConfig(r=args.lora_r, lora_alpha=alpha, lora_dropout=args.lora_dropout, target_modules=config)
    wrapped = get_peft_model(model, config)
    trainer = MeasuredTrainer(model=wrapped, measured=model, args=training_args, **options)
    try:
        with unprepared(model):
            trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    except BaseException:
        wrapped.unload()  # an interrupted run leaves the model as it was, not wrapped
        raise
    adapters = None
    if args.keep_adapters:
        adapters = Path(str(training_args.output_dir)) / "adapters"
        if trainer.is_world_process_zero():
            wrapped.save_pretrained(str(adapters))
    wrapped.merge_and_unload()
    return trainer.state.log_history, adapters


def lora_targets(model: PreTrainedModel, wanted: Sequence[str] | None) -> list[str]:
    """Names of the layers that get an adapter, each matched by the end of its path.

    Raises:
        ValueError: a name matches no linear layer of the model as it is now.
    """
    family = family_of(model.config)
    table = sorted({path for row in family.kinds for path in (row.consumer, *(producer.module for producer in row.producers))})
    if family.experts is not None:  # adapters are for linear layers, and experts share one tensor
        inside = [path for layer in layers_of(model) for path, module in layer.named_modules() if isinstance(module, nn.Linear)]
        table = sorted({path for path in inside if not path.startswith(f"{family.experts}.")})
    if wanted is None:
        return table
    linears = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    missing = [target for target in wanted if not any(f".{name}".endswith(f".{target}") for name in linears)]
    if missing or not wanted:
        raise ValueError(
            f"`lora_target_modules` names {', '.join(f'`{name}`' for name in missing) or 'nothing'}, which is no linear layer of "
            f"this {type(model).__name__}. Choose from {', '.join(f'`{name}`' for name in table)}, or leave it out for all."
        )
    return list(wanted)
