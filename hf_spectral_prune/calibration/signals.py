"""Where a group's two hidden states are read, and how they become rows of channels: one node a channel, one row a position."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..models.cria.channels import widths_of
from ..models.families import Signal, Slice, UnitGroup, module_of, network_of, row_of, stack_of
from ..models.families.experts import Expert

Side = Literal["before", "after"]


@dataclass(frozen=True)
class Spatial:
    """Which positions of a channel's map count.

    Attributes:
        form: "all" of them; "sampled", a few drawn at random in every image; or "pooled", their mean alone.
        num_positions: how many are drawn; maps with fewer give all they have.
        seed: of the draw.

    Tokens of a transformer are positions of text or patches, not of a map: they all count whatever this says.
    """

    form: Literal["sampled", "pooled", "all"] = "all"
    num_positions: int = 16
    seed: int = 0


ALL = Spatial()


@dataclass(frozen=True)
class Reader:
    """One place of a signal: the module to hook, its side, and what turns its value into rows (..., n).

    A group of channels with several producers or consumers has several readers a side; their rows are pooled. An expert is
    given some of the tokens of a batch: `expert.tokens` says which. `stack` is 1 where the positions are those of a decoder.
    """

    module: nn.Module
    side: Literal["input", "output"]
    rows: Callable[[Tensor], Tensor]
    expert: Expert | None = None
    stack: int = 0

    @contextmanager
    def reading(self, sink: Callable[[Tensor], None]) -> Iterator[None]:
        """Passes the module's raw input or output to `sink` at every forward pass while the context is open."""
        if self.side == "input":
            handle = self.module.register_forward_pre_hook(lambda _module, args: sink(args[0]))
        else:
            handle = self.module.register_forward_hook(lambda _module, _args, output: sink(output))
        try:
            yield
        finally:
            handle.remove()


def readers(model: PreTrainedModel, group: UnitGroup, side: Side, spatial: Spatial = ALL) -> list[Reader]:
    """The places where one side of a group is read."""
    if group.slices:
        network = network_of(model)
        slices = group.before if side == "before" else [piece for piece in group.slices if piece.side == "input"]
        return [_channel_reader(network.get_submodule(piece.path), piece, group, spatial) for piece in slices]
    row = row_of(model, group)
    signal = row.before if side == "before" else row.after
    expert = module_of(model, group.layer, group.place) if group.place else None
    stack = stack_of(model, group.layer)
    return [Reader(module_of(model, group.layer, signal.module), signal.side, _block_of(signal), expert, stack)]


def num_signal_channels(model: PreTrainedModel, group: UnitGroup, side: Side) -> int:
    """Number of channels that one side carries."""
    if group.slices:
        return group.size * group.channels_per_unit
    row = row_of(model, group)
    signal = row.before if side == "before" else row.after
    widths = widths_of(module_of(model, group.layer, signal.module))
    return widths["in" if signal.side == "input" else "out"] // signal.num_blocks


def _block_of(signal: Signal) -> Callable[[Tensor], Tensor]:
    if signal.num_blocks == 1:
        return lambda value: value
    return lambda value: value.chunk(signal.num_blocks, dim=-1)[signal.block]


def _channel_reader(module: nn.Module, piece: Slice, group: UnitGroup, spatial: Spatial) -> Reader:
    """Reads channels: (B, C, *map) of a convolution or norm, (B, ..., C) of a linear layer, as (B, positions, n).

    Where a channel owns several inputs of a linear layer (a flattened map), they are its positions.
    """
    channels = group.size * group.channels_per_unit
    index = piece.index.reshape(channels, -1)  # (n, inputs per channel)
    in_order = channels == widths_of(module)["in" if piece.side == "input" else "out"] and bool(
        (index[:, 0] == torch.arange(channels)).all()
    )
    generator = torch.Generator().manual_seed(_seed_of(spatial.seed, piece.path))

    def rows(value: Tensor) -> Tensor:
        maps = value if isinstance(module, nn.Linear) else value.movedim(1, -1)  # (B, ..., C)
        maps = maps.reshape(maps.shape[0], -1, maps.shape[-1])  # (B, S, C)
        if index.shape[1] > 1:
            maps = maps[..., index.T.flatten().to(maps.device)].reshape(maps.shape[0], -1, channels)  # (B, S * inputs, n)
        maps = _chosen_positions(maps, spatial, generator)
        return maps if index.shape[1] > 1 or in_order else maps[..., index[:, 0].to(maps.device)]

    return Reader(module, piece.side, rows)


def _chosen_positions(maps: Tensor, spatial: Spatial, generator: torch.Generator) -> Tensor:
    """(B, S, n) -> (B, positions, n)."""
    if spatial.form == "pooled":
        return maps.mean(dim=1, keepdim=True)
    count = maps.shape[1]
    if spatial.form == "all" or count <= spatial.num_positions:
        return maps
    drawn = torch.randint(count, (len(maps), spatial.num_positions), generator=generator).to(maps.device)
    return maps.gather(1, drawn[..., None].expand(-1, -1, maps.shape[-1]))


def _seed_of(seed: int, path: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{path}".encode()).digest()[:7], "big")
