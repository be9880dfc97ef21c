"""Runs a model from one layer on, from that layer's cached input; only one layer's inputs are ever in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .families import family_of, layers_of


@contextmanager
def handing_on(layers: Iterable[nn.Module], value: Callable[[], object]) -> Iterator[None]:
    """While open, these modules compute nothing and return `value()`."""
    # accelerate puts a `forward` of its own on an instance; it must be there again afterwards.
    held = [(layer, layer.__dict__.get("forward")) for layer in layers]
    for layer, _ in held:
        layer.forward = lambda *_args, **_kwargs: value()
    try:
        yield
    finally:
        for layer, own in held:
            if own is None:
                del layer.forward
            else:
                layer.forward = own


@contextmanager
def starting_at(model: PreTrainedModel, layer: int, given: Tensor | None) -> Iterator[None]:
    """While open, the layers before `layer` compute nothing, and `layer` reads `given` (rows, T, hidden size).

    For the first layer `given` is None: it reads the embedding of the ids that the model is called with, as ever.
    """
    if layer == 0 or family_of(model.config).runs_whole:
        yield
        return
    assert given is not None
    output = (given, None) if family_of(model.config).tuple_layers else given
    with handing_on(layers_of(model)[:layer], lambda: output):
        yield


def hidden_states(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """What a layer hands on, out of all it gives."""
    value: Tensor = output[0] if isinstance(output, tuple) else output
    return value


@torch.no_grad()
def next_input(
    model: PreTrainedModel, layer: int, given: Tensor | None, run: Callable[[], object], last: int | None = None
) -> Tensor:
    """What the layer after `layer` reads, (rows, T, hidden size), with no other layer computing.

    Args:
        given: what `layer` reads.
        run: calls the model (or its base model) on the inputs that `given` came from.
        last: go on to this layer, and give what the one after it reads.
    """
    outputs: list[Tensor | tuple[Tensor, ...]] = []
    layers = layers_of(model)
    last = layer if last is None else last
    handle = layers[last].register_forward_hook(lambda _module, _args, output: outputs.append(output))
    try:
        with starting_at(model, layer, given), handing_on(layers[last + 1 :], lambda: outputs[0]):
            run()
    finally:
        handle.remove()
    return hidden_states(outputs[0])


def walk(
    model: PreTrainedModel, runs: Sequence[Callable[[], object]], last: int | None = None
) -> Iterator[tuple[int, list[Tensor | None]]]:
    """Goes up the layers: yields (layer, what it reads in each of the runs); see `starting_at` and `next_input`.

    What layers read is None where they cannot be run one by one; `starting_at` then starts at the first.

    Args:
        last: the layer after which to stop; by default the last one.
    """
    given: list[Tensor | None] = [None] * len(runs)
    end = len(layers_of(model)) - 1 if last is None else last
    for layer in range(end + 1):
        yield layer, given
        if layer < end and not family_of(model.config).runs_whole:
            given = [next_input(model, layer, value, run) for value, run in zip(given, runs, strict=True)]
