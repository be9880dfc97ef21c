"""Calibration text: reads a source, cuts it into batches of token ids and states the protocol that made them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..models.losses import num_rows
from ..models.packing import Batch, documents_apart, is_packed
from ..utils.digests import data_digest
from ..utils.types import Json, Row
from .blocks import Choice, Texts, blocks, first_token, text_rows
from .items import Stream, first_of, is_row, is_text, items_of, texts_of

logger = logging.get_logger(__name__)

# Columns of a tokenised data set that go to the model, with the value that pads each; other columns are left behind.
_PADDING = {"input_ids": 0, "attention_mask": 0, "token_type_ids": 0, "position_ids": 0, "labels": -100}
_PADDING |= {"start_positions": 0, "end_positions": 0}  # one number per row, which is not padded: where an answer is
# How TRL says which tokens of a row are answers to learn, before its collator makes labels of them.
TARGET_MASKS = ("completion_mask", "assistant_masks")


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
    protocol: Json

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
    def digest(self) -> str:
        """Hash of the rows without their padding: the same for the same rows, whatever the batches."""
        rows = ({name: value[index] for name, value in batch.items()} for batch in self for index in range(num_rows(batch)))
        return data_digest(map(unpadded_row, rows))

    @property
    def num_sequences(self) -> int:
        """Rows of all batches together."""
        return sum(next(iter(batch.values())).shape[0] for batch in self.batches)


def _count_tokens(batch: Batch) -> int:
    if "input_ids" not in batch:
        return 0
    return int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["input_ids"].numel()


def build_calibration(
    source: Iterable[object],
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
        source: a list of texts or of chats (lists of messages); a table with a column of text or of chats (a `datasets.Dataset`,
            a list of dicts); tokenised rows (a `Dataset` or list of dicts with one-dimensional `input_ids`), truncated and
            padded but not packed; or ready batches (a `DataLoader`, a list of dicts of tensors, or of `input_ids` tensors
            (B, T)), which are all used, unchanged. Chats are written by the tokenizer's chat template.
        processing_class: the tokenizer; needed for raw text only. Tokenised rows take their padding from it if given.
        packing: True joins all texts by `joiner` into one token stream without special tokens and cuts it into full
            blocks; the rest at the end is dropped. False gives each text that is not blank a row of its own, with the
            tokenizer's special tokens. The stream is tokenised in pieces of 65,536 characters, cut at line breaks if
            there are any: at a cut, and only there, a token may differ from tokenising all at once. See `blocks.first_token`.
        shuffle: True takes `num_samples` rows at random by `seed`, without replacement and in the order of the text;
            False takes the first ones, and then tokenises no more text than it needs. Of text with more than 16 million
            characters, packed blocks are drawn from passages drawn at random, and eight times what is needed is tokenised.
            Chats are drawn one by one. Of a source without a length (an `IterableDataset`, whose shards are taken in random
            order, or a generator) they are drawn from the first eight times as many rows, and no more are read.
        text_column: column of the text or of the chats; see `columns.text_reader` for what goes without it.
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
    items = items_of(source)
    first = first_of(items)
    raw = is_text(first)
    if not raw and not is_row(first):
        return _ready(items, name, max_position_embeddings)
    check_positions(max_seq_length, max_position_embeddings)
    if shuffle and isinstance(items, Stream):
        items = items.shuffled(seed)
    choice = Choice(num_samples, max_seq_length, shuffle, seed)
    if raw:
        rows, joiner = _text_rows(texts_of(items, processing_class, text_column), processing_class, packing, joiner, choice)
    else:
        found = choice.of_stream(items) if isinstance(items, Stream) else map(items.__getitem__, choice.indices(len(items)))
        rows = [tokenised_row(row, max_seq_length) for row in found]
    rows = [row for row in rows if len(row["input_ids"])]
    if not rows:
        raise ValueError("The calibration source has no tokens at all. Give text that is not empty.")
    if len(rows) < num_samples:
        logger.warning(f"`{name}` has {len(rows)} sequences, and up to {num_samples} were asked for: all are used.")
    batches = batches_of(rows, batch_size, processing_class)
    protocol = {
        "source": name,
        "split": str(source.split) if isinstance(source, Dataset) and source.split is not None else None,
        "joiner": joiner if raw and packing else None,
        "packing": raw and packing,
        "max_seq_length": max_seq_length,
        "num_samples": num_samples,
        "shuffle": shuffle,
        "seed": seed if shuffle else None,
        "num_texts": len(items) if raw and not isinstance(items, Stream) else None,
    }
    if raw and packing and processing_class is not None and (token := first_token(processing_class)) is not None:
        protocol["first_token"] = token
    return with_sizes(batches, protocol)


def _text_rows(
    texts: Texts, tokenizer: PreTrainedTokenizerBase | None, packing: bool, joiner: str, choice: Choice
) -> tuple[list[Batch], str]:
    """Rows of token ids, and what joins the texts: nothing between chats, whose template ends them."""
    if tokenizer is None:
        raise ValueError("`processing_class` is missing: raw text needs a tokenizer. Give one, or tokenised data.")
    joiner = "" if texts.rendered else joiner
    if packing:
        return blocks(texts, tokenizer, joiner, choice), joiner
    return [tokenised_row(row, choice.max_seq_length) for row in text_rows(texts, tokenizer, choice)], joiner


def with_sizes(batches: Sequence[Batch], protocol: Json) -> CalibrationData:
    bare = CalibrationData(tuple(batches), protocol)
    sizes = {"num_sequences": bare.num_sequences, "num_tokens": bare.num_tokens}
    return CalibrationData(bare.batches, protocol | sizes)


def _ready(items: Iterable[object], name: str, max_position_embeddings: int | None) -> CalibrationData:
    batches = [_ready_batch(item) for item in items]
    widest = max((batch["input_ids"].shape[-1] for batch in batches if "input_ids" in batch), default=0)
    check_positions(widest, max_position_embeddings)
    unknown = ("split", "joiner", "packing", "num_samples", "shuffle", "seed")
    return with_sizes(batches, {"source": name, "max_seq_length": widest} | dict.fromkeys(unknown))


def check_positions(length: int, max_position_embeddings: int | None) -> None:
    if max_position_embeddings is not None and length > max_position_embeddings:
        limit = f"but the model takes at most {max_position_embeddings} positions"
        raise ValueError(f"`max_seq_length` is {length}, {limit}. Lower `max_seq_length`.")


def _ready_batch(item: Any) -> Batch:
    if isinstance(item, Tensor):
        return {"input_ids": item, "attention_mask": torch.ones_like(item)}
    tensors = {name: value for name, value in item.items() if isinstance(value, Tensor)} if isinstance(item, Mapping) else {}
    # A `DataLoader` over a data set with a column of strings gives those, too.
    if tensors and ("input_ids" in tensors or len(tensors) == len(item)):
        return _checked_batch(tensors)
    raise ValueError(
        f"The calibration source holds a {type(item).__name__}, not a text, a tokenised row or a batch of tensors. "
        "Give strings, or dicts with `input_ids`."
    )


def _checked_batch(batch: Batch) -> Batch:
    """A ready batch with its whole numbers as int64, which losses ask for."""
    if "input_ids" not in batch:
        return batch
    mask, shape = batch.get("attention_mask"), tuple(batch["input_ids"].shape)
    if mask is not None and mask.shape != shape:
        raise ValueError(
            f"A batch has `input_ids` of shape {shape} and an `attention_mask` of shape {tuple(mask.shape)}. Give one value a "
            "token; the ends of packed documents are told by `position_ids` that begin again."
        )
    return {name: value.long() if name in _PADDING and not value.is_floating_point() else value for name, value in batch.items()}


def tokenised_row(row: Row | Tensor, length: int | None = None) -> Batch:
    """The model's inputs of one tokenised row as tensors, cut at `length` tokens."""
    row = {"input_ids": row} if isinstance(row, Tensor) else row
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
    if "labels" not in tensors and (asked := [row[name] for name in TARGET_MASKS if row.get(name) is not None]):
        tensors["labels"] = _answers(tensors["input_ids"], asked)
    # Values of a regression and vectors of several labels stay as they are.
    tensors = {key: value if key == "labels" and value.is_floating_point() else value.long() for key, value in tensors.items()}
    cut = {key: value[:length] if _is_per_token(value, size) else value for key, value in tensors.items()}
    return unpadded_row(cut) if _is_packed(cut) else cut


def _answers(ids: Tensor, masks: list[Sequence[int]]) -> Tensor:
    """(T,) the ids where all masks are 1, and -100 elsewhere."""
    if any(len(mask) != len(ids) for mask in masks):
        raise ValueError(f"A tokenised row has {len(ids)} `input_ids` and a mask of another length. Give one value per token.")
    return ids.masked_fill(~torch.stack([torch.as_tensor(mask).bool() for mask in masks]).all(dim=0), -100)


def _is_per_token(value: Tensor, size: int) -> bool:
    """Tells labels of tokens from a label of the whole row, which may be a vector, one value a class."""
    return value.dim() == 1 and len(value) == size and not value.is_floating_point()


def batches_of(rows: list[Batch], size: int, tokenizer: PreTrainedTokenizerBase | None = None) -> list[Batch]:
    """Rows as batches of `size` rows in their order, padded as `collate_rows` says."""
    return [collate_rows(part, tokenizer) for part in _parts(rows, size)]


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
        elif key == "labels" and all(value.dim() == 1 for value in values):  # of another text, which a decoder says
            values = [_pad(value, max(map(len, values)), padding[key], left=False) for value in values]
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
