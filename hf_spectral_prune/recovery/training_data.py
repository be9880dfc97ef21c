"""The rows of a recovery, made and looked at before anything is cut: trouble with them would cost the whole run."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import replace
from itertools import islice
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..arguments import ModelArguments, SpectralPruningArguments
from ..data.for_model import read_data
from ..data.rows import causal_collator, is_raw_text, training_rows
from ..models.families import max_tokens
from ..models.families.groups import is_vision
from ..models.loading import load_tokenizer
from ..models.losses import check_targets, predicts_next_token
from ..utils.types import Collator, ProcessingClass

# Rows that are tried; what all rows have in common shows in a few.
_TRIED = 8
_MOST_TOKENS = 512  # a row of raw text


def length_of_rows(model: PreTrainedModel) -> int:
    """Tokens in a row that is made of raw text."""
    return min(_MOST_TOKENS, max_tokens(model.config) or _MOST_TOKENS)


def tokenizer_for(model: PreTrainedModel, given: ProcessingClass | None, *sources: object) -> ProcessingClass | None:
    """The processing class that was given; without one, that of the folder the model came from, where raw text needs it."""
    source = model.config._name_or_path
    if given is None and source and any(map(is_raw_text, sources)):
        given = load_tokenizer(ModelArguments(model_name_or_path=source))
    return given


def checked_rows(
    model: PreTrainedModel,
    train_dataset: object,
    processing_class: ProcessingClass | None,
    args: SpectralPruningArguments,
    *,
    data_collator: Collator | None = None,
    is_judged: bool = True,
    needs_targets: bool = True,
) -> object:
    """Rows to train on, of which the first few were tried.

    Args:
        is_judged: there is held-out data besides; else some of the rows are to be held out.
        needs_targets: the loss is the model's own.

    Raises:
        ValueError: there are none, or too few to hold some out; or see `data.rows.training_rows`, `data.for_model.read_data` and
            `models.losses.check_targets`.
    """
    processing_class = tokenizer_for(model, processing_class, train_dataset)
    rows = training_rows(train_dataset, processing_class, length_of_rows(model))
    if isinstance(rows, Sized) and len(rows) < (1 if is_judged else 2):
        what = "no rows" if len(rows) == 0 else "one row, and none can be held out to judge by"
        raise ValueError(f"`train_dataset` has {what}. Give more{'' if is_judged else ', or pass `eval_dataset`'}.")
    if is_vision(model):
        return rows
    first = _first_of(rows)
    options = replace(args, num_calibration_samples=max(1, len(first)))
    most = max_tokens(model.config)
    for row in first:  # the collator of calibration data would cut them off; the training does not
        length = len(row["input_ids"]) if isinstance(row, Mapping) and "input_ids" in row else 0
        if most is not None and length > most:
            raise ValueError(
                f"A row of `train_dataset` has {length} tokens, and the model takes at most {most}. Cut the rows at that length."
            )
    for batch in read_data(first, processing_class, model, options, "train_dataset", data_collator):
        if needs_targets:
            check_targets(model, batch)
    if data_collator is None and predicts_next_token(model):
        tokenizer = processing_class if isinstance(processing_class, PreTrainedTokenizerBase) else None
        causal_collator(tokenizer)(list(first))  # as the training will: batches are no rows
    return rows


def _first_of(rows: Any) -> Any:
    if isinstance(rows, Dataset):
        return rows.select(range(min(_TRIED, len(rows))))
    if not hasattr(rows, "__len__"):
        return list(islice(rows, _TRIED))
    return [rows[index] for index in range(min(_TRIED, len(rows)))]  # not iterated: torch's data sets need not say where they end
