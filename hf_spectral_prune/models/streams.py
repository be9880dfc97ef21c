"""Rows taken up a model layer by layer: by the dense model alone, or by it and the pruned one side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import psutil
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import find_labels

from .families import layers_of
from .losses import Batch, moved_to, num_rows, run_base
from .replay import Replay
from .suffix import hidden_states, next_input, starting_at

# Share of the device's free memory that the streams may take; beyond it they lie in main memory.
_SHARE = 0.25


@dataclass(frozen=True)
class Place:
    """Where a value is read: what a module gets as its first input, or gives."""

    module: nn.Module
    side: Literal["input", "output"]


class Ascent:
    """Takes a model's rows up its layers in parts, each from where the one before has left them: all together cost one pass.

    A part may also begin where the one before began; one further below begins at the first layer. The model must not change on
    the way, or `restart` be called.

    Args:
        batches: as for `collect_moments`.
    """

    def __init__(self, model: PreTrainedModel, batches: Sequence[Batch]) -> None:
        self.model = model
        self.batches = batches
        self._store = _Store(batches, streams=2)
        self.restart()

    def restart(self) -> None:
        """Begins at the first layer again."""
        # What layers read, batch by batch; the first one's is made by the model itself.
        self._read: dict[int, list[Tensor | None]] = {0: [None] * len(self.batches)}

    def through(self, first: int, last: int, start: Callable[[Batch], None]) -> None:
        """Runs the layers `first` to `last`; `start` is called with each batch before it runs."""
        nearest = max(layer for layer in self._read if layer <= first)
        if nearest < first:
            self._read = {0: self._read[0], first: self._run(nearest, first - 1, lambda _batch: None)}
        after = self._run(first, last, start)
        self._read = {0: self._read[0], first: self._read[first], last + 1: after}

    def _run(self, first: int, last: int, start: Callable[[Batch], None]) -> list[Tensor | None]:
        ends = last == len(layers_of(self.model)) - 1
        outputs: list[Tensor | None] = []
        for batch, given in zip(self.batches, self._read[first], strict=True):
            start(batch)
            run = partial(run_base, self.model, moved_to(self.model, batch))
            output = next_input(self.model, first, _on_device(given, self.model), run, last)
            outputs.append(None if ends else self._store(output))
        return outputs


# {layer: the dense stream behind it, and what passed at the places in it, batch by batch}
DenseSteps = dict[int, tuple[list[Tensor | None], dict[str, list[Tensor]]]]


class Reached(Exception):
    """All that a run was made for is known: the rest of the model need not compute."""


class Streams:
    """What the next layer reads of every batch, in the model as it was and in the model as it is cut up to there.

    A layer is taken by both in turn: `dense_step` while it is whole, then, as often as wanted, `pruned_values` between changes
    of its weights, and at last `pruned_step`. Nothing else of the model is computed, and of the rows only the two streams are
    kept, (rows, T, hidden size) each, and within a layer what its consumers read, if that is little.

    Args:
        batches: as for `collect_moments`.
        known: steps of the dense stream, which are taken over from it and added to it; None keeps none. For walks of one model
            and the same batches and places.
    """

    def __init__(self, model: PreTrainedModel, batches: Sequence[Batch], known: DenseSteps | None = None) -> None:
        self.model = model
        self.batches = batches
        self._known = known
        self._dense: list[Tensor | None] = [None] * len(batches)
        self._pruned: list[Tensor | None] = [None] * len(batches)
        # Both streams, and what is read before and behind the two groups of a layer.
        self._stored = _Store(batches, streams=6)
        self._replay = Replay(len(batches))

    def real(self, index: int, value: Tensor) -> Tensor:
        """(rows, T) bool: the positions of a batch's `value` (rows, T, n) that are no padding."""
        mask = self.batches[index].get("attention_mask")
        if mask is None:
            return torch.ones(value.shape[:2], dtype=torch.bool, device=value.device)
        # The base model sees the choices of a multiple-choice batch (B, C, T) as rows.
        return mask.bool().flatten(0, -2).to(value.device)

    def dense_step(self, layer: int, places: Mapping[str, Place]) -> dict[str, list[Tensor]]:
        """Takes the dense stream through a layer: {name: what passed at its place, (rows, T, n), batch by batch}."""
        self._replay.clear()
        if self._known is not None and layer in self._known:
            behind, known = self._known[layer]
            self._dense = [*behind]
            return dict(known)
        found: dict[str, list[Tensor]] = {name: [] for name in places}
        for index in range(len(self.batches)):
            output, values = self._through(self._dense, index, layer, places)
            after = self._dense[index] = self._stored(output)
            for name, value in values.items():
                # Behind the last consumer it mostly is the layer's output itself: then nothing is kept twice.
                found[name].append(after if value is output else self._stored(value))
        if self._known is not None:
            self._known[layer] = [*self._dense], found
            return dict(found)
        return found

    def pruned_step(self, layer: int) -> None:
        """Takes the pruned stream through a layer."""
        for index in range(len(self.batches)):
            with self._replay.replayed(index):
                output, _ = self._through(self._pruned, index, layer, {})
            self._pruned[index] = self._stored(output)

    def pruned_values(
        self, layer: int, consumer: nn.Module, places: Mapping[str, Place], last: str | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """What passes at places of a layer as the pruned stream runs through it, (rows, T, n), batch by batch.

        Args:
            consumer: a linear layer whose weights may be changed until the next call; nothing else of what was run may.
            last: the place behind which nothing needs to be computed.
        """
        block = layers_of(self.model)[layer]
        for index in range(len(self.batches)):
            with self._replay.replayed(index, but=consumer), self._replay.noting(block, consumer, index):
                found = self._through(self._pruned, index, layer, places, last)[1]
            yield found

    def pruned_inputs(self, layer: int, module: nn.Module) -> Iterator[Tensor]:
        """What a module of a layer reads as the pruned stream runs up to it, (rows, T, n), batch by batch."""
        for index in range(len(self.batches)):
            with self._replay.replayed(index):
                found = self._through(self._pruned, index, layer, {"x": Place(module, "input")}, "x")[1]
            yield found["x"]

    @torch.no_grad()
    def outputs(self, index: int, rows: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """{name: logits} of a batch's `rows` (bool), dense and pruned, once both streams are through the last layer."""
        taken = {name: value[rows.to(value.device)] for name, value in self.batches[index].items()}
        return self._logits(self._dense[index], rows, taken), self._logits(self._pruned[index], rows, taken)

    def _logits(self, stream: Tensor | None, rows: Tensor, batch: Batch) -> dict[str, Tensor]:
        assert stream is not None
        given = stream[rows.repeat_interleave(len(stream) // len(rows)).to(stream.device)].to(self.model.device)
        labels = find_labels(type(self.model))
        inputs = {name: value for name, value in moved_to(self.model, batch).items() if name not in labels}
        with starting_at(self.model, len(layers_of(self.model)), given):
            return {name: value for name, value in self.model(**inputs).items() if name.endswith("logits")}

    def _through(
        self, stream: list[Tensor | None], index: int, layer: int, places: Mapping[str, Place], last: str | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        given = _on_device(stream[index], self.model)
        batch = moved_to(self.model, self.batches[index])
        with ExitStack() as stack:
            found = {name: stack.enter_context(_reading(place, name == last)) for name, place in places.items()}
            output: Any = None
            with suppress(Reached):
                output = next_input(self.model, layer, given, partial(run_base, self.model, batch))
        # A layer that works in chunks of tokens passes several; one that works on a plain list of tokens passes (rows * T, n).
        passed = {name: values[0] if len(values) == 1 else torch.cat(values, dim=1) for name, values in found.items()}
        for name, value in passed.items():
            passed[name] = value if value.dim() > 2 else value.unflatten(0, (-1, batch["input_ids"].shape[-1]))
        return output, passed


class _Store:
    """Keeps what layers read: on the device that made it where all rows fit a share of its free memory, else in main memory."""

    def __init__(self, batches: Sequence[Batch], streams: int) -> None:
        self._rows = [num_rows(batch) for batch in batches]
        self._streams = streams
        self._device: torch.device | None = None

    def __call__(self, value: Tensor) -> Tensor:
        if self._device is None:  # the first batch tells the size of all
            needed = self._streams * value.nbytes * -(-sum(self._rows) // self._rows[0])
            self._device = value.device if needed <= _SHARE * _free_memory(value.device) else torch.device("cpu")
        return value.to(self._device)


def _on_device(value: Tensor | None, model: PreTrainedModel) -> Tensor | None:
    return None if value is None else value.to(model.device)


@contextmanager
def _reading(place: Place, stops: bool) -> Iterator[list[Tensor]]:
    """While open, the list is filled with the values that pass; with `stops` the run ends with the first."""
    found: list[Tensor] = []

    def sink(value: Tensor) -> None:
        found.append(value.detach())
        if stops:
            raise Reached

    if place.side == "input":
        handle = place.module.register_forward_pre_hook(lambda _module, args: sink(args[0]))
    else:
        handle = place.module.register_forward_hook(lambda _module, _args, output: sink(hidden_states(output)))
    try:
        yield found
    finally:
        handle.remove()


def _free_memory(device: torch.device) -> int:
    if device.type != "cuda":
        return psutil.virtual_memory().available
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached
