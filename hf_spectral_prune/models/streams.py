"""Two residual streams of the same rows, the dense model's and the pruned one's, taken up a model layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import psutil
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .losses import Batch, moved_to, num_rows, run_base
from .suffix import next_input

# Share of the device's free memory that the streams may take; beyond it they lie in main memory.
_SHARE = 0.25


@dataclass(frozen=True)
class Place:
    """Where a value is read: what a module gets as its first input, or gives."""

    module: nn.Module
    side: Literal["input", "output"]


class Reached(Exception):
    """All that a run was made for is known: the rest of the model need not compute."""


class Streams:
    """What the next layer reads of every batch, in the model as it was and in the model as it is cut up to there.

    A layer is taken by both in turn: `dense_step` while it is whole, then, as often as wanted, `pruned_values` between changes
    of its weights, and at last `pruned_step`. Nothing else of the model is computed, and of the rows only the two streams are
    kept, (rows, T, hidden size) each.

    Args:
        batches: as for `collect_moments`.
    """

    def __init__(self, model: PreTrainedModel, batches: Sequence[Batch]) -> None:
        self.model = model
        self.batches = batches
        self._dense: list[Tensor | None] = [None] * len(batches)
        self._pruned: list[Tensor | None] = [None] * len(batches)
        self._kept_on: torch.device | None = None

    def real(self, index: int, value: Tensor) -> Tensor:
        """(rows, T) bool: the positions of a batch's `value` (rows, T, n) that are no padding."""
        mask = self.batches[index].get("attention_mask")
        if mask is None:
            return torch.ones(value.shape[:2], dtype=torch.bool, device=value.device)
        # The base model sees the choices of a multiple-choice batch (B, C, T) as rows.
        return mask.bool().flatten(0, -2).to(value.device)

    def dense_step(self, layer: int, places: Mapping[str, Place]) -> dict[str, list[Tensor]]:
        """Takes the dense stream through a layer: {name: what passed at its place, (rows, T, n), batch by batch}."""
        found: dict[str, list[Tensor]] = {name: [] for name in places}
        for index in range(len(self.batches)):
            output, values = self._through(self._dense, index, layer, places)
            after = self._dense[index] = self._stored(output)
            for name, value in values.items():
                # Behind the last consumer it mostly is the layer's output itself: then nothing is kept twice.
                found[name].append(after if value is output else self._stored(value))
        return found

    def pruned_step(self, layer: int) -> None:
        """Takes the pruned stream through a layer."""
        for index in range(len(self.batches)):
            self._pruned[index] = self._stored(self._through(self._pruned, index, layer, {})[0])

    def pruned_values(self, layer: int, places: Mapping[str, Place], last: str | None = None) -> Iterator[dict[str, Tensor]]:
        """What passes at places of a layer as the pruned stream runs through it, (rows, T, n), batch by batch.

        Args:
            last: the place behind which nothing needs to be computed.
        """
        for index in range(len(self.batches)):
            yield self._through(self._pruned, index, layer, places, last)[1]

    def _through(
        self, stream: list[Tensor | None], index: int, layer: int, places: Mapping[str, Place], last: str | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        given = stream[index]
        given = None if given is None else given.to(self.model.device)
        batch = moved_to(self.model, self.batches[index])
        with ExitStack() as stack:
            found = {name: stack.enter_context(_reading(place, name == last)) for name, place in places.items()}
            output: Any = None
            with suppress(Reached):
                output = next_input(self.model, layer, given, partial(run_base, self.model, batch))
        # A layer that works in chunks of tokens passes several.
        return output, {name: values[0] if len(values) == 1 else torch.cat(values, dim=1) for name, values in found.items()}

    def _stored(self, value: Tensor) -> Tensor:
        if self._kept_on is None:
            rows = sum(num_rows(batch) for batch in self.batches)
            # Both streams, and what is read behind the two consumers of a layer.
            needed = 4 * value.nbytes * -(-rows // num_rows(self.batches[0]))
            self._kept_on = value.device if needed <= _SHARE * _free_memory(value.device) else torch.device("cpu")
        return value.to(self._kept_on)


@contextmanager
def _reading(place: Place, stops: bool) -> Iterator[list[Tensor]]:
    """While open, the list is filled with the values that pass; with `stops` the run ends with the first."""
    found: list[Tensor] = []

    def sink(value: Tensor) -> None:
        found.append(value.detach())
        if stops:
            raise Reached

    if place.side == "input":
        handle: Any = place.module.register_forward_pre_hook(lambda _module, args: sink(args[0]))
    else:
        handle = place.module.register_forward_hook(lambda _module, _args, output: sink(output))
    try:
        yield found
    finally:
        handle.remove()


def _free_memory(device: torch.device) -> int:
    if device.type != "cuda":
        return psutil.virtual_memory().available
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached
