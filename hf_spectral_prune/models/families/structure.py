"""Recognises the FFN neurons of a model type that has no table, by how its modules follow its config.

The model is built without memory, as its config says and with one width changed. The linear layers that changed with it, in every
layer alike, are those of the FFN: rows of the producers, columns of the consumer. No name of a module is relied upon.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from accelerate import init_empty_weights
from torch import nn
from transformers import AutoModel
from transformers.pytorch_utils import Conv1D

from ...utils.words import in_a_line, shortened
from ..cria.channels import widths_of
from .base import Family, Producer, Signal, UnitKind
from .refusal import has_experts

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# What configs call the width of an FFN, in whole or in part.
_WIDTHS = ("intermediate", "ffn", "inner", "d_ff", "hidden_dim", "mlp_dim", "mlp_hidden")
# By how much it is changed: divisible by what fused or grouped layers may ask for.
_STEP = 64


def family_by_structure(config: PreTrainedConfig) -> Family:
    """The table that a model's own modules give for its FFN.

    Raises:
        ValueError: they do not show one; says why.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError("it has an encoder and a decoder, whose FFNs may follow different fields")
    if has_experts(config):  # of which a shared one may show, but is the smallest part
        raise ValueError("the weights of its experts lie in one tensor for all of them, and not in linear layers")
    cls: Any = type(config)
    return _family(cls, config.to_json_string(use_diff=False))


def structure_note(family: Family) -> str:
    """What the user should know of a model whose table is its own structure."""
    (row,) = family.kinds
    return (
        f"`{family.name}` is known by structure, not by name: its FFN is the part of `{family.layers}` whose width follows "
        f"`{row.size_field}` of its config, up to `{row.consumer}`. That removing units does what masking them does was tried on "
        "its own rows before the run."
    )


@lru_cache(maxsize=8)
def _family(cls: type[PreTrainedConfig], text: str) -> Family:
    config = _read(cls, text)
    try:
        network = _built(config)
    except _Unclear:
        raise ValueError("transformers cannot build it from its config") from None
    reasons = [f"no field of its config names the width of an FFN ({', '.join(f'`{part}`' for part in _WIDTHS)})"]
    for name, value in _width_fields(config):
        other = copy.deepcopy(config)
        width = (value or 0) + _STEP
        try:
            setattr(other, name, width)
            changed = _changed(network, _built(other))
            path, kind = _ffn(network, changed, name, width)
        except _Unclear as error:
            reasons.append(f"`{name}` {error}")
            continue
        return Family(name=config.model_type, model_types=(config.model_type,), layers=path, kinds=(kind,), by_structure=True)
    raise ValueError(reasons[-1])


class _Unclear(Exception):
    """A config field is not the width of an FFN that can be cut; says why, to go on from the field's name."""


def _read(cls: type[PreTrainedConfig], text: str) -> PreTrainedConfig:
    fields = json.loads(text, object_hook=_special_float)
    fields.pop("model_type", None)
    fields.pop("transformers_version", None)
    try:
        return cls.from_dict(fields)
    except Exception as error:  # a class may refuse what it has itself made of its values
        raise ValueError(f"its config is refused by transformers ({shortened(in_a_line(error))})") from None


def _special_float(fields: dict[str, Any]) -> Any:
    """Infinities and NaNs stand in the JSON of configs as `{"__float__": "Infinity"}`."""
    return float(fields["__float__"]) if fields.keys() == {"__float__"} else fields


def _width_fields(config: PreTrainedConfig) -> Iterator[tuple[str, int | None]]:
    for name, value in config.to_dict().items():
        whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if any(part in name for part in _WIDTHS) and (whole or value is None):
            yield name, value


def _built(config: PreTrainedConfig) -> nn.Module:
    """The base model, without memory for its weights."""
    try:
        with init_empty_weights():
            network: nn.Module = AutoModel.from_config(config)
    except Exception as error:  # whatever a class makes of a width that it was not written for
        raise _Unclear(f"cannot be changed alone ({type(error).__name__})") from None
    return network


def _changed(network: nn.Module, other: nn.Module) -> dict[str, tuple[nn.Module, nn.Module]]:
    """{path: both modules} of those whose own parameters changed in shape."""
    others = dict(other.named_modules())
    if others.keys() != dict(network.named_modules()).keys():
        raise _Unclear("changes which modules there are")
    found = {}
    for path, module in network.named_modules():
        shapes, changed = (
            {name: value.shape for name, value in each.named_parameters(recurse=False)} for each in (module, others[path])
        )
        if shapes != changed:
            found[path] = (module, others[path])
    if not found:
        raise _Unclear("changes no weight")
    return found


def _ffn(network: nn.Module, changed: dict[str, tuple[nn.Module, nn.Module]], field: str, width: int) -> tuple[str, UnitKind]:
    """The path of the list of layers, and the table's row that all of them share."""
    lists = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.ModuleList) and len(module)]
    holding = [
        (name, module)
        for name, module in lists
        if all(path.startswith(f"{name}.") for path in changed) and not _nested(name, lists)
    ]
    if not holding:
        raise _Unclear(f"changes weights outside of one list of layers, e.g. `{next(iter(changed))}`")
    name, layers = holding[0]
    rows = []
    for index in range(len(layers)):
        inside = f"{name}.{index}."
        own = {path.removeprefix(inside): pair for path, pair in changed.items() if path.startswith(inside)}
        rows.append(_row(own, field, width, inside))
    if any(row != rows[0] for row in rows):
        raise _Unclear("is of another make in different layers")
    return name, rows[0]


def _nested(name: str, lists: list[tuple[str, nn.ModuleList]]) -> bool:
    return any(name.startswith(f"{other}.") for other, _ in lists)


def _row(own: dict[str, tuple[nn.Module, nn.Module]], field: str, width: int, place: str) -> UnitKind:
    """The table's row of one layer, from the modules of it that changed."""
    producers, consumers = [], []
    for path, (module, other) in own.items():
        if not isinstance(module, (nn.Linear, Conv1D)):
            raise _Unclear(f"changes `{place}{path}`, a {type(module).__name__}, which is no linear layer")
        before, after = widths_of(module), widths_of(other)
        if after["in"] == width and before["out"] == after["out"]:
            consumers.append(path)
        elif before["in"] == after["in"] and after["out"] in (width, 2 * width):
            producers.append(Producer(path, after["out"] // width))
        else:
            raise _Unclear(f"changes `{place}{path}` otherwise than by its own value")
    if len(consumers) != 1 or not producers:
        place = place.removesuffix(".")
        raise _Unclear(
            f"has {len(producers)} producers and {len(consumers)} consumers in `{place}`, where one of these is needed"
        )
    first = min(producers, key=lambda producer: "gate" not in producer.module)
    return UnitKind(
        kind="ffn",
        before=Signal(first.module, "output", 0, first.num_blocks),
        after=Signal(consumers[0], "input"),
        producers=tuple(producers),
        consumer=consumers[0],
        size_field=field,
        config_fields=(field,),
        stream=None,
    )
