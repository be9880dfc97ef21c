"""Finds a model's family and lists its unit groups, with the modules and the exact parameter cost of a unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.integrations import is_fsdp_enabled
from transformers.pytorch_utils import Conv1D

from ..cria.channels import MATRICES, VECTORS, widths_of
from .base import Family, Slice, UnitGroup, UnitKind, network_of
from .experts import split_experts
from .inside import HOLDERS, family_inside
from .refusal import SPEECH, TWO_TOWERS, refusal
from .structure import family_by_structure

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


# What linear layers, convolutions and batch norms hold.
_PLAIN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def family_of(config: PreTrainedConfig) -> Family:
    """The family table for a config, by `model_type`.

    Raises:
        ValueError: the family is unknown; see `refusal`.
    """
    from . import FAMILIES

    known = {model_type for family in FAMILIES for model_type in family.model_types}
    for family in FAMILIES:
        if config.model_type in family.model_types and all(getattr(config, name) == value for name, value in family.when):
            return family
    text = config.get_text_config()
    if text is not config and text.model_type in known and config.model_type not in TWO_TOWERS:
        if config.model_type in HOLDERS:
            return family_inside(config, family_of(text))
        raise ValueError(
            f"Model type `{config.model_type}` holds more than a text model, and only that one (`{text.model_type}`) can be "
            "pruned: pass `model.get_decoder()` to `SpectralPruner` with a uniform layout, which cuts it in place, and save the "
            "whole model."
        )
    # A type that transformers knows is no misspelling of another.
    reason = None
    if config.model_type in CONFIG_MAPPING and config.model_type not in SPEECH:
        try:
            return family_by_structure(config)
        except ValueError as error:
            reason = str(error)
    raise ValueError(refusal(config, FAMILIES, reason))


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The model's list of layers, whatever task head is on top; empty for a traced network, which has no list of its own."""
    family = family_of(model.config)
    if family.traced:
        return nn.ModuleList()
    if family.decoder:
        return nn.ModuleList(layer for layers in _stacks(model, family) for layer in layers)
    layers = model.base_model.get_submodule(family.layers)
    assert isinstance(layers, nn.ModuleList)
    pooler = dict(model.base_model.named_modules()).get(family.pooler) if family.pooler else None
    return layers if pooler is None else nn.ModuleList([*layers, pooler])


def _stacks(model: PreTrainedModel, family: Family) -> list[list[nn.Module]]:
    """The layers of an encoder and of a decoder; a model that has only one of them has none of the other's."""
    modules = dict(model.base_model.named_modules())
    return [[*modules[path].children()] if path in modules else [] for path in (family.layers, family.decoder)]


def stack_of(model: PreTrainedModel, layer: int) -> int:
    """0 for the layers of an encoder or of a model with one list of them, 1 for those of a decoder behind an encoder."""
    family = family_of(model.config)
    return int(bool(family.decoder) and layer >= len(_stacks(model, family)[0]))


def module_of(model: PreTrainedModel, layer: int, path: str) -> Any:
    """The module at `path` inside one layer; a linear layer for every producer and consumer of a family table."""
    return layers_of(model)[layer].get_submodule(path)


def row_of(model: PreTrainedModel, group: UnitGroup) -> UnitKind:
    """The table's row of a group's units, with paths from the layer."""
    stacks = (None, stack_of(model, group.layer))
    (row,) = [row for row in family_of(model.config).kinds if row.kind == group.kind and row.stack in stacks]
    return row.inside(group.place) if group.place else row


@dataclass(frozen=True, eq=False)
class Part:
    """A slice together with its module.

    Attributes:
        name: what the criteria call it; its path inside the layer for table families.
        module: the module itself.
        slice: which of its entries belong to the units.
    """

    name: str
    module: Any
    slice: Slice

    @property
    def is_input(self) -> bool:
        """Whether the module reads the units (a consumer), rather than making them or passing them on."""
        return self.slice.side == "input"


