"""Parts of a layer of which only the last linear layer has changed, run again by that one alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from .suffix import handing_on, hidden_states

# Bytes that what one consumer reads of all batches may take.
_MOST_KEPT = 2**30


class Replay:
    """What the consumers of one layer read as it last ran, batch by batch.

    A part of a layer (its attention, its FFN) mostly hands on what its consumer gives. Where the consumer alone was changed
    since, the part need not compute anything else to run again. Parts that do more behind their consumer are run as ever.

    Args:
        num_batches: how many batches the layer is run on.
    """

    def __init__(self, num_batches: int) -> None:
        self._num_batches = num_batches
        # {part: its consumer, and {batch: what that read, and of how many values the part's output is a tuple (0: of none)}}
        self._parts: dict[nn.Module, tuple[nn.Module, dict[int, tuple[Tensor, int]]]] = {}

    def clear(self) -> None:
        """Forgets the layer."""
        self._parts = {}

    @contextmanager
    def noting(self, layer: nn.Module, consumer: nn.Module, index: int) -> Iterator[None]:
        """While open, what a consumer of the layer reads of a batch is noted; it may change afterwards, and nothing before it."""
        part = _part_of(layer, consumer)
        read: list[tuple[Tensor, Tensor]] = []
        given: list[Any] = []
        with ExitStack() as stack:
            handle = consumer.register_forward_hook(lambda _module, args, output: read.append((args[0].detach(), output)))
            stack.callback(handle.remove)
            stack.callback(part.register_forward_hook(lambda _module, _args, output: given.append(output)).remove)
            yield
        if len(read) != 1 or len(given) != 1:  # it works in chunks of tokens
            return
        (value, output), handed = read[0], given[0]
        alone = not isinstance(handed, tuple) or all(other is None for other in handed[1:])
        same = hidden_states(handed).data_ptr() == output.data_ptr() and hidden_states(handed).shape == output.shape
        if alone and same and value.nbytes * self._num_batches <= _MOST_KEPT:
            form = len(handed) if isinstance(handed, tuple) else 0
            self._parts.setdefault(part, (consumer, {}))[1][index] = value, form

    @contextmanager
    def replayed(self, index: int, but: nn.Module | None = None) -> Iterator[None]:
        """While open, the parts that are known of a batch run by their consumers alone; not the one with the consumer `but`."""
        with ExitStack() as stack:
            for part, (consumer, noted) in self._parts.items():
                if consumer is not but and index in noted:
                    stack.enter_context(handing_on([part], partial(_again, consumer, *noted[index])))
            yield


def _again(consumer: nn.Module, value: Tensor, form: int) -> Any:
    output = type(consumer).forward(consumer, value)
    return (output, *[None] * (form - 1)) if form else output


def _part_of(layer: nn.Module, consumer: nn.Module) -> nn.Module:
    """The layer's own child that has the consumer in it."""
    return next(child for child in layer.children() if any(module is consumer for module in child.modules()))
