"""What a family looks like, as a table (units, signals, producers, consumers, config fields), and a group of its units."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

UnitKindName = Literal["ffn", "shared_ffn", "decoder_ffn", "heads", "channels"]


@dataclass(frozen=True, eq=False)
class Slice:
    """The entries of one module that belong to a group's units.

    Attributes:
        path: of the module, from the root of the network.
        side: "output" for rows of its weight and entries of its bias, of a norm's vectors and of its statistics; "input" for
            columns of its weight.
        index: (units, entries) int64, the positions along that side that belong to each unit.
        num_blocks: a unit's entries lie in this many blocks of equal width, above 1 only for fused projections.
    """

    path: str
    side: Literal["input", "output"]
    index: Tensor
    num_blocks: int = 1


@dataclass(frozen=True)
class UnitGroup:
    """All units of one kind in one layer.

    Attributes:
        layer: index of the layer.
        kind: "ffn", "shared_ffn", "decoder_ffn", "heads" or "channels".
        size: number of units now.
        channels_per_unit: consumer columns that a unit owns (1 for a neuron, query heads * head_dim for a KV group; for traced
            channels the nodes of its signals).
        parameters_per_unit: parameters that leave the model with one unit, biases included, as the others are now.
        name: path of the first module that makes the channels, for traced groups.
        place: path inside the layer of the expert that the units are in, where a layer has several.
        slices: what belongs to the units, for traced groups; table families say it in their table.
        before: where the input-side signal of a traced group is read: outputs of these modules.
    """

    layer: int
    kind: UnitKindName
    size: int
    channels_per_unit: int
    parameters_per_unit: int
    name: str = ""
    place: str = ""
    slices: tuple[Slice, ...] = field(default=(), compare=False, repr=False)
    before: tuple[Slice, ...] = field(default=(), compare=False, repr=False)

    @property
    def key(self) -> str:
        """The group's name in plans, scores and reports: "layers.3.ffn", "layers.3.mlp.experts.5.ffn", "conv1.channels"."""
        inside = f".{self.place}" if self.place else ""
        return f"{self.name or f'layers.{self.layer}'}{inside}.{self.kind}"


@dataclass(frozen=True)
class Signal:
    """The place where one of a group's two hidden states is read.

    `module` is a path inside the layer; `side` says whether the module's input or its output is the signal. A fused
    projection holds several blocks of equal width side by side: `block` of `num_blocks` picks one.
    """

    module: str
    side: Literal["input", "output"]
    block: int = 0
    num_blocks: int = 1


@dataclass(frozen=True)
class Producer:
    """A linear layer whose output rows belong to units.

    Its rows are laid out as (num_blocks, num_units, rows_per_unit); `num_blocks` is above 1 only for fused projections.
    """

    module: str
    num_blocks: int = 1


@dataclass(frozen=True)
class UnitKind:
    """One row of the family's table: one kind of unit inside every layer.

    Attributes:
        kind: "ffn", "shared_ffn" (of an expert that sees every token, beside others that do not), "decoder_ffn" (where the
            encoder's has a config field of its own), "heads" or "channels".
        before: input-side signal (SSI's graph before the transformation).
        after: output-side signal, always what the consumer reads.
        producers: linear layers whose rows go with the unit.
        consumer: linear layer whose columns go with the unit.
        size_field: config attribute that holds the number of units of a layer.
        config_fields: every config attribute that shrinks in proportion to the units, `size_field` included.
        bias_field: config attribute of the stock class that gives the consumer a bias (and, with it, the producers named
            in `bias_producers`), or None where the stock class has no such switch.
        module_fields: (module path, attribute) pairs that repeat `size_field` or a field in proportion to it.
        stream: the residual stream right behind the consumer, which sequential compensation aims at; None where it is not known.
        stream_norm: norm that the consumer's output goes through on its way into the stream, or None.
        stream_factor: attribute of the layer (a path) that the consumer's output is multiplied by there, or None.
        each: path inside the layer of the experts, each of which has units of its own; the other paths are then inside an
            expert. Layers without experts have none of these units.
        stack: 0 for the encoder's layers alone, 1 for the decoder's, None for all.
        blocked_by: module inside the layer that ties the units together where a config has it (a norm of all heads), or None.
    """

    kind: UnitKindName
    before: Signal
    after: Signal
    producers: tuple[Producer, ...]
    consumer: str
    size_field: str
    config_fields: tuple[str, ...]
    bias_field: str | None = None
    module_fields: tuple[tuple[str, str], ...] = ()
    stream: Signal | None = Signal("", "output")
    stream_norm: str | None = None
    stream_factor: str | None = None
    each: str | None = None
    stack: int | None = None
    blocked_by: str | None = None

    def inside(self, place: str) -> UnitKind:
        """The row of one expert, with paths from the layer."""

        def within(signal: Signal) -> Signal:
            return replace(signal, module=f"{place}.{signal.module}")

        return replace(
            self,
            before=within(self.before),
            after=within(self.after),
            producers=tuple(replace(producer, module=f"{place}.{producer.module}") for producer in self.producers),
            consumer=f"{place}.{self.consumer}",
            module_fields=tuple((f"{place}.{path}", name) for path, name in self.module_fields),
            each=None,
        )


