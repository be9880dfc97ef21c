"""Settles a cut model's class: the stock class where its config can say the shape, else the Cria class."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedConfig, PreTrainedModel

from ..models.cria import auto_map, config_class, load, task_classes
from ..models.cria.narrowing import add_bias
from ..models.families import Family, family_of, layers_of, module_of
from ..models.families.experts import join_experts


def stock_accepts_heads(config: PreTrainedConfig, num_attention_heads: int) -> bool:
    """Whether the family's stock config loads with this many attention heads in every layer."""
    rule, config = family_of(config).stock_heads, config.get_text_config()
    if rule == "divides_hidden":
        return config.hidden_size % num_attention_heads == 0
    if rule == "fixed":
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return config.hidden_size == num_attention_heads * head_dim
    return True


def needs_cria(model: PreTrainedModel) -> bool:
    """Whether the stock class cannot hold the model: layers differ, extra biases, or a head count it refuses."""
    if family_of(model.config).traced:
        return bool(getattr(model.config, "cria_channels", None))
    config = model.config.get_text_config()
    if config.is_heterogeneous or getattr(config, "consumer_bias", None):
        return True
    return not stock_accepts_heads(model.config, config.num_attention_heads) or not _stock_accepts_ffn(model.config)


def _stock_accepts_ffn(config: PreTrainedConfig) -> bool:
    family = family_of(config)
    if family.stock_ffn is None:
        return True
    times = family.stock_ffn if isinstance(family.stock_ffn, int) else getattr(config, family.stock_ffn)
    return getattr(config, family.kind("ffn").size_field, None) in (None, times * config.hidden_size)


