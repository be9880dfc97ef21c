"""Calibration text: reads a source, cuts it into batches of token ids and states the protocol that made them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import pyarrow.compute
import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..models.packing import Batch, documents_apart, is_packed
from .sources import text_column_of

logger = logging.get_logger(__name__)

# Columns of a tokenised data set that go to the model, with the value that pads each; other columns are left behind.
_PADDING = {"input_ids": 0, "attention_mask": 0, "token_type_ids": 0, "position_ids": 0, "labels": -100}
# Long text is tokenised in pieces of this size: a tokenizer keeps some hundred bytes a token while it works.
_PIECE_CHARACTERS = 2**16
_PIECES_AT_ONCE = 8
# A draw of blocks from up to this much text is made of all its blocks; of more text, only passages drawn at random are tokenised.
# The limit does not hang on how many blocks are wanted, so that a larger draw (to recover on) has blocks of the same bounds.
_WHOLE_CHARACTERS = 2**24
# A passage has about eight blocks, and eight times the blocks that are wanted are tokenised: about a passage for every block.
_PASSAGE_CHARACTERS_PER_TOKEN = 32
_SPARE_BLOCKS = 8


@dataclass(frozen=True)
class CalibrationData:
    """Batches ready for the model, and all it takes to make them again. Iterating it gives the batches.

    Attributes:
        batches: dicts of CPU tensors, `input_ids` and `attention_mask` (B, T) int64, and any further model inputs. Batches of
            packed rows, whose `position_ids` begin again, have no mask: see `models.packing.documents_apart`.
        protocol: JSON-serialisable statement of source, settings and sizes, for the report; what it lacks of source and sizes
            is filled in.
    """

    batches: tuple[Batch, ...]
    protocol: dict[str, Any]

    def __post_init__(self) -> None:
        apart = tuple(part for batch in self.batches for part in documents_apart(batch))
        object.__setattr__(self, "batches", apart)
        stated = {"source": "unnamed", "num_sequences": self.num_sequences, "num_tokens": self.num_tokens} | self.protocol
        object.__setattr__(self, "protocol", stated)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding; 0 for batches without `input_ids` (images)."""
        return sum(_count_tokens(batch) for batch in self.batches)

    @property
    def num_sequences(self) -> int:
        """Rows of all batches together."""
        return sum(next(iter(batch.values())).shape[0] for batch in self.batches)


def _count_tokens(batch: Batch) -> int:
    if "input_ids" not in batch:
        return 0
    return int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["input_ids"].numel()


def build_calibration(
    source: Iterable[Any],
    processing_class: PreTrainedTokenizerBase | None = None,
    *,
    num_samples: int = 128,
    max_seq_length: int = 512,
    batch_size: int = 8,
    packing: bool = True,
    joiner: str = "\n\n",
    shuffle: bool = True,
    seed: int = 42,
    text_column: str | None = None,
    max_position_embeddings: int | None = None,
    name: str = "unnamed",
) -> CalibrationData:
    """Cuts a source into batches of at most `max_seq_length` tokens a row.

    Args:
        source: a list of texts; a `datasets.Dataset` with a text column; tokenised rows (a `Dataset` or list of dicts
            with one-dimensional `input_ids`), truncated and padded but not packed; or ready batches (a `DataLoader`, a
            list of dicts of tensors, or of `input_ids` tensors (B, T)), which are all used, unchanged.
        processing_class: the tokenizer; needed for raw text only. Tokenised rows take their padding from it if given.
        packing: True joins all texts by `joiner` into one token stream without special tokens and cuts it into full
            blocks; the rest at the end is dropped. False gives each text that is not blank a row of its own, with the
            tokenizer's special tokens. The stream is tokenised in pieces of 65,536 characters, cut at line breaks if
            there are any: at a cut, and only there, a token may differ from tokenising all at once.
        shuffle: True takes `num_samples` rows at random by `seed`, without replacement and in the order of the text;
            False takes the first ones, and then tokenises no more text than it needs. Of text with more than 16 million
            characters, packed blocks are drawn from passages drawn at random, and eight times what is needed is tokenised.
        max_position_embeddings: the model's limit; a longer `max_seq_length` is an error.
        name: what the protocol calls the source.

    Raises:
        ValueError: no tokenizer for raw text, less text than one block, no rows, a setting or a source out of range.
    """
    for setting, value in {
        "num_samples": num_samples,
        "max_seq_length": max_seq_length,
        "batch_size": batch_size,
    }.items():
        if value < 1:
            raise ValueError(f"`{setting}` is {value}, but must be at least 1.")
    items: Any = source.with_format(None) if isinstance(source, Dataset) else _as_list(source)
    if len(items) == 0:
        raise ValueError("The calibration source is empty. Give at least one text or batch.")
    is_text = "input_ids" not in items.column_names if isinstance(items, Dataset) else isinstance(items[0], str)
    if not is_text and not _is_row(items[0]):
        return _ready(items, name, max_position_embeddings)
    check_positions(max_seq_length, max_position_embeddings)
    choice = _Choice(num_samples, max_seq_length, shuffle, seed)
    if not is_text:
        rows = [tokenised_row(items[index], max_seq_length) for index in choice.indices(len(items))]
    elif processing_class is None:
        raise ValueError("`processing_class` is missing: raw text needs a tokenizer. Give one, or tokenised data.")
    else:
        texts = _Texts(items, text_column)
        if packing:
            rows = _blocks(texts, processing_class, joiner, choice)
        else:
            rows = _text_rows(texts, processing_class, choice)
    rows = [row for row in rows if len(row["input_ids"])]
    if not rows:
        raise ValueError("The calibration source has no tokens at all. Give text that is not empty.")
    if len(rows) < num_samples:
        logger.warning(f"`{name}` gives {len(rows)} sequences, which is less than `num_samples` ({num_samples}): all are used.")
    batches = [collate_rows(part, processing_class) for part in _parts(rows, batch_size)]
    protocol = {
        "source": name,
        "split": str(source.split) if isinstance(source, Dataset) and source.split is not None else None,
        "joiner": joiner if is_text and packing else None,
        "packing": is_text and packing,
        "max_seq_length": max_seq_length,
        "num_samples": num_samples,
        "shuffle": shuffle,
        "seed": seed if shuffle else None,
    }
    return with_sizes(batches, protocol)


