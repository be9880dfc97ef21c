"""Features of sounds with what is said in them, made into batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..models.packing import Batch
from .blocks import Choice
from .items import Stream, items_of
from .texts import CalibrationData, with_sizes

# What an encoder of sounds takes no notice of (masks of features) is left out.
_INPUTS = ("input_features", "labels", "decoder_input_ids", "decoder_attention_mask")
_REMEDY = "Give rows of `input_features` (mel bins, frames) with `labels`, as for a `Seq2SeqTrainer`, or batches of such tensors"


def build_sounds(source: Any, *, num_samples: int | None, batch_size: int, seed: int, name: str) -> CalibrationData:
    """Batches of rows with `input_features` (mel bins, frames) and `labels`, or ready batches of such tensors as they are.

    Args:
        num_samples: rows that are drawn at random; None takes all.

    Raises:
        ValueError: an item is neither.
    """
    items = items_of(source)
    draw = None if num_samples is None else Choice(num_samples, 1, True, seed)
    if isinstance(items, Stream):
        items = list(items) if draw is None else draw.of_stream(items)
    if len(items) and isinstance(items[0], Mapping) and torch.as_tensor(items[0].get("input_features", 0)).dim() == 3:
        return with_sizes([sounds_of(item) for item in items], {"source": name})
    places = range(len(items)) if draw is None else draw.indices(len(items))
    rows = [sounds_of(items[place]) for place in places]
    batches = [_joined(rows[at : at + batch_size]) for at in range(0, len(rows), batch_size)]
    return with_sizes(batches, {"source": name, "num_samples": len(rows), "seed": seed})


def sounds_of(item: Any) -> Batch:
    """What a model of sounds takes of a row or a batch, as tensors."""
    if not isinstance(item, Mapping) or "input_features" not in item:
        raise ValueError(f"The model reads sounds, and the data holds a {type(item).__name__} without them. {_REMEDY}.")
    try:
        return {name: torch.as_tensor(item[name]) for name in _INPUTS if item.get(name) is not None}
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"A row of sounds holds something else than numbers ({error}). {_REMEDY}.") from None


def _joined(rows: list[Batch]) -> Batch:
    """Rows (mel bins, frames) as one batch; labels are as long as the longest."""
    batch = {"input_features": torch.stack([row["input_features"] for row in rows])}
    if all("labels" in row for row in rows):
        batch["labels"] = torch.nn.utils.rnn.pad_sequence([row["labels"].long() for row in rows], True, -100)
    return batch


def check_sounds(model: PreTrainedModel, data: CalibrationData) -> None:
    """Checks that batches fit a model of sounds: the size of its features, and ids that its decoder knows.

    Raises:
        ValueError: they do not; says what is wanted.
    """
    config = model.config
    wanted = (config.num_mel_bins, 2 * config.max_source_positions)
    for batch in data:
        found = tuple(sounds_of(batch)["input_features"].shape)
        if len(found) != 3 or found[1:] != wanted:
            raise ValueError(f"`input_features` has the shape {found}, and the model takes (rows, {wanted[0]}, {wanted[1]}).")
        said = [batch[name] for name in ("labels", "decoder_input_ids") if name in batch]
        if not said:
            raise ValueError(f"A batch of sounds has no `labels`, without which the decoder reads nothing. {_REMEDY}.")
        _check_said(said, config.vocab_size)


def _check_said(said: list[Tensor], vocabulary: int) -> None:
    for ids in said:
        real = ids[ids != -100]
        if real.numel() and not 0 <= int(real.min()) <= int(real.max()) < vocabulary:
            raise ValueError(
                f"What is said holds the token id {int(real.max()):,}, and the model knows {vocabulary:,} tokens. Take the "
                "tokenizer that belongs to the model."
            )
