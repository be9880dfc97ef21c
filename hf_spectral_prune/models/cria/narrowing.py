"""Narrows the layers of a stock model to the widths its config gives layer by layer, and makes the classes that do so.

This file is shipped beside the weights of every Cria model, so it imports torch, transformers and huggingface_hub only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

_LINEAR = ((0, "out_features"), (1, "in_features"))


class Layer(Protocol):
    """A layer of a stock model: its parts and sizes have the names that its class gives them."""

    def __getattr__(self, name: str) -> Any: ...

    def __setattr__(self, name: str, value: Any) -> None: ...


def narrow_linear(linear: Layer, rows: Tensor | None = None, columns: Tensor | None = None) -> None:
    """Keeps the given output rows and input columns (indices) of a linear layer, in place."""
    # The linear layers of GPT-2 have their weights transposed.
    (dim, outputs), (other, inputs) = ((1, "nf"), (0, "nx")) if isinstance(linear, Conv1D) else _LINEAR
    if rows is not None:
        linear.weight = _kept(linear.weight, rows, dim)
        setattr(linear, outputs, len(rows))
        if linear.bias is not None:
            linear.bias = _kept(linear.bias, rows, 0)
    if columns is not None:
        linear.weight = _kept(linear.weight, columns, other)
        setattr(linear, inputs, len(columns))


def add_bias(linear: Layer) -> None:
    """Gives a linear layer a zero bias, if it has none."""
    if linear.bias is None:
        bias = torch.zeros(linear.weight.shape[0], dtype=linear.weight.dtype, device=linear.weight.device)
        linear.bias = nn.Parameter(bias, requires_grad=linear.weight.requires_grad)


def _kept(parameter: Tensor, index: Tensor, dim: int) -> nn.Parameter:
    values = parameter.detach().index_select(dim, index.to(parameter.device))
    return nn.Parameter(values, requires_grad=parameter.requires_grad)


def first(count: int) -> Tensor:
    """(count,) indices 0, 1, ..."""
    # On the CPU even inside a meta-device context: `from_pretrained` builds the model there.
    return torch.arange(count, device="cpu")


def narrow_rows(linears: Iterable[Layer], count: int, num_blocks: int = 1) -> None:
    """Keeps the first `count` output rows of every block of linear layers; a fused projection holds several blocks."""
    for linear in linears:
        size = len(linear.weight.T if isinstance(linear, Conv1D) else linear.weight) // num_blocks
        starts = torch.arange(num_blocks, device="cpu") * size
        narrow_linear(linear, rows=(starts[:, None] + first(count)).flatten())


def narrow_between(layer: Layer, width: int, producers: Iterable[str], consumer: str, num_blocks: int = 1) -> None:
    """Keeps the first `width` channels between linear layers: output rows of the producers, input columns of the consumer."""
    narrow_rows(map(layer.get_submodule, producers), width, num_blocks)
    narrow_linear(layer.get_submodule(consumer), columns=first(width))


def narrow_decoder_layer(layer: Layer, config: PreTrainedConfig) -> None:
    """Narrows one Llama-type decoder layer to its own config's FFN width and head counts."""
    narrow_key_value_groups(layer, config)
    narrow_gated_ffn(layer, config)


def narrow_key_value_groups(layer: Layer, config: PreTrainedConfig, consumer: str = "o_proj") -> None:
    """Narrows the attention of one decoder layer to its own config's head counts."""
    attention = layer.self_attn
    queries = config.num_attention_heads * attention.head_dim
    narrow_between(attention, queries, ["q_proj"], consumer)
    narrow_rows((attention.k_proj, attention.v_proj), config.num_key_value_heads * attention.head_dim)
    attention.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads


def narrow_gated_ffn(layer: Layer, config: PreTrainedConfig) -> None:
    """Narrows the gated FFN of one layer to its own config's width."""
    narrow_between(layer.mlp, config.intermediate_size, ("gate_proj", "up_proj"), "down_proj")
    layer.mlp.intermediate_size = config.intermediate_size


@contextmanager
def _uniform(config: PreTrainedConfig, fields: dict[str, int]) -> Iterator[None]:
    """While open, no layer differs and `fields` hold: what the stock class sees while it builds itself."""
    overrides = config.to_dict().get("per_layer_config")
    config.per_layer_config = None
    own = {name: getattr(config, name) for name in fields}
    try:
        for name, value in fields.items():
            setattr(config, name, value)
        yield
    finally:
        for name, value in own.items():
            setattr(config, name, value)
        config.per_layer_config = overrides


@dataclass(kw_only=True)
class CriaConfigMixin:
    """A stock config whose layers may differ (`per_layer_config`).

    Attributes:
        consumer_bias: linear layers inside every layer that carry a bias which the stock class lacks (the bias repair of a
            pruning run).
    """

    consumer_bias: list[str] | None = None

    def to_dict(self: Any) -> dict[str, Any]:
        """The fields, with the number of layers by its usual name too (DistilBERT says `n_layers`).

        A resumed Trainer reads the file without the class, and then looks for the layers that `per_layer_config` is about.
        """
        return super().to_dict() | {"num_hidden_layers": self.num_hidden_layers}  # type: ignore[misc]


