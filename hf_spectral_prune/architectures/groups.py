"""Finds a model's family and lists its unit groups, with the modules and the exact parameter cost of a unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from ..naming import did_you_mean
from .base import Family, UnitKind, UnitKindName

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class UnitGroup:
    """All units of one kind in one layer.

    Attributes:
        layer: index of the layer.
        kind: "ffn", "heads" or "channels".
        size: number of units now.
        channels_per_unit: consumer columns that a unit owns (1 for a neuron, query heads * head_dim for a KV group).
        parameters_per_unit: parameters that leave the model with one unit, biases included.
    """

    layer: int
    kind: UnitKindName
    size: int
    channels_per_unit: int
    parameters_per_unit: int

    @property
    def key(self) -> str:
        """The group's name in plans, scores and reports, e.g. "layers.3.ffn"."""
        return f"layers.{self.layer}.{self.kind}"


def family_of(config: PreTrainedConfig) -> Family:
    """The family table for a config, by `model_type`.

    Raises:
        ValueError: the family is unknown; names the known ones and the nearest.
    """
    from . import FAMILIES

    known = {model_type: family for family in FAMILIES for model_type in family.model_types}
    if config.model_type in known:
        return known[config.model_type]
    hint = did_you_mean(str(config.model_type), known)
    names = ", ".join(f"`{family.name}`" for family in FAMILIES)
    raise ValueError(
        f"Model type `{config.model_type}` is not a known family; known: {names}.{hint} "
        "Add a table for it in hf_spectral_prune/architectures/ or choose another model."
    )


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The model's list of layers, whatever task head is on top."""
    layers = model.base_model.get_submodule(family_of(model.config).layers)
    assert isinstance(layers, nn.ModuleList)
    return layers


def module_of(model: PreTrainedModel, layer: int, path: str) -> Any:
    """The module at `path` inside one layer; a linear layer for every producer and consumer of a family table."""
    return layers_of(model)[layer].get_submodule(path)


def layer_field(config: PreTrainedConfig, layer: int, name: str) -> Any:
    """A config attribute as one layer has it (the global value unless `per_layer_config` overrides it)."""
    return getattr(config.per_layer_config[layer], name)


def _check_plain(module: nn.Module, name: str) -> None:
    if not isinstance(module, nn.Linear) or not module.weight.is_floating_point():
        raise ValueError(
            f"`{name}` is a {type(module).__name__} with {getattr(module.weight, 'dtype', 'unknown')} weights, which cannot "
            "be cut. Load the model without quantisation or adapters (dequantise or merge first)."
        )


def _group(model: PreTrainedModel, layer: int, row: UnitKind) -> UnitGroup:
    size = layer_field(model.config, layer, row.size_field)
    consumer = module_of(model, layer, row.consumer)
    _check_plain(consumer, f"layers.{layer}.{row.consumer}")
    cost = consumer.weight.numel() // size
    for producer in row.producers:
        module = module_of(model, layer, producer.module)
        _check_plain(module, f"layers.{layer}.{producer.module}")
        cost += sum(parameter.numel() for parameter in module.parameters()) // size
    return UnitGroup(layer, row.kind, size, consumer.weight.shape[1] // size, cost)


def unit_groups(model: PreTrainedModel, kinds: tuple[str, ...] | list[str] | None = None) -> list[UnitGroup]:
    """Every unit group of the model, layer by layer.

    Args:
        kinds: kinds of unit to list; None lists all the family has.

    Raises:
        ValueError: unknown family, unknown kind, or weights that cannot be cut (quantised, wrapped by an adapter).
    """
    family = family_of(model.config)
    rows = family.kinds if kinds is None else tuple(family.kind(kind) for kind in kinds)
    return [_group(model, layer, row) for layer in range(len(layers_of(model))) for row in rows]