def _state_multiple(config: PreTrainedConfig) -> None:
    """Says the width of the FFN as the stock config does, where that is by how many times the hidden size goes into it."""
    family = family_of(config)
    if isinstance(family.stock_ffn, str) and not config.is_heterogeneous:
        width = getattr(config, family.kind("ffn").size_field, None)
        if width is not None and width % config.hidden_size == 0:
            setattr(config, family.stock_ffn, width // config.hidden_size)


def check_class(model: PreTrainedModel, layout: str) -> None:
    """Checks, before any cut, that there is a class to hold what a layout will leave of the model.

    Raises:
        ValueError: the layout needs a Cria class, and the model's class has none.
    """
    family = family_of(model.config)
    own = type(model.config).__name__.startswith("Cria")
    needed = layout == "per_layer" or family.traced or family.stock_ffn is not None or own
    if needed and family.name != "torch":
        # FSDP makes a class of its own from the model's.
        cls = next(base for base in type(model).__mro__ if not issubclass(base, FSDPModule))
        _check_known(cls, _stock_to_cria(_cria_module(family)))


def _cria_module(family: Family) -> ModuleType:
    if family.cria is None:
        raise ValueError(f"The {family.name} family has no per-layer class. Use a uniform layout that its config accepts.")
    return load(family.cria)


def _stock_to_cria(module: ModuleType) -> dict[type, type]:
    return {cls.__bases__[-1]: cls for cls in task_classes(module).values()}


def _check_known(cls: type, pairs: dict[type, type]) -> None:
    if cls not in pairs and cls not in pairs.values():
        known = ", ".join(sorted(stock.__name__ for stock in pairs))
        raise ValueError(
            f"`{cls.__name__}` has no per-layer class, which the cut model needs; known: {known}. Prune one of those."
        )


def settle_class(model: PreTrainedModel) -> PreTrainedModel:
    """Gives the model the class and config class that will load it again, in place.

    Experts that were split to be cut are joined again. Changing the class in place keeps parameters, hooks and device placement
    as they are; the two classes differ only in how they build their layers.

    Raises:
        ValueError: the stock class cannot hold the model and the family has no Cria class.
    """
    family = family_of(model.config)
    if family.name == "torch":
        return model  # the network gets its class when it is saved
    join_experts(model, family)
    _state_multiple(model.config)
    if needs_cria(model):
        _change_class(model, _cria_module(family), cria=True)
    elif type(model.config).__name__.startswith("Cria"):
        _change_class(model, _cria_module(family), cria=False)
    elif type(model).__module__.startswith("transformers."):
        # Code that came with the model and was not used: it is not in the folder, where its name would lead nowhere.
        vars(model.config).pop("auto_map", None)
    return model


def _change_class(model: PreTrainedModel, module: ModuleType, *, cria: bool) -> None:
    new_config_class: Any = config_class(module) if cria else config_class(module).__bases__[-1]
    pairs = _stock_to_cria(module)
    _check_known(type(model), pairs)
    if not cria:
        pairs = {own: stock for stock, own in pairs.items()}
    config = model.config
    fields = config.to_dict()
    own_fields = set() if cria else _field_names(type(config)) - _field_names(new_config_class)
    if family_of(config).stock_heads == "any":
        own_fields -= {"head_dim"}  # what a stock class that takes any head count builds its heads with
    for name in {"model_type", "auto_map", *own_fields}:
        fields.pop(name, None)
    new = new_config_class.from_dict(fields)
    new._name_or_path = config._name_or_path
    # Private but essential: which attention the modules run is decided by the config they share.
    new._attn_implementation = config._attn_implementation
    if cria:
        new.auto_map = auto_map(module)
        # A text model out of one that sees images too would be saved by that one's names, which its own class knows alone.
        vars(model).pop("_weight_conversions", None)
    # In place, so that all who share the config see it: the modules, and a larger model that holds this one.
    config.__class__ = new_config_class
    vars(config).clear()
    vars(config).update(vars(new))
    for part in model.modules():
        if type(part) in pairs:
            part.__class__ = pairs[type(part)]
            # transformers notes at an instance's birth what its class can record (hidden states): so build one, for free.
            with torch.device("meta"):
                type(part)(config)


def _field_names(config: type[PreTrainedConfig]) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


def add_consumer_biases(model: PreTrainedModel, layout: str) -> PreTrainedModel:
    """Gives every consumer a zero bias, so that the bias repair has a place to go; the function does not change.

    A stock config that has a switch for it (e.g. `mlp_bias`) also puts zero biases on the producers, as its class will
    expect them; other families get `consumer_bias` in a Cria config.

    Raises:
        ValueError: a uniform layout is asked for and the stock class has no bias there.
    """
    family = family_of(model.config)
    rows = [row for row in family.kinds if _lacks_bias(model, row.consumer)]
    extra = []
    for row in rows:
        if row.bias_field is not None and not type(model.config).__name__.startswith("Cria"):
            setattr(model.config, row.bias_field, True)
            paths = [producer.module for producer in row.producers] + [row.consumer]
        elif layout == "uniform":
            raise ValueError(
                f'`compensation="bias"` needs a bias in `{row.consumer}`, which the stock {family.name} class cannot have. '
                'Use `layout="per_layer"` or `compensation="least_squares"`.'
            )
        else:
            extra.append(row.consumer)
            paths = [row.consumer]
        for layer in range(len(layers_of(model))):
            for path in paths:
                module = module_of(model, layer, path)
                assert isinstance(module, nn.Linear)
                add_bias(module)
    if extra:
        model.config.consumer_bias = sorted({*(getattr(model.config, "consumer_bias", None) or ()), *extra})
    return model


def _lacks_bias(model: PreTrainedModel, path: str) -> bool:
    return any(module_of(model, layer, path).bias is None for layer in range(len(layers_of(model))))


def check_mistral(model: PreTrainedModel) -> None:
    """Checks that a Mistral class can hold the model.

    Raises:
        ValueError: the model is not a Llama of transformers, has biases that Mistral lacks, or its layers differ.
    """
    family, config = family_of(model.config), model.config
    if family.name == "mistral":
        return
    biases = family.name == "llama" and (config.attention_bias or config.mlp_bias or getattr(config, "consumer_bias", None))
    if family.name != "llama" or biases or config.is_heterogeneous:
        raise ValueError(
            '`stock_class="mistral"` takes a bias-free Llama with equal layers; this is a '
            f"`{type(model).__name__}`{' with biases' if biases else ''}. Leave `stock_class` out."
        )
    if not hasattr(transformers, _mistral_name(model)):
        raise ValueError(
            f'`stock_class="mistral"` has no class for a `{type(model).__name__}`, only for the Llama classes of transformers. '
            "Leave `stock_class` out."
        )


def _mistral_name(model: PreTrainedModel) -> str:
    return type(model).__name__.removeprefix("Cria").replace("Llama", "Mistral", 1)


def as_mistral(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights as a Mistral model without sliding window, whose config accepts any head count.

    Raises:
        ValueError: see `check_mistral`.
    """
    check_mistral(model)
    config = model.config
    if family_of(config).name == "mistral":
        return model
    fields = config.to_dict()
    for name in ("model_type", "architectures", "attention_bias", "mlp_bias", "pretraining_tp", "auto_map", "consumer_bias"):
        fields.pop(name, None)
    new_config = transformers.MistralConfig(**fields | {"sliding_window": None})
    new_config._attn_implementation = config._attn_implementation
    new_config._name_or_path = config._name_or_path
    # The weights are taken over, so none are made; buffers that are not saved (of the rotary embedding) are.
    with init_empty_weights(include_buffers=False):
        converted = getattr(transformers, _mistral_name(model))(new_config)
    converted.load_state_dict(model.state_dict(), assign=True)
    converted.tie_weights()
    converted.to(model.device)
    if model.can_generate():
        converted.generation_config = model.generation_config
    return converted.train(model.training)
