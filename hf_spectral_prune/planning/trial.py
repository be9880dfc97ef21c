"""How far a cut and sequentially repaired model would be from the dense one, without cutting it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..models.families import family_of, layers_of
from ..models.losses import Batch
from ..models.modes import evaluating
from ..models.offload import resident
from ..models.streams import DenseSteps, Streams
from ..surgery.sequential import cut_layer, groups_by_layer, held_out

# The last of every so many rows judges, the others are what the repair is fitted on.
_JUDGING = 4
# One ridge for all: which is best matters less than what is removed, and to look for it would take most of the time.
_RIDGE = 0.1
# Bytes that the dense stream of all layers may take.
_MOST_KEPT = 3 * 2**29


def room_for_steps(model: PreTrainedModel, batches: Sequence[Batch]) -> DenseSteps | None:
    """Where trials of one model share its dense stream (see `divergence`); None where that would take more than 1.5 GiB."""
    positions = sum(_num_positions(model, batch) for batch in batches)
    # It is kept behind both consumers of a layer, and so is what they give where a norm follows.
    kept = 4 if any(row.stream_norm is not None for row in family_of(model.config).kinds) else 2
    values = kept * positions * model.config.get_text_config().hidden_size * len(layers_of(model))
    return {} if values * model.dtype.itemsize <= _MOST_KEPT else None


def _num_positions(model: PreTrainedModel, batch: Batch) -> int:
    """Positions of a batch in the stream, padding included: tokens, or the patches of images and what stands before them."""
    if "input_ids" in batch:
        return batch["input_ids"].numel()
    rows, _, height, width = batch["pixel_values"].shape
    return rows * (height * width // model.config.patch_size**2 + 1)


@torch.no_grad()
def divergence(
    model: PreTrainedModel, kept: Mapping[str, Tensor], batches: Sequence[Batch], known: DenseSteps | None = None
) -> float:
    """KL divergence of what the dense model says from what it would say if cut to the units `kept` and repaired.

    In nats, the mean over the positions (or classes of a row) of every fourth row. No correction is fitted on these rows; they
    only say whether a layer's is taken or left. Producers stay as they are. Of the outputs rather than of the text's own
    tokens: see arXiv:2503.09657, where a search by text loss lowered perplexity and accuracy alike. One layer is copied at a
    time; the model is as before afterwards.

    Args:
        kept: {group key: indices}; groups without an entry stay whole.
        batches: as for `cut_sequentially`; two rows at least.
        known: `room_for_steps`, the same for all trials of a model, so that its dense stream is worked out once.
    """
    layers = groups_by_layer(model)
    streams = Streams(model, batches, known)
    rows = held_out(batches, _JUDGING)
    with evaluating(model):
        for layer in range(len(layers_of(model))):
            with resident(model, layer), _copied(model, layer):
                cut_layer(model, layers[layer], kept, streams, rows, (_RIDGE,), draft=True)
                streams.pruned_step(layer)
        total = count = 0.0
        for index, judged in enumerate(rows):
            if judged.any():
                added, positions = _sums(*streams.outputs(index, judged), streams.batches[index], judged)
                total, count = total + added, count + positions
    return total / count


def _sums(dense: dict[str, Tensor], pruned: dict[str, Tensor], batch: Batch, rows: Tensor) -> tuple[float, float]:
    """Summed divergence of a batch's judged rows, and over how many distributions."""
    mask = batch.get("attention_mask")
    total, count = 0.0, 0
    for name, logits in dense.items():
        values = _divergences(logits, pruned[name])
        if mask is not None and values.shape == mask[rows].shape:
            values = values[mask[rows].bool().to(values.device)]
        total, count = total + float(values.double().sum()), count + values.numel()
    return total, count


def _divergences(dense: Tensor, pruned: Tensor) -> Tensor:
    """(...,) KL over the last dimension; a row at a time, because a vocabulary may be large."""
    found = []
    for wanted, given in zip(dense, pruned, strict=True):
        wanted, given = wanted.float().log_softmax(dim=-1), given.float().log_softmax(dim=-1)
        found.append((wanted.exp() * (wanted - given)).sum(dim=-1))
    return torch.stack(found)


@contextmanager
def _copied(model: PreTrainedModel, layer: int) -> Iterator[None]:
    """While open, a copy stands in a layer's place, to be cut."""
    layers = layers_of(model)
    original = layers[layer]
    layers[layer] = copy.deepcopy(original)
    try:
        yield
    finally:
        layers[layer] = original


__all__ = ["divergence", "room_for_steps"]
