"""Rows to train on: taken out of batches, split, and put together for a causal language model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorForSeq2Seq, PreTrainedModel, PreTrainedTokenizerBase

from ..models.losses import Batch, next_token_targets, num_rows, predicts_next_token
from ..utils.types import Collator, Row
from .blocks import block_stream
from .items import Stream, is_text, items_of, texts_of
from .texts import TARGET_MASKS, CalibrationData, collate_rows, tokenised_row

# Share of the rows that is held out where no evaluation data is given, and the most rows that makes.
_HELD_OUT_SHARE, _MOST_HELD_OUT = 0.1, 512
# A column that some model takes; a data set without any was not tokenised.
_INPUTS = {"input_ids", "inputs_embeds", "pixel_values", "input_features", "input_values"}


class _BlockStream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    """Blocks of a stream of texts, made as the training asks for them."""

    def __init__(self, source: object, tokenizer: PreTrainedTokenizerBase, length: int) -> None:
        self.source, self.tokenizer, self.length = source, tokenizer, length

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        texts = texts_of(items_of(self.source), self.tokenizer)
        return block_stream(texts, self.tokenizer, "" if texts.rendered else "\n\n", self.length)


def training_rows(source: object, processing_class: Any = None, length: int = 512) -> Any:
    """Rows to train on: batches are taken apart, and texts or chats packed into blocks of `length` tokens.

    A stream stays one (an `IterableDataset`), and is read as the training goes on.

    Raises:
        ValueError: texts without a tokenizer, or without one block; a generator, which cannot be read twice.
    """
    if isinstance(source, CalibrationData):
        return [
            {name: value[index] for name, value in batch.items()} for batch in source.batches for index in range(num_rows(batch))
        ]
    if isinstance(source, Iterator):
        raise ValueError("`train_dataset` is a generator, which can be read once only. Give an `IterableDataset`, or a list.")
    if is_raw_text(source):
        items = items_of(source)
        if processing_class is None:
            raise ValueError(
                "`train_dataset` holds texts, and there is no tokenizer. Pass `processing_class`, or tokenised rows."
            )
        blocks = _BlockStream(source, processing_class, length)
        return blocks if isinstance(items, Stream) else _some(list(blocks), length)
    if isinstance(source, Dataset) and (told := {"seq_lengths", *TARGET_MASKS} & set(source.column_names)):
        # The Trainer takes away columns that no model reads, and with these the ends of packed documents and what is a target.
        return source.map(_in_the_models_words, remove_columns=sorted(told))
    return source


def _in_the_models_words(row: Row) -> Row:
    inputs = tokenised_row(row)
    return {name: inputs[name].tolist() for name in ("position_ids", "labels") if name in inputs}


def is_raw_text(source: object) -> bool:
    """Whether it is texts or chats, which a tokenizer makes rows of."""
    if source is None or isinstance(source, (CalibrationData, Iterator)):
        return False
    items = items_of(source)
    first = items.first if isinstance(items, Stream) else items[0] if len(items) else None
    return first is not None and is_text(first) and not (isinstance(first, Mapping) and bool(set(first) & _INPUTS))


def _some(rows: list[Batch], length: int) -> list[Batch]:
    if not rows:
        raise ValueError(f"The texts to train on have less than one block of {length} tokens. Give more text.")
    return rows


def hold_out(rows: Any, seed: int) -> tuple[Any, Any]:
    """Splits a tenth of the rows off at random (512 at most): (the rest, those held out), each in its order.

    Raises:
        ValueError: there is less than one row for each side, or their number is unknown.
    """
    if not hasattr(rows, "__len__") or len(rows) < 2:
        raise ValueError("There is no held-out data to judge the recovery by, and none can be split off. Pass `eval_dataset`.")
    count = min(max(1, int(len(rows) * _HELD_OUT_SHARE)), _MOST_HELD_OUT)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    train, held_out = sorted(order[count:]), sorted(order[:count])
    if isinstance(rows, Dataset):
        return rows.select(train), rows.select(held_out)
    return torch.utils.data.Subset(rows, train), torch.utils.data.Subset(rows, held_out)


def causal_collator(processing_class: PreTrainedTokenizerBase | None = None) -> Collator:
    """A collator for causal language models: pads rows, and lets no padding into the loss.

    Labels that the rows bring are kept, else they are the ids; what counts of them is told by `next_token_targets`.
    """

    def collate(rows: list[Row]) -> Batch:
        batch = collate_rows([tokenised_row(row) for row in rows], processing_class)
        return batch | {"labels": next_token_targets(batch)}

    return collate


def default_collator(model: PreTrainedModel, processing_class: Any) -> Collator | None:
    """The collator of a causal language model or of an encoder-decoder; None, which is the Trainer's choice, for others."""
    if model.config.is_encoder_decoder and processing_class is not None:
        return DataCollatorForSeq2Seq(processing_class, model)
    return causal_collator(processing_class) if predicts_next_token(model) else None