def parts(model: PreTrainedModel, group: UnitGroup) -> list[Part]:
    """Everything in the model that belongs to a group's units, consumers last."""
    if group.slices:
        network = network_of(model)
        found = [Part(piece.path, network.get_submodule(piece.path), piece) for piece in group.slices]
        return [part for part in found if not part.is_input] + [part for part in found if part.is_input]
    row = row_of(model, group)
    found = []
    for producer in row.producers:
        linear = module_of(model, group.layer, producer.module)
        index = _block_index(widths_of(linear)["out"], group.size, producer.num_blocks)
        found.append(Part(producer.module, linear, Slice(producer.module, "output", index, producer.num_blocks)))
    consumer = module_of(model, group.layer, row.consumer)
    index = torch.arange(widths_of(consumer)["in"]).reshape(group.size, -1)
    return [*found, Part(row.consumer, consumer, Slice(row.consumer, "input", index))]


def take(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows of a tensor by index; the tensor itself where that is all of them in order, which costs no memory."""
    index = index.to(tensor.device)
    if len(index) == len(tensor) and torch.equal(index, torch.arange(len(index), device=index.device)):
        return tensor
    return tensor[index]


def consumers(model: PreTrainedModel, group: UnitGroup) -> list[Part]:
    """The modules that read a group's units."""
    return [part for part in parts(model, group) if part.is_input]


def _block_index(rows: int, size: int, num_blocks: int) -> torch.Tensor:
    """(size, rows / size): every unit's rows of a projection laid out as (num_blocks, size, rows per unit and block)."""
    return torch.arange(rows).reshape(num_blocks, size, -1).transpose(0, 1).reshape(size, -1)


def max_tokens(config: PreTrainedConfig) -> int | None:
    """Most tokens that a row of a model may have; None for a model without that limit."""
    positions: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and family_of(config).positions_after_padding:
        return positions - int(getattr(config, "pad_token_id", None) or 0) - 1
    return positions


def layer_field(config: PreTrainedConfig, layer: int, name: str) -> Any:
    """A config attribute as one layer has it (the global value unless `per_layer_config` overrides it).

    None where a stock config has no such field, as BLOOM's has none for the width of the FFN.
    """
    sizes = config.get_text_config()
    source = sizes.per_layer_config[layer] if sizes.is_heterogeneous else sizes
    return getattr(source, name) if family_of(config).stock_ffn is None else getattr(source, name, None)


def num_units(model: PreTrainedModel, layer: int, row: UnitKind) -> int:
    """Units of a kind in a layer: as the config says, or where it leaves that open, one for each input of the consumer."""
    size: int | None = layer_field(model.config, layer, row.size_field)
    return widths_of(module_of(model, layer, row.consumer))["in"] if size is None else size


def _check_in_memory(weight: Tensor, name: str, *, offloaded: bool = False) -> None:
    # A process that loads for FSDP has no weights either, before those of the first one are sent to it.
    if weight.is_meta and not is_fsdp_enabled() and not offloaded:
        raise ValueError(
            f"The weights of `{name}` are not in memory: the model is offloaded or empty. Load it whole on one device (leave "
            "`device_map` out, or give it one device)."
        )


def _check_plain(module: nn.Module, name: str) -> None:
    if not isinstance(module, (nn.Linear, Conv1D)) or not module.weight.is_floating_point():
        raise ValueError(
            f"`{name}` is a {type(module).__name__} with {getattr(module.weight, 'dtype', 'unknown')} weights, which cannot "
            "be cut. Load the model without quantisation or adapters (dequantise or merge first)."
        )
    hook = getattr(module, "_hf_hook", None)  # by which accelerate brings the weights for a moment
    _check_in_memory(module.weight, name, offloaded=getattr(hook, "weights_map", None) is not None)
    _check_computed(module, name)


def _check_computed(module: nn.Module, name: str) -> None:
    """Masks (`torch.nn.utils.prune`), parametrisations and `weight_norm` make the weight anew at every step, from others."""
    held = [*(path for path, _ in module.named_parameters()), *(path for path, _ in module.named_buffers())]
    others = [path for path in held if path not in _PLAIN]
    if others:
        raise ValueError(
            f"`{name}` has {', '.join(f'`{path}`' for path in others)} beside or instead of a plain weight, which a cut would "
            "not follow. Make it plain first (`torch.nn.utils.prune.remove`, `parametrize.remove_parametrizations`, "
            "`remove_weight_norm`)."
        )


def check_unshared(model: PreTrainedModel, groups: list[UnitGroup]) -> None:
    """Checks that no weight of the units is used at two places, of which a cut would know one.

    Raises:
        ValueError: one is; names both places.
    """
    if family_of(model.config).traced:  # its modules go by their paths in the graph, whatever else holds them
        return
    places: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name)
    for group in groups:
        for part in parts(model, group):
            for parameter in part.module.parameters():
                first, *others = places[id(parameter)]
                if others:
                    raise ValueError(
                        f"`{first}` is also `{others[0]}`: one weight used at {len(others) + 1} places, which cannot be cut for "
                        "each. Give each layer a copy of its own, or leave that kind out of `units`."
                    )


