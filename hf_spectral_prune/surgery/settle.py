"""Settles a cut model's class: the stock class where its config can say the shape, else the Cria class."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from ..architectures import family_of, layers_of, module_of
from ..modeling import MODULES, auto_map, config_class, task_classes
from ..modeling.narrowing import add_bias


def stock_accepts_heads(config: Any, num_attention_heads: int) -> bool:
    """Whether the family's stock config loads with this many attention heads in every layer."""
    rule = family_of(config).stock_heads
    if rule == "divides_hidden":
        return config.hidden_size % num_attention_heads == 0
    if rule == "fixed":
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return config.hidden_size == num_attention_heads * head_dim
    return True


def needs_cria(model: PreTrainedModel) -> bool:
    """Whether the stock class cannot hold the model: layers differ, extra biases, or a head count it refuses."""
    config = model.config
    if family_of(config).traced:
        return bool(getattr(config, "cria_channels", None))
    if config.is_heterogeneous or getattr(config, "consumer_bias", None):
        return True
    return not stock_accepts_heads(config, config.num_attention_heads)


def settle_class(model: PreTrainedModel) -> PreTrainedModel:
    """Gives the model the class and config class that will load it again, in place.

    Changing the class in place keeps parameters, hooks and device placement as they are; the two classes differ only in
    how they build their layers.

    Raises:
        ValueError: the stock class cannot hold the model and the family has no Cria class.
    """
    family = family_of(model.config)
    if family.name == "torch":
        return model  # the network gets its class when it is saved
    if needs_cria(model):
        if family.cria is None:
            raise ValueError(f"The {family.name} family has no per-layer class. Use a uniform layout that its config accepts.")
        module = MODULES[family.cria]
        _change_class(model, module, cria=True)
    elif type(model.config).__name__.startswith("Cria"):
        _change_class(model, MODULES[str(family.cria)], cria=False)
    return model


def _change_class(model: PreTrainedModel, module: ModuleType, *, cria: bool) -> None:
    new_config_class: Any = config_class(module) if cria else config_class(module).__mro__[1]
    pairs = {}
    for cls in task_classes(module).values():
        stock = cls.__bases__[-1]
        pairs[stock if cria else cls] = cls if cria else stock
    if type(model) not in pairs and type(model) not in pairs.values():
        known = ", ".join(sorted(cls.__name__ for cls in pairs))
        raise ValueError(f"`{type(model).__name__}` has no per-layer class; known: {known}. Prune one of those.")
    old = model.config
    fields = old.to_dict()
    own_fields = set() if cria else _field_names(type(old)) - _field_names(new_config_class)
    if family_of(old).stock_heads == "any":
        own_fields -= {"head_dim"}  # what a stock class that takes any head count builds its heads with
    for name in {"model_type", "auto_map", *own_fields}:
        fields.pop(name, None)
    new = new_config_class.from_dict(fields)
    new._name_or_path = old._name_or_path
    # Private but essential: which attention the modules run is decided by the config they share.
    new._attn_implementation = old._attn_implementation
    if cria:
        new.auto_map = auto_map(module)
    for part in model.modules():
        if type(part) in pairs:
            part.__class__ = pairs[type(part)]
            # transformers notes at an instance's birth what its class can record (hidden states): so build one, for free.
            with torch.device("meta"):
                type(part)(new)
        if part.__dict__.get("config") is old:
            part.config = new


def _field_names(config: Any) -> set[str]:
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
        ValueError: the model is not a Llama, has biases that Mistral lacks, or its layers differ.
    """
    family, config = family_of(model.config), model.config
    if family.name == "mistral":
        return
    if family.name != "llama" or config.attention_bias or config.mlp_bias or config.is_heterogeneous:
        raise ValueError(
            '`stock_class="mistral"` takes a bias-free Llama with equal layers; this is a '
            f"`{type(model).__name__}`{' with biases' if family.name == 'llama' else ''}. Leave `stock_class` out."
        )


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
    name = type(model).__name__.removeprefix("Cria").replace("Llama", "Mistral", 1)
    converted = getattr(transformers, name)(new_config).to(dtype=model.dtype, device=model.device)
    converted.load_state_dict(model.state_dict(), assign=True)
    converted.tie_weights()
    if model.can_generate():
        converted.generation_config = model.generation_config
    return converted.train(model.training)
