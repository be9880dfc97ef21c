"""Labelled text for models that classify sequences: rows of a table, tokenised, with their labels."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from .sources import load_table, text_column_of


def load_labelled(
    source: dict[str, Any],
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    label_column: str,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    max_seq_length: int = 512,
) -> list[dict[str, Any]]:
    """Reads a table of labelled texts (or pairs of texts) into rows for the model.

    Args:
        source: arguments of `load_table`: a file, or a data set.
        config: of the model; its `label2id` reads labels that are words.

    Returns:
        rows with `input_ids`, `attention_mask`, `labels` and, where the tokenizer makes them, `token_type_ids`.

    Raises:
        ValueError: a column that is not there, or a label that the model does not have (names the row).
    """
    table = load_table(**source)
    for name in (label_column, text_pair_column):
        if name is not None and name not in table.column_names:
            setting = "label_column" if name == label_column else "text_pair_column"
            raise ValueError(f"`{setting}` is {name!r}, but the data set has no such column: {table.column_names}.")
    texts: list[str] = list(table[_text_column(table, text_column, label_column, text_pair_column)])
    pairs = None if text_pair_column is None else list(table[text_pair_column])
    labels = [_label(value, index, config) for index, value in enumerate(table[label_column])]
    encoded = tokenizer(texts, pairs, truncation=True, max_length=max_seq_length)
    return [{name: encoded[name][index] for name in encoded} | {"labels": label} for index, label in enumerate(labels)]


def _text_column(table: Dataset, text_column: str | None, *others: str | None) -> str:
    """The text column, which is not one of those with another meaning."""
    return text_column_of(table.select_columns([name for name in table.column_names if name not in others]), text_column)


def _label(value: Any, index: int, config: PreTrainedConfig) -> int | float:
    number_of_labels = config.num_labels or 0
    if number_of_labels == 1:
        return float(value)
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
