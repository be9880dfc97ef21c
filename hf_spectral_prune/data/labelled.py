"""Labelled text for models that classify sequences: rows of a table, tokenised, with their labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from .sources import load_table, text_column_of


class LabelledRows(Sequence[dict[str, Any]]):
    """Rows with `input_ids`, `attention_mask`, `labels` and, where the tokenizer makes them, `token_type_ids`.

    A row is tokenised when it is asked for, so that a draw from a large table costs no more than one from a small table.
    """

    def __init__(
        self, texts: Dataset, labels: list[int | float], tokenizer: PreTrainedTokenizerBase, max_seq_length: int
    ) -> None:
        self._texts, self._labels, self._tokenizer, self._max_seq_length = texts, labels, tokenizer, max_seq_length

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: Any) -> Any:
        # Tables have nulls where a field was empty.
        texts = [text or "" for text in self._texts[index].values()]
        encoded = self._tokenizer(*texts, truncation=True, max_length=self._max_seq_length)
        return dict(encoded) | {"labels": self._labels[index]}

    def select(self, indices: list[int]) -> LabelledRows:
        """The rows at these places."""
        labels = [self._labels[index] for index in indices]
        return LabelledRows(self._texts.select(indices), labels, self._tokenizer, self._max_seq_length)


def load_labelled(
    source: dict[str, Any],
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    label_column: str,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    max_seq_length: int = 512,
) -> LabelledRows:
    """Reads a table of labelled texts (or pairs of texts) into rows for the model.

    Args:
        source: arguments of `load_table`: a file, or a data set.
        config: of the model; its `label2id` reads labels that are words.

    Raises:
        ValueError: a column that is not there, or a label that is missing or that the model does not have (names the row).
    """
    table = load_table(**source)
    for name in (label_column, text_pair_column):
        if name is not None and name not in table.column_names:
            setting = "label_column" if name == label_column else "text_pair_column"
            raise ValueError(f"`{setting}` is {name!r}, but the data set has no such column: {table.column_names}.")
    columns = [_text_column(table, text_column, label_column, text_pair_column)]
    if text_pair_column is not None:
        columns.append(text_column_of(table, text_pair_column, "text_pair_column"))
    labels = [_label(value, index, label_column, config) for index, value in enumerate(table[label_column])]
    return LabelledRows(table.select_columns(columns), labels, tokenizer, max_seq_length)


def _text_column(table: Dataset, text_column: str | None, *others: str | None) -> str:
    """The text column, which is not one of those with another meaning."""
    return text_column_of(table.select_columns([name for name in table.column_names if name not in others]), text_column)


def _label(value: Any, index: int, label_column: str, config: PreTrainedConfig) -> int | float:
    number_of_labels = config.num_labels or 0
    # Pandas gives NaN where a column of numbers has a gap, and then turns whole numbers into fractions.
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        raise ValueError(f"Row {index} has no label. Fill in its `{label_column}`, or leave the row out.")
    if number_of_labels == 1:
        return float(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    known = {str(name): number for name, number in (config.label2id or {}).items()}
    found = known.get(str(value), value)
    if isinstance(found, str) and found.strip().lstrip("-").isdigit():
        found = int(found)
    if not isinstance(found, int) or not 0 <= found < number_of_labels:
        raise ValueError(
            f"Row {index} has the label {value!r}, but the model has {number_of_labels} labels: {', '.join(sorted(known))} "
            f"or 0 to {number_of_labels - 1}. Correct the data or choose another `label_column`."
        )
    return found
