"""Runs calibration batches through a model and fills the moments of its unit groups, by hooks."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from ..models.families import UnitGroup, consumers
from ..models.losses import (
    Batch,
    check_gradients,
    decoder_mask,
    frozen,
    loss_of,
    moved_to,
    num_positions,
    run_base,
    single_sequences,
)
from ..models.modes import evaluating
from ..models.offload import resident
from ..models.streams import Ascent
from ..utils.progress import stage
from ..utils.words import named
from .moments import GroupMoments, Moments
from .signals import ALL, Reader, Side, Spatial, num_signal_channels, readers

logger = logging.get_logger(__name__)

SIDES: tuple[Side, ...] = ("before", "after")


class _Pass:
    """What the hooks of one pass share: the padding masks of the batch that is running, and scratch memory."""

    def __init__(self) -> None:
        self.masks: tuple[Tensor | None, Tensor | None] = (None, None)
        self.workspaces: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    def start(self, batch: Batch) -> None:
        """Notes the masks of the batch that runs next; images have none, and a decoder behind an encoder has its own."""

        def noted(mask: Tensor | None) -> Tensor | None:
            # The base model sees the choices of a multiple-choice batch (B, C, T) as rows.
            return None if mask is None or bool(mask.all()) else mask.bool().flatten(0, -2)

        self.masks = noted(batch.get("attention_mask")), noted(decoder_mask(batch))

    def real(self, value: Tensor, reader: Reader) -> Tensor:
        """The real positions (N, n) of a signal (B, T, n), or (B * T, n) in layers that take tokens as a plain list.

        Of an expert it is (tokens, n), those that it was given.
        """
        value, mask = value.detach().flatten(0, -2), self.masks[reader.stack]
        if mask is None:
            return value
        mask = mask.flatten().to(value.device)
        return value[mask if reader.expert is None else mask[reader.expert.tokens]]

    def real_to(self, sink: Callable[[Tensor], None], reader: Reader) -> Callable[[Tensor], None]:
        """A sink that passes the real positions on."""
        return lambda value: sink(self.real(value, reader))

    def adder(self, moments: Moments, reader: Reader) -> Callable[[Tensor], None]:
        """A sink that adds the real positions of a signal (B, T, n) to `moments`."""

        def add(value: Tensor) -> None:
            rows = self.real(value, reader)
            dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
            key = (rows.shape[1], dtype, rows.device)
            if key not in self.workspaces:
                self.workspaces[key] = torch.zeros(rows.shape[1], rows.shape[1], dtype=dtype, device=rows.device)
            moments.update(rows, self.workspaces[key])

        return add


def _check_finite(moments: dict[str, GroupMoments]) -> None:
    for key, sides in moments.items():
        for name, side in sides._asdict().items():
            # One non-finite activation makes its channel's sum non-finite, so the sums alone tell.
            if side is not None and not math.isfinite(float(side.sum.sum())):
                raise ValueError(
                    f"Non-finite activations in `{key}` ({name} the transformation). Load the model in a wider `dtype` "
                    "(float32 or bfloat16) or check its weights."
                )


def collect_moments(
    model: PreTrainedModel,
    groups: Sequence[UnitGroup],
    batches: Iterable[Batch],
    *,
    sides: Collection[Side] = SIDES,
    signals: str = "activations",
    spatial: Spatial = ALL,
    ascent: Ascent | None = None,
    progress: bool = True,
) -> dict[str, GroupMoments]:
    """Fills the moments of every group in one pass over the batches.

    Args:
        batches: dicts of tensors with `input_ids` (B, T) and `attention_mask` (B, T), or (B, C, T) for multiple choice,
            or with `pixel_values` (B, C, H, W); masked positions never count.
        sides: both, or `("after",)` for those who do not read the input side: half the memory and time.
        signals: "activations" reads the hidden states; "loss" multiplies every output-side signal by its loss gradient,
            `m_i(t) = h_i(t) * dL/dh_i(t)` (one backward pass; the batch's `labels` make the loss, or for a causal language
            model without them the next token).
        spatial: which positions of a channel's map count.
        ascent: of the same batches, for activations of a part of the layers: only what lies between it and them is run.

    Raises:
        ValueError: an activation is not finite (names the group), there was no unpadded position, or a loss is needed and
            `labels` are missing.
    """
    moments = {}
    shared = _Pass()
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        if len(layers := {group.layer for group in groups}) == 1 and ascent is not None:
            stack.enter_context(resident(model, *layers))  # read once for all batches
        for group in groups:
            weight = consumers(model, group)[0].module.weight
            device = model.device if weight.is_meta else weight.device
            totals = {side: Moments.zeros(num_signal_channels(model, group, side), device) for side in sides}
            moments[group.key] = GroupMoments(totals.get("before"), totals["after"])
            for side, total in totals.items():
                for reader in readers(model, group, side, spatial):
                    sink = _as_rows(reader, shared.adder(total, reader))
                    if side == "after" and signals == "loss":
                        sink = _times_gradient(sink)
                    stack.enter_context(reader.reading(sink))
        if ascent is None:
            _run_batches(model, batches, shared, signals, progress)
        else:
            with stage("Calibrating", total=len(ascent.batches), unit="batches", show=progress) as bar:

                def start(batch: Batch) -> None:
                    shared.start(batch)
                    bar.update()

                ascent.through(min(layers), max(layers), start)
    for total in (side for found in moments.values() for side in found if side is not None):
        total.symmetrise()
        total.all_reduce()
    _check_finite(moments)
    unreached = [group for group in groups if group.place and moments[group.key].after.count == 0]
    moments |= {group.key: moments[group.key].of_noise() for group in unreached}
    if unreached:
        names = named([group.key.removesuffix(f".{group.kind}") for group in unreached])
        logger.warning(
            f"No token of the calibration data reaches {names}: the units of these experts are scored by their weights alone. "
            "More text, or text of other kinds, may reach them."
        )
    if any(found.after.count == 0 for found in moments.values()):
        raise ValueError("The calibration set has no unpadded position. Give text that is not empty.")
    return moments


def stream_signals(
    model: PreTrainedModel,
    groups: Sequence[UnitGroup],
    batches: Iterable[Batch],
    sinks: Mapping[str, Callable[[Tensor], None]],
    *,
    signals: str = "activations",
    spatial: Spatial = ALL,
    progress: bool = True,
) -> None:
    """Passes the real positions (N, n) of every group's output-side signal to the group's sink ({group key: sink}).

    A sink is called once per batch (and consumer) with the activations, or with `signals="loss"` once per sequence with
    `h_i(t) * dL/dh_i(t)` of the sequence's summed loss L.
    """
    shared = _Pass()
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for group in groups:
            for reader in readers(model, group, "after", spatial):
                sink = _as_rows(reader, shared.real_to(sinks[group.key], reader))
                stack.enter_context(reader.reading(sink if signals == "activations" else _times_gradient(sink)))
        _run_batches(model, batches, shared, signals, progress)


def _run_batches(model: PreTrainedModel, batches: Iterable[Batch], shared: _Pass, signals: str, progress: bool) -> None:
    with ExitStack() as stack:
        run: Callable[[PreTrainedModel, Batch], None] = run_base
        if signals == "loss":
            check_gradients(model)
            run, batches = _forward_backward, single_sequences(batches)
            stack.enter_context(frozen(model))
        for batch in stage("Calibrating", batches, unit="sequences" if signals == "loss" else "batches", show=progress):
            shared.start(batch)
            run(model, moved_to(model, batch))


def _as_rows(reader: Reader, sink: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    return lambda value: sink(reader.rows(value.detach()))


def _times_gradient(add: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    def sink(value: Tensor) -> None:
        if value.requires_grad:
            # Detached before the hook closes over it: a hook that holds its own tensor is a cycle that only the collector frees.
            activation = value.detach()
            value.register_hook(lambda gradient: add(activation * gradient))

    return sink


def _forward_backward(model: PreTrainedModel, batch: Batch) -> None:
    with torch.enable_grad():
        loss_of(model, batch).backward()


def sequence_losses(
    model: PreTrainedModel, batches: Iterable[Batch], *, limit: int | None = None, progress: bool = True
) -> Iterator[tuple[Tensor, int]]:
    """Summed loss of one sequence at a time, with its graph, and the sequence's number of real positions.

    Args:
        limit: number of sequences after which to stop.
    """
    with evaluating(model):
        sequences = islice(single_sequences(batches), limit)
        for batch in stage("Differentiating", sequences, unit="sequences", show=progress):
            with torch.enable_grad():
                loss = loss_of(model, moved_to(model, batch))
            yield loss, num_positions(batch)
