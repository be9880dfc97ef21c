"""Labelled text for models that classify sequences or answer them: rows of a table, tokenised, with their labels."""

from __future__ import annotations

from collections.abc import Sequence

from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ..utils.types import Json, Row
from ..utils.words import listed, named
from .blocks import tokenise
from .columns import CHAT, text_columns
from .items import table_kinds
from .labels import read_labels
from .sources import load_table, some_rows


class LabelledRows(Sequence[Row]):
    """Rows with `input_ids`, `attention_mask`, `labels` and, where the tokenizer makes them, `token_type_ids`.

    A row is tokenised when it is asked for, so that a draw from a large table costs no more than one from a small table.
    """

    def __init__(self, texts: Dataset, labels: Sequence[object], tokenizer: PreTrainedTokenizerBase, max_seq_length: int) -> None:
        self._texts, self._labels, self._tokenizer, self._max_seq_length = texts, labels, tokenizer, max_seq_length

    def __len__(self) -> int:
        return len(self._labels)

    def described(self) -> str:
        """Which columns of text are read and how the first row begins, in one sentence."""
        columns = self._texts.column_names
        first = next((str(text) for text in self._texts[0].values() if text), "") if len(self) else ""
        what = f"column {listed(columns)}" if len(columns) == 1 else f"the columns {listed(columns)}"
        return f"The text is read from {what}; its first row begins: {' '.join(first[:200].split())[:60]!r}"

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]
        # Tables have nulls where a field was empty.
        texts = [text or "" for text in self._texts[index].values()]
        return tokenise(texts, self._tokenizer, self._max_seq_length) | {"labels": self._labels[index]}

    def select(self, indices: list[int]) -> LabelledRows:
        """The rows at these places."""
        labels = [self._labels[index] for index in indices]
        return LabelledRows(self._texts.select(indices), labels, self._tokenizer, self._max_seq_length)


class _Answers(Sequence[list[int]]):
    """Token ids of what a model should say, each tokenised when it is asked for."""

    def __init__(self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_seq_length: int) -> None:
        self._texts, self._tokenizer, self._max_seq_length = texts, tokenizer, max_seq_length

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> list[int]:  # type: ignore[override]
        found = self._tokenizer(text_target=self._texts[index], truncation=True, max_length=self._max_seq_length)
        return [int(token) for token in found["input_ids"]]


def _answers(table: Dataset, column: str, tokenizer: PreTrainedTokenizerBase, max_seq_length: int) -> _Answers:
    if column not in table.column_names:
        raise ValueError(f"`label_column` is {column!r}, but the data set has no such column: {table.column_names}.")
    texts = list(table[column])
    for index, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(
                f"`label_column` `{column}` is to hold the texts that the model should say, and row {index} has {text!r}. Name a "
                "column with a text in every row."
            )
    return _Answers(texts, tokenizer, max_seq_length)


def load_labelled(
    source: Json,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    label_column: str,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    max_seq_length: int = 512,
    answers: bool = False,
    most_rows: int = 10_000,
    seed: int = 42,
) -> LabelledRows:
    """Reads a table of labelled texts (or pairs of texts) into rows for the model.

    Args:
        source: arguments of `load_table`: a file, or a data set.
        config: of the model; its `label2id` reads labels that have names.
        label_column: see `read_labels`.
        answers: the labels are texts that the model should say.
        most_rows: of a stream, as many are drawn, from the first eight times as many.

    Raises:
        ValueError: a column that is not there, or a label that is missing or that the model does not have (names the row).
    """
    table = some_rows(load_table(**source), most_rows, seed=seed)
    labels = _answers(table, label_column, tokenizer, max_seq_length) if answers else read_labels(table, label_column, config)
    if text_pair_column is not None and text_pair_column not in table.column_names:
        raise ValueError(
            f"`text_pair_column` is {text_pair_column!r}, but the data set has no such column: "
            f"{named(table.column_names, most=8)}."
        )
    columns = [_text_column(table, text_column, *label_column.split(","), label_column, text_pair_column)]
    if text_pair_column is not None:
        columns.append(_string_column(table, text_pair_column, "text_pair_column"))
    return LabelledRows(table.select_columns(columns), labels, tokenizer, max_seq_length)


def rows_of_labelled(table: object, config: PreTrainedConfig, tokenizer: object, max_seq_length: int) -> object:
    """A data set of texts with a `label` each as rows for the model; anything else as it is.

    Packed into blocks as text without labels is, its labels would be lost.

    Raises:
        ValueError: which column holds the text cannot be told; or see `read_labels`.
    """
    if not isinstance(table, Dataset) or "input_ids" in table.column_names or not isinstance(tokenizer, PreTrainedTokenizerBase):
        return table
    label = next((name for name in ("label", "labels") if name in table.column_names), None)
    if label is None:
        return table
    column = _text_column(table, None, label)
    texts = table.select_columns([column])
    try:
        return LabelledRows(texts, read_labels(table, label, config), tokenizer, max_seq_length)
    except ValueError as error:
        raise ValueError(f"{error} If only its text is meant, pass `dataset.select_columns({column!r})`.") from None


def _text_column(table: Dataset, text_column: str | None, *others: str | None) -> str:
    """The text column, which is not one of those with another meaning."""
    return _string_column(table.select_columns([name for name in table.column_names if name not in others]), text_column)


def _string_column(table: Dataset, column: str | None, setting: str = "text_column") -> str:
    kinds = {name: kind for name, kind in table_kinds(table).items() if kind != CHAT}
    [name] = text_columns(kinds, column, setting)[:1]
    return name
