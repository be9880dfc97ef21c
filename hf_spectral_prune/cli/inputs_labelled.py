"""Labelled texts that a command names, for models that classify sequences or answer them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

from ..data.for_model import check_ids
from ..data.labelled import LabelledRows, load_labelled
from ..data.mixtures import mixture_of
from ..data.texts import CalibrationData, build_calibration
from ..evaluation.metrics import load_metric, multi_label_figures, regression_figures
from ..models.cria import auto_class_of
from ..utils.types import Metrics, Row
from .arguments import DataArguments, RunArguments
from .inputs_text import (
    Source,
    calibration_source,
    check_reads_text,
    check_source,
    eval_name,
    eval_source,
    length_for,
    names_eval,
    shape_of,
    source_name,
)


def load_labelled_text(
    data_args: DataArguments, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int
) -> tuple[CalibrationData, CalibrationData | None]:
    """Calibration and held-out rows; without `eval_file` and `eval_split`, some are held out at random, a fifth at most.

    Raises:
        ValueError: no table is named, or it does not fit the model.
    """
    check_source(data_args)
    held_out = load_held_out_labelled(data_args, model, tokenizer, seed)
    if len(mixture_of(data_args.calibration)) > 1:
        raise ValueError("`label_column` is for one table, and `calibration` names several sources. Give the table alone.")
    rows, source = _labelled_rows(data_args, model, tokenizer, seed), source_name(calibration_source(data_args))
    shape = shape_of(data_args, model, seed)
    num_eval = data_args.num_eval_samples or 0
    if held_out is None and num_eval:
        rows, others = _split_rows(rows, num_eval, seed)
        held_out = build_calibration(
            others, tokenizer, num_samples=min(num_eval, len(others)), name=f"{source}, rows held out", **shape
        )
    wanted = data_args.num_calibration_samples
    calibration = build_calibration(rows, tokenizer, num_samples=wanted, name=source, **shape)
    for data in filter(None, (calibration, held_out)):
        check_ids(model, data, tokenizer)
    return calibration, held_out


def load_held_out_labelled(
    data_args: DataArguments, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int
) -> CalibrationData | None:
    """Rows of `eval_file` or `eval_split`; None where neither is named or there is nothing to measure.

    Raises:
        ValueError, FileNotFoundError: they cannot be read, or do not fit the model.
    """
    number = data_args.num_eval_samples
    if not names_eval(data_args) or not number:
        return None
    rows = _labelled_rows(data_args, model, tokenizer, seed, eval_source(data_args))
    shape = shape_of(data_args, model, seed)
    data = build_calibration(rows, tokenizer, num_samples=number, name=eval_name(data_args), **shape)
    check_ids(model, data, tokenizer)
    return data


def labelled_recovery_rows(
    data_args: DataArguments,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    calibration: CalibrationData | None,
    held_out: CalibrationData | None,
    seed: int,
) -> Sequence[Row]:
    """Rows to recover on, without those that are held out."""
    other = None if data_args.recovery_file is None else (data_args.recovery_file, None, None, "train")
    # The calibration table was told when it was read to calibrate on.
    labelled = _labelled_rows(data_args, model, tokenizer, seed, other, tell=other is not None)
    if other is None and not names_eval(data_args) and data_args.num_eval_samples:
        labelled, _ = _split_rows(labelled, data_args.num_eval_samples, seed)  # the same split as for calibration
    order = torch.randperm(len(labelled), generator=torch.Generator().manual_seed(seed)).tolist()
    drawn = (labelled[index] for index in order[: data_args.num_recovery_samples])
    return [row for row in drawn if row["input_ids"]]  # an empty text has no tokens where none are special


def _labelled_rows(
    data_args: DataArguments,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    source: Source | None = None,
    tell: bool = True,
) -> LabelledRows:
    """The rows of a source, or of the calibration table; says on screen which columns they are read from."""
    check_reads_text(model)
    if not type(model).__name__.endswith("ForSequenceClassification") and not says_answers(model):
        raise ValueError(
            f"`label_column` is for models that classify texts and for encoder-decoders, and this is a {type(model).__name__}. "
            "Leave it out, or load a checkpoint with a sequence classification head."
        )
    names = ("calibration_file", "dataset_name", "dataset_config_name", "dataset_split")
    named = dict(zip(names, source or calibration_source(data_args), strict=True)) | {"streaming": data_args.streaming}
    rows = load_labelled(
        named,
        model.config,
        tokenizer,
        label_column=str(data_args.label_column),
        text_column=data_args.text_column,
        text_pair_column=data_args.text_pair_column,
        max_seq_length=length_for(data_args, model),
        answers=says_answers(model),
        # The same number whatever the rows are for, so that what is held out is always the same.
        seed=seed,
        most_rows=data_args.num_calibration_samples + data_args.num_recovery_samples + 5 * (data_args.num_eval_samples or 0),
    )
    if tell:
        print(f"{named['calibration_file'] or named['dataset_name']}: {rows.described()}", file=sys.stderr)
    return rows


def _split_rows(rows: LabelledRows, number: int, seed: int) -> tuple[LabelledRows, LabelledRows]:
    """Holds rows out at random, never more than a fifth of them."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    count = min(number, len(rows) // 5)
    if count == 0:
        raise ValueError(f"{len(rows)} labelled rows are too few to hold any out. Give more, or set `eval_file`.")
    return rows.select(sorted(order[count:])), rows.select(sorted(order[:count]))


def says_answers(model: PreTrainedModel) -> bool:
    """Whether it reads a text and says another, so that its labels are texts and its measure is the loss."""
    return auto_class_of(type(model)) == "AutoModelForSeq2SeqLM"


def metric_for(model: PreTrainedModel, run: RunArguments, metric: Metrics | None) -> Metrics | None:
    """The metric of `metric_of` where the model gives labels, None where it gives text.

    Raises:
        ValueError: a metric is named for a model that gives text.
    """
    if not says_answers(model):
        return metric
    if run.metric is not None:
        raise ValueError(
            f"`metric` `{run.metric}` is for labels, and a `{type(model).__name__}` gives text, which is measured by its loss. "
            "Leave it out."
        )
    return None


def metric_of(run: RunArguments) -> Metrics | None:
    """`compute_metrics` for rows with a `label_column`, by the name in `metric`; None where none is named.

    F1 is the mean over the classes where there are more than two. A regression gets its squared error and correlation instead
    of accuracy or F1.

    Raises:
        ValueError: there is no such metric.
    """
    if run.label_column is None:
        return None
    name = run.metric or "accuracy"
    module = load_metric(name, trust_remote_code=run.trust_remote_code)

    def compute(found: EvalPrediction) -> dict[str, float]:
        logits: Any = found.predictions  # (N, num_labels), or (N, 1) for a regression
        references: Any = found.label_ids
        if references.ndim == 2 and name in ("accuracy", "f1"):  # several labels per row
            return multi_label_figures(logits, references)
        if logits.shape[-1] == 1 and name in ("accuracy", "f1"):  # those of classes would round the values
            return regression_figures(logits[:, 0], references)
        if logits.shape[-1] == 1:
            return module.compute(predictions=logits[:, 0], references=references)
        average = {"average": "macro"} if name == "f1" and logits.shape[-1] > 2 else {}
        return module.compute(predictions=logits.argmax(-1), references=references, **average)

    return compute