@dataclass(frozen=True)
class _Choice:
    """How many rows of which length to take, and which ones."""

    num_samples: int
    max_seq_length: int
    shuffle: bool
    seed: int

    def indices(self, available: int) -> list[int]:
        if not self.shuffle or available <= self.num_samples:
            return list(range(min(available, self.num_samples)))
        order = torch.randperm(available, generator=torch.Generator().manual_seed(self.seed))
        return sorted(order[: self.num_samples].tolist())


def with_sizes(batches: Sequence[Batch], protocol: dict[str, Any]) -> CalibrationData:
    bare = CalibrationData(tuple(batches), protocol)
    sizes = {"num_sequences": bare.num_sequences, "num_tokens": bare.num_tokens}
    return CalibrationData(bare.batches, protocol | sizes)


def _ready(items: Sequence[Any], name: str, max_position_embeddings: int | None) -> CalibrationData:
    batches = [_ready_batch(item) for item in items]
    widest = max((batch["input_ids"].shape[-1] for batch in batches if "input_ids" in batch), default=0)
    check_positions(widest, max_position_embeddings)
    unknown = ("split", "joiner", "packing", "num_samples", "shuffle", "seed")
    return with_sizes(batches, {"source": name, "max_seq_length": widest} | dict.fromkeys(unknown))


def _as_list(source: Iterable[Any]) -> Sequence[Any]:
    if isinstance(source, str):
        raise ValueError("`source` is one string. Give a list of texts, or read a file with `load_texts`.")
    if isinstance(source, Mapping):
        raise ValueError(f"`source` is a dict with {sorted(source)}. Give one split of the data set, or a list of batches.")
    # Rows that are made when they are asked for stay so: most of them are not drawn.
    return source if isinstance(source, Sequence) else list(source)


def check_positions(length: int, max_position_embeddings: int | None) -> None:
    if max_position_embeddings is not None and length > max_position_embeddings:
        limit = f"but the model takes at most {max_position_embeddings} positions"
        raise ValueError(f"`max_seq_length` is {length}, {limit}. Lower `max_seq_length`.")


def _is_row(item: Any) -> bool:
    """One tokenised sequence, as opposed to a batch of them."""
    ids = item.get("input_ids") if isinstance(item, Mapping) else None
    # Multiple choice has batches (B, C, T).
    return ids is not None and not (isinstance(ids, Tensor) and ids.dim() >= 2)


def _ready_batch(item: Any) -> Batch:
    if isinstance(item, Tensor):
        return {"input_ids": item, "attention_mask": torch.ones_like(item)}
    if isinstance(item, Mapping) and item and all(isinstance(value, Tensor) for value in item.values()):
        return dict(item)
    raise ValueError(
        f"The calibration source holds a {type(item).__name__}, not a text, a tokenised row or a batch of tensors. "
        "Give strings, or dicts with `input_ids`."
    )


