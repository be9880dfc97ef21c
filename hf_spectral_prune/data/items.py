"""What a user gives as data -> its items: texts, tokenised rows or ready batches, none read before it is needed."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pandas
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from .blocks import Texts
from .chats import check_template, is_chat, messages_of, render
from .columns import Reader, column_kinds, text_reader

# Rows that are looked at to tell chats from other lists.
_LOOKED_AT = 20


class Stream:
    """Items of an iterable that has no length, in their order; the first is known before the others are read."""

    def __init__(self, source: Iterable[Any]) -> None:
        self.source, self._items = source, iter(source)
        self.first = next(self._items, None)

    def shuffled(self, seed: int) -> Stream:
        """The same with the shards of an `IterableDataset` in a random order; texts that follow each other still do."""
        if not isinstance(self.source, IterableDataset):
            return self
        # Later versions of `datasets` would mix the rows of several shards.
        has_inputs = "max_buffer_input_shards" in inspect.signature(self.source.shuffle).parameters
        return Stream(self.source.shuffle(seed=seed, buffer_size=1, **({"max_buffer_input_shards": 1} if has_inputs else {})))

    def __iter__(self) -> Iterator[Any]:
        return iter(()) if self.first is None else chain([self.first], self._items)


# What `items_of` gives: rows to draw from, or a stream of them.
Items = Sequence[Any] | Stream


def items_of(source: Any) -> Items:
    """A sequence of items (a `Dataset` of rows), or a `Stream` of a source without a length.

    Raises:
        ValueError: one string, or a dict of splits.
    """
    if isinstance(source, Stream):
        return source
    if isinstance(source, (str, Path)):
        what = "one string" if isinstance(source, str) else f"the path `{source}`"
        raise ValueError(f"`source` is {what}. Give a list of texts, or read a file with `load_texts`.")
    if isinstance(source, pandas.DataFrame):
        source = Dataset.from_pandas(source, preserve_index=False)
    if isinstance(source, Mapping):
        if isinstance(source.get("input_ids"), Tensor):
            return [dict(source)]  # one batch
        raise ValueError(f"`source` is a dict with {sorted(source)}. Give one split of the data set, or a list of batches.")
    if isinstance(source, Dataset):
        return source.with_format(None)
    if isinstance(source, DataLoader):
        return list(source)
    # Rows that are made when they are asked for stay so: most of them are not drawn.
    return source if hasattr(source, "__len__") and hasattr(source, "__getitem__") else Stream(source)


def first_of(items: Items) -> Any:
    """The first item.

    Raises:
        ValueError: there is none.
    """
    first = items.first if isinstance(items, Stream) else items[0] if len(items) else None
    if first is None:
        raise ValueError("The calibration source is empty. Give at least one text or batch.")
    return first


def is_row(item: object) -> bool:
    """One tokenised sequence, as opposed to a batch of them."""
    ids = item.get("input_ids") if isinstance(item, Mapping) else item if isinstance(item, Tensor) else None
    # Multiple choice has batches (B, C, T).
    return ids is not None and not (isinstance(ids, Tensor) and ids.dim() >= 2)


def is_text(item: object) -> bool:
    """Whether an item is a text, a chat, or a row of a table that was not tokenised."""
    if isinstance(item, Mapping):
        return "input_ids" not in item and not all(isinstance(value, Tensor) for value in item.values())
    return isinstance(item, str) or is_chat(item)


def texts_of(items: Items, tokenizer: PreTrainedTokenizerBase | None, text_column: str | None = None) -> Texts:
    """The texts of strings, chats or rows.

    Raises:
        ValueError: which column holds the text cannot be told, or a chat has no template.
    """
    first = first_of(items)
    if isinstance(first, Mapping):
        reader = _reader(items, tokenizer, text_column)
        plain = isinstance(items, Dataset) and not reader.rendered
        rows = items.select_columns(list(reader.columns)) if isinstance(items, Dataset) else items
        return Texts(rows, reader.read, reader.columns[0] if plain else None, reader.rendered)
    if is_chat(first):
        check_template(tokenizer, "The list")
        return Texts(items, lambda chat: render(messages_of(chat) if chat else [], tokenizer), rendered=True)
    return Texts(items, _text)


def _text(item: object) -> str:
    if not isinstance(item, str):
        raise ValueError(f"An item of the calibration texts is a {type(item).__name__}. Give strings only.")
    return item


def _reader(items: Items, tokenizer: PreTrainedTokenizerBase | None, text_column: str | None) -> Reader:
    return text_reader(table_kinds(items), tokenizer, text_column)


def table_kinds(items: Items) -> dict[str, str]:
    """{column: kind} of a data set, a list of rows or a stream of them; of a stream, the first row alone is read."""
    if isinstance(items, Stream):
        features = items.source.features if isinstance(items.source, IterableDataset) else None
        return column_kinds([dict(items.first or {})], features)
    rows = [row for index in range(min(len(items), _LOOKED_AT)) if isinstance(row := items[index], Mapping)]
    return column_kinds(rows, items.features if isinstance(items, Dataset) else None)


def described(source: object, tokenizer: PreTrainedTokenizerBase | None, text_column: str | None = None) -> str | None:
    """Which column of a table is read and how its first row begins, in one sentence; None for texts without columns.

    Raises:
        ValueError: see `texts_of`.
    """
    items = items_of(source)
    first = first_of(items)
    if not (isinstance(first, Mapping) and is_text(first)):
        return None
    reader = _reader(items, tokenizer, text_column)
    rows = items if isinstance(items, Stream) else (items[index] for index in range(min(len(items), _LOOKED_AT)))
    begins = next((text for text in map(reader.read, islice(rows, _LOOKED_AT)) if text.strip()), "")
    shown = " ".join(begins[:200].split())
    return f"The text is read from {reader.what}; its first row begins: {shown[:60]!r}"
