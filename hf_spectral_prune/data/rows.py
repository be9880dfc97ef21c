"""Rows to train on: taken out of batches, split, and put together for a causal language model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from ..models.losses import next_token_targets, num_rows, predicts_next_token
from .texts import CalibrationData, collate_rows, tokenised_row

# Share of the rows that is held out where no evaluation data is given, and the most rows that makes.
_HELD_OUT_SHARE, _MOST_HELD_OUT = 0.1, 512
# A column that some model takes; a data set without any was not tokenised.
_INPUTS = {"input_ids", "inputs_embeds", "pixel_values", "input_features", "input_values"}


def training_rows(source: Any) -> Any:
    """A map-style data set of rows; batches are taken apart.

    Raises:
        ValueError: raw text.
    """
    if isinstance(source, CalibrationData):
        return [
            {name: value[index] for name, value in batch.items()} for batch in source.batches for index in range(num_rows(batch))
        ]
    first = source[0] if hasattr(source, "__getitem__") and len(source) else None
    if isinstance(first, str) or (isinstance(source, Dataset) and not set(source.column_names) & _INPUTS):
        raise ValueError("The recovery's data is raw text. Tokenise it, or make it with `build_calibration(texts, tokenizer)`.")
    if isinstance(source, Dataset) and "seq_lengths" in source.column_names:
        # The Trainer takes away columns that no model reads, and with this one the ends of packed documents.
        return source.map(lambda row: {"position_ids": tokenised_row(row)["position_ids"].tolist()}, remove_columns="seq_lengths")
    return source


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


def causal_collator(processing_class: Any = None) -> Callable[[list[Any]], dict[str, Tensor]]:
    """A collator for causal language models: pads rows, and lets no padding into the loss.

    Labels that the rows bring are kept, else they are the ids; what counts of them is told by `next_token_targets`.
    """

    def collate(rows: list[Any]) -> dict[str, Tensor]:
        batch = collate_rows([tokenised_row(row) for row in rows], processing_class)
        return batch | {"labels": next_token_targets(batch)}

    return collate


def default_collator(model: PreTrainedModel, processing_class: Any) -> Any:
    """The collator of a causal language model; None, which is the Trainer's choice, for others."""
    return causal_collator(processing_class) if predicts_next_token(model) else None
