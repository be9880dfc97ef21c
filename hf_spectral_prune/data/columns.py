"""Which columns of a data set hold its text, and how a row of them reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ..utils.types import Row
from ..utils.words import named
from .chats import as_messages, check_template, is_chat, messages_of, render

# What columns of text are usually called; another name says too little, though it be the only one of strings (`id`, `source`).
_TEXT, _OTHERS = "text", ("sentence", "content", "document", "article", "story", "review", "passage", "code", "sequence")
_CHATS = ("messages", "conversations", "conversation", "chat")
_PAIRS = (("prompt", "completion"), ("prompt", "chosen"))
STRING, CHAT = "string", "chat"


@dataclass(frozen=True)
class Reader:
    """How a row becomes text.

    Attributes:
        columns: those that are read.
        read: row -> text.
        rendered: whether a chat template wrote it, special tokens included.
    """

    columns: tuple[str, ...]
    read: Callable[[Row], str]
    rendered: bool = False

    @property
    def what(self) -> str:
        """The columns in words."""
        names = " and ".join(f"`{name}`" for name in self.columns)
        return f"column{'s' if len(self.columns) > 1 else ''} {names}{' (by the chat template)' if self.rendered else ''}"


def text_reader(
    kinds: Mapping[str, str],
    tokenizer: PreTrainedTokenizerBase | None,
    text_column: str | None = None,
    setting: str = "text_column",
) -> Reader:
    """The reader of a table's text or chats.

    Without `text_column`, the text is in `text`; else chats are in `messages` (or `conversations`, ...), in `prompt` and
    `completion`, or in `prompt` and `chosen`; else the only column of strings has one of the field's usual names.

    Args:
        kinds: {column: kind}, as `column_kinds` gives them.
        setting: what errors call `text_column`.

    Raises:
        ValueError: the column is not there, or none stands out (lists those of strings); chats without a template.
    """
    columns = text_columns(kinds, text_column, setting)
    if len(columns) == 1 and kinds[columns[0]] == STRING:
        [name] = columns
        return Reader(columns, lambda row: row[name] or "")  # tables have nulls where a field was empty
    check_template(tokenizer, " and ".join(f"`{name}`" for name in columns))
    if len(columns) == 1:
        [name] = columns
        return Reader(columns, lambda row: render(messages_of(row[name]) if row[name] else [], tokenizer), rendered=True)
    question, answer = columns

    def read(row: Row) -> str:
        return render(as_messages(row[question], "user") + as_messages(row[answer], "assistant"), tokenizer)

    return Reader(columns, read, rendered=True)


def text_columns(kinds: Mapping[str, str], text_column: str | None = None, setting: str = "text_column") -> tuple[str, ...]:
    """The columns that `text_reader` reads."""
    strings = [name for name, kind in kinds.items() if kind == STRING]
    if text_column is not None:
        if kinds.get(text_column) not in (STRING, CHAT):
            raise ValueError(
                f"`{setting}` is {text_column!r}, but the data set has no such column of strings: {named(kinds, most=8)}."
            )
        return (text_column,)
    by_name = {name.casefold(): name for name in reversed(list(kinds))}
    if by_name.get(_TEXT) in strings:
        return (by_name[_TEXT],)
    if chats := [by_name[name] for name in _CHATS if kinds.get(by_name.get(name, "")) == CHAT]:
        return (chats[0],)
    for first, second in _PAIRS:
        if kinds.get(first) == kinds.get(second) and kinds.get(first) in (STRING, CHAT):
            return first, second
    if kinds.get("chosen") == CHAT or ("chosen" in strings and {"chosen", "rejected"} >= set(strings)):
        return ("chosen",)  # the prompt is its beginning
    if len(strings) == 1 and strings[0].casefold() in _OTHERS:
        return (strings[0],)
    # Of a table whose first row is no header, the names are texts.
    listed = named(strings, most=8) or f"none (the columns are {named(kinds, most=8)})"
    raise ValueError(f"Which column holds the text? Set `{setting}`. Columns of strings: {listed}.")


def column_kinds(rows: Sequence[Mapping[str, object]], features: Mapping[str, object] | None = None) -> dict[str, str]:
    """{column: "string", "chat" or "other"} by the first rows, and by the features where a table has them."""
    names = list(features or {}) or list(dict.fromkeys(name for row in rows for name in row))
    kinds = {}
    for name in names:
        values = [row[name] for row in rows if row.get(name) is not None]
        dtype = getattr((features or {}).get(name), "dtype", "")
        if dtype in ("string", "large_string") or (values and all(isinstance(value, str) for value in values)):
            kinds[name] = STRING
        else:
            filled = [value for value in values if not isinstance(value, (list, tuple)) or value]
            kinds[name] = CHAT if filled and all(map(is_chat, filled)) else "other"
    return kinds
