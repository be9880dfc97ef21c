"""Packed rows: several documents side by side in one row, told apart by position ids that begin again."""

from __future__ import annotations

from collections.abc import Iterable
from inspect import signature

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .modes import evaluating

Batch = dict[str, Tensor]
_BOUNDS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


def padding_mask(batch: Batch) -> Tensor | None:
    """(B, T) bool, True where a token is real; None where a batch has no such mask, so that all of its tokens are."""
    mask = batch.get("attention_mask")
    return mask.bool() if mask is not None and mask.dim() == 2 else None


def is_packed(batch: Batch) -> bool:
    """Whether the position ids of some row begin again, as collators without padding write them."""
    positions = batch.get("position_ids")
    if positions is None or positions.dim() != 2:
        return False
    return bool((_both_real(batch, positions) & (positions[:, 1:] <= positions[:, :-1])).any())


def goes_on(batch: Batch) -> Tensor:
    """(B, T) bool: whether a token follows a real one of its own document. The first of a row never does."""
    ids = batch["input_ids"]
    follows = _both_real(batch, ids)
    if is_packed(batch):
        positions = batch["position_ids"]
        follows = follows & (positions[:, 1:] == positions[:, :-1] + 1)
    return nn.functional.pad(follows, (1, 0))


def documents_apart(batch: Batch) -> list[Batch]:
    """The batch as a model must get it to keep packed documents apart: without a mask, which would join them.

    transformers tells documents apart by their position ids, and only where no mask is given. A packed batch with padding
    becomes one batch a row, since nothing else says there what is real; any other batch stays as it is.

    Raises:
        ValueError: the lengths that a batch gives its documents are not those of its row.
    """
    batch = in_positions(batch)
    if not is_packed(batch):
        return [batch]
    mask = padding_mask(batch)
    if mask is None:
        return [batch]
    if bool(mask.all()):
        return [without_padding(batch)]
    rows = ({name: value[index : index + 1] for name, value in batch.items()} for index in range(len(mask)))
    return [without_padding(row) for row in rows]


def in_positions(batch: Batch) -> Batch:
    """The batch with the bounds that a collator made for FlashAttention in `position_ids`, which every attention reads.

    `cu_seq_lens_q` (D + 1,) are the places where the D documents of a row begin, and where the last one ends.
    """
    bounds = batch.get("cu_seq_lens_q")
    if bounds is None or "input_ids" not in batch:
        return batch
    rest = {name: value for name, value in batch.items() if name not in _BOUNDS}
    if "position_ids" in rest:
        return rest
    positions = torch.cat([torch.arange(length) for length in bounds.diff().tolist()])[None]
    if positions.shape != batch["input_ids"].shape:
        raise ValueError(
            f"`cu_seq_lens_q` counts {positions.shape[1]} tokens, and `input_ids` has the shape "
            f"{tuple(batch['input_ids'].shape)}. Give one row with the bounds of its documents."
        )
    return rest | {"position_ids": positions}


def without_padding(row: Batch) -> Batch:
    """A batch without its mask and the places that it hides: of one row (1, T), or of rows that are all real."""
    mask = padding_mask(row)
    if mask is None:
        return row
    inputs = {name: value for name, value in row.items() if name != "attention_mask"}
    if bool(mask.all()):
        return inputs
    real = mask[0]
    return {name: value[:, real] if value.shape[:2] == mask.shape else value for name, value in inputs.items()}


@torch.inference_mode()
def check_documents_apart(model: PreTrainedModel, batches: Iterable[Batch]) -> None:
    """Checks that packed documents do not see each other in this model: other tokens in the first change nothing in the second.

    Args:
        model: a model of transformers.

    Raises:
        ValueError: they do.
    """
    packed = next((batch for batch in batches if is_packed(batch)), None)
    if packed is None:
        return
    begins = ~goes_on(packed)
    index = int(begins.sum(dim=1).argmax())
    start, end = [*begins[index].nonzero().flatten().tolist(), begins.shape[1]][1:3]
    ids, positions = (packed[name][index : index + 1, :end].to(model.device) for name in ("input_ids", "position_ids"))
    other = torch.cat([(ids[:, :start] + 1) % model.config.get_text_config().vocab_size, ids[:, start:]], dim=1)
    options = {"use_cache": False} if getattr(model.config, "use_cache", None) is not None else {}
    apart = "position_ids" in signature(model.base_model.forward).parameters
    with evaluating(model):
        if apart:
            seen, again = (model.base_model(input_ids=each, position_ids=positions, **options)[0] for each in (ids, other))
            apart = bool(torch.allclose(seen[:, start:], again[:, start:], rtol=1e-3, atol=1e-3 * float(seen.abs().max())))
    if not apart:
        raise ValueError(
            f"The data has packed rows, whose `position_ids` begin again, and `{type(model).__name__}` does not keep their "
            "documents apart. Give every document a row of its own."
        )


def _both_real(batch: Batch, like: Tensor) -> Tensor:
    """(B, T - 1) whether a token and the one before it are real."""
    mask = padding_mask(batch)
    if mask is None:
        return torch.ones_like(like[:, 1:], dtype=torch.bool)
    return mask[:, 1:] & mask[:, :-1]