@dataclass(frozen=True)
class Family:
    """A model family: its layers, its kinds of unit, and what its stock config can and cannot say.

    Attributes:
        model_types: `config.model_type` values that this table describes (stock and Cria).
        layers: path of the layer list inside the base model.
        pooler: path of a pooler behind the layers whose FFN is as theirs and follows the same field; it counts as one more layer.
        decoder: path of a second list, whose layers are numbered behind those of the first: the decoder's behind the encoder's.
        kinds: the table, one row a kind of unit.
        cria: name of the module in `models/cria/` that holds the per-layer classes, or None.
        stock_heads: which uniform head counts the stock config accepts: "any", "divides_hidden" or "fixed" (the head size is
            `hidden_size` over the number of heads, so only the original number leaves it as it was).
        stock_ffn: how many times as wide as the hidden size the stock class's FFN is, where its config cannot say otherwise: a
            number, or the config field that says it; 0 where it is no multiple of it.
        positions_after_padding: positions are counted from behind the id of the pad token, so that fewer tokens fit than the
            config has positions.
        also: other names of models with this table, for its readers.
        when: (config field, value) pairs of the models that this table describes, where a type has several.
        tuple_layers: a layer gives a tuple, whose first entry is the hidden states.
        by_structure: there is no table for the type; this one was read off the modules (`structure.py`).
        inside: the layers are those of a text model inside of a larger one, and their sizes are in the text part of its config.
        traced: the units are channels, found by tracing the module graph (`tracing.py`) instead of by a table.
    """

    name: str
    model_types: tuple[str, ...]
    layers: str
    kinds: tuple[UnitKind, ...]
    cria: str | None = None
    stock_heads: Literal["any", "divides_hidden", "fixed"] = "any"
    stock_ffn: int | str | None = None
    positions_after_padding: bool = False
    also: str = ""
    when: tuple[tuple[str, object], ...] = ()
    tuple_layers: bool = False
    by_structure: bool = False
    inside: bool = False
    traced: bool = False
    decoder: str = ""
    pooler: str = ""

    @property
    def runs_whole(self) -> bool:
        """Whether nothing is known of how layers hand on what they read, so that they cannot be run one by one."""
        return self.traced or self.by_structure or bool(self.decoder or self.pooler)

    @property
    def stream_unknown(self) -> bool:
        """Whether nothing is known of what consumers add to the residual stream, so that each is repaired by itself."""
        return self.by_structure or bool(self.decoder or self.pooler) or self.experts is not None

    @property
    def experts(self) -> str | None:
        """Path inside a layer of its experts, for a family that has them."""
        return next((row.each for row in self.kinds if row.each is not None), None)

    @property
    def unit_kinds(self) -> tuple[UnitKindName, ...]:
        """Names of the kinds of unit that the family has."""
        return ("channels",) if self.traced else tuple(dict.fromkeys(row.kind for row in self.kinds))

    def kind(self, name: str) -> UnitKind:
        """The table's row for one kind of unit."""
        self.check_kinds((name,))
        (found,) = [row for row in self.kinds if row.kind == name]
        return found

    def check_kinds(self, names: Iterable[str]) -> None:
        """Checks that the family has these kinds of unit.

        Raises:
            ValueError: it has not; names those it has.
        """
        for name in names:
            if name not in self.unit_kinds:
                known = ", ".join(f"`{kind}`" for kind in self.unit_kinds)
                raise ValueError(f"`units` asks for `{name}`, but the {self.name} family has {known}. Choose from those.")


def network_of(model: PreTrainedModel) -> nn.Module:
    """The network that paths of slices start from: the model, or the plain network inside a `TorchModel`."""
    network: nn.Module = model.get_submodule("network") if model.config.model_type == "torch" else model
    return network