def _is_blocked(model: PreTrainedModel, row: UnitKind) -> bool:
    return row.blocked_by is not None and row.blocked_by in dict(layers_of(model)[0].named_modules())


def kinds_of(model: PreTrainedModel) -> tuple[str, ...]:
    """The kinds of unit that can be cut in this model: those of its family, but for what its config ties together."""
    family = family_of(model.config)
    return family.unit_kinds if family.traced else tuple(dict.fromkeys(row.kind for row in _rows(model, None)))


def _rows(model: PreTrainedModel, kinds: Sequence[str] | None) -> tuple[UnitKind, ...]:
    """The table's rows of the kinds asked for, or of all that this model lets go."""
    family = family_of(model.config)
    if kinds is None:
        return tuple(row for row in family.kinds if not _is_blocked(model, row))
    rows = tuple(row for kind in kinds for row in family.kinds if row.kind == kind)
    for row in rows:
        if _is_blocked(model, row):
            raise ValueError(
                f"`layers.0.{row.blocked_by}` ties the {row.kind} of a layer together, so they cannot be cut one by one. Take "
                f"`{row.kind}` out of `units`."
            )
    return rows


def _places(model: PreTrainedModel, layer: int, row: UnitKind) -> list[str]:
    """Where a layer has units of a kind: in itself (""), in each of its experts, or nowhere, where other layers have them."""
    if row.stack is not None and row.stack != stack_of(model, layer):
        return []
    if family_of(model.config).experts is None:
        return [""]
    modules = dict(layers_of(model)[layer].named_modules())
    if row.each is None:
        return [""] if row.consumer in modules else []
    return [f"{row.each}.{name}" for name, _ in modules[row.each].named_children()] if row.each in modules else []


def _group(model: PreTrainedModel, layer: int, row: UnitKind, place: str) -> UnitGroup:
    row = row.inside(place) if place else row
    consumer = module_of(model, layer, row.consumer)
    size = num_units(model, layer, row)
    _check_plain(consumer, f"layers.{layer}.{row.consumer}")
    cost = consumer.weight.numel() // size
    for producer in row.producers:
        module = module_of(model, layer, producer.module)
        _check_plain(module, f"layers.{layer}.{producer.module}")
        cost += sum(parameter.numel() for parameter in module.parameters()) // size
    return UnitGroup(layer, row.kind, size, widths_of(consumer)["in"] // size, cost, place=place)


def unit_groups(model: PreTrainedModel, kinds: tuple[str, ...] | list[str] | None = None) -> list[UnitGroup]:
    """Every unit group of the model, layer by layer.

    The experts of a mixture become modules of their own by it, see `split_experts`; `settle_class` joins them again.

    Args:
        kinds: kinds of unit to list; None lists all the family has.

    Raises:
        ValueError: unknown family, unknown kind, weights that cannot be cut (quantised, wrapped by an adapter, offloaded), or a
            network that cannot be traced (see `traced_groups`).
    """
    family = family_of(model.config)
    family.check_kinds(kinds or ())
    if family.traced:
        from .tracing import traced_groups  # needs torch-pruning, which is an extra

        for name, parameter in model.named_parameters():
            _check_in_memory(parameter, name)
        for name, module in network_of(model).named_modules():
            if isinstance(module, (*MATRICES, *VECTORS)):
                _check_computed(module, name)
        return traced_groups(model)
    if family.experts is not None:
        split_experts(model, family)
    rows, layers = _rows(model, kinds), range(len(layers_of(model)))
    return [_group(model, layer, row, place) for layer in layers for row in rows for place in _places(model, layer, row)]


def is_audio(model: nn.Module) -> bool:
    """Whether the model reads features of sounds."""
    return getattr(model, "main_input_name", None) == "input_features"


def is_vision(model: nn.Module) -> bool:
    """Whether the model reads images (or the plain inputs of a `TorchModelForImageClassification`)."""
    return getattr(model, "main_input_name", None) == "pixel_values"