@dataclass(kw_only=True)
class CriaDecoderConfigMixin(CriaConfigMixin):
    """One whose head count is free."""

    def validate_architecture(self) -> None:
        """Accepts any head count: the attention works with `head_dim`, not with a share of `hidden_size`."""


@dataclass(kw_only=True)
class CriaEncoderConfigMixin(CriaConfigMixin):
    """One that states its head size, which the stock config takes from the number of heads."""

    head_dim: int | None = None

    def __post_init__(self: Any, **kwargs: object) -> None:
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)  # type: ignore[misc]


class CriaMixin:
    """Builds the stock model at its widest, then narrows every layer to `config.per_layer_config`.

    Attributes:
        config_mixin: what the family's config has beside the stock one.
        layers_path: path of the layer list inside the base model.
    """

    # transformers may come to rebuild layers of heterogeneous configs by itself; these classes do it already.
    _disable_heterogeneous_modeling_patching = True
    base_model: Any
    config_mixin: type = CriaConfigMixin
    layers_path = "layers"

    def __init__(self, config: PreTrainedConfig, *args: object, **kwargs: object) -> None:
        with _uniform(config, self.widest_fields(config)):
            super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        layers = self.base_model.get_submodule(self.layers_path)
        for layer, layer_config in zip(layers, config.per_layer_config, strict=True):
            self.narrow_layer(layer, layer_config)
            for path in config.consumer_bias or ():
                add_bias(layer.get_submodule(path))

    @staticmethod
    def widest_fields(config: PreTrainedConfig) -> dict[str, int]:
        """Config fields that must have other values while the stock class builds itself."""
        return {}

    @staticmethod
    def narrow_layer(layer: Layer, config: PreTrainedConfig) -> None:
        """Narrows one layer to its own config."""
        raise NotImplementedError


class CriaDecoderMixin(CriaMixin):
    """Llama-type decoders, whose attention works with `config.head_dim`."""

    config_mixin = CriaDecoderConfigMixin
    narrow_layer = staticmethod(narrow_decoder_layer)


class CriaFusedDecoderMixin(CriaDecoderMixin):
    """Such decoders whose FFN has one projection for the activated half of its rows and the half it is multiplied with."""

    @staticmethod
    def narrow_layer(layer: Layer, config: PreTrainedConfig) -> None:
        """Narrows one layer to its own config's FFN width and head counts."""
        narrow_key_value_groups(layer, config)
        narrow_between(layer.mlp, config.intermediate_size, ["gate_up_proj"], "down_proj", num_blocks=2)


class CriaGatedMixin(CriaMixin):
    """Decoders with gated FFNs whose attention stays whole."""

    narrow_layer = staticmethod(narrow_gated_ffn)


class CriaEncoderMixin(CriaMixin):
    """Encoders whose stock attention takes its head size from the number of heads: built with all, then narrowed."""

    config_mixin = CriaEncoderConfigMixin

    @staticmethod
    def widest_fields(config: PreTrainedConfig) -> dict[str, int]:
        return {"num_attention_heads": config.hidden_size // config.head_dim}


class CriaBertMixin(CriaEncoderMixin):
    """BERT and RoBERTa, whose layers are built alike."""

    layers_path = "encoder.layer"

    @staticmethod
    def narrow_layer(layer: Layer, config: PreTrainedConfig) -> None:
        """Narrows one encoder layer to its own config's FFN width and number of heads."""
        attention = layer.attention.self
        attention.num_attention_heads = config.num_attention_heads
        attention.all_head_size = config.num_attention_heads * config.head_dim
        narrow_rows((attention.query, attention.key, attention.value), attention.all_head_size)
        narrow_linear(layer.attention.output.dense, columns=first(attention.all_head_size))
        narrow_rows([layer.intermediate.dense], config.intermediate_size)
        narrow_linear(layer.output.dense, columns=first(config.intermediate_size))


def cria_family(module: str, mixin: type[CriaMixin], stock_config: type) -> tuple[type, Callable[[type], type]]:
    """The config class of a family of Cria models, and what makes one of its model classes of a stock class.

    Args:
        module: name of the module that holds the classes; its last part is the model type.
        mixin: what narrows the layers.
        stock_config: config class of transformers, e.g. `LlamaConfig`, which `CriaLlamaConfig` is derived from.
    """
    prefix = f"Cria{stock_config.__name__.removesuffix('Config')}"

    def derived(name: str, bases: tuple[type, ...], **members: object) -> type:
        doc = f"{bases[-1].__name__} whose layers may differ in width."
        return type(name, bases, {"__module__": module, "__doc__": doc, **members})

    bases = (mixin.config_mixin, stock_config)
    config: type = strict(derived(f"{prefix}Config", bases, model_type=module.rpartition(".")[2]))

    def model(stock: type) -> type:
        # Not "Cria" and the stock name: the text model of Gemma 3 has a class `Gemma3ForCausalLM`.
        task = re.search(r"(LMHead)?Model$|For\w+$", stock.__name__)
        assert task is not None
        return derived(prefix + task[0], (mixin, stock), config_class=config)

    return config, model