class _Texts:
    """The texts of a list or of a data set's column, in their order or by their places."""

    def __init__(self, items: Any, text_column: str | None) -> None:
        self.items = items
        self.column: str | None = None
        if isinstance(items, Dataset):
            self.column = text_column_of(items, text_column)
            self.items = items.select_columns([self.column])

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[str]:
        if self.column is None:
            for index, item in enumerate(self.items):
                if not isinstance(item, str):
                    raise ValueError(f"Item {index} of the calibration texts is a {type(item).__name__}. Give strings only.")
                yield item
            return
        for rows in self.items.iter(batch_size=1000):
            # Tables read from JSON and CSV have nulls where a field was empty.
            yield from (text or "" for text in rows[self.column])

    def part(self, first: int, end: int) -> list[str]:
        """The texts from place `first` to before `end`."""
        if self.column is None:
            return list(self.items[first:end])
        return [text or "" for text in self.items[first:end][self.column]]

    def lengths(self) -> Tensor:
        """Characters of every text (N,)."""
        if self.column is None:
            return torch.tensor([len(text) for text in self])
        # Arrow counts without making a Python string of every text.
        tables = self.items.with_format("arrow").iter(batch_size=10_000)
        counts = (pyarrow.compute.utf8_length(table[self.column]).fill_null(0) for table in tables)
        return torch.cat([torch.tensor(count.to_numpy(), dtype=torch.int64) for count in counts])


def _pieces(texts: Iterable[str], joiner: str) -> Iterator[str]:
    """Yields the parts of `joiner.join(texts)`, in order and none longer than a piece, without building it whole."""
    waiting: list[str] = []
    length = 0
    for index, text in enumerate(texts):
        text = joiner + text if index else text
        start = 0
        while length + len(text) - start > _PIECE_CHARACTERS:
            end = start + _PIECE_CHARACTERS - length
            cut = text.rfind("\n", start, end) + 1 or end
            yield "".join(waiting) + text[start:cut]
            waiting, length, start = [], 0, cut
        waiting.append(text[start:])
        length += len(text) - start
    yield "".join(waiting)


def _tokenise_stream(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, joiner: str, limit: int | None) -> Tensor:
    """Token ids (N,) of the joined texts; stops soon after `limit` tokens."""
    pieces = _pieces(texts, joiner)
    parts: list[Tensor] = []
    count = 0
    with tqdm(desc="Tokenising", unit=" characters", unit_scale=True, delay=1, leave=False) as bar:
        while (limit is None or count < limit) and (some := list(islice(pieces, _PIECES_AT_ONCE))):
            # `verbose=False`: no warning that the text is longer than the model's window, for it is cut later.
            for ids in tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]:
                parts.append(torch.tensor(ids, dtype=torch.int64))
                count += len(ids)
            bar.update(sum(map(len, some)))
    return torch.cat(parts)


def _blocks(texts: _Texts, tokenizer: PreTrainedTokenizerBase, joiner: str, choice: _Choice) -> list[Batch]:
    length = choice.max_seq_length
    needed = choice.num_samples * length
    if not choice.shuffle:
        stream = _tokenise_stream(texts, tokenizer, joiner, needed)
    elif int((lengths := texts.lengths()).sum()) <= _WHOLE_CHARACTERS:
        stream = _tokenise_stream(texts, tokenizer, joiner, None)
    else:
        passages = _drawn_passages(texts, lengths, joiner, _PASSAGE_CHARACTERS_PER_TOKEN * length, choice.seed)
        stream = _tokenise_stream(passages, tokenizer, joiner, _SPARE_BLOCKS * needed)
    available = len(stream) // length
    if available == 0:
        raise ValueError(
            f"`max_seq_length` is {length} but the calibration text has only {len(stream)} tokens. "
            "Give more text or lower `max_seq_length`."
        )
    return [{"input_ids": stream[index * length : (index + 1) * length]} for index in choice.indices(available)]


