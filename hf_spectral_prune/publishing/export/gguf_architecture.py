"""What a row of the table of GGUF families says: llama.cpp's architectures, and the sizes of a model that go there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gguf import MODEL_ARCH, GGUFWriter
from torch import Tensor
from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Layer:
    """Sizes of one layer: FFN width, query heads, key/value heads."""

    width: int
    heads: int
    kv_heads: int


@dataclass(frozen=True)
class Shape:
    """Sizes of a whole model, as its config says them."""

    config: PreTrainedConfig
    head_dim: int
    layers: list[Layer]

    @property
    def alike(self) -> bool:
        """Whether all layers have the same sizes."""
        return len(set(self.layers)) == 1

    @property
    def num_experts(self) -> int:
        """How many experts a layer has."""
        return int(getattr(self.config, "num_experts", None) or getattr(self.config, "num_local_experts", None) or 0)

    @property
    def period(self) -> int | None:
        """Every how many layers one attends to everything, the others within a window; None if they do not alternate so."""
        kinds = [kind == "full_attention" for kind in self.config.layer_types]
        period = kinds.index(True) + 1 if True in kinds else len(kinds) + 1
        return period if kinds == [(index + 1) % period == 0 for index in range(len(kinds))] else None


# What is done to the weight and the bias of a module: (rows, ...), sizes of the model and of the layer it is in.
Change = Callable[[Tensor, Shape, Layer | None], Tensor]


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's architectures, as a place for the weights of a family.

    Attributes:
        arch: its name.
        per_layer: it reads the FFN width and the head counts of every layer.
        biases: ends of the names of linear layers that may have a bias.
        changes: {end of the name of a module, or of its weight or bias alone: what is done to it}; the first that fits is taken.
        split: {module: the modules that its rows are written as}, inside a layer.
        joined: {module that is written: the modules whose rows it holds}, inside a layer.
        ropes: types of `rope_parameters` that it computes.
        partial_rope: a part of every head may stay without rotation.
        windows: it computes sliding windows; the context of any other ends where a window does.
        whole_heads: its heads fill the hidden size.
        transposed: ends of the names of linear layers whose weights lie (in, out), as GPT-2's do.
        left_out: beginnings of the names of tensors that it has no use for.
        output: "tied" if it has no output weights but the embeddings, "own" if the file must hold them; "any" otherwise.
        lacks: what else keeps it from holding a model, said of the architecture, or None.
        metadata: writes the keys that it has beside the common ones.
    """

    arch: MODEL_ARCH
    per_layer: bool = False
    biases: tuple[str, ...] = ()
    changes: Mapping[str, Change] = field(default_factory=dict)
    split: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ropes: tuple[str, ...] = ("default", "linear")
    partial_rope: bool = False
    windows: bool = False
    whole_heads: bool = False
    transposed: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    output: str = "any"
    lacks: Callable[[Shape], str | None] = lambda shape: None
    metadata: Callable[[GGUFWriter, Shape], None] = lambda writer, shape: None


def _sizes(config: PreTrainedConfig) -> Layer:
    heads = config.num_attention_heads
    return Layer(config.intermediate_size, heads, getattr(config, "num_key_value_heads", heads))


@dataclass(frozen=True)
class Row:
    """A family: how llama.cpp holds it.

    Attributes:
        activations: what its FFN may compute.
        architectures: those that hold it, the plainest first.
        classes: the end of the names of the classes that go there.
        sizes: of one layer, from the config as that layer has it.
        experts: {matrix of all experts of a layer: what each expert's own is called in files, with {} for its number}.
        saved_as: {part of a tensor's name in the model: the same in its files}, where these differ.
    """

    activations: tuple[str, ...]
    architectures: tuple[Architecture, ...]
    classes: str = "ForCausalLM"
    sizes: Callable[[PreTrainedConfig], Layer] = _sizes
    experts: Mapping[str, str] = field(default_factory=dict)
    saved_as: Mapping[str, str] = field(default_factory=dict)


def interleave_halves(rows: Tensor, heads: int) -> Tensor:
    """Reorders (heads * D, ...) rows so that the two halves of every head's D channels alternate: 0, D/2, 1, D/2 + 1, ...

    transformers rotates channel i of a head with channel i + D/2, llama.cpp's normal rotation 2i with 2i + 1.
    """
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(rows.shape)