def _drawn_passages(texts: _Texts, lengths: Tensor, joiner: str, width: int, seed: int) -> Iterator[str]:
    """All of the texts, in passages in an order that the seed draws. A larger draw begins like a smaller one."""
    ends = lengths.cumsum(0)
    number = -(-int(ends[-1]) // width)
    for index in torch.randperm(number, generator=torch.Generator().manual_seed(seed)).tolist():
        if passage := _passage(texts, ends, joiner, width, index):
            yield passage


def _passage(texts: _Texts, ends: Tensor, joiner: str, width: int, index: int) -> str:
    """Passage `index` of about `width` characters; neighbouring texts stay together, as they may be parts of one."""
    first, start = _passage_bound(texts, ends, width, index)
    last, end = _passage_bound(texts, ends, width, index + 1)
    parts = texts.part(first, last + 1 if end else last)
    if end:
        parts[-1] = parts[-1][:end]
    if parts:
        parts[0] = parts[0][start:]
    return joiner.join(parts)


def _passage_bound(texts: _Texts, ends: Tensor, width: int, index: int) -> tuple[int, int]:
    """Where passage `index` begins: the place of a text, and a character in it, moved back to a line break or its start."""
    at = index * width
    if at >= int(ends[-1]):
        return len(texts), 0
    row = int(torch.searchsorted(ends, at, right=True))
    [text] = texts.part(row, row + 1)
    within = at - (int(ends[row]) - len(text))
    start = text.rfind("\n", max(0, within - width), within) + 1
    return row, start or (within if within > width else 0)


def _text_rows(texts: _Texts, tokenizer: PreTrainedTokenizerBase, choice: _Choice) -> list[Batch]:
    filled = [index for index, text in enumerate(texts) if text.strip()]
    bar = tqdm(choice.indices(len(filled)), desc="Tokenising", unit=" texts", delay=1, leave=False)
    chosen = (texts.part(filled[index], filled[index] + 1)[0] for index in bar)
    encoded = (tokenizer(text, truncation=True, max_length=choice.max_seq_length) for text in chosen)
    return [tokenised_row(row, choice.max_seq_length) for row in encoded]


def tokenised_row(row: Mapping[str, Any], length: int | None = None) -> Batch:
    """The model's inputs of one tokenised row as tensors, cut at `length` tokens."""
    # `label` is what most data sets call it and `labels` what models take; transformers' own collators rename it too.
    named = {"labels" if key == "label" else key: value for key, value in row.items()}
    try:
        tensors = {key: torch.as_tensor(value) for key, value in named.items() if key in _PADDING}
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"A tokenised row holds something else than numbers ({error}). Give lists of whole numbers.") from None
    if "seq_lengths" in row and "position_ids" not in row:  # how TRL says where the documents of a packed row end
        tensors["position_ids"] = torch.cat([torch.arange(count) for count in row["seq_lengths"]])
    if tensors["input_ids"].dim() != 1:
        raise ValueError("A tokenised row has nested `input_ids`. Give one-dimensional rows, or batches as tensors (B, T).")
    size = len(tensors["input_ids"])
    tensors = {key: value if value.is_floating_point() else value.long() for key, value in tensors.items()}
    cut = {key: value[:length] if _is_per_token(value, size) else value for key, value in tensors.items()}
    return unpadded_row(cut) if _is_packed(cut) else cut


def _is_per_token(value: Tensor, size: int) -> bool:
    """Tells labels of tokens from a label of the whole row."""
    return value.dim() == 1 and len(value) == size


def _parts(rows: list[Batch], size: int) -> Iterator[list[Batch]]:
    """Rows that make a batch together; those of packed rows are equally long, as such a batch has no mask for padding."""
    if not any(map(_is_packed, rows)):
        yield from (rows[at : at + size] for at in range(0, len(rows), size))
        return
    for _, equal in groupby(rows, lambda row: len(row["input_ids"])):
        while part := list(islice(equal, size)):
            yield part


def _is_packed(row: Batch) -> bool:
    return is_packed({name: value[None] for name, value in row.items()})


def collate_rows(rows: list[Batch], tokenizer: PreTrainedTokenizerBase | None = None) -> Batch:
    """Rows -> a batch of tensors (B, T), padded on the tokenizer's side (right without one) and masked there.

    A batch with packed rows has no mask, for transformers would take it as leave to join their documents; padding is then told
    by its position ids, which make every such token a document of its own.
    """
    widest = max(len(row["input_ids"]) for row in rows)
    left = tokenizer is not None and tokenizer.padding_side == "left"
    pad_ids = (tokenizer.pad_token_id, tokenizer.eos_token_id) if tokenizer is not None else ()
    padding = _PADDING | {"input_ids": next((pad for pad in pad_ids if pad is not None), 0)}
    batch: Batch = {}
    rows = [{"attention_mask": torch.ones_like(row["input_ids"])} | row for row in rows]
    for key in (key for key in _PADDING if key in rows[0]):
        values = [row[key] for row in rows]
        if all(_is_per_token(value, len(row["input_ids"])) for value, row in zip(values, rows, strict=True)):
            values = [_pad(value, widest, padding[key], left) for value in values]
        batch[key] = torch.stack(values)
    if any(map(_is_packed, rows)):
        del batch["attention_mask"]
    return batch


def _pad(value: Tensor, width: int, padding: int, left: bool) -> Tensor:
    missing = width - len(value)
    return torch.nn.functional.pad(value, (missing, 0) if left else (0, missing), value=padding)


def unpadded_row(row: Batch) -> Batch:
    """A row of a batch without its padding, so that rows of differently padded batches can be compared."""
    if "attention_mask" not in row:
        return row
    real = row["attention_mask"].bool()
    return {key: value[real] if _is_per_token(value, len(real)) else value for key, value in row.items()}
